r"""EDM: growing white noise, preconditioned network, Heun's method on a warped grid.

q(x_t | x_0) = N(x_0, sigma_t^2 I) with sigma_t = sigma_max t; the network's input and target have
unit variance for data of standard deviation 1/2; log sigma is normal in training.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Tero Karras, Miika Aittala,
    Timo Aila, Samuli Laine, 2022), https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, scaled
from sfumato.corruption.families import Scale
from sfumato.corruption.prior import standard
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Linear
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.estimation.loss import unit_target
from sfumato.estimation.predictions import Precondition, wiener
from sfumato.methods.recipe import Recipe, rising
from sfumato.sampling.flow import HEUN, churn, flow
from sfumato.sampling.samplers import Sampler

FILTER = wiener(scaled(0.25))


def preconditioned(process: Process, t: Tensor) -> Precondition:
    """c_skip, c_out and c_in of EDM, with c_noise = log(sigma) / 4."""
    level = process.noise.at(t)
    label = level.log_gain / 4 if isinstance(level, Diagonal) else t
    return FILTER(process, t)._replace(label=label)


def edm(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    sigma: tuple[float, float] = (0.002, 80.0),
    rho: float = 7.0,
    center: float = -1.2,
    spread: float = 1.2,
    stir: float = 0.0,
    stir_between: tuple[float, float] = (0.0, 0.0),
    stir_noise: float = 1.0,
    steps: int = 18,
) -> Recipe:
    """EDM: growing white noise, preconditioned network, Heun's method on a warped grid.

    Args:
        shape: of one signal, any.
        stats: not used.
        sigma: smallest and largest noise.
        rho: warp of the sampler's grid; larger puts more steps at small noise.
        center: mean of log sigma in training.
        spread: standard deviation of log sigma in training.
        stir: noise added back in sampling, the paper's S_churn; 0 for none.
        stir_between: smallest and largest sigma at which it is added, S_min and S_max; 0 for the
            largest: no limit.
        stir_noise: standard deviation of that noise, relative to the one that preserves the
            distribution of x, S_noise.
        steps: steps of the sampler, of two network calls each but the last.
    """
    low, high = rising("sigma", sigma)
    least, most = stir_between[0] / high, (stir_between[1] or math.inf) / high
    process = Process(signal=Scale(Constant(1.0)), noise=Scale(Linear(0.0, high)))

    def times(u: Tensor) -> Tensor:
        # Half a step of float32 off both ends, where the normal quantile is infinite.
        level = center + spread * torch.special.ndtri(u.double().clamp(2**-25, 1 - 2**-25))
        return (level.exp() / high).clamp(max=1.0)

    def grid(count: int) -> Tensor:
        """sigma_i = (sigma_max^1/rho + i / (N - 1) (sigma_min^1/rho - sigma_max^1/rho))^rho, 0."""
        if count < 1:
            raise Refused(f"sampling needs one step or more; got {count}.")
        ends = high ** (1 / rho), low ** (1 / rho)
        inner = torch.linspace(*ends, count, dtype=torch.float64) ** rho / high
        return torch.cat([inner.clamp(max=1.0), torch.zeros(1).double()])

    kernel = churn(HEUN, stir, least, most, stir_noise) if stir else flow(HEUN)
    return Recipe(
        process,
        preconditioned,
        unit_target(preconditioned),
        Sampler(kernel, steps, grid),
        standard(process, shape),
        __doc__ or "",
        times=times,
    )
