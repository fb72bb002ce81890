r"""Multistep exponential integrators of the flow, in half the log-SNR of each coefficient.

Where C_t and S_t share a basis, lambda = log(C_t / S_t) of a coefficient, half its log-SNR, is a
time variable in which the flow from t to s is an average of the estimate:

    x_s = K x_t + (C_s - K C_t) mean(x_0^),   K = S_s S_t^-1,   density e^lambda from t to s.

A constant x_0^ gives `ddim`; the polynomial through the last estimates in its place gives every
higher order, with no more network calls. For white noise and a fading signal all coefficients share
one lambda, and these are the known solvers; with blur, bands and coloured noise each has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from sfumato.algebra.combine import apply
from sfumato.algebra.logs import log_of
from sfumato.algebra.operators import Diagonal, Operator
from sfumato.algebra.place import Placed
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, Estimator
from sfumato.names import value
from sfumato.sampling.kernels import Call, Kernel, Loop, estimated
from sfumato.sampling.operator_table import OperatorTable

NEAR = 0.1
"""Smallest span of lambda, as a share of the step's, over which a slope is taken."""

DEAF = -18.0
"""Log-SNR below which a coefficient's estimate is independent of x_t and not used in slopes."""

_GAUSS = [Placed(torch.from_numpy(a)) for a in np.polynomial.legendre.leggauss(12)]

LONG = 2.0
"""Step of lambda above which moments are in closed form; below it they are by quadrature."""


@final
class Past(NamedTuple):
    """The state of a multistep kernel.

    Attributes:
        totals: estimates `of` x_0 at earlier times, the latest first; see `Estimator.total`.
        x: that at the start of the previous step; None at first.
    """

    totals: tuple[Tensor, ...] = ()
    x: Tensor | None = None


@final
@value
class multistep(Kernel):
    r"""The flow by the polynomial through the last `order` estimates; one network call a step.

    Order 1 is `ddim`, order 2 DPM-Solver++(2M), order 3 UniP-3 (whose second derivative is that of
    the interpolant; DPM-Solver++(3M) as published has half of it). With `corrector` each point is
    corrected by the estimate made there, which the next step needs anyway: UniPC of that order,
    one order higher. Order 3 always corrects its first point, which a single estimate led to. A
    coefficient whose lambda did not change, or whose log-SNR was below `DEAF`, uses fewer
    estimates.

    Args:
        order: number of estimates that a step uses, 1 to 3.
        corrector: correct each point by the estimate made there.

    Raises:
        ValueError: another order; on use, a process that is diagonal in no basis.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> grid = sf.grids.uniform_grid(20)
    >>> [round(predict(sf.kernels.multistep(order), grid).error, 3) for order in (1, 2, 3)]
    [0.136, 0.076, 0.07]

    References:
        DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (C. Lu, Y.
        Zhou, F. Bao, J. Chen, C. Li, J. Zhu, 2022), https://arxiv.org/abs/2211.01095
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (W.
        Zhao, L. Bai, Y. Rao, J. Zhou, J. Lu, 2023), https://arxiv.org/abs/2302.04867
    """

    order: int = 2
    corrector: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise Refused(f"multistep uses 1, 2 or 3 estimates; got {self.order}.")

    @property
    def name(self) -> str:
        return f"multistep {self.order}{' with corrector' if self.corrector else ''}"

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        process = denoiser.process
        before = _earlier(grid)
        order = self.order

        def make(t: Tensor, s: Tensor) -> tuple[Estimator, Combination, Combination]:
            times = [before(t, k) for k in range(order + 1)]
            known = [denoiser.at(u) for u in times]
            back = [estimator.of.inv() for estimator in known]
            ahead = _step(process, s, times[:order], back[:order])
            again = _step(process, t, times[1:], back[1:], new=back[0])
            return known[0], ahead, again

        table = OperatorTable(make, x, grid)

        def step(past: Past, x: Tensor, i: int, call: Call) -> tuple[Tensor, Past]:
            estimator, ahead, again = table[i]
            known = (estimator.total(x, call.cond), *past.totals)
            if past.x is not None and (self.corrector or (order == 3 and i == 1)):
                x = _taken(again, past.x, known)
            known = known[:order]
            return _taken(ahead, x, known), Past(known, x)

        return Loop(step, estimated(denoiser, grid[-1]), Past())


Combination = tuple[Operator, ...]
"""An operator on x, and one on each total, the latest first."""


