r"""CIFAR-10 and CIFAR-100, in the "binary version" of their page; the "python version" is a pickle.

    cifar-10-batches-bin/    data_batch_1.bin ... data_batch_5.bin, test_batch.bin, batches.meta.txt
    cifar-100-binary/        train.bin, test.bin, fine_label_names.txt

An image is a row of bytes: its label (in CIFAR-100 the coarse and the fine one), then 32 x 32
values of red, of green and of blue.

References:
    Learning Multiple Layers of Features from Tiny Images (A. Krizhevsky, 2009),
    https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, final

import numpy as np

from sfumato.errors import NotFound, Refused
from sfumato.training.raw import Raw

SHAPE = (3, 32, 32)
VALUES = 3 * 32 * 32


@final
class Layout(NamedTuple):
    """Where the files of one of the two are.

    Attributes:
        folder: its name, in the archive of the binary version.
        files: of each split.
        names: the file with the names of the classes.
        labels: bytes of labels before each image; the last one is the class.
        pickled: names of the folder, and of a file in it, of the python version.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    labels: int
    pickled: tuple[str, str]


TEN = Layout(
    "cifar-10-batches-bin",
    {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    "batches.meta.txt",
    1,
    ("cifar-10-batches-py", "data_batch_1"),
)
HUNDRED = Layout(
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    "fine_label_names.txt",
    2,
    ("cifar-100-python", "train"),
)


def read(layout: Layout, split: str, folders: list[Path]) -> Raw:
    """One split, from the first of `folders` that has it, or a folder of its own in it.

    Raises:
        FileNotFoundError: none has; the error says how to get it.
        ValueError: only the pickled version is there, or a file is cut off.
    """
    places = [place for folder in folders for place in (folder, folder / layout.folder)]
    for place in places:
        if all((place / name).is_file() for name in (*layout.files[split], layout.names)):
            return _read(layout, split, place)
    folder, name = layout.pickled
    if any((place / folder / name).is_file() or (place / name).is_file() for place in places):
        raise _pickled(layout)
    wanted = ", ".join((*layout.files[split], layout.names))
    looked = ", ".join(map(str, folders)) or "no folder, as SFUMATO_DATA is not set"
    raise NotFound(
        f"{layout.folder} is not here: no {wanted} in {looked}. Set SFUMATO_DATA to the folder "
        "where the binary version was unpacked, from https://www.cs.toronto.edu/~kriz/cifar.html."
    )


def check_pickled(path: Path) -> None:
    """Raise ValueError where `path` is the python version of one of the two, or a file of it."""
    home = path.parent if path.is_file() else path
    for layout, meta in ((TEN, "batches.meta"), (HUNDRED, "meta")):
        if (home / meta).is_file() and (home / layout.pickled[1]).is_file():
            raise _pickled(layout)


def _pickled(layout: Layout) -> Refused:
    return Refused(
        f"{layout.pickled[0]} is a pickle, which could run code when it is read. Get the binary "
        f"version from https://www.cs.toronto.edu/~kriz/cifar.html, whose folder is "
        f"{layout.folder}."
    )


def _read(layout: Layout, split: str, place: Path) -> Raw:
    names = (place / layout.names).read_text(encoding="utf-8").split()
    size = layout.labels + VALUES
    parts = []
    for name in layout.files[split]:
        path = place / name
        raw = np.fromfile(path, np.uint8)
        if not len(raw) or len(raw) % size:
            raise Refused(
                f"{path} is cut off or no such file: images have {size} bytes each, and it has "
                f"{len(raw)} in all."
            )
        parts.append(raw.reshape(-1, size))
    rows = np.concatenate(parts)
    labels = rows[:, layout.labels - 1].astype(np.int64)
    images = rows[:, layout.labels :].reshape(-1, *SHAPE)
    return Raw(images, 0, 255, labels, tuple(names))
