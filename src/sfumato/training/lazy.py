r"""Arrays whose rows are read when they are asked for, where all of them would not fit in memory.

    lazy.shape, lazy.dtype      lazy[rows]: (B, *shape)      lazy[first:last]: lazy, of these rows

They stand where an array (n, *shape) does, and give the same values as the array would.
"""

from __future__ import annotations

import copy
import hashlib
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, final, overload

import numpy as np

from sfumato import arrays
from sfumato.errors import Refused, reason

LARGEST = 2**29
"""Bytes of data that are kept in memory; more are read as they are needed."""
LOOK = 1024
"""Rows that are read at once, or at all where reading all would take long."""


class Lazy(ABC):
    """An array (n, *shape) in files (abstract: `read`, `identity`).

    Args:
        count: of the rows.
        shape: of one row.
        dtype: of the values.
    """

    quick = False
    """Whether all rows can be read in little time, as from one file of numbers."""

    def __init__(self, count: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape = (count, *shape)
        self.dtype = np.dtype(dtype)
        self.rows: range = range(count)

    @abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """The values at these rows of the files, (B, *shape), in memory of their own."""

    @abstractmethod
    def identity(self) -> str:
        """What tells these files from others, in hex, without reading all of them."""

    def stamp(self) -> str:
        """What changes whenever these files are written, for results that are kept of them."""
        return self.identity()

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, rows: slice) -> Self: ...
    @overload
    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...
    def __getitem__(self, rows: slice | np.ndarray) -> Self | np.ndarray:
        if isinstance(rows, slice):
            part = copy.copy(self)
            part.rows = self.rows[rows]
            part.shape = (len(part.rows), *self.shape[1:])
            return part
        return self.read(self.rows.start + self.rows.step * np.asarray(rows))

    @property
    def nbytes(self) -> int:
        """Bytes that all values would take."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def some(self, count: int = LOOK) -> np.ndarray:
        """At most `count` rows, evenly spaced."""
        return self[np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)]

    def blocks(self, count: int = LOOK) -> Iterator[np.ndarray]:
        """All rows in order, at most `count` at once; without `quick` those of `some` alone."""
        if not self.quick:
            yield self.some(count)
            return
        for first in range(0, len(self), count):
            yield self[np.arange(first, min(first + count, len(self)))]


Values = np.ndarray | Lazy


@final
class Computed(Lazy):
    """Rows of another lazy array, each batch of them changed by a function.

    Args:
        values: the other array.
        change: of rows (B, *shape), to as many of the shape and type below.
        shape, dtype: of what it gives.
    """

    def __init__(
        self,
        values: Lazy,
        change: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        super().__init__(len(values), shape, dtype)
        self.values = values
        self.change = change
        self.quick = values.quick

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.change(self.values[rows]).astype(self.dtype, copy=False)

    def identity(self) -> str:
        return self.values.identity()

    def stamp(self) -> str:
        return self.values.stamp()


@final
class Stored(Lazy):
    """The array in a `.npy` file, read row by row.

    It is not mapped into memory: pages of a mapped file that were read count as the process's own
    until the system needs them.

    Args:
        path: of the file; with rows first, as numpy writes it by default.

    Raises:
        ValueError: it is no such file, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.quick = True
        (count, *shape), dtype, self.start = header(path)
        super().__init__(count, tuple(shape), dtype)
        self.path = path
        self.size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.file: _Opened | None = None

    def read(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(rows.tolist()):
            part = os.pread(self._open().number, self.size, self.start + row * self.size)
            if len(part) != self.size:
                raise Refused(f"{self.path} was cut off while it was read.")
            found[i] = np.frombuffer(part, self.dtype).reshape(found.shape[1:])
        return found

    def identity(self) -> str:
        """Of the header, the file's size, and some rows."""
        found = hashlib.sha256(repr((self.shape, self.dtype.str, self.rows)).encode())
        found.update(np.ascontiguousarray(self.some()).data)
        return found.hexdigest()

    def stamp(self) -> str:
        """With the time of the last change."""
        return f"{self.identity()} {self.path.stat().st_mtime_ns}"

    def _open(self) -> _Opened:
        """The file, opened once in each process."""
        if self.file is None or self.file.process != os.getpid():
            self.file = _Opened(self.path)
        return self.file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None}


@final
class _Opened:
    """A file that is open for reading as long as this object, which slices of an array share."""

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


def changed(
    values: Values,
    change: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Values:
    """`change` of all rows at once, or of those of a lazy array when they are asked for."""
    if isinstance(values, Lazy):
        return Computed(values, change, shape, dtype)
    return change(values).astype(dtype, copy=False)


def header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and offset of the values of a `.npy` file with rows first.

    Raises:
        ValueError: it has another layout, holds objects, or is cut off.
    """
    try:
        with path.open("rb") as opened:
            found = arrays.header(opened)
            size = opened.seek(0, os.SEEK_END)
    except arrays.BROKEN as error:
        raise Refused(f"{path} cannot be read as arrays: {reason(error)}.") from error
    if found.fortran or not found.shape:
        raise Refused(
            f"{path} holds one number, or columns first; save rows of numbers, "
            "np.ascontiguousarray(array)."
        )
    asked = found.start + found.bytes
    if asked != size:
        raise Refused(f"{path} has {size} bytes, and its header asks for {asked}: it is cut off.")
    return found.shape, found.dtype, found.start
