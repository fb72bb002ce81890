r"""Multistep exponential integrators of the flow, for each coefficient on its own clock.

Where C_t and S_t share a basis, lambda = log(C_t / S_t) of a coefficient, half its log-SNR, is a
clock on which the flow from t to s is an average of the estimate:

    x_s = K x_t + (C_s - K C_t) mean(x_0^),   K = S_s S_t^-1,   density e^lambda from t to s.

Holding x_0^ still is `ddim`; putting the polynomial through the last estimates in its place gives
every higher order, with no more network calls. For white noise and a fading signal all coefficients
share one clock, and these are the known solvers; blur, bands and coloured noise have one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.algebra.combine import apply
from sfumato.algebra.logs import log_of
from sfumato.algebra.operators import Diagonal, Operator
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, Precondition
from sfumato.sampling.kernels import Kernel, Table

NEAR = 0.1
"""A span of the clock shorter than this share of the step's tells nothing of the slope."""

DEAF = -18.0
"""Log-SNR under which an estimate knows nothing of a coefficient, and is no slope's end."""

LONG = 2.0
"""A step of the clock from which moments are closed forms; below it they are quadratures."""


class Past(NamedTuple):
    """What a multistep kernel remembers (final).

    Attributes:
        denoiser, table: as in other kernels.
        targets: of x_0^ at the times before, the latest first.
        x: what the step before set out from; None at first.
    """

    denoiser: Denoiser
    table: Table
    targets: tuple[Tensor, ...] = ()
    x: Tensor | None = None


def multistep(order: int = 2, corrector: bool = False) -> Kernel:
    r"""The flow by the polynomial through the last `order` estimates; one network call a step.

    Order 1 is `ddim`, order 2 DPM-Solver++(2M), order 3 UniP-3 (whose second derivative is that of
    the interpolant; DPM-Solver++(3M) as published has half of it). With `corrector` each point is
    corrected by the estimate made there, which the next step needs anyway: UniPC of that order,
    one order higher. Order 3 corrects its first point, which a single estimate led to. A
    coefficient whose clock stood still, or that was not heard before, takes fewer estimates.

    Args:
        order: estimates that a step looks at, 1 to 3.
        corrector: correct each point by the estimate made there.

    Raises:
        ValueError: another order; on use, a process that is diagonal in no basis.

    References:
        DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (C. Lu, Y.
        Zhou, F. Bao, J. Chen, C. Li, J. Zhu, 2022), https://arxiv.org/abs/2211.01095
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (W.
        Zhao, L. Bai, Y. Rao, J. Zhou, J. Lu, 2023), https://arxiv.org/abs/2302.04867
    """
    if order not in (1, 2, 3):
        raise ValueError(f"multistep looks at 1, 2 or 3 estimates; got {order}.")

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> Past:
        process, before = denoiser.process, _earlier(grid)

        def make(t: Tensor, s: Tensor) -> tuple[Precondition, Pulls, Pulls]:
            times = [before(t, k) for k in range(order + 1)]
            pres = [denoiser.precondition(u) for u in times]
            back = [pre.of.inv() for pre in pres]
            ahead = _step(process, s, times[:order], back[:order])
            again = _step(process, t, times[1:], back[1:], new=back[0])
            return pres[0], ahead, again

        return Past(denoiser, Table(make, x, grid))

    def step(state: Past, x: Tensor, i: int, randn_like: RandnLike) -> tuple[Tensor, Past]:
        pre, ahead, again = state.table[i]
        target = state.denoiser.target(x, pre)
        known = (target, *state.targets)
        if state.x is not None and (corrector or (order == 3 and i == 1)):
            x = _taken(again, state.x, known)
        known = known[:order]
        return _taken(ahead, x, known), state._replace(targets=known, x=x)

    return Kernel(init, step, f"multistep {order}{' with corrector' if corrector else ''}")


Pulls = tuple[Operator, ...]
"""An operator on x, and one on each target, the latest first."""


def _taken(pulls: Pulls, x: Tensor, targets: Sequence[Tensor]) -> Tensor:
    # Where fewer targets are known than there are operators, the operators of the others are 0.
    return apply((pulls[0], x), *zip(pulls[1:], targets, strict=False))


def _earlier(grid: Tensor) -> Callable[[Tensor, int], Tensor]:
    """(times of the grid, k) -> the times k before them; the first where there are none."""
    grid = grid.cpu().to(torch.float64)

    def earlier(t: Tensor, k: int) -> Tensor:
        at = torch.searchsorted(-grid, -t.contiguous()) - k
        return grid[at.clamp(min=0)]

    return earlier


