r"""Backbones for signals of any rank: `network` picks one by the shape.

    (n,)             MLP       residual blocks of two linear layers
    (C, L)           UNet1D    diffusers' 1-D U-Net: waves
    (C, H, W)        UNet      images, see `backbones`
    (C, D, H, W)     UNet3D    diffusers' 3-D U-Net: volumes, videos

All are F(x, label, classes, context) -> like x, with the sizes of `UNetOptions` as far as they
apply (`patch` and `attention` are for images), and zero before training. Waves and volumes receive
classes as channels.

References:
    Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
    https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_1d import UNet1DModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn

from sfumato.errors import Refused
from sfumato.networks.backbones import (
    LABEL_SCALE,
    UNet,
    UNetOptions,
    check_inputs,
    fourier_features,
)

TOLD = 8
"""Channels, or values, that encode a class."""

HEAD = 32
"""Channels of a head of attention in diffusers' 1-D blocks."""

SIZE = UNetOptions()


def network(
    shape: Sequence[int],
    options: UNetOptions = SIZE,
    classes: int | None = None,
    context: int = 0,
    fourier: Sequence[float] = (),
) -> nn.Module:
    """The backbone for signals of `shape`; see `UNet` for the others.

    Raises:
        ValueError: a rank above 4, or a size that a network cannot have.
    """
    if len(shape) == 3:
        return UNet(shape, options, classes, context, fourier)
    kinds = {1: MLP, 2: UNet1D, 4: UNet3D}
    if len(shape) not in kinds:
        raise Refused(
            f"there is a backbone for vectors (n,), waves (C, L), images and volumes; got {shape}. "
            "Pass your own as `backbone`."
        )
    told = InputFeatures(tuple(shape), classes, context, tuple(fourier))
    return Network(told, kinds[len(shape)](told.channels, shape[0], options))


def widened(weights: Mapping[str, Tensor], network: nn.Module, channels: int) -> dict[str, Tensor]:
    """Weights of the same network with `channels` fewer of context, for `network`.

    Channels that are new have weight 0: the network's output does not depend on them yet. Weights
    that differ otherwise, or not at all, are unchanged.
    """
    wanted = network.state_dict()
    inputs = getattr(network, "inputs", 0)
    more = channels * getattr(network, "per_channel", 1)
    found = dict(weights)
    for name, value in weights.items():
        shape = wanted[name].shape if name in wanted else value.shape
        wider = (
            (*value.shape[:1], value.shape[1] + more, *value.shape[2:]) if value.ndim > 1 else ()
        )
        if more and tuple(shape) == wider:
            new = value.new_zeros(value.shape[0], more, *value.shape[2:])
            old, rest = value.tensor_split([inputs - more], 1)
            found[name] = torch.cat([old, new, rest], 1)
    return found


@final
class Network(nn.Module):
    """F(x, label, classes, context) = core(input features, label).

    Args:
        told: appends features of x, classes and context to x.
        core: (B, channels, *space) and labels (B,) -> (B, C, *space).
    """

    def __init__(self, told: InputFeatures, core: nn.Module) -> None:
        super().__init__()
        self.told = told
        self.core = core

    @property
    def inputs(self) -> int:
        """Channels of the first layer's input, x first and context last."""
        return self.told.channels

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        classes: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """F(x, label): (B, *shape) -> (B, *shape)."""
        check_inputs(x, label, self.told.shape)
        return self.core(self.told(x, classes, context), label)


