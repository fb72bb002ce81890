r"""Non-isotropic DDPM and SMLD: the white noise of DDPM or NCSN replaced by coloured noise.

q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) Sigma), or N(x_0, sigma_k^2 Sigma), with Sigma the
covariance of a Gaussian free field, of any power law, of the data's own spectrum, or the user's;
its root is symmetric. The network predicts the whitened noise, loss || eps^ - eps ||^2; the sampler
is DDPM's, or annealed Langevin dynamics preconditioned by Sigma. In continuous time the NIVP and
NIVE SDEs. The expected denoised sample is (x_t + V_t score) / sqrt(abar_t), where the paper's Eq. 9
lacks the root.

References:
    Score-based Denoising Diffusion with Non-Isotropic Gaussian Noise Models (Vikram Voleti,
    Christopher Pal, Adam Oberman, 2022), https://arxiv.org/abs/2210.12254
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sfumato.algebra.operators import Operator
from sfumato.corruption.colours import colour
from sfumato.corruption.coupling import ancestral, ancestral_large
from sfumato.corruption.families import Fixed, Scale
from sfumato.corruption.prior import standard
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Geometric,
    LinearBeta,
    Schedule,
    cosine_betas,
    linear_betas,
)
from sfumato.corruption.statistics import DataStatistics, default_statistics
from sfumato.estimation.loss import simple, uniform_times
from sfumato.estimation.predictions import Parametrization, coloured_noise, score, x0
from sfumato.estimation.predictions import noise as whitened
from sfumato.methods.ncsn import annealed
from sfumato.methods.recipe import Recipe, rising
from sfumato.methods.spacing import discrete
from sfumato.names import choose
from sfumato.sampling.kernels import reverse
from sfumato.sampling.likelihood import Evidence
from sfumato.sampling.sample import uniform_grid
from sfumato.sampling.samplers import Sampler

CHAINS = ("linear", "cosine", "sde")
VARIANCES = {"small": ancestral, "large": ancestral_large}


def predictions(level: Schedule) -> dict[str, Parametrization]:
    """Parametrizations of the network by name, where S_t = level_t L."""
    return {"noise": whitened, "coloured": coloured_noise(level), "score": score, "x0": x0}


def ni_ddpm(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    covariance: Operator | None = None,
    *,
    noise: str = "power",
    exponent: float = 1.0,
    dc: float = 1.0,
    chain: Literal["linear", "cosine", "sde"] = "linear",
    variance: Literal["small", "large"] = "small",
    prediction: Literal["noise", "coloured", "score", "x0"] = "noise",
    length: int = 1000,
    steps: int = 1000,
) -> Recipe:
    """Non-isotropic DDPM: fading signal in coloured noise, noise prediction, ancestral sampler.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: statistics of the data, for its spectrum.
        covariance: Sigma as an operator with a root, in place of `noise`.
        noise: power (the Gaussian free field by default), data (its spectrum), white, or a
            covariance's .npy file.
        exponent: of the power law: gains |k|^-exponent, 1 for the free field.
        dc: gain at frequency 0, in units of the gain at the lowest other frequency.
        chain: variances of the chain: linear, cosine, or the NIVP SDE in continuous time.
        variance: of the ancestral step: the posterior's (small) or the forward kernel's (large).
        prediction: of the network: the whitened noise, the coloured noise, the score or x_0, all
            with the same loss.
        length: number of steps of the chain, and of training times, except for the SDE.
        steps: steps of the sampler, at most one for each level of the chain.
    """
    choose("chain", chain, CHAINS)
    step = choose("variance", variance, VARIANCES)
    power: Schedule = LinearBeta()
    if chain != "sde":
        power = (linear_betas if chain == "linear" else cosine_betas)(steps=length)
    level = Complement(power)
    output = choose("prediction", prediction, predictions(level))
    root = _root(noise, shape, stats, exponent, dc, covariance)
    process = Process(signal=Scale(Amplitude(power)), noise=Scale(level) @ Fixed(root))
    recipe = Recipe(
        process,
        output,
        simple,
        Sampler(reverse(step), steps),
        standard(process, shape),
        __doc__ or "",
        evidence=Evidence(backward=step),
    )
    return recipe if chain == "sde" else discrete(recipe, length)


def ni_smld(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    covariance: Operator | None = None,
    *,
    noise: str = "power",
    exponent: float = 1.0,
    dc: float = 1.0,
    sigma: tuple[float, float] = (0.01, 1.0),
    count: int = 10,
    delta: float = 0.1,
    inner: int = 100,
    sde: bool = False,
    prediction: Literal["noise", "coloured", "score", "x0"] = "noise",
) -> Recipe:
    """Non-isotropic SMLD: coloured noise of geometric levels, preconditioned Langevin dynamics.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: statistics of the data.
        covariance: Sigma as an operator with a root, in place of `noise`.
        noise: power (the Gaussian free field by default), data (its spectrum), white, or a
            covariance's .npy file.
        exponent: of the power law: gains |k|^-exponent, 1 for the free field.
        dc: gain at frequency 0, in units of the gain at the lowest other frequency.
        sigma: smallest and largest noise for data in [0, 1], as in ncsn.
        count: number of levels, and steps of the sampler.
        delta: step of Langevin dynamics over the variance of the level.
        inner: Langevin steps at each level but the first, which the sampler starts from.
        sde: train on all times between the levels too: the NIVE SDE.
        prediction: of the network, as in ni-ddpm.
    """
    low, high = rising("sigma", sigma, 2.0)  # data span [-1, 1] here, [0, 1] in NCSN's units
    root = _root(noise, shape, stats, exponent, dc, covariance)
    recipe = annealed(shape, stats, (low, high), count, delta, inner, root)
    level = Geometric(low * (high / low) ** (-1 / (count - 1)), high)
    output = choose("prediction", prediction, predictions(level))
    recipe = replace(recipe, parametrization=output, reference=__doc__ or "")
    if not sde:
        return recipe
    sampler = Sampler(grid=uniform_grid).over(recipe.sampler)
    return replace(recipe, times=uniform_times, sampler=sampler, fixed=False)


def _root(
    noise: str,
    shape: tuple[int, ...],
    stats: DataStatistics | None,
    exponent: float,
    dc: float,
    covariance: Operator | None,
) -> Operator:
    if covariance is not None:
        return covariance.sqrt()
    return colour(noise, shape, stats or default_statistics(shape), exponent, dc)