def _step(
    process: Process,
    s: Tensor,
    times: Sequence[Tensor],
    back: Sequence[Operator],
    new: Operator | None = None,
) -> Pulls:
    """Operators of the step from times[0] to s on x and on the targets there and before.

    With `new`, the way back from a target made at s itself, that target is looked at too.
    """
    t = times[0]
    carry = process.noise.at(s) @ process.noise.at(t).inv()
    pull = process.signal.at(s) - carry @ process.signal.at(t)
    weights = _weights(*_clock(process, s, times), corrects=new is not None)
    joint = process.signal.at(t) @ process.noise.at(t)
    basis = joint.basis if isinstance(joint, Diagonal) else None
    shares = [Diagonal(log_of(w.abs()), _sign(w), basis) for w in weights]
    ways = [*back] if new is None else [new, *back]
    return carry, *(pull @ share @ way for share, way in zip(shares, ways, strict=True))


def _sign(w: Tensor) -> Tensor:
    return torch.where(w < 0, -1.0, 1.0)


def _clock(process: Process, s: Tensor, times: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """How far the clock goes from times[0] to s, and how far it went between the times before.

    0 where an end of the span tells nothing.
    """
    read = [process.log_snr(u) for u in (s, *times)]
    if any(snr is None for snr in read):
        raise ValueError(
            "multistep needs a process that is diagonal in one basis, whose coefficients have a "
            "clock each. Use ddim or heun."
        )
    snr = torch.broadcast_tensors(*(x for x in read if x is not None))
    spans = [(late - early) / 2 for late, early in pairwise(snr)]
    heard = [x.isfinite() & (early > DEAF) for x, early in zip(spans, snr[1:], strict=True)]
    spans = [torch.where(known, x, 0.0) for known, x in zip(heard, spans, strict=True)]
    return spans[0], spans[1:]


def _weights(step: Tensor, gaps: Sequence[Tensor], corrects: bool) -> list[Tensor]:
    """Weights of the estimates: at s where it corrects, at t, and one for each of `gaps` back.

    They integrate the polynomial through the estimates, on as many as have a clock to go by.
    """
    alive = step.abs() > 1e-9
    span = torch.where(alive, step, 1.0)
    moments = _moments(span, 2 + len(gaps))
    one, none = torch.ones_like(span), torch.zeros_like(span)
    # Of two nodes the midpoint rule is as good as the integral, and it is what both papers have.
    nodes, first = ([one, none], [one / 2, one / 2]) if corrects else ([none], [one])
    found = [*first, *[none] * len(gaps)]
    place = none
    for k, gap in enumerate(gaps):
        ratio = gap / span
        alive = alive & (ratio >= NEAR)
        place = place - torch.where(alive, ratio, 1.0)
        nodes.append(place)
        if len(nodes) == 2:
            better = [one + one / (2 * -place), -one / (2 * -place)]
        else:
            powers = torch.stack([torch.stack(nodes, -1) ** i for i in range(len(nodes))], -2)
            target = torch.stack(moments[: len(nodes)], -1)
            better = list(torch.linalg.solve(powers, target).unbind(-1))
        better += [none] * (len(gaps) - k - 1)
        found = [torch.where(alive, b, f) for b, f in zip(better, found, strict=True)]
    if corrects:  # where the clock stood still there is nothing to correct
        still = step.abs() <= 1e-9
        found = [torch.where(still, x, f) for x, f in zip([none, one], found, strict=False)] + (
            found[2:]
        )
    return found


def _moments(span: Tensor, count: int) -> list[Tensor]:
    r"""Means of z^i over a step of length `span`: int z^i e^(span z) dz / int e^(span z) dz on
    [0, 1], i = 0 .. count - 1."""
    places, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12))
    z = (places + 1) / 2
    density = weights * torch.exp(-(1 - z) * span.unsqueeze(-1).clamp(-LONG, LONG))
    near = [(density * z**i).sum(-1) / density.sum(-1) for i in range(count)]
    long = torch.where(span.abs() > LONG, span, LONG)
    whole = -torch.expm1(-long)
    far, held = [torch.ones_like(span)], whole
    for i in range(1, count):
        held = 1 - i / long * held
        far.append(held / whole)
    return [torch.where(span.abs() > LONG, f, n) for f, n in zip(far, near, strict=True)]
