r"""Data are images in memory, with a record of what they are; a batch of them lies in [-1, 1].

data = load("digits")        data.batch([0, 1, 2])        data.record
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.corruption.facts import Facts, measure
from sfumato.names import nearest
from sfumato.record import Record as Record
from sfumato.training.sources import NAMED, Raw, array, check_labels, folder

SPLITS = ("train", "test")
SLICE = re.compile(r"(?P<base>\w+)(\[(?P<first>-?\d+)?:(?P<last>-?\d+)?\])?")

Rows = Tensor | np.ndarray | Sequence[int]
"""Positions in the data, whole numbers from 0."""


@dataclass(frozen=True, eq=False)
class Data:
    r"""Images in memory (final).

    Args:
        images: array (n, C, H, W) of uint8 or float32, in the record's range of raw values.
        labels: classes from 0, (n,) of int64, or None.
        record: what they are.

    Raises:
        ValueError: the three do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray | None
    record: Record

    def __post_init__(self) -> None:
        shape = (self.record.count, *self.record.shape)
        if self.images.shape != shape or self.images.dtype not in (np.uint8, np.float32):
            raise ValueError(
                f"the record says uint8 or float32 images of shape {shape}; "
                f"got {self.images.dtype} of shape {self.images.shape}."
            )
        if not len(self.images):
            raise ValueError("data need at least one image.")
        if (self.labels is None) != (self.record.classes is None):
            raise ValueError("labels and the record's classes come together or not at all.")
        if self.labels is not None:
            check_labels(self.labels, self.record.count, len(self.record.classes or ()))

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Rows) -> Tensor:
        """The images at `indices`: (B, C, H, W) in [-1, 1], float32."""
        low, high = self.record.low, self.record.high
        raw = torch.from_numpy(self.images[_rows(indices)]).float()
        return (raw - low).div((high - low) / 2).sub(1)

    def classes(self, indices: Rows) -> Tensor | None:
        """Their classes: (B,), int64; None where the data have none."""
        return None if self.labels is None else torch.from_numpy(self.labels[_rows(indices)])

    def facts(self, batch: int = 256) -> Facts:
        """What a method may know of the data, measured in one pass of batches."""
        starts = range(0, len(self), batch)
        batches = (self.batch(range(i, min(i + batch, len(self)))) for i in starts)
        return measure(batches, self.record.shape)


def load(source: str | Path, split: str = "train") -> Data:
    r"""Read a data set: by name, or from a folder of images, a `.npz` or a `.npy`.

    Args:
        source: `digits`, `fashion-mnist`, `photos`, or a path; a name goes before a path, so that
            `./digits` is a folder of one's own. `sfumato.training.sources` says what is in each.
        split: "train" or "test", or a slice of one, such as "train[55000:]"; folders and arrays are
            all "train".

    Raises:
        FileNotFoundError: the files are not there; it says how to get them.
        ValueError: the name or the split is unknown, or the files are not images of one size with
            values in their range; it names the file and what is wrong with it.
    """
    base, part = _split(split)
    if str(source) in NAMED:
        return _data(NAMED[str(source)](base), str(source), split, part)
    path = Path(source).expanduser()
    if not str(source) or not path.exists():
        raise _unknown(str(source))
    if base != "train":
        raise ValueError(
            f"{path} has no test split: all of it is train. Keep the images to test on in another "
            "folder or file, and load that as train."
        )
    if path.is_dir():
        return _data(folder(path), str(source), split, part)
    if path.suffix.lower() in (".npz", ".npy"):
        return _data(array(path), str(source), split, part)
    raise ValueError(f"{path} is no data set: use a folder of images, a .npz or a .npy.")


def _unknown(source: str) -> Exception:
    if os.sep in source or Path(source).suffix:
        return FileNotFoundError(f"there is no folder or file {source}.")
    sentence = nearest("data set", source, NAMED)
    return ValueError(f"{sentence} A folder of images, a .npz or a .npy will do as well.")


def _split(split: str) -> tuple[str, slice]:
    """The split and which of it: `train[55000:]` is ("train", slice(55000, None))."""
    found = SLICE.fullmatch(split)
    if found is None or found["base"] not in SPLITS:
        raise ValueError(f"no split {split!r}; choose train or test, or a slice: train[55000:].")
    ends = (int(end) if end else None for end in (found["first"], found["last"]))
    return found["base"], slice(*ends)


def _data(raw: Raw, name: str, split: str, part: slice) -> Data:
    images = np.ascontiguousarray(raw.images[part])
    if not len(images):
        raise ValueError(f"{name} has {len(raw.images)} images; there is none in {split}.")
    record = Record(
        name=name,
        shape=images.shape[1:],
        low=raw.low,
        high=raw.high,
        classes=raw.classes,
        count=len(images),
        split=split,
        sha256=hashlib.sha256(images.data).hexdigest(),
    )
    return Data(images, None if raw.labels is None else raw.labels[part], record)


def _rows(indices: Rows) -> np.ndarray:
    rows = np.asarray(indices)
    return rows if rows.size else rows.astype(np.int64)
