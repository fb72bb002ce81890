"""How far apart data are: the largest distance between two of them, NCSNv2's first noise level.

References:
    Improved Techniques for Training Score-Based Generative Models (Y. Song, S. Ermon, 2020),
    technique 1, https://arxiv.org/abs/2006.09011
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.operators import Operator
from sfumato.errors import Refused

EXACT = 4096
"""Number of signals up to which all pairs are compared."""
SWEEPS = 16
PAIRS = 100_000


@final
class Farthest(NamedTuple):
    """Bounds of the largest distance between two signals.

    Attributes:
        low: the largest distance found.
        high: an upper bound; equal to `low` where all pairs were compared.
        beyond: share of all pairs that lie further apart than the largest of the random ones, at
            most, with 95 % confidence; 0 where all were compared.
    """

    low: float
    high: float
    beyond: float


def farthest(
    batch: Callable[[Sequence[int]], Tensor],
    count: int,
    colour: Operator | None = None,
    exact: int = EXACT,
    chunk: int = 256,
) -> Farthest:
    r"""The largest distance || L^-1 (x_i - x_j) || of two signals, in the noise's metric.

    Up to `exact` signals by all pairs. Above, between two bounds: the largest distance found by
    sweeps (from a signal to the one furthest from it, repeated) and by random pairs, and twice the
    radius around the mean, by the triangle inequality. Memory then does not grow with their number.

    Args:
        batch: indices -> signals (n, *shape), such as `Data.batch`.
        count: how many there are.
        colour: L of the noise level_t L; white by default.
        exact: number of signals up to which all pairs are compared.
        chunk: signals in memory at once, on either side of a block of pairs.

    Raises:
        ValueError: fewer than two signals, or some that are not finite.

    >>> digits = sf.load("digits")
    >>> round(sf.schedules.farthest(digits.batch, 100).low, 3)
    8.612
    """
    if count < 2:
        raise Refused(f"a distance needs two images or more; got {count}.")

    def rows(some: Sequence[int]) -> Tensor:
        x = batch(some)
        if not bool(x.isfinite().all()):
            raise Refused("some images have values that are not finite numbers.")
        return (x if colour is None else colour.inv()(x)).flatten(1)

    parts = [range(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    if count <= exact:
        found = _all_pairs([rows(part) for part in parts])
        return Farthest(found, found, 0.0)
    center = torch.stack([rows(part).double().sum(0) for part in parts]).sum(0) / count
    radius, here = _furthest(rows, parts, center)
    generator = torch.Generator().manual_seed(0)
    low = 0.0
    for _ in range(SWEEPS):
        away, there = _furthest(rows, parts, rows([here])[0])
        if away <= low:
            there = int(torch.randint(count, (), generator=generator))
        low = max(low, away)
        here = there
    for pair in torch.randint(count, (2, PAIRS), generator=generator).split(chunk, 1):
        apart = rows(pair[0].tolist()) - rows(pair[1].tolist())
        low = max(low, float(apart.square().sum(1).max()) ** 0.5)
    return Farthest(low, 2 * radius, 3 / PAIRS)


def looks(count: int, exact: int = EXACT) -> int:
    """How many signals `farthest` reads, of `count`, repeats included."""
    return count if count <= exact else (2 + SWEEPS) * count + 2 * PAIRS + SWEEPS


def _furthest(
    rows: Callable[[Sequence[int]], Tensor], parts: Sequence[range], center: Tensor
) -> tuple[float, int]:
    """How far the signal furthest from `center` is, and which it is."""
    best, which = -1.0, 0
    for part in parts:
        away = (rows(part) - center.to(torch.float32)).square().sum(1)
        if float(away.max()) > best:
            best, which = float(away.max()), part[int(away.argmax())]
    return best**0.5, which


def _all_pairs(parts: Sequence[Tensor]) -> float:
    """The largest distance: candidates from products, then exact distances from differences."""
    best = 0.0
    for i, a in enumerate(parts):
        for b in parts[i:]:
            apart = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
            near = apart >= apart.max() - 1e-4 * apart.max().abs()
            for p, q in near.nonzero()[:64].tolist():
                best = max(best, float((a[p].double() - b[q].double()).square().sum()) ** 0.5)
    return best
