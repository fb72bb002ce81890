"""Images of the page: those sent to it, the examples that come along, and what is sent back."""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import pictures
from sfumato.errors import Refused

BYTES = 16 * 2**20
"""Most bytes of an image file."""
PIXELS = 2**25
"""Most pixels of an image, before it is decoded."""
SIDE = 240
"""A larger image is reduced to this longest side."""
KEPT = 16
EXAMPLES = ("flower", "china")
"""Photographs of scikit-learn's."""


@final
class Album:
    """The images that the page may work on, by the hash of their file: the latest few."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def add(self, data: bytes) -> str:
        """Decode an image file, keep it, and return its name.

        Raises:
            ValueError: it is too large, or no PNG or JPEG.
        """
        if len(data) > BYTES:
            raise Refused(f"this file is larger than {BYTES // 2**20} MB; reduce the image.")
        name = hashlib.sha256(data).hexdigest()[:16]
        self._keep(name, pictures.eight_bits(pictures.received(data, most=PIXELS)))
        return name

    def _keep(self, name: str, image: np.ndarray) -> None:
        self._kept[name] = image
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _bytes(self, name: str) -> np.ndarray:
        if name in EXAMPLES and name not in self._kept:
            self._keep(name, example(name))
        if name not in self._kept:
            raise Refused("this image is no longer here; choose it again.")
        self._kept.move_to_end(name)
        return self._kept[name]

    def whole(self, name: str) -> Tensor:
        """The image (1, C, H, W) in [-1, 1], its longest side at most `SIDE`."""
        image = self._bytes(name)
        height, width = image.shape[1:]
        longest = max(height, width)
        if longest <= SIDE:
            return scaled(image)
        shorter = max(1, round(min(height, width) * SIDE / longest))
        return scaled(pictures.fit(image, shorter, crop=False))

    def fitted(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The image as (1, *shape): its middle square, in gray or in colour.

        Raises:
            ValueError: `shape` is not that of a square image in one or three channels.
        """
        if not pictures.drawable(shape) or shape[1] != shape[2]:
            raise Refused(f"a picture does not fit signals of shape {shape}: they are no square.")
        image = scaled(pictures.fit(self._bytes(name), shape[1]))
        if shape[0] == 3:
            return image.expand(1, *shape)
        return gray(image)


def example(name: str) -> np.ndarray:
    """One of `EXAMPLES`, (3, H, W)."""
    from sklearn.datasets import load_sample_image

    return np.ascontiguousarray(load_sample_image(f"{name}.jpg").transpose(2, 0, 1))


def scaled(image: np.ndarray) -> Tensor:
    """Bytes (C, H, W) as (1, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).float().div(127.5).sub(1)[None]


def gray(image: Tensor) -> Tensor:
    """(1, C, H, W) in one channel: the luma of ITU-R BT.601, as Pillow's."""
    if image.shape[1] == 1:
        return image
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (image * weights).sum(1, keepdim=True)


def sheet(images: Tensor) -> dict[str, Any]:
    """Images (n, C, H, W) as the page draws them: bytes (n, H, W, C) in base64, and their shape."""
    values = pictures.to_uint8(images)
    return {"shape": values.shape, "data": base64.b64encode(values.tobytes()).decode("ascii")}
