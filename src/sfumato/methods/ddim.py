r"""DDIM: DDPM's process and training, sampled without noise in few steps.

q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), loss || eps^ - eps ||^2, and
x_s = sqrt(abar_s) x_0^ + sqrt(1 - abar_s - l^2) eps^ + l z with l = eta times DDPM's.

References:
    Denoising Diffusion Implicit Models (Jiaming Song, Chenlin Meng, Stefano Ermon, 2020),
    https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sfumato.corruption import coupling
from sfumato.corruption.statistics import DataStatistics
from sfumato.methods.ddpm import ddpm
from sfumato.methods.recipe import Recipe
from sfumato.sampling.kernels import reverse
from sfumato.sampling.samplers import Sampler


def ddim(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    betas: Literal["linear", "cosine"] = "linear",
    eta: float = 0.0,
    length: int = 1000,
    steps: int = 50,
) -> Recipe:
    """DDIM: DDPM's process, sampled without noise in few steps.

    Args:
        shape: of one signal, any.
        stats: not used.
        betas: the chain's variances, as in ddpm.
        eta: share of DDPM's noise that is drawn, from 0 (none) to 1 (DDPM, small variance).
        length: number of steps of the chain, and of training times.
        steps: steps of the sampler, at most one for each level of the chain.
    """
    recipe = ddpm(shape, stats, betas=betas, length=length, steps=steps)
    sampler = Sampler(reverse(coupling.ddim(eta))).over(recipe.sampler)
    return replace(recipe, sampler=sampler, reference=__doc__ or "")
