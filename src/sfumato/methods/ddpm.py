r"""DDPM: fading signal in white noise, noise prediction, ancestral sampler.

q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) on a chain of `length` steps, t = k / length; the
loss is || eps^ - eps ||^2. Also VP diffusion in discrete time. With the `ddim` kernel it is DDIM.

References:
    Denoising Diffusion Probabilistic Models (Jonathan Ho, Ajay Jain, Pieter Abbeel, 2020),
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (Alex Nichol, Prafulla Dhariwal, 2021),
    https://arxiv.org/abs/2102.09672 (the cosine schedule)
    Progressive Distillation for Fast Sampling of Diffusion Models (Tim Salimans, Jonathan Ho,
    2022), https://arxiv.org/abs/2202.00512 (the velocity)
"""

from __future__ import annotations

from typing import Literal

from sfumato.corruption.coupling import ancestral, ancestral_large
from sfumato.corruption.families import Scale
from sfumato.corruption.prior import standard
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement, cosine_betas, linear_betas
from sfumato.corruption.statistics import DataStatistics
from sfumato.estimation.loss import unit_target
from sfumato.estimation.predictions import noise, velocity
from sfumato.methods.recipe import Recipe
from sfumato.methods.spacing import discrete
from sfumato.names import choose
from sfumato.sampling.kernels import reverse
from sfumato.sampling.likelihood import Evidence
from sfumato.sampling.samplers import Sampler

BETAS = {"linear": linear_betas, "cosine": cosine_betas}
VARIANCES = {"small": ancestral, "large": ancestral_large}
PREDICTIONS = {"noise": noise, "velocity": velocity}


def ddpm(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    betas: Literal["linear", "cosine"] = "linear",
    variance: Literal["small", "large"] = "large",
    prediction: Literal["noise", "velocity"] = "noise",
    length: int = 1000,
    steps: int = 1000,
) -> Recipe:
    """DDPM: fading signal in white noise, noise prediction, ancestral sampler.

    Args:
        shape: of one signal, any.
        stats: not used.
        betas: the chain's variances: linear from 1e-4 to 0.02 (scaled for other lengths than
            1000), or cosine.
        variance: of the ancestral step: the posterior's (small) or the forward kernel's (large).
        prediction: of the network: the noise, with its unweighted error as the loss, as published;
            or the velocity C_t eps - S_t x_0, likewise (progressive distillation's v), which gives
            better samples in few steps.
        length: number of steps of the chain, and of training times.
        steps: steps of the sampler, at most one for each level of the chain.
    """
    step = choose("variance", variance, VARIANCES)
    output = choose("prediction", prediction, PREDICTIONS)
    log_power = choose("betas", betas, BETAS)(steps=length)
    process = Process(signal=Scale(Amplitude(log_power)), noise=Scale(Complement(log_power)))
    sampler = Sampler(reverse(step), steps)
    prior = standard(process, shape)
    evidence = Evidence(backward=step)
    weighting = unit_target(output)
    recipe = Recipe(process, output, weighting, sampler, prior, __doc__ or "", evidence=evidence)
    return discrete(recipe, length)
