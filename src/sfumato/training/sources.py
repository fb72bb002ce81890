r"""Sources are where images come from: sets known by name, a folder, an array in a file.

    digits           1797 gray 8 x 8 images of scikit-learn, the last 297 of them for testing
    fashion-mnist    70000 gray 28 x 28 images of the Debian package dataset-fashion-mnist
    photos           32 x 32 colour crops of scikit-learn's two photographs
    a folder         images of one size, in it and below; two or more subfolders are classes
    x.npz, x.npy     an array (n, H, W, C) or (n, H, W), in a .npz by the name `images`

References:
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (H. Xiao,
    K. Rasul, R. Vollgraf, 2017), https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files of other kinds in a folder are not looked at."""
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
BROKEN = (OSError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile)
"""What gzip and numpy raise for a file that is cut off or damaged."""


class Raw(NamedTuple):
    """Images (n, C, H, W) as they come: raw values `low` and `high` will be -1 and 1 (final)."""

    images: np.ndarray
    low: float
    high: float
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None


def digits(split: str) -> Raw:
    """The first 1500 images are train, the last 297 test."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    part = slice(0, 1500) if split == "train" else slice(1500, None)
    images = np.asarray(values, np.uint8).reshape(-1, 1, 8, 8)[part]
    return Raw(images, 0, 16, np.asarray(labels, np.int64)[part], tuple("0123456789"))


def photos(split: str) -> Raw:
    """The photographs at half size, 214 x 320: above row 149 is train, from there on test."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    side, stride, border = 32, 6, 149
    part = slice(0, border) if split == "train" else slice(border, None)
    names, crops, labels = ("china", "flower"), [], []
    for label, name in enumerate(names):
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        pixels = np.asarray(photo.reduce(2)).transpose(2, 0, 1)[:, part]
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2))
        windows = windows[:, ::stride, ::stride].transpose(1, 2, 0, 3, 4)
        crops.append(windows.reshape(-1, 3, side, side))
        labels.append(np.full(len(crops[-1]), label, np.int64))
    return Raw(np.concatenate(crops), 0, 255, np.concatenate(labels), names)


def fashion_mnist(split: str) -> Raw:
    """The idx files of Debian's folder, else of `$SFUMATO_DATA` or its folder `fashion-mnist`."""
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    folders = [FASHION_FOLDER]
    if given := os.environ.get("SFUMATO_DATA"):
        folders += [Path(given), Path(given, "fashion-mnist")]
    for folder in folders:
        paths = [_present(folder / name) for name in names]
        if paths[0] is not None and paths[1] is not None:
            images, labels = _idx(paths[0], 3)[:, None], _idx(paths[1], 1).astype(np.int64)
            return Raw(images, 0, 255, labels, FASHION)
    raise FileNotFoundError(
        f"Fashion-MNIST is not here: no {names[0]}(.gz) with its labels in "
        f"{', '.join(map(str, folders))}. Install the Debian package dataset-fashion-mnist, or set "
        "SFUMATO_DATA to a folder that has these files."
    )