@final
class InputFeatures(nn.Module):
    """x with further channels: features of x, classes and context."""

    def __init__(
        self, shape: tuple[int, ...], classes: int | None, context: int, fourier: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.shape = shape
        self.classes = classes
        self.context = context
        self.fourier = fourier
        self.names = None if classes is None else nn.Embedding(classes + 1, TOLD)

    @property
    def channels(self) -> int:
        """Channels after `forward`; of a vector, its values."""
        extra = 0 if self.names is None else TOLD
        return self.shape[0] * (1 + 2 * len(self.fourier)) + extra + self.context

    def forward(self, x: Tensor, classes: Tensor | None, context: Tensor | None) -> Tensor:
        """(B, *shape) -> (B, channels, *space)."""
        if (0 if context is None else context.shape[1]) != self.context:
            raise Refused(f"this network was built for a context of {self.context} channels.")
        parts = [x, *fourier_features(x, self.fourier)]
        if self.names is None and classes is not None:
            raise Refused("this network was built without classes; call it without classes.")
        if self.names is not None and self.classes is not None:
            none = torch.full((len(x),), self.classes, device=x.device)
            named = self.names(none if classes is None else classes).to(x.dtype)
            space = x.shape[2:]
            parts.append(named.reshape(*named.shape, *(1 for _ in space)).expand(-1, -1, *space))
        if context is not None:
            parts.append(context.to(x))
        return torch.cat(parts, 1)


@final
class MLP(nn.Module):
    """Residual blocks of two linear layers, scaled and shifted by the label.

    Hidden width is `options.width` times the largest multiplier; there are `options.blocks` blocks
    for each multiplier.
    """

    def __init__(self, values: int, out: int, options: UNetOptions) -> None:
        super().__init__()
        hidden = options.width * max(options.multipliers)
        self.width = options.width
        self.embed = nn.Sequential(nn.Linear(self.width, hidden), nn.SiLU())
        self.first = nn.Linear(values, hidden)
        count = options.blocks * len(options.multipliers)
        self.blocks = nn.ModuleList(_Block(hidden, options.dropout) for _ in range(count))
        self.last = zero_init(nn.Linear(hidden, out))

    def forward(self, u: Tensor, label: Tensor) -> Tensor:
        """(B, values) -> (B, out)."""
        u = self.first(u)
        when = self.embed(get_timestep_embedding(label * LABEL_SCALE, self.width).to(u.dtype))
        for block in self.blocks:
            u = block(u, when)
        return self.last(F.silu(u))


class _Block(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)

    def forward(self, u: Tensor, when: Tensor) -> Tensor:
        scale, shift = self.film(when).chunk(2, 1)
        inner = self.inner(F.silu(self.norm(u) * (1 + scale) + shift))
        return u + self.outer(self.drop(F.silu(inner)))


@final
class UNet1D(nn.Module):
    """diffusers' 1-D U-Net for waves of any length."""

    def __init__(self, channels: int, out: int, options: UNetOptions) -> None:
        super().__init__()
        levels = len(options.multipliers)
        last = options.width * options.multipliers[-1]
        if last % HEAD:
            raise Refused(
                f"the 1-D network's last level needs a multiple of {HEAD} channels; got {last}. "
                f"Use --width {HEAD}."
            )
        self.net = UNet1DModel(
            in_channels=channels,
            out_channels=options.width,
            extra_in_channels=options.width,  # the label's sinusoids, beside the signal
            time_embedding_type="positional",
            down_block_types=("DownBlock1DNoSkip", *("DownBlock1D",) * (levels - 1)),
            up_block_types=(*("UpBlock1D",) * (levels - 1), "UpBlock1DNoSkip"),
            block_out_channels=tuple(options.width * m for m in options.multipliers),
            layers_per_block=options.blocks,
        )
        self.last = zero_init(nn.Conv1d(options.width, out, 1))
        # The middle block halves twice more, and reflects three samples at the ends.
        self.multiple = 2 ** (levels + 1)

    def forward(self, u: Tensor, label: Tensor) -> Tensor:
        """(B, channels, L) -> (B, out, L)."""
        length = u.shape[2]
        longer = max(length, 4 * self.multiple)
        u = F.pad(u, (0, longer - length + -longer % self.multiple), mode="replicate")
        return self.last(self.net(u, label * LABEL_SCALE, return_dict=False)[0])[..., :length]


@final
class UNet3D(nn.Module):
    """diffusers' 3-D U-Net for volumes (C, D, H, W), without conditioning on text.

    Levels halve H and W; D is mixed by convolutions and attention along it.
    """

    def __init__(self, channels: int, out: int, options: UNetOptions) -> None:
        super().__init__()
        levels = len(options.multipliers)
        groups = max(1, options.width // 4)
        self.net = UNet3DConditionModel(
            in_channels=channels,
            out_channels=out,
            down_block_types=("DownBlock3D",) * levels,
            up_block_types=("UpBlock3D",) * levels,
            block_out_channels=tuple(options.width * m for m in options.multipliers),
            layers_per_block=options.blocks,
            norm_num_groups=min(32, groups),
            cross_attention_dim=TOLD,
            attention_head_dim=8,
        )
        zero_init(self.net.conv_out)
        for module in self.net.modules():  # its blocks have a dropout of 0.1 by default
            if isinstance(module, nn.Dropout):
                module.p = options.dropout
        self.multiple = 2 ** (levels - 1)

    def forward(self, u: Tensor, label: Tensor) -> Tensor:
        """(B, channels, D, H, W) -> (B, out, D, H, W)."""
        height, width = u.shape[3:]
        right, below = -width % self.multiple, -height % self.multiple
        u = F.pad(u, (0, right, 0, below, 0, 0), mode="replicate")
        text = u.new_zeros(len(u), 1, TOLD)
        out = self.net(u, label * LABEL_SCALE, text, return_dict=False)[0]
        return out[..., :height, :width]


def zero_init(layer: nn.Module) -> nn.Module:
    """The layer, with zero output."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
