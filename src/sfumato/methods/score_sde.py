r"""Score SDE: noise prediction in continuous time, predictor-corrector sampler.

VE: q(x_t | x_0) = N(x_0, sigma_t^2 I), sigma_t geometric. VP: N(sqrt(abar_t) x_0, (1 - abar_t) I)
with beta linear in time. Sub-VP: N(sqrt(abar_t) x_0, (1 - abar_t)^2 I). The loss is sigma_t^2 ||
error of the score ||^2 = || eps^ - eps ||^2, or weighted by g_t^2, which bounds the likelihood.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Yang Song, Jascha
    Sohl-Dickstein, Diederik P. Kingma, Abhishek Kumar, Stefano Ermon, Ben Poole, 2020),
    https://arxiv.org/abs/2011.13456
    Maximum Likelihood Training of Score-Based Diffusion Models (Yang Song, Conor Durkan, Iain
    Murray, Stefano Ermon, 2021), https://arxiv.org/abs/2101.09258 (the weight g^2)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sfumato.corruption.coupling import ancestral, ancestral_large
from sfumato.corruption.families import Scale
from sfumato.corruption.prior import standard
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement, Constant, Geometric, LinearBeta
from sfumato.corruption.statistics import DataStatistics, default_statistics
from sfumato.errors import Refused
from sfumato.estimation.loss import likelihood, simple
from sfumato.estimation.predictions import noise, unit_input
from sfumato.methods.recipe import Recipe, rising
from sfumato.names import choose
from sfumato.sampling.kernels import (
    Kernel,
    chain,
    corrector,
    moves,
    reverse,
    reverse_diffusion,
)
from sfumato.sampling.samplers import Sampler

WEIGHTS = {"simple": simple, "likelihood": likelihood}
REVERSE = moves(reverse_diffusion)


def ve(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    sigma: tuple[float, float] = (0.01, 0.0),
    weight: Literal["simple", "likelihood"] = "simple",
    predictor: Literal["reverse", "ancestral"] = "reverse",
    snr: float = 0.16,
    steps: int = 1000,
) -> Recipe:
    """Variance-exploding SDE: growing white noise, predictor-corrector sampler.

    Args:
        shape: of one signal, any.
        stats: statistics of the data, for the largest noise.
        sigma: smallest and largest noise for data in [0, 1], the paper's units; geometric between.
            0 for the largest: the largest distance between two images, as in the paper
            (NCSNv2's technique 1; 50 on CIFAR-10).
        weight: of the loss: sigma^2, or g^2 for likelihood.
        predictor: reverse diffusion or ancestral sampling.
        snr: ratio of norms of the corrector, one Langevin step after each predictor; 0 for none.
        steps: steps of the sampler, each of two network calls with a corrector.
    """
    # Data span [-1, 1] here, [0, 1] in the paper.
    largest = 2 * sigma[1] if sigma[1] else (stats or default_statistics(shape)).distance
    low, high = rising("sigma", (2 * sigma[0], largest))
    process = Process(signal=Scale(Constant(1.0)), noise=Scale(Geometric(low, high)))
    kernels = {"reverse": REVERSE, "ancestral": reverse(ancestral)}
    recipe = _recipe(process, shape, weight, _corrected(kernels, predictor, snr), steps, 1e-5)
    return replace(recipe, parametrization=unit_input(noise))


def vp(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    beta: tuple[float, float] = (0.1, 20.0),
    weight: Literal["simple", "likelihood"] = "simple",
    predictor: Literal["reverse", "ancestral"] = "reverse",
    snr: float = 0.16,
    steps: int = 1000,
) -> Recipe:
    """Variance-preserving SDE: fading signal in white noise, predictor-corrector sampler.

    Args:
        shape: of one signal, any.
        stats: not used.
        beta: rate of the noise at both ends of time, linear between.
        weight: of the loss: sigma^2, or g^2 for likelihood.
        predictor: reverse diffusion or ancestral sampling (DDPM's, of large variance).
        snr: ratio of norms of the corrector, one Langevin step after each predictor; 0 for none.
        steps: steps of the sampler, each of two network calls with a corrector.
    """
    power = LinearBeta(*beta)
    process = Process(signal=Scale(Amplitude(power)), noise=Scale(Complement(power)))
    kernels = {"reverse": REVERSE, "ancestral": reverse(ancestral_large)}
    return _recipe(process, shape, weight, _corrected(kernels, predictor, snr), steps, 1e-3)


def subvp(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    beta: tuple[float, float] = (0.1, 20.0),
    weight: Literal["simple", "likelihood"] = "simple",
    predictor: Literal["reverse", "ancestral"] = "reverse",
    snr: float = 0.16,
    steps: int = 1000,
) -> Recipe:
    """Sub-VP SDE: as VP with less noise, predictor-corrector sampler.

    Args:
        shape: of one signal, any.
        stats: not used.
        beta: rate of the noise at both ends of time, linear between.
        weight: of the loss: sigma^2, or g^2 for likelihood.
        predictor: reverse diffusion or ancestral sampling.
        snr: ratio of norms of the corrector, one Langevin step after each predictor; 0 for none.
        steps: steps of the sampler, each of two network calls with a corrector.
    """
    power = LinearBeta(*beta)
    level = Scale(Complement(power))
    process = Process(signal=Scale(Amplitude(power)), noise=level @ level)
    kernels = {"reverse": REVERSE, "ancestral": reverse(ancestral)}
    return _recipe(process, shape, weight, _corrected(kernels, predictor, snr), steps, 1e-3)


def _corrected(kernels: dict[str, Kernel], predictor: str, snr: float) -> Kernel:
    predict = choose("predictor", predictor, kernels)
    return chain(predict, corrector(snr)) if snr else predict


def _recipe(
    process: Process, shape: tuple[int, ...], weight: str, kernel: Kernel, steps: int, end: float
) -> Recipe:
    weighting = choose("weight", weight, WEIGHTS)

    def times(u: Tensor) -> Tensor:
        return 1e-5 + (1 - 1e-5) * u

    def grid(count: int) -> Tensor:
        """Evenly from 1 to `end`, then 0: the last step returns the estimate of x_0."""
        if count < 1:
            raise Refused(f"sampling needs one step or more; got {count}.")
        inner = torch.linspace(1, end, count, dtype=torch.float64)
        return torch.cat([inner, torch.zeros(1).double()])

    prior = standard(process, shape)
    sampler = Sampler(kernel, steps, grid)
    return Recipe(process, noise, weighting, sampler, prior, __doc__ or "", times=times)
