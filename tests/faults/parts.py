"""A part of the soak is a number of seeded cases, each of which passes, misses or is not run."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple

import numpy as np

from faults.commands import TELLS, End

TIMES = ("seconds", "seconds_per_image", "images_per_second", "date", "when")
"""Fields of records that differ from run to run."""


class Miss(Exception):
    """A promise that is not kept; its text says which, and by what."""


class NotRun(Exception):
    """A case that this machine cannot run; its text says why."""


class Passed(NamedTuple):
    """What a case that passed tells.

    Attributes:
        counts: of what happened in it, by name.
        peak: resident memory at most, in bytes; 0 where it is not measured.
    """

    counts: dict[str, int]
    peak: int = 0


class Part(ABC):
    """A part of the soak (abstract).

    Args:
        home: a folder for it, which may hold what a cut soak has left.
        seed: of all its cases.
        share: of all cases that are asked for, for a part that is one long case.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    """What it does, in a cell of the table."""
    cases: ClassVar[int]

    def __init__(self, home: Path, seed: int = 0, share: float = 1.0) -> None:
        self.home = home
        self.seed = seed
        self.share = share
        home.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def case(self, number: int, random: Random) -> Passed:
        """Run one case; raises `Miss` or `NotRun`."""

    def random(self, number: int) -> Random:
        """The random numbers of a case, whichever others are run."""
        return Random(f"{self.seed} {self.name} {number}")

    def fresh(self, name: object) -> Path:
        """An empty folder."""
        path = self.home / str(name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def expect(end: End, *codes: int) -> End:
    """The end, if it has one of these codes and no more than one line; else a miss."""
    if told := end.wrong:
        raise Miss(told)
    if end.code not in codes:
        raise Miss(f"exit code {end.code}: {end.err.strip()[-300:]}")
    return end


def content(home: Path, without: tuple[str, ...] = ("log.jsonl",)) -> dict[str, str]:
    """What is in a folder: a hash of each file, in which times that were measured do not count."""
    found = {}
    for path in sorted(home.rglob("*")):
        if path.is_dir() or path.name in without or path.name.startswith(TELLS):
            continue
        found[path.relative_to(home).as_posix()] = _hash(path)
    return found


def _hash(path: Path) -> str:
    try:
        told = _told(path)
    except (ValueError, OSError, zipfile.BadZipFile):  # one that is damaged
        told = path.read_bytes()
    return hashlib.sha256(told).hexdigest()


def _told(path: Path) -> bytes:
    if path.suffix == ".npz" and ".part" not in path.name:
        with np.load(path, allow_pickle=False) as arrays:
            parts = [(name, arrays[name].dtype.str, arrays[name]) for name in arrays.files]
        return b"".join(
            f"{name} {kind} {x.shape}".encode() + x.tobytes() for name, kind, x in parts
        )
    if path.name == "scores.json" or (path.suffix == ".json" and path.parent.name == "work"):
        return json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True).encode()
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def difference(found: dict[str, str], expected: dict[str, str]) -> str | None:
    """The first file that two folders differ in; None where they do not."""
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            where = "differs" if name in found and name in expected else "is on one side only"
            return f"{name} {where}"
    return None
