r"""An autoencoder maps images to small latents and back: diffusers' `AutoencoderKL` at any size.

    encode: x -> (mean, log variance) of q(z | x)        (B, C, H, W) -> (B, c, ceil(H / f), ...)
    decode: z -> x

Images whose sides f does not divide are padded with their edge before they are encoded, and
decoded images are cropped: 28 x 28 with f = 4 has 7 x 7 latents, 9 x 7 has 3 x 2.

With `levels` an image is C H W tokens, whole numbers below `levels`: the decoder gives the logits
of each token, and `decode` the most probable ones as an image. All else is the same.

References:
    Auto-Encoding Variational Bayes (D. Kingma, M. Welling, 2013), https://arxiv.org/abs/1312.6114
    High-Resolution Image Synthesis with Latent Diffusion Models (R. Rombach, A. Blattmann, D.
    Lorenz, P. Esser, B. Ommer, 2021), https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from sfumato import fields, limits
from sfumato.errors import Refused
from sfumato.networks.backbones import (
    check_widest,
    cropped,
    groups_of,
    padded,
    positive,
    whole_numbers,
)

SIZES = {
    "channels": limits.WIDTH,
    "down": limits.PATCH,
    "width": limits.WIDTH,
    "blocks": limits.LAYERS,
}
"""Sizes that are counts from 1, and the most of each."""


@final
@dataclass(frozen=True)
class AutoencoderOptions:
    r"""The size of an `Autoencoder`; `dataclasses.asdict` gives JSON.

    Args:
        channels: of the latents.
        down: pixels along each axis that become one position of the latents, a power of 2.
        width: channels of the finest level, a multiple of `groups`.
        multipliers: channels of each level, finest first, in units of `width`; by default
            1, 2, 2, ... for the levels that `down` needs.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: whether the coarsest level has self-attention.
        groups: of the normalizations; 0 for the most, up to 32, of at least 4 channels.
        quant: whether latents pass through a linear map of their channels on each side.
        levels: of each token, from 2, for images that are tokens; 0 for others.

    Raises:
        ValueError: a value is out of its range.

    >>> sf.autoencoders.AutoencoderOptions(down=4, width=32).widths
    (32, 64, 64)
    """

    channels: int = 4
    down: int = 4
    width: int = 32
    multipliers: tuple[int, ...] = ()
    blocks: int = 1
    attention: bool = False
    groups: int = 0
    quant: bool = True
    levels: int = 0

    def __post_init__(self) -> None:
        for name, most in SIZES.items():
            positive(name, getattr(self, name), most)
        if self.down & (self.down - 1):
            raise Refused(f"down must be a power of 2: 1, 2, 4, 8 ...; got {self.down}.")
        given = whole_numbers("multipliers", self.multipliers)
        object.__setattr__(self, "multipliers", given)
        count = self.down.bit_length()
        if given and (len(given) != count or min(given) < 1):
            raise Refused(
                f"multipliers must be {count} whole numbers from 1, one for each level of down "
                f"{self.down}; got {given}."
            )
        fields.check(self)
        check_widest(self.width, given)
        if self.groups < 0 or (self.groups and self.width % self.groups):
            raise Refused(
                f"width must be a multiple of groups; got width {self.width}, groups {self.groups}."
            )
        if not self.groups and self.width % 8:
            raise Refused(f"width must be a multiple of 8; got {self.width}.")
        if self.levels < 0 or self.levels == 1 or self.levels > limits.WIDTH:
            raise Refused(f"levels must be 2 or more, or 0 for none; got {self.levels}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        known = self.multipliers or (1, *(2,) * (self.down.bit_length() - 1))
        return tuple(self.width * times for times in known)


@final
class Moments(NamedTuple):
    """The Gaussian q(z | x) of each image: mean and log variance, (B, c, h, w) each."""

    mean: Tensor
    log_var: Tensor


@final
class Coded(NamedTuple):
    """A pass through an autoencoder: q(z | x), and what its decoder made of a z drawn from it."""

    mean: Tensor
    log_var: Tensor
    output: Tensor


@final
class Autoencoder(nn.Module):
    r"""Images to latents and back.

    Args:
        shape: (C, H, W) of the images, of any sizes.
        options: its size.

    Attributes:
        latent_shape: (c, ceil(H / down), ceil(W / down)).

    Raises:
        ValueError: signals that are no images.

    >>> options = sf.autoencoders.AutoencoderOptions(channels=2, down=4)
    >>> network = sf.autoencoders.Autoencoder((1, 28, 28), options)
    >>> mean, log_var = network.encode(torch.zeros(3, 1, 28, 28))
    >>> mean.shape, network.decode(mean).shape
    (torch.Size([3, 2, 7, 7]), torch.Size([3, 1, 28, 28]))
    """

    def __init__(
        self, shape: Sequence[int], options: AutoencoderOptions = AutoencoderOptions()
    ) -> None:
        super().__init__()
        self.shape = whole_numbers("shape", shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise Refused(
                f"an autoencoder is of images, (channels, height, width) from 1; got shape "
                f"{self.shape}."
            )
        limits.check_signal(self.shape)
        self.options = options
        sides = (math.ceil(side / options.down) for side in self.shape[1:])
        self.latent_shape = (options.channels, *sides)
        levels = len(options.widths)
        self.net = AutoencoderKL(
            in_channels=self.shape[0],
            out_channels=self.shape[0] * max(options.levels, 1),
            down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[reportArgumentType]
            block_out_channels=options.widths,  # type: ignore[reportArgumentType]
            layers_per_block=options.blocks,
            latent_channels=options.channels,
            norm_num_groups=options.groups or groups_of(options.width),
            use_quant_conv=options.quant,
            use_post_quant_conv=options.quant,
            mid_block_add_attention=options.attention,
        )

    def encode(self, x: Tensor) -> Moments:
        """q(z | x) of images (B, C, H, W) in [-1, 1]; ValueError for another shape."""
        self._check("images", x, self.shape)
        found = self.net.encode(padded(x, self.options.down), return_dict=False)[0]
        return Moments(found.mean, found.logvar)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) in about [-1, 1] of latents (B, *latent_shape).

        Of tokens, the most probable ones, as `values` has them.
        """
        output = self.output(z)
        return self.values(output.argmax(1)) if self.options.levels else output

    def output(self, z: Tensor) -> Tensor:
        """What the decoder gives for z: images; of tokens their logits, (B, levels, C, H, W)."""
        self._check("latents", z, self.latent_shape)
        found = self.net.decode(z, return_dict=False)[0]  # type: ignore[reportArgumentType]
        found = cropped(found, self.shape[1:], self.options.down)
        levels = self.options.levels
        return found.unflatten(1, (levels, self.shape[0])) if levels else found

    def forward(self, x: Tensor, noise: Tensor) -> Coded:
        """q(z | x), and the output for z = mean + deviation x noise; noise (B, *latent_shape)."""
        mean, log_var = self.encode(x)
        z = mean + (log_var / 2).exp() * noise
        return Coded(mean, log_var, self.output(z))

    def tokens(self, x: Tensor) -> Tensor:
        """The tokens of images in [-1, 1], int64 of the same shape, from 0 to levels - 1."""
        top = self._levels() - 1
        return x.add(1).mul(top / 2).round().long().clamp(0, top)

    def values(self, tokens: Tensor) -> Tensor:
        """The inverse of `tokens`: 0 is -1 and levels - 1 is 1."""
        return tokens.float().div((self._levels() - 1) / 2).sub(1)

    def _levels(self) -> int:
        if not self.options.levels:
            raise Refused("this autoencoder is of images in general, which are no tokens.")
        return self.options.levels

    def _check(self, what: str, x: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(x.shape[1:]) != shape:
            raise Refused(
                f"this autoencoder works on {what} of shape {shape}, (B, *shape) in all; got "
                f"{tuple(x.shape)}."
            )
