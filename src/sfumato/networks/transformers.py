r"""Transformers on patches of an image, from diffusers: backbones for larger images and latents.

    dit     DiT: label and class scale and shift every block (adaptive layer norm)
    uvit    U-ViT: label and class are tokens beside the patches; blocks of equal depth are joined

Both are F(x, label, classes, context) -> like x, zero before training. An image is padded to whole
patches and cropped again.

References:
    Scalable Diffusion Models with Transformers (W. Peebles, S. Xie, 2022),
    https://arxiv.org/abs/2212.09748
    All are Worth Words: A ViT Backbone for Diffusion Models (F. Bao et al., 2022),
    https://arxiv.org/abs/2209.12152
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import LabelEmbedding, TimestepEmbedding, get_timestep_embedding
from diffusers.models.normalization import AdaLayerNormZero
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UTransformer2DModel
from torch import Tensor, nn

from sfumato import limits
from sfumato.errors import Refused
from sfumato.networks.backbones import (
    LABEL_SCALE,
    check_inputs,
    check_patch,
    check_share,
    cropped,
    padded,
    positive,
)
from sfumato.networks.ranks import zero_init


def dit(
    shape: Sequence[int],
    classes: int | None = None,
    context: int = 0,
    *,
    width: int = 384,
    layers: int = 6,
    heads: int = 6,
    patch: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """DiT, a transformer whose blocks the label scales and shifts, for square images.

    Args:
        shape: (C, H, W) of the images, with H = W.
        classes: the number of classes, or None for an unconditional network.
        context: channels received beside the image's own.
        width: of a token; a multiple of 4 and of `heads`.
        layers: blocks of attention and two linear layers.
        heads: of attention.
        patch: side of the square of pixels that becomes one token.
        dropout: probability of dropping an activation inside a block.

    Raises:
        ValueError: a shape or a size that it cannot have.
    """
    told = _checked("dit", shape, width, layers, heads, patch, dropout)
    if shape[1] != shape[2]:
        raise Refused(f"dit is for square images; got {told}. Use --backbone uvit or unet.")
    return DiT(told, classes, context, (width, layers, heads, patch), dropout)


def uvit(
    shape: Sequence[int],
    classes: int | None = None,
    context: int = 0,
    *,
    width: int = 384,
    layers: int = 7,
    heads: int = 6,
    patch: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """U-ViT, a transformer with long skip connections, for images of any size.

    Args:
        shape: (C, H, W) of the images.
        classes: the number of classes, or None for an unconditional network.
        context: channels received beside the image's own.
        width: of a token; a multiple of 4 and of `heads`.
        layers: blocks of attention and two linear layers, an odd number.
        heads: of attention.
        patch: side of the square of pixels that becomes one token.
        dropout: probability of dropping an activation inside a block.

    Raises:
        ValueError: a shape or a size that it cannot have.
    """
    told = _checked("uvit", shape, width, layers, heads, patch, dropout)
    if layers % 2 == 0:
        raise Refused(f"uvit needs an odd number of layers, one in the middle; got {layers}.")
    return UViT(told, classes, context, (width, layers, heads, patch), dropout)


@final
class DiT(nn.Module):
    """diffusers' `DiTTransformer2DModel` as a backbone; see `dit`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        context: int,
        size: tuple[int, int, int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        width, layers, heads, self.patch = size
        self.shape, self.classes = shape, classes
        self.inputs = shape[0] + context
        self.net = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=self.inputs,
            out_channels=shape[0],
            num_layers=layers,
            dropout=dropout,
            sample_size=-(-shape[1] // self.patch) * self.patch,
            patch_size=self.patch,
            num_embeds_ada_norm=classes or 1,
        )
        zero_init(self.net.proj_out_2)
        for module in self.net.modules():
            if isinstance(module, AdaLayerNormZero):
                zero_init(module.linear)
            if isinstance(module, LabelEmbedding):  # classes are dropped by the training loop alone
                module.dropout_prob = 0.0

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        classes: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """F(x, label): (B, C, H, W) -> (B, C, H, W); other arguments as those of `UNet`."""
        u = padded(_told(self, x, label, context), self.patch)
        known = _classes(x, classes, self.classes)
        known = known + (self.classes is None)  # without classes only the last row is used
        out = self.net(u, label * LABEL_SCALE, known, return_dict=False)[0]
        return cropped(out, self.shape[1:], self.patch)


@final
class UViT(nn.Module):
    """diffusers' `UTransformer2DModel` between a patch embedding and a linear layer; see `uvit`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        context: int,
        size: tuple[int, int, int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, layers, heads, self.patch = size
        self.shape, self.classes = shape, classes
        self.inputs = shape[0] + context
        self.net = UTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=self.width // heads,
            in_channels=self.inputs,
            out_channels=shape[0],
            num_layers=layers,
            dropout=dropout,
            attention_bias=True,
            sample_size=self.patch,  # of its own position embedding, which is not used
            patch_size=self.patch,
            activation_fn="gelu",
            block_type="plain",
            pre_layer_norm=True,
        )
        rows, columns = (-(-side // self.patch) for side in shape[1:])
        extra = 1 if classes is None else 2
        self.places = nn.Parameter(torch.randn(extra + rows * columns, self.width) * 0.02)
        self.when = TimestepEmbedding(self.width, self.width)
        self.names = None if classes is None else nn.Embedding(classes + 1, self.width)
        self.last = zero_init(nn.Linear(self.width, self.patch**2 * shape[0]))

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        classes: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """F(x, label): (B, C, H, W) -> (B, C, H, W); other arguments as those of `UNet`."""
        u = padded(_told(self, x, label, context), self.patch)
        size = [side // self.patch for side in u.shape[2:]]
        tokens = self.net.pos_embed.proj(u).flatten(2).transpose(1, 2)
        known = _classes(x, classes, self.classes)
        first = [self.when(get_timestep_embedding(label * LABEL_SCALE, self.width).to(tokens))]
        if self.names is not None:
            first.append(self.names(known))
        told = torch.cat([torch.stack(first, 1), tokens], 1) + self.places
        out = self.net(told, hidden_states_is_embedding=True, unpatchify=False, return_dict=False)[
            0
        ]
        pixels = self.last(out[:, len(first) :]).transpose(1, 2).unflatten(2, size)
        return cropped(F.pixel_shuffle(pixels, self.patch), self.shape[1:], self.patch)


def _checked(
    name: str,
    shape: Sequence[int],
    width: int,
    layers: int,
    heads: int,
    patch: int,
    dropout: float,
) -> tuple[int, ...]:
    """The shape as a tuple; ValueError for one, or for sizes, that no transformer here can have."""
    positive("width", width)
    for what, value in (("layers", layers), ("heads", heads), ("patch", patch)):
        positive(what, value, limits.LAYERS)
    if len(shape) != 3:
        raise Refused(f"{name} is for images (C, H, W); got {tuple(shape)}.")
    limits.check_signal(shape)
    check_patch(patch, shape)
    if width % 4 or width % heads:
        raise Refused(f"width must be a multiple of 4 and of heads ({heads}); got {width}.")
    check_share("dropout", dropout)
    return tuple(shape)


def _told(network: DiT | UViT, x: Tensor, label: Tensor, context: Tensor | None) -> Tensor:
    """x with the context's channels; ValueError where they are not those of the network."""
    check_inputs(x, label, network.shape)
    wanted = network.inputs - network.shape[0]
    if (0 if context is None else context.shape[1]) != wanted:
        raise Refused(f"this network was built for a context of {wanted} channels.")
    return x if context is None else torch.cat([x, context.to(x)], 1)


def _classes(x: Tensor, classes: Tensor | None, count: int | None) -> Tensor:
    """Classes (B,), where `count` stands for none; zeros for a network without classes."""
    if count is None and classes is not None:
        raise Refused("this network was built without classes; call it without classes.")
    return torch.full((len(x),), count or 0, device=x.device) if classes is None else classes
