r"""A limit is a function that every estimate of x_0 goes through, such as a clip to [-1, 1].

    x_0^ <- limit(x_0^)

A limited denoiser's estimate is one share with the map I, under which every kernel runs unchanged.
A step that carries noise over, K (x_t - C_t x_0^), takes the noise that the limited x_0^ leaves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, identity
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, Parametrization, Precondition

Limit = Callable[[Tensor], Tensor]
"""x_0^ (B, *shape) -> x_0^."""


def clip(x0: Tensor) -> Tensor:
    """The nearest values in [-1, 1], as official code of DDPM has it (`clip_denoised`).

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
    """
    return x0.clamp(-1.0, 1.0)


def limited(denoiser: Denoiser, limit: Limit) -> Denoiser:
    """The denoiser whose estimate is limit(x_0^); parameters are shared.

    Raises:
        ValueError: (on use) it estimates a blurred image from which no x_0 can be had.
    """
    means, cond = direct(denoiser.parametrization), denoiser.cond
    return Denoiser(denoiser.process, means, denoiser.backbone, cond, denoiser.facts, limit)


def direct(parametrization: Parametrization) -> Parametrization:
    """The same estimate as one of x_0 itself: of = I, with of^-1 in skip and out."""

    @functools.wraps(parametrization)
    def direct_(process: Process, t: Tensor) -> Precondition:
        pre = parametrization(process, t)
        if isinstance(pre.of, Diagonal):
            left = pre.of.log_gain[pre.of.log_gain.isfinite()]
            if bool((left < math.log(torch.finfo(torch.float32).eps)).any()):
                raise ValueError(
                    "this model estimates an image so blurred that no x_0 can be had from it, and "
                    "none be clipped. Sample it without clip."
                )
        back = pre.of.inv()
        return pre._replace(skip=back @ pre.skip, out=back @ pre.out, of=identity())

    return direct_