def _present(path: Path) -> Path | None:
    """The file, or the file compressed, whichever there is."""
    packed = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _idx(path: Path, rank: int) -> np.ndarray:
    """An idx file: the number 0x0800 + rank and one size per axis, big-endian, then the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except BROKEN as error:
        raise ValueError(f"{path} is damaged or cut off: {error}.") from error
    start = 4 * (1 + rank)
    magic, *sizes = struct.unpack(f">{1 + rank}I", raw[:start].ljust(start, b"\0"))
    if magic != 0x0800 + rank:
        raise ValueError(
            f"{path} is not an idx file of {rank}-dimensional bytes: it begins with "
            f"{magic:#010x}, not {0x0800 + rank:#010x}."
        )
    if len(raw) != start + math.prod(sizes):
        raise ValueError(
            f"{path} is cut off or too long: its header asks for {start + math.prod(sizes)} bytes, "
            f"it has {len(raw)}."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(sizes).copy()


def folder(root: Path) -> Raw:
    """All images in `root` and below; gray ones become colour where any is colour."""
    from sfumato.pictures import pixels

    found = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = sorted(name for name in found if not any(part.startswith(".") for part in name.parts))
    if not names:
        raise ValueError(f"folder {root} has no images ({', '.join(SUFFIXES)}) in it or below.")
    first = pixels(root / names[0])
    images: np.ndarray = np.empty((len(names), *first.shape), np.uint8)
    for i, name in enumerate(names):
        one = pixels(root / name)
        if one.shape[1:] != first.shape[1:]:
            sizes = [f"{a.shape[2]} x {a.shape[1]}" for a in (first, one)]
            raise ValueError(
                f"images must have one size; in {root}, {names[0]} is {sizes[0]} pixels and "
                f"{name} is {sizes[1]}. Crop or resize them first."
            )
        if len(one) > images.shape[1]:
            images = np.repeat(images, len(one), axis=1)
        images[i] = one
    tops = [name.parts[0] if len(name.parts) > 1 else "" for name in names]
    classes = tuple(sorted(set(tops)))
    if len(classes) < 2 or "" in classes:
        return Raw(images, 0, 255)
    return Raw(images, 0, 255, np.array([classes.index(top) for top in tops], np.int64), classes)


def array(path: Path) -> Raw:
    """Whole numbers 0 to 255, or numbers in [0, 1], or in [-1, 1] if any of them is negative.

    Images come channels last, or without channels; the rows of a .npy (n, values) are vectors; and
    the array `signals` of a .npz, (n, *shape) of any rank, stays as it is: waves (n, C, L), volumes
    (n, C, D, H, W).
    """
    name, images, labels = _read_arrays(path)
    if name == "signals" or (name == "array" and images.ndim == 2):
        if images.ndim < 2 or not images.size:
            raise ValueError(f"{path} must hold signals (n, *shape); got shape {images.shape}.")
        return _raw(path, images, labels)
    if images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"{path} must hold images (n, height, width) or (n, height, width, channels), at least "
            f"one; got shape {images.shape}."
        )
    if images.ndim == 4 and images.shape[3] > 4 >= images.shape[1]:
        raise ValueError(
            f"{path} has shape {images.shape}: channels come last here. Save "
            "images.transpose(0, 2, 3, 1)."
        )
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return _raw(path, images, labels)


def _raw(path: Path, images: np.ndarray, labels: np.ndarray | None) -> Raw:
    images, low, high = _range(path, images)
    if labels is None:
        return Raw(images, low, high)
    check_labels(labels, len(images), len(images))
    classes = tuple(str(i) for i in range(int(labels.max()) + 1))
    return Raw(images, low, high, labels.astype(np.int64), classes)


def _read_arrays(path: Path) -> tuple[str, np.ndarray, np.ndarray | None]:
    """The name, the images and the labels that the file has, whatever its suffix says it is."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return "array", loaded, None
        with loaded:
            for name in ("images", "signals"):
                if name in loaded:
                    return name, loaded[name], loaded["labels"] if "labels" in loaded else None
            names = ", ".join(loaded.files) or "nothing"
    except BROKEN as error:
        raise ValueError(f"{path} cannot be read as arrays: {error}.") from error
    raise ValueError(f"{path} has no array by the name images or signals; it holds {names}.")


def _range(path: Path, images: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Images as uint8 or float32, and the raw values that become -1 and 1."""
    if images.dtype == np.bool_:
        return images.astype(np.uint8), 0, 1
    whole = np.issubdtype(images.dtype, np.integer)
    if not whole and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{path} must hold numbers; got {images.dtype}.")
    low, high = images.min(), images.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"{path} has NaN or infinite values; remove those images.")
    if whole and not (low >= 0 and high <= 255):
        raise ValueError(f"{path} has whole numbers from {low} to {high}; they must be 0 to 255.")
    if not whole and not (low >= -1 and high <= 1):
        raise ValueError(
            f"{path} has values from {low:g} to {high:g}; floating-point images must lie in [0, 1] "
            "or [-1, 1]. Rescale them, or save bytes as uint8."
        )
    if whole:
        return images.astype(np.uint8, copy=False), 0, 255
    return images.astype(np.float32, copy=False), -1 if low < 0 else 0, 1


def check_labels(labels: np.ndarray, count: int, classes: int) -> None:
    """Raise ValueError unless `labels` are `count` whole numbers from 0 to below `classes`."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {count} whole numbers, one per image; "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must be class numbers 0 to at most {classes - 1}; "
            f"got {labels.min()} to {labels.max()}."
        )


NAMED: dict[str, Callable[[str], Raw]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "photos": photos,
}
"""(split) -> Raw, by the name that `--data` takes."""
