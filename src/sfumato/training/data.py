r"""Data are images or signals with a record of what they are; a batch lies in [-1, 1].

data = load("digits")        data.batch([0, 1, 2])        data.record
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato import files
from sfumato.algebra.place import CPU, upload
from sfumato.corruption.boundary import FAR
from sfumato.corruption.statistics import DataStatistics, measure
from sfumato.errors import Refused
from sfumato.notes import Note
from sfumato.record import LATENTS
from sfumato.record import Record as Record
from sfumato.training import cache
from sfumato.training.lazy import Lazy, Values
from sfumato.training.order import permuted
from sfumato.training.raw import Range, Reading, check_labels
from sfumato.training.sources import SPLITS, read

MEASURED = 65_536
"""Images in memory that statistics are measured of, at most."""
DECODED = 16_384
"""Images in files: a variance is known to 1 %, and more would delay the first step."""
FORM = 1
"""Of the statistics that are kept: raised where `measure` gives other numbers."""
ROUNDING = 1e-3
"""How far values may lie outside their range, as a share of it."""
SLICE = re.compile(r"(?P<base>\w+)(\[(?P<first>-?\d+)?:(?P<last>-?\d+)?\])?")

Rows = Tensor | np.ndarray | Sequence[int]
"""Positions in the data, whole numbers from 0."""


@final
@dataclass(frozen=True, eq=False)
class Data:
    r"""Images, in memory or in files.

    Args:
        images: array (n, C, H, W), or of other signals (n, *shape), of uint8 or float32, in the
            record's range of raw values; a `Lazy` one is read as it is needed, and gives the same.
        labels: classes from 0, (n,) of int64, or None.
        record: what they are.

    Raises:
        ValueError: the three do not fit together.

    >>> digits = sf.load("digits")
    >>> len(digits), digits.batch([0, 1]).shape, digits.classes([0, 1])
    (1500, torch.Size([2, 1, 8, 8]), tensor([0, 1]))
    """

    images: Values
    labels: np.ndarray | None
    record: Record

    def __post_init__(self) -> None:
        shape = (self.record.count, *self.record.shape)
        if self.images.shape != shape or self.images.dtype not in (np.uint8, np.float32):
            raise Refused(
                f"the record says uint8 or float32 images of shape {shape}; "
                f"got {self.images.dtype} of shape {self.images.shape}."
            )
        if not len(self.images):
            raise Refused("data need at least one image.")
        if self.record.pictures and not isinstance(self.images, Lazy):
            self._check_range(self.images)
        if (self.labels is None) != (self.record.classes is None):
            raise Refused("labels and the record's classes come together or not at all.")
        if self.labels is not None:
            check_labels(self.labels, self.record.count, len(self.record.classes or ()))

    def __len__(self) -> int:
        """Images, and with `record.flip` their mirror images, which come after all of them."""
        return len(self.images) * (2 if self.record.flip else 1)

    def mirrored(self) -> Data:
        """These images and the mirror image of each, left for right, as data to train on.

        Raises:
            ValueError: they are no images.
        """
        self.record.check_pictures("a mirror image")
        return replace(self, record=replace(self.record, flip=True))

    def batch(self, indices: Rows, device: torch.device = CPU) -> Tensor:
        """The images at `indices`: (B, C, H, W) in [-1, 1], float32, scaled on `device`."""
        return self.scaled(self.raw(indices), device)

    def raw(self, indices: Rows) -> Tensor:
        """The raw values of the images at `indices`, (B, C, H, W), on the CPU."""
        rows = self._rows(indices)
        raw = self.images[rows % len(self.images)]
        mirrored = rows >= len(self.images)
        raw[mirrored] = raw[mirrored][..., ::-1]
        return torch.from_numpy(raw)

    def scaled(self, raw: Tensor, device: torch.device = CPU) -> Tensor:
        """Raw values on `device`, in [-1, 1] and float32."""
        return self.record.scaled(upload(raw, device).float())

    def classes(self, indices: Rows) -> Tensor | None:
        """Their classes: (B,), int64; None where the data have none."""
        if self.labels is None:
            return None
        return torch.from_numpy(self.labels[self._rows(indices) % len(self.images)])

    def _check_range(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        room = ROUNDING * (self.record.high - self.record.low)
        if not self.record.low - room <= low <= high <= self.record.high + room:
            raise Refused(
                f"the record says values from {self.record.low:g} to {self.record.high:g}; got "
                f"{low:g} to {high:g}."
            )

    def _rows(self, indices: Rows) -> np.ndarray:
        rows = np.asarray(indices)
        rows = rows if rows.size else rows.astype(np.int64)
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            odd = rows.max() if rows.max() >= len(self) else rows.min()
            raise IndexError(f"these data have rows 0 to {len(self) - 1}; got {odd}.")
        return rows % len(self)

    def stats(self, batch: int = 256) -> DataStatistics:
        """Statistics of the data for methods, measured in one pass of batches.

        Of at most `MEASURED` images, drawn by a fixed seed; of at most `DECODED` in files that are
        read as they are needed. Those are kept in the user's cache, and are not measured again.
        """
        if not isinstance(self.images, Lazy):
            return self._measured(MEASURED, batch)
        from sfumato.store import read_stats  # imports all of a model, which data do not need

        record = {**self.record.to_dict(), "name": None, "split": None}
        classes = None if self.labels is None else hashlib.sha256(self.labels.data).hexdigest()
        told = [self.images.stamp(), repr(self.images.rows), classes, DECODED, batch, FORM]
        return cache.kept(
            "statistics",
            {"record": record, "told": told},
            lambda: self._measured(DECODED, batch),
            lambda stats, part: files.write_tensors(stats.tensors(), part / "facts.safetensors"),
            read_stats,
        )

    def _measured(self, most: int, batch: int) -> DataStatistics:
        count = len(self)
        chosen = np.arange(count)
        if count > most:
            chosen = np.sort(permuted(np.arange(most), count, 0))
        starts = range(0, len(chosen), batch)
        batches = (self.batch(chosen[i : i + batch]) for i in starts)
        values = self.record.values if np.issubdtype(self.images.dtype, np.integer) else 0
        labels = self.classes(chosen)
        far = math.inf if self.record.kind == LATENTS else FAR
        return measure(batches, self.record.shape, labels, values, far)


def load(
    source: str | Path,
    split: str = "train",
    *,
    range: Range | None = None,
    key: str | None = None,
    kind: str | None = None,
    resize: int | None = None,
    crop: str | None = None,
) -> Data:
    r"""Read a data set: by name, or from a folder of images, `.tar` shards, a `.npz` or a `.npy`.

    Args:
        source: a name, such as `digits`, or a path; a name takes precedence, so that `./digits` is
            a folder of your own; or `hf:` and a path, a data set of Hugging Face's library.
            `docs/data.md` says what may be in each.
        split: "train", "test" or "val", or a slice of one, such as "train[55000:]"; arrays, and
            folders without subfolders of these names, are all "train".
        range: the raw values that become -1 and 1; by default inferred from the values, or
            ValueError.
            Signals have the largest absolute value as scale, on both sides of 0.
        key: name of the array in a .npz, where it is neither `images` nor `signals`; of the image
            in a sample of shards; of the columns of `hf:` data.
        kind: "images", or "signals": arrays (n, *shape) of any rank that are no pictures. By
            default signals are the array `signals`, and the rows of a .npy.
        resize: shorter side of images, by Pillow's Lanczos filter.
        crop: of resized images: "center" (the default), the middle square, or "none"; or a number
            of pixels, "140", the middle square of that side, before they are resized.

    Raises:
        FileNotFoundError: the files are missing; the error says how to get them.
        ValueError: the name or the split is unknown, or the files are not images of one size with
            values in their range; the error names the file and the fault.

    Warns:
        Note: files were skipped, or values clipped: which and how many.

    >>> test = sf.load("digits", "test")
    >>> test.record.shape, len(test)
    ((1, 8, 8), 297)
    >>> len(sf.load("digits", "train[:100]"))
    100
    """
    base, part = _split(split)
    pair = None if range is None else (float(range[0]), float(range[1]))
    how = Reading(pair, key, kind, resize, crop)
    raw = read(source, base, how)
    for sentence in raw.notes:
        warnings.warn(sentence, Note, stacklevel=2)
    images = raw.images[part]
    if not isinstance(images, Lazy):
        images = np.ascontiguousarray(images)
    if not len(images):
        raise Refused(f"{source} has {len(raw.images)} images; there is none in {split}.")
    record = Record(
        name=str(source),
        shape=images.shape[1:],
        low=raw.low,
        high=raw.high,
        classes=raw.classes,
        count=len(images),
        split=split,
        sha256=_sha256(images, how),
        kind=raw.kind,
        key=key,
        resize=resize,
        crop=crop or "center",
    )
    return Data(images, None if raw.labels is None else raw.labels[part], record)


def _sha256(images: Values, how: Reading) -> str:
    """Of the values; of those that are read when needed, of what tells their files from others."""
    if not isinstance(images, Lazy):
        return hashlib.sha256(images.data).hexdigest()
    told = [images.identity(), repr(images.rows), images.shape, images.dtype.str]
    return hashlib.sha256(repr([*told, how.resize, how.crop]).encode()).hexdigest()


def _split(split: str) -> tuple[str, slice]:
    """The split and which of it: `train[55000:]` is ("train", slice(55000, None))."""
    found = SLICE.fullmatch(split)
    if found is None or found["base"] not in SPLITS:
        raise Refused(
            f"no split {split!r}; choose train or test, or val, or a slice: train[55000:]."
        )
    ends = (int(end) if end else None for end in (found["first"], found["last"]))
    return found["base"], slice(*ends)
