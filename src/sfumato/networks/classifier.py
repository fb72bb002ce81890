r"""A classifier is a function of images whose last hidden layer gives features of their content.

    features: (B, C, H, W) -> (B, F),        logits: features -> (B, classes)

Residual blocks at full, half and quarter resolution; the features are spatial means, as the pool3
layer of Inception is, so that they depend on texture as well as shape.

References:
    Deep Residual Learning for Image Recognition (K. He, X. Zhang, S. Ren, J. Sun, 2015),
    https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn


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

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the last layer for images (B, C, H, W) in [-1, 1]; (B, widths[-1]), >= 0."""
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(F.avg_pool2d(x, 2) if i else x)
        return x.mean((2, 3))

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
