"""Blocks are finished parts of long work, each a file, from which interrupted work resumes.

Several processes share work by them: each computes every n-th block, and the first reads all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import arrays, files
from sfumato.errors import Refused
from sfumato.notes import Note
from sfumato.processes import here

PAUSE = 0.2
"""Seconds between two looks for a block of another process."""
WAIT, SLOW = 60.0, 10.0
"""The first process waits so many seconds for another's block, or so many times as long as the
longest of its own took, and computes it itself if it does not come."""


def every(
    home: Path | None,
    about: Mapping[str, Any],
    firsts: Sequence[int],
    make: Callable[[int], dict[str, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
    """The parts that begin at `firsts`, in order, each read from its file or computed.

    Where several processes do this, each computes its share of the parts into `home`; the first one
    yields all of them, as soon as they are there, and the others what they computed themselves. The
    part of a process that does not come is computed by the first one.

    Args:
        home, about: as of `kept`; without a `home` each process computes all.
        firsts: indices of the parts' first items.
        make: from such an index to the part.

    Raises:
        ValueError: as `kept`.
    """
    mine = here()
    alone = home is None or mine.count == 1
    longest = 0.0
    for place, first in enumerate(firsts):
        if alone or place % mine.count == mine.index:
            began = time.monotonic()
            found = kept(home, about, first, lambda first=first: make(first))
            longest = max(longest, time.monotonic() - began)
            if alone or not mine.first:
                yield found
    if home is None or alone or not mine.first:
        return
    gone: set[int] = set()
    for place, first in enumerate(firsts):
        path, whose = _path(home, about, first), place % mine.count
        if whose not in gone and not _came(path, max(WAIT, SLOW * longest)):
            gone.add(whose)
            warnings.warn(
                f"process {whose} of {mine.count} has ended or is slow: process 0 does its part.",
                Note,
                stacklevel=2,
            )
        yield kept(home, about, first, lambda first=first: make(first))


def _came(path: Path, seconds: float) -> bool:
    """Wait for a file; whether it is there."""
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def kept(
    home: Path | None,
    about: Mapping[str, Any],
    first: int,
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The part that begins at index `first`: read from its file, or computed and stored there.

    Args:
        home: a folder, which several pieces of work may share; None stores nothing.
        about: all that the numbers depend on, as JSON holds it; other work does not read this part.
        first: index of the part's first item.
        make: computes the part's arrays by name.

    Raises:
        ValueError: its file is damaged, or cannot be written.
    """
    if home is None:
        return make()
    path = _path(home, about, first)
    if path.is_file():
        return _read(path)
    made = make()
    files.write_arrays(made, path)
    return made


def beside(out: Path) -> Path:
    """The folder of the parts of the record `out`."""
    return out.with_name(f"{out.name}.blocks")


def forget(out: Path) -> None:
    """Remove the parts of the record `out`, once it is written."""
    shutil.rmtree(beside(out), ignore_errors=True)


def _path(home: Path, about: Mapping[str, Any], first: int) -> Path:
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return home / key / f"{first:08d}.npz"


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return arrays.read_packed(path)
    except Refused as error:
        raise Refused(f"{error} Remove it to compute it again.") from error
