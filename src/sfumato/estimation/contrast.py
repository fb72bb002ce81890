r"""A contrast moves a network's output away from a weaker one's: F + w (F - F_weak).

An estimate of x_0 is affine in F, so that with one parametrization for both networks the estimate
of x_0, the noise and the score all move in the same way:

    x_0^ + w (x_0^ - x_0^_weak)

* weak = the same network without a class: classifier-free guidance, where w is its paper's w (other
  programs give the scale 1 + w);
* weak = a smaller or less trained network: autoguidance, which needs no classes;
* w only at some times: guidance in a limited interval.

It does not sample the sharpened posterior p(x) p(y|x)^(1 + w), diffused data of which have another
score. Where the data are Gaussian with and without a class, of variances M_c and M_u per
coefficient at each time, the flow from t = 1 to 0 multiplies a deviation by

    (M_c0 / M_c1)^((1 + w) / 2) (M_u0 / M_u1)^(-w / 2)

References:
    Classifier-Free Diffusion Guidance (J. Ho, T. Salimans, 2022), https://arxiv.org/abs/2207.12598
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
    Models (T. Kynkaanniemi, M. Aittala, T. Karras, S. Laine, T. Aila, J. Lehtinen, 2024),
    https://arxiv.org/abs/2404.07724
    Guiding a Diffusion Model with a Bad Version of Itself (T. Karras, M. Aittala, T. Kynkaanniemi,
    J. Lehtinen, T. Aila, S. Laine, 2024), https://arxiv.org/abs/2406.02507
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato.algebra.combine import Spectra
from sfumato.errors import Refused
from sfumato.estimation.denoise import Ask, Conditions, Denoiser, Estimator, NetworkDenoiser

Weak = int | Callable[..., Tensor]
"""The class that stands for none, or a function (x, label, **cond) -> F, such as a network."""


@final
class Contrasted(Denoiser):
    """The denoiser whose network's output is F + weight (F - F_weak); parameters are shared.

    Args:
        base: process, parametrization and network.
        weight: >= 0; at 0 this is `base`, bit for bit.
        weak: the number of the class that stands for none, with which the same network is called
            in one call of twice the batch; or another network of the same parametrization, which
            receives what the first does.
        interval: the times, ends included, at which the outputs are contrasted. At others the
            network is called once.

    Raises:
        ValueError: (on use) `weak` is a class, and the signals have no classes.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> strong, weak = (sf.oracles.dataset(process, torch.tensor([[v]])) for v in (1.0, 0.5))
    >>> base = sf.NetworkDenoiser(process, sf.predictions.x0, strong)
    >>> guided = sf.denoisers.Contrasted(base, weight=2.0, weak=weak)
    >>> guided(torch.zeros(1, 1), 0.5).mean  # 1 + 2 (1 - 0.5)
    tensor([[2.]])
    """

    def __init__(
        self,
        base: NetworkDenoiser,
        weight: float,
        weak: Weak,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.process, self.stats = base.process, base.stats
        self.weight = weight
        self.interval = interval
        self.base = contrasted(base, weak)

    def at(self, t: Tensor) -> Estimator:
        found = self.base.at(t)
        low, high = self.interval
        if not self.weight:
            return found
        within: bool | Tensor = True
        if low > 0.0 or high < 1.0:
            within = (t >= low) & (t <= high)
            within = within if t.ndim else bool(within)
        return found._replace(ask=_Contrasted(found.ask, self.weight, within))


def contrasted(base: NetworkDenoiser, weak: Weak) -> NetworkDenoiser:
    """`base` with the weight as a condition, contrast=(B, 1, ..., 1); without one it is `base`."""
    both = _Both(base.backbone, weak)
    return NetworkDenoiser(base.process, base.parametrization, both, base.stats)


class _Contrasted(NamedTuple):
    """The values of a contrast; a tensor `within` differs from sample to sample."""

    ask: Ask
    weight: float
    within: bool | Tensor

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        if self.within is False:
            return self.ask(x, cond, spectra)
        weight = self.weight
        if isinstance(self.within, Tensor):
            weight = torch.where(self.within, weight, 0.0).to(x)
        return self.ask(x, {**cond, "contrast": weight}, spectra)


class _Both(nn.Module):
    """F + contrast (F - F_weak) as a backbone; without a `contrast` it is F."""

    def __init__(self, backbone: nn.Module, weak: Weak) -> None:
        super().__init__()
        self.backbone = backbone
        self.weak = weak

    def forward(
        self, x: Tensor, label: Tensor, contrast: float | Tensor | None = None, **cond: Any
    ) -> Tensor:
        if contrast is None:
            return self.backbone(x, label, **cond)
        if isinstance(self.weak, int):
            both = _twice(self.backbone, self.weak, x, label, **cond)
            strong, weak = both.chunk(2)
        else:
            strong = self.backbone(x, label, **cond)
            weak = self.weak(x, label, **cond)
        return strong + contrast * (strong - weak)


def _twice(
    backbone: nn.Module,
    none: int,
    x: Tensor,
    label: Tensor,
    classes: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """F for the classes and for none, (2 B, *shape), in one call."""
    if classes is None:
        raise Refused("guidance away from no class needs a class for each signal: classes=(B,).")
    told = {name: torch.cat([value, value]) for name, value in cond.items()}
    told["classes"] = torch.cat([classes, torch.full_like(classes, none)])
    return backbone(torch.cat([x, x]), torch.cat([label, label]), **told)
