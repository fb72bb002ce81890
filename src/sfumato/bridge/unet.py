"""Any backbone of ours as a model of diffusers, for what its `UNet2DModel` cannot express."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from sfumato.config import Backbone, new
from sfumato.networks.backbones import LABEL_SCALE, UNetOptions


@final
class SfumatoUNet(ModelMixin, ConfigMixin):
    """A backbone F(x, label) that is told a timestep, label = (timestep + 1) / 1000.

    Args:
        in_channels: C of the images.
        sample_size: (H, W).
        network: options of the U-Net; None for another backbone.
        backbone: name and options of another backbone.
        fourier: frequencies of the features of x that it receives.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        sample_size: Sequence[int] = (32, 32),
        network: Mapping[str, Any] | None = None,
        backbone: Mapping[str, Any] | None = None,
        fourier: Sequence[float] = (),
    ) -> None:
        super().__init__()
        which = Backbone(**backbone) if backbone else UNetOptions(**(network or {}))
        self.net = new(which, (in_channels, *sample_size), fourier=fourier)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """F at `sample` (B, C, H, W) and `timestep`, one number or (B,)."""
        step = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        label = ((step + 1) / LABEL_SCALE).to(sample.dtype).reshape(-1).expand(len(sample))
        told = {} if class_labels is None else {"classes": class_labels}
        out = self.net(sample, label, **told)
        return UNet2DOutput(sample=out) if return_dict else (out,)