def _taken(of: Combination, x: Tensor, totals: Sequence[Tensor]) -> Tensor:
    # Where there are fewer totals than operators, the operators of the others are 0.
    return apply((of[0], x), *zip(of[1:], totals, strict=False))


def _earlier(grid: Tensor) -> Callable[[Tensor, int], Tensor]:
    """(times of the grid, k) -> the times k before them; the first where there are none."""
    placed = Placed(grid.cpu().to(torch.float64))

    def earlier(t: Tensor, k: int) -> Tensor:
        known = placed.on(t.device)
        at = torch.searchsorted(-known, -t.contiguous()) - k
        return known.take(at.clamp(min=0))

    return earlier


def _step(
    process: Process,
    s: Tensor,
    times: Sequence[Tensor],
    back: Sequence[Operator],
    new: Operator | None = None,
) -> Combination:
    """Operators of the step from times[0] to s on x and on the totals there and before.

    `back` take a total to x_0^ at each time; with `new`, that at s, the total at s is used too.
    """
    t = times[0]
    carry = process.noise.at(s) @ process.noise.at(t).inv()
    pull = process.signal.at(s) - carry @ process.signal.at(t)
    weights = _weights(*_clock(process, s, times), corrects=new is not None)
    gains = process.gains(t)
    basis = None if gains is None else gains.basis
    shares = [Diagonal(log_of(w.abs()), _sign(w), basis) for w in weights]
    ways = [*back] if new is None else [new, *back]
    return carry, *(pull @ share @ way for share, way in zip(shares, ways, strict=True))


def _sign(w: Tensor) -> Tensor:
    return torch.where(w < 0, -1.0, 1.0)


def _clock(process: Process, s: Tensor, times: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The change of lambda from times[0] to s, and those between the times before.

    0 where an end of the span has no finite log-SNR, or starts below `DEAF`.
    """
    read = [process.log_snr(u) for u in (s, *times)]
    if any(snr is None for snr in read):
        raise Refused(
            "multistep needs a process that is diagonal in one basis, where each coefficient has a "
            "log-SNR. Use ddim or heun."
        )
    snr = torch.broadcast_tensors(*(x for x in read if x is not None))
    spans = [(late - early) / 2 for late, early in pairwise(snr)]
    heard = [x.isfinite() & (early > DEAF) for x, early in zip(spans, snr[1:], strict=True)]
    spans = [torch.where(known, x, 0.0) for known, x in zip(heard, spans, strict=True)]
    return spans[0], spans[1:]


def _weights(step: Tensor, gaps: Sequence[Tensor], corrects: bool) -> list[Tensor]:
    """Weights of the estimates: at s if it corrects, at t, and at one earlier time for each gap.

    They integrate the polynomial through as many estimates as are at distinct lambda.
    """
    alive = step.abs() > 1e-9
    span = torch.where(alive, step, 1.0)
    moments = _moments(span, 2 + len(gaps))
    one, none = torch.ones_like(span), torch.zeros_like(span)
    # With two nodes the midpoint rule has the integral's order, and both papers use it.
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
            # `solve` itself would wait for a device, to check whether a matrix is singular.
            better = list(torch.linalg.solve_ex(powers, target).result.unbind(-1))
        better += [none] * (len(gaps) - k - 1)
        found = [torch.where(alive, b, f) for b, f in zip(better, found, strict=True)]
    if corrects:  # where lambda did not change there is nothing to correct
        still = step.abs() <= 1e-9
        found = [torch.where(still, x, f) for x, f in zip([none, one], found, strict=False)] + (
            found[2:]
        )
    return found


def _moments(span: Tensor, count: int) -> list[Tensor]:
    r"""Means of z^i over a step of length `span`: int z^i e^(span z) dz / int e^(span z) dz on
    [0, 1], i = 0 .. count - 1."""
    places, weights = (placed.on(span.device) for placed in _GAUSS)
    z = (places + 1) / 2
    density = weights * torch.exp(-(1 - z) * span.unsqueeze(-1).clamp(-LONG, LONG))
    near = [(density * z**i).sum(-1) / density.sum(-1) for i in range(count)]
    long = torch.where(span.abs() > LONG, span, LONG)
    whole = -torch.expm1(-long)
    far = [torch.ones_like(span)]
    held = whole
    for i in range(1, count):
        held = 1 - i / long * held
        far.append(held / whole)
    return [torch.where(span.abs() > LONG, f, n) for f, n in zip(far, near, strict=True)]
