r"""The density of the probability flow, an ordinary differential equation, by its divergence.

log p(x) = log p_1(x_1) + int div v dt,  along dx/dt = v from x up to t = 1
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor

from sfumato.corruption.boundary import expect, shaped
from sfumato.corruption.prior import Prior, RandnLike
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, flow_velocity
from sfumato.limits import STEPS, short, whole
from sfumato.sampling.flow import RK4, Tableau, solved
from sfumato.sampling.sample import check_grid

LEAST = 1e-12
"""The smallest tolerance: a solver in float64 takes ever more steps below it."""


@torch.no_grad()
def log_prob(
    denoiser: Denoiser,
    prior: Prior,
    x: Tensor,
    grid: Tensor,
    solver: Tableau | None = RK4,
    probes: int = 1,
    randn_like: RandnLike = torch.randn_like,
    tolerance: float = 1e-5,
) -> Tensor:
    r"""log p(x) of the probability flow at grid[-1], in nats, (B,).

    The divergence is estimated by probes of +-1 in the coordinates of the process's basis, without
    variance where the estimate acts on each coefficient separately; with 0 probes it is exact.

    Args:
        denoiser: the estimate, differentiable in x.
        prior: the law of x at grid[0].
        x: (B, *shape) with the law of x at grid[-1].
        grid: falling times that end where there is noise.
        solver: of the steps of the grid, upwards; None for Dormand and Prince's method between the
            grid's ends, to `tolerance`.
        probes: number of probes; 0 for the exact trace, of one backward pass for each value.
        randn_like: source of the probes.

    Raises:
        ValueError: no noise at the end of the grid, or a prior without density.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1), sf.operators.identity())
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> prior = sf.priors.standard(process, (1,))
    >>> sf.log_prob(denoiser, prior, torch.zeros(1, 1), sf.grids.uniform_grid(10, last=0.01))
    tensor([-0.9189], dtype=torch.float64)
    >>> -0.5 * torch.log(2 * torch.tensor(torch.pi))  # of N(0, 1) at 0
    tensor(-0.9189)

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), section 4.3, https://arxiv.org/abs/2011.13456
        FFJORD (W. Grathwohl, R. T. Q. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, 2018),
        https://arxiv.org/abs/1810.01367
    """
    check_model(denoiser, prior, x)
    check_tolerance(tolerance)
    whole("probes", probes, 0, STEPS)
    times = check_grid(grid).flip(0)
    signs = [_probe(denoiser.process, times[0], randn_like(x)) for _ in range(probes)]

    def rates(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _rates(denoiser, y, t, signs)

    gained = torch.zeros(len(x), dtype=torch.float64)
    if solver is None:
        start = (x, gained.to(x))
        ends = times[[0, -1]]
        x, gained = solved(lambda t, now: rates(t, now[0]), start, ends, tolerance, tolerance)
        gained = gained.cpu().double()
    else:
        for t, s in pairwise(times):
            x, gain = _climbed(solver, rates, t, s, x)
            gained = gained + gain
    return prior.log_prob(x).cpu().double() + gained


def check_tolerance(tolerance: float) -> None:
    """Raise ValueError unless a solver can meet `tolerance`: above 0, at most 1."""
    if not isinstance(tolerance, Real) or not LEAST <= tolerance <= 1:
        raise Refused(f"tolerance must be from {LEAST:g} to 1; got {short(tolerance)}.")


def check_model(denoiser: Denoiser, prior: Prior, x: Tensor) -> None:
    """Raise TypeError or ValueError unless these are a denoiser, a prior and its signals."""
    expect(denoiser, Denoiser, "a likelihood needs a Denoiser first")
    expect(prior, Prior, "a likelihood needs a Prior after the denoiser")
    shaped("x", x, prior.shape)


def _rates(denoiser: Denoiser, x: Tensor, t: Tensor, probes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The flow's velocity at x and its divergence, (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = flow_velocity(denoiser, x, t)
        if probes:
            pulls = [
                (torch.autograd.grad(slope, x, probe, retain_graph=True)[0] * probe).flatten(1)
                for probe in probes
            ]
            return slope.detach(), torch.stack(pulls).sum(2).mean(0)
        flat = slope.flatten(1)
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for i in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
            total = total + row.flatten(1)[:, i]
    return slope.detach(), total


def _climbed(
    solver: Tableau,
    rates: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    t: Tensor,
    s: Tensor,
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """One Runge-Kutta step from t up to s, of x and of the integral of the divergence."""
    span = float(s - t)
    slopes = []
    gain = torch.zeros(len(x), dtype=torch.float64)
    after = x
    for node, weights, share in zip(solver.c, solver.a, solver.b, strict=True):
        at = x
        for weight, slope in zip(weights, slopes, strict=True):
            at = at + span * weight * slope
        slope, divergence = rates(t + node * (s - t), at)
        slopes.append(slope)
        after = after + span * share * slope
        gain = gain + span * share * divergence.cpu().double()
    return after, gain


def _probe(process: Process, t: Tensor, normal: Tensor) -> Tensor:
    """+-1 for each coefficient of the process's basis, as a signal."""
    signs = torch.where(normal < 0, -1.0, 1.0).to(normal)
    gains = process.gains(t)
    if gains is not None and gains.basis is not None:
        return gains.basis.synthesize(signs)
    return signs
