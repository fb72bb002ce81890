r"""NCSN: white noise of geometric levels, annealed Langevin dynamics.

q(x_k | x_0) = N(x_0, sigma_k^2 I), k = 1 .. L; loss sigma_k^2 || error of the score ||^2, which is
|| eps^ - eps ||^2. At every level T steps x <- x + alpha_k score + sqrt(2 alpha_k) z with alpha_k ~
sigma_k^2; at the last, x_0^ (the final denoise).

References:
    Generative Modeling by Estimating Gradients of the Data Distribution (Yang Song, Stefano Ermon,
    2019), https://arxiv.org/abs/1907.05600
    Improved Techniques for Training Score-Based Generative Models (Yang Song, Stefano Ermon, 2020),
    https://arxiv.org/abs/2006.09011 (techniques 1, 2 and 4)
    Adversarial Score Matching and Improved Sampling for Image Generation (Alexia
    Jolicoeur-Martineau, Rémi Piché-Taillefer, Rémi Tachet des Combes, Ioannis Mitliagkas, 2020),
    https://arxiv.org/abs/2009.05475 (the final denoise; sampler annealed)
"""

from __future__ import annotations

import math

import torch

from sfumato.algebra.operators import Operator
from sfumato.corruption.families import Fixed, Scale
from sfumato.corruption.prior import fitted
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Geometric
from sfumato.corruption.statistics import DataStatistics, default_statistics
from sfumato.errors import Refused
from sfumato.estimation.loss import level_times, simple
from sfumato.estimation.predictions import noise, unit_input
from sfumato.methods.recipe import Recipe, rising
from sfumato.methods.spacing import every
from sfumato.sampling.kernels import langevin
from sfumato.sampling.samplers import Sampler


def ncsn(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    sigma: tuple[float, float] = (0.01, 1.0),
    count: int = 10,
    delta: float = 0.1,
    inner: int = 100,
) -> Recipe:
    """NCSN: white noise of geometric levels, annealed Langevin dynamics.

    Args:
        shape: of one signal, any.
        stats: statistics of the data; the sampler starts from a Gaussian with these.
        sigma: smallest and largest noise for data in [0, 1], the paper's units; geometric between.
        count: number of levels, and steps of the sampler.
        delta: step of Langevin dynamics over the variance of the level, the paper's 2e-5 / 2 over
            0.01^2.
        inner: Langevin steps at each level but the first, which the sampler starts from.
    """
    low, high = rising("sigma", sigma, 2.0)  # data span [-1, 1] here, [0, 1] in the paper
    return annealed(shape, stats, (low, high), count, delta, inner)


def ncsnv2(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    smallest: float = 0.01,
    largest: float = 0.0,
    count: int = 0,
    inner: int = 5,
) -> Recipe:
    """NCSNv2: NCSN with levels and steps from its techniques 1, 2 and 4.

    Args:
        shape: of one signal, any.
        stats: statistics of the data.
        smallest: noise for data in [0, 1], the paper's units.
        largest: likewise; 0 for the largest distance between two images (technique 1).
        count: number of levels, and steps of the sampler; 0 for technique 2.
        inner: Langevin steps at each level but the first, which the sampler starts from; their
            size is technique 4's for these levels.
    """
    stats = stats or default_statistics(shape)
    # Data span [-1, 1] here, [0, 1] in the paper.
    low, high = rising("noise", (2 * smallest, 2 * largest if largest else stats.distance))
    count = count or 1 + math.ceil(math.log(high / low) / math.log(ratio(math.prod(shape))))
    gamma = (high / low) ** (1 / max(1, count - 1))
    return annealed(shape, stats, (low, high), count, step_size(gamma, inner), inner)


def annealed(
    shape: tuple[int, ...],
    stats: DataStatistics | None,
    sigma: tuple[float, float],
    count: int,
    delta: float,
    inner: int,
    colour: Operator | None = None,
) -> Recipe:
    """`count` geometric levels, from sigma[1] at t = 1 to sigma[0] at t = 1 / count."""
    low, high = rising("sigma", sigma)
    if count < 2:
        raise Refused(f"annealing needs two levels or more; got {count}.")
    start = low * (high / low) ** (-1 / (count - 1))
    level = Scale(Geometric(start, high))
    noise_ = level if colour is None else level @ Fixed(colour)
    process = Process(signal=Scale(Constant(1.0)), noise=noise_)
    return Recipe(
        process,
        unit_input(noise),
        simple,
        Sampler(langevin(delta, inner), count, every(count)),
        fitted(stats or default_statistics(shape), process),
        __doc__ or "",
        times=level_times(count),
        fixed=True,
    )


def ratio(dimensions: int) -> float:
    r"""gamma of technique 2: half of the samples of a level have a norm typical of the next level.

    Phi(sqrt(2D) (gamma - 1) + 3 gamma) - Phi(sqrt(2D) (gamma - 1) - 3 gamma) = 1/2.
    """
    low, high = 1.0, 10.0
    for _ in range(60):
        gamma = (low + high) / 2
        shift = math.sqrt(2 * dimensions) * (gamma - 1)
        ends = torch.tensor([shift + 3 * gamma, shift - 3 * gamma], dtype=torch.float64)
        upper, lower = torch.special.ndtr(ends).tolist()
        low, high = (gamma, high) if upper - lower > 0.5 else (low, gamma)
    return low


def step_size(gamma: float, inner: int) -> float:
    r"""delta of technique 4: after `inner` steps the variance is as near the level's as possible.

    rho^2T (gamma^2 - w) + w with rho = 1 - delta, w = 1 / (1 - delta / 2), starting from gamma^2.
    """
    deltas = torch.logspace(-4, -0.01, 4000, dtype=torch.float64)
    steady = 1 / (1 - deltas / 2)
    reached = (1 - deltas) ** (2 * inner) * (gamma**2 - steady) + steady
    return float(deltas[(reached - 1).abs().argmin()])
