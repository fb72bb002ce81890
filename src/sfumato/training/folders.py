r"""A folder holds images, in it and below; a note reports other files.

Two or more subfolders are classes. Subfolders `train` and `test` (or `val`) are splits instead,
each with its classes. Links are followed; a folder is read once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from sfumato import pictures
from sfumato.errors import NotFound, Refused
from sfumato.training.items import Items, gathered, told
from sfumato.training.raw import Raw, Reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Files of other kinds are skipped."""
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
"""Names of the subfolder of each split, whatever their case."""


def splits(root: Path) -> dict[str, Path]:
    """The folder of each split. All of `root` is train, unless it says otherwise."""
    with os.scandir(root) as entries:
        below = {entry.name.lower(): root / entry.name for entry in entries if is_folder(entry)}
    found = {
        split: below[name] for split, names in SPLITS.items() for name in names if name in below
    }
    named = {path.name.lower() for path in found.values()}
    seen = {name for name in below if not name.startswith(".")}
    return found if "train" in found and (len(found) > 1 or seen == named) else {"train": root}


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; links that lead nowhere, or round, are none."""
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def folder(root: Path, split: str, how: Reading) -> Raw:
    """The images of one of `splits(root)`."""
    base = splits(root)[split]
    names, skipped = _walk(base)
    notes = [] if base == root else _beside(root)
    if skipped:
        said = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
        notes.append(f"{base}: {sum(skipped.values())} skipped that are no images: {said}.")
    if not names:
        more = f" {notes[-1]}" if skipped else ""
        raise Refused(f"folder {base} has no images ({', '.join(SUFFIXES)}) in it or below.{more}")
    raw = gathered(Files(base, names), how)
    tops = [name[: max(0, name.find(os.sep))] for name in names]
    classes = tuple(sorted(set(tops)))
    raw = raw._replace(notes=(*notes, *raw.notes))
    if "" in classes:
        return raw
    _check_empty(base, classes)
    if len(classes) < 2:
        return raw
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[top] for top in tops], np.int64)
    return raw._replace(labels=labels, classes=classes)


def _beside(root: Path) -> list[str]:
    """A note of what lies beside the splits of a folder, if anything does."""
    known = {path.name for path in splits(root).values()}
    others = [name for name in os.listdir(root) if not name.startswith(".") and name not in known]
    if not others:
        return []
    return [f"{root}: its splits are read, not {', '.join(sorted(others))} beside them."]


def _check_empty(base: Path, classes: tuple[str, ...]) -> None:
    """Raise ValueError where a folder beside those of classes has no file in it or below."""
    for path in sorted(base.iterdir()):
        if path.name in classes or path.name.startswith(".") or not path.is_dir():
            continue
        if not any(files for _, _, files in os.walk(path)):
            raise Refused(
                f"folder {path} has nothing in it, and would be no class beside "
                f"{', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}. Fill it, or "
                "remove it."
            )


def _walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Images below `root` by their relative names, sorted, and what else there is, by kind.

    Names are strings: a `Path` for each of hundreds of thousands would take most of a start.
    """
    names: list[str] = []
    skipped: Counter[str] = Counter()

    def shut(error: OSError) -> None:
        skipped["folder that cannot be read"] += 1

    seen = {root.resolve()}
    for place, below, found in os.walk(root, followlinks=True, onerror=shut):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in tuple(below):
            if (real := Path(place, name).resolve()) in seen:
                below.remove(name)
                skipped["link to a folder seen before"] += 1
            seen.add(real)
        start = place[len(str(root)) :].lstrip(os.sep)
        for name in found:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix not in SUFFIXES:
                skipped[suffix.rstrip(".") or "file without suffix"] += 1
            elif not os.path.isfile(path := os.path.join(place, name)):
                skipped["link that leads nowhere" if os.path.islink(path) else "no file"] += 1
            else:
                names.append(os.path.join(start, name))
    return sorted(names, key=_parts), skipped


def _parts(name: str) -> list[str]:
    return name.split(os.sep)


@final
class Files(Items):
    """One image for each of many files.

    Args:
        where: their folder.
        names: of the files in it.
    """

    def __init__(self, where: Path, names: Sequence[str]) -> None:
        self.where = where
        self.names = names

    def decoded(self, row: int) -> np.ndarray:
        return pictures.deep(self.full(row))

    def identity(self, rows: range) -> str:
        """Of names and sizes: files that differ in a few bytes of equal size are told apart by
        nothing that does not read all of them."""
        return told(value for row in rows for value in (self.names[row], self.seen[row][0]))

    def stamp(self, rows: range) -> str:
        """Of names, sizes and times of the last change."""
        return told([self.identity(rows), *(self.seen[row][1] for row in rows)])

    @cached_property
    def seen(self) -> list[tuple[int, int]]:
        """Size and time of the last change of each file."""
        found = []
        for row in range(len(self)):
            try:
                about = os.stat(self.full(row))
            except OSError:
                raise NotFound(f"{self.full(row)} was there and is gone.") from None
            found.append((about.st_size, about.st_mtime_ns))
        return found
