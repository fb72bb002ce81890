r"""A backbone is a function F(x, label) of a batch of images and one number per image.

    F: (B, C, H, W) x (B,) -> (B, C, H, W)

Any `nn.Module` with this signature is one. `UNet` is the bundled one: diffusers' blocks, arranged
so that a small model trains on a laptop's processor. Three choices make it cheap:

* The image is cut into patches that become channels (space to depth), so that no convolution runs
  at full resolution; `patch = 1` switches this off.
* Levels have the sizes ceil(H / 2^k): a 28 x 28 image is never padded to 32 x 32.
* Enlarging repeats pixels; the convolutions that follow do the smoothing. The usual additional
  convolution, the most expensive layer of a level, is left out.

Weights and activations may be in `torch.channels_last`, which is faster on most devices.

References:
    U-Net: Convolutional Networks for Biomedical Image Segmentation (O. Ronneberger, P. Fischer,
    T. Brox, 2015), https://arxiv.org/abs/1505.04597
    Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
    https://arxiv.org/abs/2006.11239
    Classifier-Free Diffusion Guidance (J. Ho, T. Salimans, 2022), https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from sfumato import limits
from sfumato.errors import Refused
from sfumato.fields import repr_of
from sfumato.limits import short

LABEL_SCALE = 1000.0
"""The sinusoids of the label have periods from 6 to 60000; labels are near [-1, 1]."""
SIZES = {"width": limits.WIDTH, "blocks": limits.LAYERS, "patch": limits.PATCH}
"""Sizes of a U-Net that are counts from 1, and the most of each."""


def positive(name: str, value: int, most: int = limits.WIDTH) -> None:
    """Raise ValueError unless `value` is a whole number from 1 to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Refused(f"{name} must be a whole number from 1; got {short(repr_of(value))}.")
    if value > most:
        raise Refused(f"{name} must be {most} or less; got {short(value)}.")


