"""Blocks are finished parts of long work, each a file, from which interrupted work resumes.

OUT.blocks/KEY/00000500.npz     the block whose first item is 500, of the work with this key
OUT.blocks/KEY/started-1        process 1 has begun
OUT.blocks/KEY/finished         the output is written: a process that begins later does nothing

Several processes share work by them: each computes every n-th block, and the first reads all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from sfumato import arrays, files
from sfumato.errors import Refused
from sfumato.notes import Note
from sfumato.processes import here

PAUSE = 0.2
"""Seconds between two looks for a block of another process."""
WAIT, SLOW = 60.0, 10.0
"""The first process waits so many seconds for another's block, or so many times as long as the
longest block so far took, and computes it itself if it does not come."""
FINISHED = "finished"
SPENT = "seconds of the block"
"""The array of a block's file that says how long the block took."""

Block = dict[str, np.ndarray]


@final
@dataclass(frozen=True)
class Blocks:
    """Where a command keeps its blocks, and which of those there are its own.

    Attributes:
        home: the folder, which other commands with the same output may use too.
        mine: the folders in it of this command.
    """

    home: Path
    mine: list[Path] = field(default_factory=list)

    def folder(self, about: Mapping[str, Any]) -> Path:
        """The folder of the work that depends on `about`, from now on this command's own."""
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        found = self.home / key
        if found not in self.mine:
            self.mine.append(found)
        return found

    def forget(self) -> None:
        """Remove this command's blocks, once their output is written."""
        for folder in self.mine:
            forget(folder, here().count)


def beside(out: Path) -> Blocks:
    """The blocks of the output `out`."""
    return Blocks(out.with_name(f"{out.name}.blocks"))


def every(
    keep: Blocks | None,
    about: Mapping[str, Any],
    firsts: Sequence[int],
    make: Callable[[int], Block],
) -> Iterator[Block]:
    """The parts that begin at `firsts`, in order, each read from its file or computed.

    Where several processes do this, each computes its share of the parts; the first one yields all
    of them, as soon as they are there, and the others what they computed themselves. The part of a
    process that does not come is computed by the first one, and a process that begins after the
    first has written the output, or is not done by then, computes nothing more.

    Args:
        keep: where the parts are; None stores nothing, and each process computes all.
        about: all that the numbers depend on, as JSON holds it; other work does not read them.
        firsts: indices of the parts' first items.
        make: from such an index to the part.

    Raises:
        ValueError: a file is damaged, or cannot be written.
    """
    mine = here()
    if keep is None:
        yield from map(make, firsts)
        return
    folder = keep.folder(about)
    if mine.first:
        (folder / FINISHED).unlink(missing_ok=True)  # of the same command, given again
        yield from _gathered(folder, firsts, make)
        return
    token = folder / f"started-{mine.index}"
    if not (folder / FINISHED).exists():
        files.write(token, "")
        for first in firsts[mine.index :: mine.count]:
            if _over(folder):
                break
            yield _kept(folder, first, make)[0]
    if (folder / FINISHED).exists():
        files.write(token, "")
        _clear(folder, mine.count)


def _gathered(folder: Path, firsts: Sequence[int], make: Callable[[int], Block]) -> Iterator[Block]:
    """All parts, in the first process."""
    count = here().count
    longest = 0.0
    for first in firsts[::count] if count > 1 else ():
        longest = max(longest, _kept(folder, first, make)[1])
    gone: set[int] = set()
    for place, first in enumerate(firsts):
        path, whose = _path(folder, first), place % count
        if whose and whose not in gone and not _came(path, max(WAIT, SLOW * longest)):
            gone.add(whose)
            warnings.warn(
                f"process {whose} of {count} has ended or is slow: process 0 does its part.",
                Note,
                stacklevel=3,
            )
        part, spent = _kept(folder, first, make)
        longest = max(longest, spent)
        yield part


def _came(path: Path, seconds: float) -> bool:
    """Wait for a file; whether it is there."""
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def _kept(folder: Path, first: int, make: Callable[[int], Block]) -> tuple[Block, float]:
    """The part that begins at `first`, read or computed and stored, and the seconds it took."""
    path = _path(folder, first)
    if path.is_file():
        try:
            found = arrays.read_packed(path)
        except Refused as error:
            raise Refused(f"{error} Remove it to compute it again.") from error
        return found, float(found.pop(SPENT, np.array(0.0)))
    began = time.monotonic()
    made = make(first)
    spent = time.monotonic() - began
    if here().first or not _over(folder):
        files.write_arrays({**made, SPENT: np.array(spent)}, path)
    return made, spent


def _path(folder: Path, first: int) -> Path:
    return folder / f"{first:08d}.npz"


def _over(folder: Path) -> bool:
    """Whether the first process has written the output, for another one that has begun."""
    token = folder / f"started-{here().index}"
    return (folder / FINISHED).exists() or not token.exists()


def forget(folder: Path, count: int = 1) -> None:
    """Remove a folder of blocks, whose output is written.

    Where `count` processes share the work, a mark stays until the last of them has begun, by which
    it learns that it has nothing to do.
    """
    if folder.is_dir() and not _clear(folder, count):
        files.write(folder / FINISHED, "")
        for path in folder.glob("*.npz"):
            path.unlink(missing_ok=True)
        _clear(folder, count)  # for those that have begun meanwhile


def _clear(folder: Path, count: int) -> bool:
    """Remove the folder if no process is still to begin; whether it was removed."""
    if not all((folder / f"started-{index}").exists() for index in range(1, count)):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others' blocks or files are there too
        folder.parent.rmdir()
    return True
