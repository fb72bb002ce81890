r"""Inputs are single images or measurements to work on; their values keep their scale.

an image file       0 and its largest whole number become -1 and 1
a folder            its image files, sorted by name
x.npz, x.npy        (n, H, W) or (n, H, W, C): whole numbers as in image files, floating-point
                    numbers as they are, on the scale [-1, 1] of every model
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from sfumato import pictures
from sfumato.errors import NotFound, Refused
from sfumato.notes import Note
from sfumato.paths import with_home
from sfumato.training.arrays import channels_first, found_in
from sfumato.training.folders import SUFFIXES
from sfumato.training.raw import numbers


@final
class Input(NamedTuple):
    """One image.

    Attributes:
        name: of its file without suffix, or its number in an array.
        value: (C, H, W), float32.
        where: how error sentences name it.
    """

    name: str
    value: Tensor
    where: str


def read(source: str | Path, key: str | None = None) -> list[Input]:
    """The images of a file or folder; `key` names an array in a .npz.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds no images, values that are not finite, or two images of one name.
    """
    path = with_home(source)
    if not path.exists():
        raise NotFound(f"there is no file or folder {source}.")
    if path.suffix.lower() in (".npz", ".npy") and path.is_file():
        return _array(path, key)
    if key is not None:
        raise Refused(f"{path} has no arrays; leave out --key.")
    if not path.is_dir():
        return [_image(path)]
    found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file()]
    found = [one for one in found if not one.name.startswith(".")]
    if not found:
        raise Refused(f"folder {path} has no images ({', '.join(SUFFIXES)}) in it.")
    names = [one.stem for one in found]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Refused(f"folder {path} has two images by the name {twice}; rename one.")
    return [_image(one) for one in found]


def fitting(found: Sequence[Input], shape: tuple[int, ...], what: str) -> list[Tensor]:
    """The values of inputs; ValueError where one has another shape than `what`, named so."""
    for one in found:
        if tuple(one.value.shape) != shape:
            sizes = [_size(tuple(some)) for some in (one.value.shape, shape)]
            raise Refused(
                f"{one.where} is {sizes[0]}; {what} are {sizes[1]}. A grid that sample wrote has "
                "many: ask it for a folder, or for NAME.npz."
            )
    return [one.value for one in found]


def _size(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return f"of shape {shape}"
    channels, height, width = shape
    return (
        f"{width} x {height} pixels in {'1 channel' if channels == 1 else f'{channels} channels'}"
    )


def _image(path: Path) -> Input:
    return Input(path.stem, _scaled(pictures.deep(path)), str(path))


def _array(path: Path, key: str | None) -> list[Input]:
    _, values, _ = found_in(path, key)
    values = channels_first(values, path)
    values = values if isinstance(values, np.ndarray) else values[np.arange(len(values))]
    low, high = numbers(values, path)
    if np.issubdtype(values.dtype, np.floating):
        if low >= 0 and high > 0.5:
            warnings.warn(
                f"{path}: values from {low:.3g} to {high:.3g} are taken as they are, on the scale "
                "[-1, 1].",
                Note,
                stacklevel=3,
            )
    elif values.dtype not in (np.uint8, np.uint16):
        raise Refused(
            f"{path} must hold uint8, uint16 or floating-point images; got {values.dtype}."
        )
    width = max(6, len(str(len(values) - 1)))
    return [
        Input(f"{i:0{width}d}", _scaled(value), f"image {i} of {path}")
        for i, value in enumerate(values)
    ]


def _scaled(values: np.ndarray) -> Tensor:
    """(C, H, W) in float32, whole numbers scaled to [-1, 1]."""
    if np.issubdtype(values.dtype, np.floating):
        return torch.from_numpy(values.astype(np.float32))
    top = np.iinfo(values.dtype).max
    return torch.from_numpy(values.astype(np.float32) / np.float32(top / 2) - 1)