def whole_numbers(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """The values as a tuple; ValueError unless they are a list of whole numbers."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise Refused(f"{name} must be a list of whole numbers; got {short(repr_of(values))}.")
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise Refused(f"{name} must be whole numbers; got {short(repr_of(tuple(values)))}.")
    if len(values) > limits.LAYERS or any(abs(value) > limits.LARGEST for value in values):
        raise Refused(f"{name} has too many or too large numbers; got {short(repr_of(values))}.")
    return tuple(values)


def check_widest(width: int, multipliers: Sequence[int]) -> None:
    """Raise ValueError for too many levels of a network, or one with too many channels."""
    if len(multipliers) > limits.LEVELS:
        raise Refused(f"a network has {limits.LEVELS} levels or fewer; got {len(multipliers)}.")
    positive("width times its largest multiplier", width * max(multipliers, default=1))


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a number from 0, below 1."""
    limits.finite(name, value)
    if not 0.0 <= value < 1.0:
        raise Refused(f"{name} must be at least 0 and below 1; got {value}.")


def check_patch(patch: int, shape: Sequence[int]) -> None:
    """Raise ValueError for patches that are larger than the image."""
    if patch > max(2, *shape[1:]):
        raise Refused(
            f"patch is {patch}, larger than these images of {shape[2]} x {shape[1]} pixels."
        )


@dataclass(frozen=True)
class UNetOptions:
    r"""The size of a `UNet`; `dataclasses.asdict` gives JSON and `UNetOptions(**json)` reads it.

    Args:
        width: channels of the finest level; a multiple of 8, fastest as a multiple of 16.
        multipliers: channels of each level, finest first, in units of `width`.
        blocks: residual blocks per level on the way down; there is one more on the way up.
        attention: levels with self-attention, where 0 is the finest; the number of levels names the
            middle block below the coarsest one, which has it with the coarsest level too.
        patch: side of the square of pixels that becomes one position of the finest level.
        dropout: probability of dropping an activation inside a residual block.

    Raises:
        ValueError: a value is out of its range.

    >>> sf.UNetOptions(width=32, multipliers=(1, 2), patch=1).blocks
    1
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    patch: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention"):
            object.__setattr__(self, name, whole_numbers(name, getattr(self, name)))
        for name, most in SIZES.items():
            positive(name, getattr(self, name), most)
        if self.width % 8:
            raise Refused(f"width must be a multiple of 8; got {self.width}.")
        if not self.multipliers or min(self.multipliers) < 1:
            raise Refused(
                f"multipliers must be whole numbers from 1, one per level; got {self.multipliers}."
            )
        unknown = set(self.attention) - set(range(len(self.multipliers) + 1))
        if unknown:
            raise Refused(
                f"attention names level {min(unknown)}; with {len(self.multipliers)} multipliers "
                f"the levels are 0 (finest) to {len(self.multipliers) - 1}, and "
                f"{len(self.multipliers)} is the middle block."
            )
        check_widest(self.width, self.multipliers)
        check_share("dropout", self.dropout)


@final
class UNet(nn.Module):
    r"""A U-Net of residual blocks, conditioned on a number and optionally a class per image.

    Untrained it returns exactly zero: its last convolution starts there.

    Args:
        shape: (C, H, W) of the images, of any sizes.
        options: its size.
        classes: the number of classes, or None for an unconditional network.
        context: channels received beside the image's own, such as a mask.
        fourier: frequencies f of the features sin, cos(f pi x) received beside the image; VDM
            needs them to resolve the last bits of a pixel.

    Raises:
        ValueError: `shape` or `classes` is not made of positive whole numbers.

    >>> network = sf.UNet((1, 8, 8), sf.UNetOptions(width=16, patch=1), classes=10)
    >>> x, label, classes = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([3, 7])
    >>> network(x, label, classes=classes).shape
    torch.Size([2, 1, 8, 8])
    >>> sum(p.numel() for p in network.parameters())
    264993
    """

    def __init__(
        self,
        shape: Sequence[int],
        options: UNetOptions = UNetOptions(),
        classes: int | None = None,
        context: int = 0,
        fourier: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.shape = whole_numbers("shape", shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise Refused(f"shape must be (channels, height, width) from 1; got {self.shape}.")
        if classes is not None:
            positive("classes", classes, limits.BATCH)
        limits.check_signal(self.shape)
        check_patch(options.patch, self.shape)
        self.options = options
        self.classes = classes
        self.context = context
        self.fourier = tuple(fourier)
        told = self.shape[0] * (1 + 2 * len(self.fourier)) + context
        channels = [c * options.patch**2 for c in (told, self.shape[0])]
        self.inputs = channels[0]
        self.per_channel = options.patch**2
        self.net = _unet(channels[0], channels[1], options, classes)
        size = [math.ceil(side / options.patch) for side in self.shape[1:]]
        # The last block enlarges nothing; the one before it enlarges to the finest level's size.
        for block in list(self.net.up_blocks)[-2::-1]:
            block.upsamplers = nn.ModuleList([Enlarge((size[0], size[1]))])
            size = [math.ceil(side / 2) for side in size]
        for parameter in self.net.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        classes: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        r"""F(x, label).

        Args:
            x: images, (B, C, H, W).
            label: one number per image, (B,), roughly in [-1, 1].
            classes: classes from 0, (B,) integers; the number of classes itself stands for "none",
                as None does for the whole batch.
            context: (B, channels, H, W), where the network was built for some.

        Returns:
            a tensor like x.

        Raises:
            ValueError: a wrong shape or dtype, or classes for a network without classes.
        """
        check_inputs(x, label, self.shape)
        if (0 if context is None else context.shape[1]) != self.context:
            raise Refused(f"this network was built for a context of {self.context} channels.")
        told = [x, *fourier_features(x, self.fourier)]
        if context is not None:
            told.append(context.to(x))
        x = torch.cat(told, 1)
        patch = self.options.patch
        u = patches(x, patch)
        u = self.net(u, label * LABEL_SCALE, self._classes(x, classes), return_dict=False)[0]
        return cropped(F.pixel_shuffle(u, patch), self.shape[1:], patch)

    def _classes(self, x: Tensor, classes: Tensor | None) -> Tensor | None:
        if self.classes is None:
            if classes is not None:
                raise Refused("this network was built without classes; call it without classes.")
            return None
        if classes is None:
            return torch.full((len(x),), self.classes, device=x.device)
        if classes.dtype not in (torch.int64, torch.int32) or classes.shape != x.shape[:1]:
            raise Refused(
                f"classes must be {len(x)} integers, one per image; "
                f"got {classes.dtype} of shape {tuple(classes.shape)}."
            )
        # Only on the CPU: elsewhere, reading the values would make the device wait.
        if classes.device.type == "cpu" and ((classes < 0) | (classes > self.classes)).any():
            raise Refused(
                f"classes must be 0 to {self.classes - 1}, or {self.classes} for none; "
                f"got {classes.min()} to {classes.max()}."
            )
        return classes


@final
class Enlarge(nn.Module):
    r"""Nearest-neighbour enlargement to a fixed size, in place of diffusers' `Upsample2D`.

    Args:
        size: (H, W) of the output; odd sizes are met exactly.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, output_size: None = None) -> Tensor:
        """(B, C, h, w) -> (B, C, *size); diffusers' blocks pass an `output_size`, always None."""
        return F.interpolate(x, size=self.size, mode="nearest")


