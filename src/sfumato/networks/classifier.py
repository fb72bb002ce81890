r"""A classifier is a function of images whose last hidden layer gives features of their content.

    features: (B, C, H, W) -> (B, F),        logits: features -> (B, classes)

Residual blocks at full, half and quarter resolution; the features are spatial means, as the pool3
layer of Inception is, so that they depend on texture as well as shape.

`TimedClassifier` is one of x_t, which also receives a number in place of t: the way down of a
`UNet`.

References:
    Diffusion Models Beat GANs on Image Synthesis (P. Dhariwal, A. Nichol, 2021), section 4,
    https://arxiv.org/abs/2105.05233
    Deep Residual Learning for Image Recognition (K. He, X. Zhang, S. Ren, J. Sun, 2015),
    https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import Refused
from sfumato.networks.backbones import LABEL_SCALE, UNet, UNetOptions, check_inputs, patches


@final
class Classifier(nn.Module):
    """A small residual network.

    Args:
        channels: of the images, whatever their size.
        classes: how many there are.
        widths: channels at each resolution, each half of the one before; the last is the number of
            features.
    """

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.ModuleList(_Block(before, after) for before, after in pairs)
        self.head = nn.Linear(widths[-1], classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Features at each resolution of images (B, C, H, W) in [-1, 1]; (B, width, h, w), >= 0."""
        found = []
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(F.avg_pool2d(x, 2) if i else x)
            found.append(x)
        return found

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the last layer for images (B, C, H, W) in [-1, 1]; (B, widths[-1]), >= 0."""
        return self.maps(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (B, C, H, W) in [-1, 1]; (B, classes)."""
        return self.head(self.features(x))


class _Block(nn.Module):
    """Two convolutions beside a projection."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        self.project = nn.Conv2d(before, after, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.path(x) + self.project(x)))


@final
class TimedClassifier(nn.Module):
    """Logits F(x, label): the way down of a `UNet`, spatial means, and a linear layer.

    Untrained it returns exactly zero, classes of equal probability.

    Args:
        shape: (C, H, W) of the images.
        options: sizes, of which `blocks` and `multipliers` are those of the way down.
        classes: how many there are.

    Raises:
        ValueError: signals that are no images.
    """

    def __init__(self, shape: Sequence[int], options: UNetOptions, classes: int) -> None:
        super().__init__()
        if len(shape) != 3:
            raise Refused(f"there is a classifier of images (C, H, W) only; got shape {shape}.")
        net = UNet(shape, options).net
        self.shape = tuple(shape)
        self.patch = options.patch
        self.time_proj = net.time_proj
        self.time_embedding = net.time_embedding
        self.conv_in = net.conv_in
        self.down_blocks = net.down_blocks
        self.mid_block = net.mid_block
        last = options.width * options.multipliers[-1]
        self.norm = nn.GroupNorm(net.conv_norm_out.num_groups, last)
        self.head = nn.Linear(last, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """(B, C, H, W) and one number for each, (B,), to (B, classes)."""
        check_inputs(x, label, self.shape)
        when = self.time_embedding(self.time_proj(label * LABEL_SCALE).to(x.dtype))
        u = self.conv_in(patches(x, self.patch))
        for block in self.down_blocks:
            u, _ = block(hidden_states=u, temb=when)
        if self.mid_block is not None:
            u = self.mid_block(u, when)
        return self.head(F.silu(self.norm(u)).mean((2, 3)))
