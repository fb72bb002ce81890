r"""A limit is a function that every estimate of x_0 goes through, such as a clip to [-1, 1].

    x_0^ <- limit(x_0^)

A limited denoiser's estimate is one share with the map I, under which every kernel runs unchanged.
A step that keeps noise, K (x_t - C_t x_0^), computes it from the limited x_0^.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.combine import Spectra
from sfumato.algebra.operators import Diagonal, identity, zero
from sfumato.algebra.place import seen
from sfumato.errors import Refused
from sfumato.estimation.denoise import Conditions, Denoiser, Estimator, Update

Limit = Callable[[Tensor], Tensor]
"""x_0^ (B, *shape) -> x_0^."""


def clip(x0: Tensor) -> Tensor:
    """The nearest values in [-1, 1], as in the official code of DDPM (`clip_denoised`).

    >>> sf.denoisers.clip(torch.tensor([-3.0, 0.5, 1.2]))
    tensor([-1.0000,  0.5000,  1.0000])

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
    """
    return x0.clamp(-1.0, 1.0)


class _Limited(NamedTuple):
    limit: Limit
    estimate: Update

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        return (self.limit(self.estimate(x, cond, spectra=spectra)),)


@final
class Limited(Denoiser):
    """The denoiser whose estimate is limit(x_0^); parameters are shared.

    Raises:
        ValueError: (on use) the model estimates a blurred image from which no x_0 is recovered.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.dataset(process, torch.tensor([[3.0]]))
    >>> base = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> sf.denoisers.Limited(base, sf.denoisers.clip)(torch.zeros(1, 1), 0.5).mean
    tensor([[1.]])
    """

    def __init__(self, base: Denoiser, limit: Limit) -> None:
        super().__init__()
        self.base = base
        self.limit = limit
        self.process, self.stats = base.process, base.stats

    def at(self, t: Tensor) -> Estimator:
        found = self.base.at(t)
        if isinstance(found.of, Diagonal):
            left = found.of.log_gain
            if seen(left.isfinite() & (left < math.log(torch.finfo(torch.float32).eps))):
                raise Refused(
                    "this model estimates an image so blurred that x_0 cannot be recovered from it "
                    "to be clipped. Sample it without clip."
                )
        estimate = found.update(zero(), identity())
        return Estimator(identity(), (zero(), identity()), _Limited(self.limit, estimate))