def patches(x: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) as channels of patches, (B, C patch^2, ceil(H / patch), ...)."""
    return F.pixel_unshuffle(padded(x, patch), patch)


def padded(x: Tensor, multiple: int) -> Tensor:
    """Images (B, C, H, W) with their edges repeated until `multiple` divides both sides."""
    height, width = x.shape[2:]
    if not (height % multiple or width % multiple):
        return x
    top, left = (-height % multiple) // 2, (-width % multiple) // 2
    bottom, right = -height % multiple - top, -width % multiple - left
    return F.pad(x, (left, right, top, bottom), mode="replicate")


def cropped(x: Tensor, size: Sequence[int], multiple: int) -> Tensor:
    """The images of `size`, (H, W), that `padded` made into x, (B, C, ...)."""
    height, width = size
    top, left = (-height % multiple) // 2, (-width % multiple) // 2
    return x[..., top : top + height, left : left + width]


def check_inputs(x: Tensor, label: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError unless x is (B, *shape) and `label` is one floating-point number for each."""
    if tuple(x.shape[1:]) != shape:
        raise Refused(
            f"this network works on signals of shape {shape}, (B, *shape) in all; "
            f"got {tuple(x.shape)}."
        )
    if label.shape != x.shape[:1] or not label.is_floating_point():
        raise Refused(
            f"label must be {len(x)} floating-point numbers, one per signal; "
            f"got {label.dtype} of shape {tuple(label.shape)}."
        )


def fourier_features(x: Tensor, frequencies: Sequence[float]) -> list[Tensor]:
    """sin and cos of f pi x for each frequency f."""
    angles = [frequency * math.pi * x for frequency in frequencies]
    return [wave for angle in angles for wave in (angle.sin(), angle.cos())]


def _unet(
    channels: int, channels_out: int, options: UNetOptions, classes: int | None
) -> UNet2DModel:
    levels = range(len(options.multipliers))
    kinds = ["Attn" if level in options.attention else "" for level in levels]
    groups = groups_of(options.width)
    return UNet2DModel(
        in_channels=channels,
        out_channels=channels_out,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=tuple(options.width * m for m in options.multipliers),
        layers_per_block=options.blocks,
        add_attention=bool({levels[-1], len(levels)} & {*options.attention}),
        attention_head_dim=math.gcd(options.width, 32),
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift",
        dropout=options.dropout,
        num_class_embeds=None if classes is None else classes + 1,
    )


def groups_of(width: int) -> int:
    """The most groups, up to 32, of at least 4 channels: they divide every level's channels."""
    return max(groups for groups in range(1, min(32, width // 4) + 1) if width % groups == 0)
