r"""An array file is anyone's `.npy` or `.npz`; sizes are compared before memory is taken.

The header of a `.npy` declares a shape; the values must be in the file, to the byte. A member of a
`.npz` declares how long it is unpacked: at most `limits.INFLATED` times the archive, or
`limits.memory()`.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple, cast, final

import numpy as np

from sfumato import limits
from sfumato.errors import NotFound, Refused, reason

BROKEN = (
    *(OSError, ValueError, EOFError, struct.error, zlib.error, zipfile.BadZipFile, TypeError),
    *(LookupError, ArithmeticError, RuntimeError, MemoryError, SyntaxError, AttributeError),
    tokenize.TokenError,
)
"""What reading a file raises that is cut off, damaged or made up."""
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy packs; other ways may take any memory while they are unpacked."""


@final
class Header(NamedTuple):
    """What a `.npy` declares: its shape and type, and where its values begin."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def bytes(self) -> int:
        """Of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


@final
class Packed:
    """The arrays in a `.npz`, each read when it is asked for.

    Args:
        path: of the file.
        names: of its arrays.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self.path = path
        self.names = tuple(names)

    def read(self, *names: str) -> dict[str, np.ndarray]:
        """Some of its arrays by name; all of them where none is named.

        Raises:
            ValueError: no such array, one that is damaged, or more than the limit in all.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._read(archive, names or self.names)
        except BROKEN as error:
            raise _refused(self.path, error) from error

    def _read(self, archive: zipfile.ZipFile, names: Collection[str]) -> dict[str, np.ndarray]:
        members = {name: archive.getinfo(f"{name}.npy") for name in names}
        for name, member in members.items():
            if member.compress_type not in PACKED or member.flag_bits & 1:
                raise Refused(f"its member {name} is not packed as numpy packs")
        most = limits.INFLATED * self.path.stat().st_size
        limits.check_memory("what it unpacks", sum(m.file_size for m in members.values()), most)
        found = {}
        for name, member in members.items():
            with archive.open(member) as stream:
                found[name] = _array(stream, member.file_size)
                if stream.read(1):
                    raise Refused(f"its member {name} has bytes after its array")
        return found


def read(path: Path | str) -> np.ndarray | Packed:
    """The array in a `.npy`, or those in a `.npz`, whatever the file's name.

    Raises:
        ValueError: the file is neither, is cut off, holds objects, or declares more than it has.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if stream.read(2) == b"PK":
                return Packed(path, _names(path))
            stream.seek(0)
            return _array(stream, path.stat().st_size)
    except FileNotFoundError as error:
        raise NotFound(f"{path} cannot be read as arrays: {error.strerror}.") from error
    except BROKEN as error:
        raise _refused(path, error) from error


def read_packed(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz`; ValueError where it is none."""
    found = read(path)
    if not isinstance(found, Packed):
        raise Refused(f"{path} cannot be read as arrays: it holds one without a name.")
    return found.read()


def header(stream: IO[bytes]) -> Header:
    """What the header of a `.npy` declares, read from its start; errors are those of `BROKEN`."""
    version = np.lib.format.read_magic(stream)
    form = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}", None)
    if form is None:
        raise Refused(f"version {version} of the format is not read")
    shape, fortran, dtype = form(stream)
    if dtype.hasobject:
        raise Refused("Object arrays cannot be loaded; save rows of numbers")
    if any(side < 0 for side in shape):
        raise Refused(f"its header declares the shape {limits.short(shape)}")
    return Header(cast("tuple[int, ...]", shape), dtype, fortran, stream.tell())


def inflated(path: Path, most: int) -> bytes:
    """At most `most` bytes of what a gzip file holds; errors are those of `BROKEN`."""
    import gzip

    with gzip.open(path) as stream:
        return stream.read(most)


def _array(stream: IO[bytes], size: int) -> np.ndarray:
    """The array that a stream of `size` bytes holds."""
    about = header(stream)
    if about.bytes > size - about.start:
        raise Refused(
            f"its header declares {about.bytes:,} bytes of values, and it has "
            f"{size - about.start:,}"
        )
    values = np.empty(about.bytes, np.uint8)
    view = values.data
    while len(view) and (part := stream.readinto(view)):  # type: ignore[reportAttributeAccessIssue] - of a member
        view = view[part:]
    if len(view):
        raise Refused("it is cut off")
    order = "F" if about.fortran else "C"
    return values.view(about.dtype).reshape(about.shape, order=order)


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        names = [member.filename for member in archive.infolist()]
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _refused(path: Path, error: BaseException) -> Refused:
    told = reason(error)
    return Refused(f"{path} cannot be read as arrays: {told}.")
