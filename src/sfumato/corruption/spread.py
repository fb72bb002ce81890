"""How far apart data are: the largest distance between two of them, NCSNv2's first noise level.

References:
    Improved Techniques for Training Score-Based Generative Models (Y. Song, S. Ermon, 2020),
    technique 1, https://arxiv.org/abs/2006.09011
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.algebra.operators import Operator

EXACT = 4096
"""Signals up to which all pairs are looked at."""
SWEEPS, PAIRS = 16, 100_000


class Farthest(NamedTuple):
    """The largest distance between two signals lies between these (final).

    Attributes:
        low: found between two of them.
        high: that no two of them exceed; equal to `low` where all pairs were looked at.
        beyond: share of all pairs that lie further apart than the largest of the random ones, at
            most, with 95 % confidence; 0 where all were looked at.
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

    Up to `exact` signals by all pairs. Beyond, between two bounds: the furthest found by sweeps
    (from a signal to that furthest from it, and on from there) and by random pairs, and the radius
    around the mean twice, by the triangle inequality. Memory does not grow with their number then.

    Args:
        batch: indices -> signals (n, *shape), such as `Data.batch`.
        count: how many there are.
        colour: L of the noise level_t L; white by default.
        exact: as said.
        chunk: signals in memory at once, on either side of a block of pairs.

    Raises:
        ValueError: fewer than two signals, or some that are not finite.
    """
    if count < 2:
        raise ValueError(f"a distance needs two images or more; got {count}.")

    def rows(some: Sequence[int]) -> Tensor:
        x = batch(some)
        if not bool(x.isfinite().all()):
            raise ValueError("some images have values that are not finite numbers.")
        return (x if colour is None else colour.inv()(x)).flatten(1)

    parts = [range(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    if count <= exact:
        found = _all_pairs([rows(part) for part in parts])
        return Farthest(found, found, 0.0)
    center = torch.stack([rows(part).double().sum(0) for part in parts]).sum(0) / count
    radius, here = _furthest(rows, parts, center)
    generator, low = torch.Generator().manual_seed(0), 0.0
    for _ in range(SWEEPS):
        away, there = _furthest(rows, parts, rows([here])[0])
        if away <= low:
            there = int(torch.randint(count, (), generator=generator))
        low, here = max(low, away), there
    for pair in torch.randint(count, (2, PAIRS), generator=generator).split(chunk, 1):
        apart = rows(pair[0].tolist()) - rows(pair[1].tolist())
        low = max(low, float(apart.square().sum(1).max()) ** 0.5)
    return Farthest(low, 2 * radius, 3 / PAIRS)


def looks(count: int, exact: int = EXACT) -> int:
    """How many signals `farthest` asks for, of `count`."""
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
    """Candidates by products, each then measured by its difference, which keeps its digits."""
    best = 0.0
    for i, a in enumerate(parts):
        for b in parts[i:]:
            apart = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
            near = apart >= apart.max() - 1e-4 * apart.max().abs()
            for p, q in near.nonzero()[:64].tolist():
                best = max(best, float((a[p].double() - b[q].double()).square().sum()) ** 0.5)
    return best
