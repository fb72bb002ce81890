"""Backbones by name, beside the U-Net: functions (shape, classes, context, *, parameters)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from sfumato.networks.backbones import fourier_features
from sfumato.networks.diffusers_unet import diffusers_unet
from sfumato.networks.transformers import dit, uvit

Builder = Callable[..., nn.Module]
"""(shape, classes=None, context=0, *, parameters) -> a module F(x, label, classes, context)."""

BACKBONES: dict[str, Builder] = {
    "dit": dit,
    "uvit": uvit,
    "diffusers-unet": diffusers_unet,
}
"""Backbones by name; user-defined ones are named FILE.py:NAME."""


@final
class Featured(nn.Module):
    """A backbone that receives sin and cos of f pi x, for some frequencies f, as a context.

    Args:
        backbone: built for a context of `channels` more.
        frequencies: f.
    """

    def __init__(self, backbone: nn.Module, frequencies: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.frequencies = tuple(frequencies)

    @property
    def inputs(self) -> int:
        """Channels of the first layer's input, context last; 0 where the backbone does not say."""
        return getattr(self.backbone, "inputs", 0)

    def forward(
        self, x: Tensor, label: Tensor, context: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        """F(x, label): (B, *shape) -> (B, *shape)."""
        told = fourier_features(x, self.frequencies)
        if context is not None:
            told.append(context.to(x))
        return self.backbone(x, label, context=torch.cat(told, 1), **cond)


def featured(
    build: Callable[[int], nn.Module], channels: int, context: int, fourier: Sequence[float]
) -> nn.Module:
    """The backbone of `build`, a function of its number of context channels.

    Args:
        build: makes it.
        channels: of a signal.
        context: channels that it is given beside.
        fourier: frequencies of its features of x.
    """
    if not fourier:
        return build(context)
    return Featured(build(context + 2 * channels * len(fourier)), fourier)
