r"""Named data sets, provided by other packages.

    digits           1797 gray 8 x 8 images of scikit-learn, the last 297 of them for testing
    fashion-mnist    70000 gray 28 x 28 images of the Debian package dataset-fashion-mnist
    photos           32 x 32 colour crops of scikit-learn's two photographs
    mnist            70000 gray 28 x 28 images of digits, in the idx files of its page
    cifar10          60000 colour 32 x 32 images, of the binary version; cifar100 likewise

The last three are looked for in `$SFUMATO_DATA` and in a folder of their name there.

References:
    Gradient-Based Learning Applied to Document Recognition (Y. LeCun, L. Bottou, Y. Bengio,
    P. Haffner, 1998), http://yann.lecun.com/exdb/mnist/
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (H. Xiao,
    K. Rasul, R. Vollgraf, 2017), https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sfumato import arrays, limits
from sfumato.errors import NotFound, Refused, reason
from sfumato.training import cifar
from sfumato.training.raw import Raw

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


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

    side = 32
    stride = 6
    border = 149
    part = slice(0, border) if split == "train" else slice(border, None)
    names = ("china", "flower")
    crops = []
    labels = []
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
    cure = "Install the Debian package dataset-fashion-mnist, or set"
    folders = [FASHION_FOLDER, *_given("fashion-mnist")]
    return _mnist("Fashion-MNIST", split, folders, FASHION, cure)


def mnist(split: str) -> Raw:
    """The idx files of `$SFUMATO_DATA/mnist`.

    Not of `$SFUMATO_DATA` itself, where files of the same names are those of Fashion-MNIST.
    """
    return _mnist("MNIST", split, _given("mnist")[1:], tuple("0123456789"), "Set")


def cifar10(split: str) -> Raw:
    """The binary version, in `$SFUMATO_DATA`."""
    return cifar.read(cifar.TEN, split, _given("cifar10"))


def cifar100(split: str) -> Raw:
    """The binary version, in `$SFUMATO_DATA`, with its 100 fine classes."""
    return cifar.read(cifar.HUNDRED, split, _given("cifar100"))


def _given(name: str) -> list[Path]:
    """The user's folder, and the one of this name in it."""
    given = os.environ.get("SFUMATO_DATA")
    return [Path(given), Path(given, name)] if given else []


def _mnist(what: str, split: str, folders: list[Path], classes: tuple[str, ...], cure: str) -> Raw:
    """Images and labels of one split in four idx files, from the first folder that has them."""
    prefix = "train" if split == "train" else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for folder in folders:
        paths = [_present(folder / name) for name in names]
        if paths[0] is not None and paths[1] is not None:
            images, labels = _idx(paths[0], 3)[:, None], _idx(paths[1], 1).astype(np.int64)
            return Raw(images, 0, 255, labels, classes)
    looked = ", ".join(map(str, folders)) or "any folder, as SFUMATO_DATA is not set"
    raise NotFound(
        f"{what} is not here: no {names[0]}(.gz) with its labels in {looked}. {cure} SFUMATO_DATA "
        f"to a folder that has these files{' in a folder mnist' if what == 'MNIST' else ''}."
    )


def _present(path: Path) -> Path | None:
    """The file, or the file compressed, whichever there is."""
    packed = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _idx(path: Path, rank: int) -> np.ndarray:
    """An idx file: the number 0x0800 + rank and one size per axis, big-endian, then the bytes."""
    try:
        start = 4 * (1 + rank)
        head = _unpacked(path, start).ljust(start, b"\0")
        magic, *sizes = struct.unpack(f">{1 + rank}I", head)
        most = limits.INFLATED * path.stat().st_size
        limits.check_memory(f"the header of {path}", math.prod(sizes), most)
        raw = _unpacked(path, start + math.prod(sizes) + 1)
    except arrays.BROKEN as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path} is damaged or cut off: {reason(error)}.") from error
    if magic != 0x0800 + rank:
        raise Refused(
            f"{path} is not an idx file of {rank}-dimensional bytes: it begins with "
            f"{magic:#010x}, not {0x0800 + rank:#010x}."
        )
    if len(raw) != start + math.prod(sizes):
        raise Refused(
            f"{path} is cut off or too long: its header asks for {start + math.prod(sizes)} bytes, "
            f"it has {len(raw)}."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(sizes).copy()


def _unpacked(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file, or of what it holds compressed."""
    if path.suffix == ".gz":
        return arrays.inflated(path, most)
    with path.open("rb") as opened:
        return opened.read(most)


NAMED: dict[str, Callable[[str], Raw]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "photos": photos,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
"""(split) -> Raw, by the name that `--data` takes."""
