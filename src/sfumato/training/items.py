r"""Items are images that are kept one by one, as files, members of archives or rows of a table.

`gathered` makes data of them: all of one size, of as many channels and of as many bits. Gray images
become colour where any is colour, 8 bits 16 where any has 16. Where they would not fit in memory,
they are decoded as they are needed, and the first one says how many channels and bits all have.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final

import numpy as np

from sfumato.errors import Refused
from sfumato.training.lazy import LARGEST, Lazy
from sfumato.training.raw import Raw, Reading, check_within, numbers, placed


class Items(ABC):
    """Images by their numbers (abstract: `decoded`, `identity`, `stamp`).

    Attributes:
        where: they are, for sentences.
        names: of each of them there.
    """

    where: Path | str
    names: Sequence[str]

    @abstractmethod
    def decoded(self, row: int) -> np.ndarray:
        """The values of one, (C, H, W), uint8 or uint16; ValueError where it is no image."""

    @abstractmethod
    def identity(self, rows: range) -> str:
        """What tells these from others, in hex, without decoding them."""

    @abstractmethod
    def stamp(self, rows: range) -> str:
        """What changes whenever these are written."""

    def __len__(self) -> int:
        return len(self.names)

    def full(self, row: int) -> str:
        """The name of one, with where it is."""
        return f"{self.where}/{self.names[row]}"

    def read(self, row: int, how: Reading) -> np.ndarray:
        """One image, (C, H, W), as `how` says."""
        found = self.decoded(row)
        if how.range is not None:
            check_within(numbers(found, self.full(row)), how.range, self.full(row))
        return how.fitted(found, how.range or (0, np.iinfo(found.dtype).max))

    def check_size(self, row: int, one: np.ndarray, side: tuple[int, ...], how: Reading) -> None:
        """Raise ValueError for an image of another size than the first."""
        if one.shape[1:] != tuple(side):
            sizes = [f"{width} x {height}" for height, width in (side, one.shape[1:])]
            cure = "Leave out --crop none" if how.resize else "Use --resize N"
            raise Refused(
                f"images must have one size; in {self.where}, {self.names[0]} is {sizes[0]} pixels "
                f"and {self.names[row]} is {sizes[1]}. {cure}, which makes them squares."
            )


@final
class Decoded(Lazy):
    """Items as rows, each decoded when it is asked for.

    Args:
        items: the images.
        how: each is read.
        shape, dtype: of the first one, which all have.
    """

    def __init__(self, items: Items, how: Reading, shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__(len(items), shape, dtype)
        self.items = items
        self.how = how

    def read(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows.tolist()):
            found[i] = self._like(row)
        return found

    def identity(self) -> str:
        return self.items.identity(self.rows)

    def stamp(self) -> str:
        return self.items.stamp(self.rows)

    def _like(self, row: int) -> np.ndarray:
        """One image, with the channels and the bits of the first one."""
        one = self.items.read(row, self.how)
        self.items.check_size(row, one, self.shape[2:], self.how)
        full, first = self.items.full(row), self.items.full(0)
        if one.dtype != self.dtype:
            raise Refused(f"{full} has {one.dtype}, and {first} has {self.dtype}: save all as one.")
        if len(one) > self.shape[1]:
            raise Refused(f"{full} is in colour, and {first} is gray: save all in colour.")
        return np.broadcast_to(one, self.shape[1:])


def gathered(items: Items, how: Reading) -> Raw:
    """The images of all items, in memory where they fit.

    Raises:
        ValueError: one is no image, or of another size; where they do not fit, on use.
    """
    first = items.read(0, how)
    if first.nbytes * len(items) > LARGEST:
        return placed(Decoded(items, how, first.shape, first.dtype), items.where, how.range)
    images = np.empty((len(items), *first.shape), first.dtype)
    for i in range(len(items)):
        one = items.read(i, how) if i else first
        items.check_size(i, one, first.shape[1:], how)
        if len(one) > len(images[0]):
            images = np.repeat(images, len(one), axis=1)
        if one.dtype != images.dtype:
            if how.range is not None:
                raise Refused(
                    f"{items.where} has images of 8 and of 16 bits; one --range cannot be that of "
                    "both."
                )
            images, one = (x if x.dtype == np.uint16 else np.uint16(257) * x for x in (images, one))
        images[i] = one
    return placed(images, items.where, how.range)


def told(values: Iterable[object]) -> str:
    """SHA-256 of what is printed of values, in hex."""
    found = hashlib.sha256()
    for value in values:
        found.update(f"{value}\0".encode(errors="surrogateescape"))
    return found.hexdigest()
