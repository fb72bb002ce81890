r"""A folder holds images, in it and below; a note reports other files.

Two or more subfolders are classes. Subfolders `train` and `test` (or `val`) are splits instead,
each with its classes. Gray images become colour where any is colour, 8 bits 16 where any has 16.
Links are followed; a folder is read once.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from sfumato import pictures
from sfumato.errors import Refused
from sfumato.training.lazy import LARGEST, Files
from sfumato.training.raw import Raw, Reading, check_within, numbers, placed

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
    below = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    found = {
        split: below[name] for split, names in SPLITS.items() for name in names if name in below
    }
    named = {path.name.lower() for path in found.values()}
    seen = {name for name in below if not name.startswith(".")}
    return found if "train" in found and (len(found) > 1 or seen == named) else {"train": root}


def folder(root: Path, split: str, how: Reading) -> Raw:
    """The images of one of `splits(root)`."""
    base = splits(root)[split]
    names, skipped = _walk(base)
    beside = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    beside = [name for name in beside if base != root and root / name not in splits(root).values()]
    notes = [f"{root}: its splits are read, not {', '.join(beside)} beside them."] if beside else []
    if skipped:
        said = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
        notes.append(f"{base}: {sum(skipped.values())} skipped that are no images: {said}.")
    if not names:
        more = f" {notes[-1]}" if skipped else ""
        raise Refused(f"folder {base} has no images ({', '.join(SUFFIXES)}) in it or below.{more}")
    raw = _read(base, names, how)
    tops = [name.parts[0] if len(name.parts) > 1 else "" for name in names]
    classes = tuple(sorted(set(tops)))
    raw = raw._replace(notes=(*notes, *raw.notes))
    if len(classes) < 2 or "" in classes:
        return raw
    labels = np.array([classes.index(top) for top in tops], np.int64)
    return raw._replace(labels=labels, classes=classes)


def _walk(root: Path) -> tuple[list[Path], Counter[str]]:
    """Images below `root` by their relative names, sorted, and what else there is, by kind."""
    names: list[Path] = []
    skipped: Counter[str] = Counter()

    def shut(error: OSError) -> None:
        skipped["folder that cannot be read"] += 1

    seen = {root.resolve()}
    for place, below, files in os.walk(root, followlinks=True, onerror=shut):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in tuple(below):
            if (real := Path(place, name).resolve()) in seen:
                below.remove(name)
                skipped["link to a folder seen before"] += 1
            seen.add(real)
        for name in files:
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in SUFFIXES:
                skipped[path.suffix.lower() or "file without suffix"] += 1
            elif not path.is_file():
                skipped["link that leads nowhere" if path.is_symlink() else "no file"] += 1
            else:
                names.append(path.relative_to(root))
    return sorted(names), skipped


def _read(root: Path, names: list[Path], how: Reading) -> Raw:
    """The images `names` of `root`, all of one size, of as many channels and of as many bits.

    Where they would not fit in memory, the first one says how many channels and bits.
    """
    first = _one(how, root / names[0])
    if first.nbytes * len(names) > LARGEST:
        load = partial(_like, how, first.shape, first.dtype, root, names[0])
        return placed(Files(root, names, load, first.shape, first.dtype), root, how.range)
    images = np.empty((len(names), *first.shape), first.dtype)
    for i, name in enumerate(names):
        one = _one(how, root / name) if i else first
        _check_size(one, first.shape[1:], how, root, names[0], name)
        if len(one) > len(images[0]):
            images = np.repeat(images, len(one), axis=1)
        if one.dtype != images.dtype:
            if how.range is not None:
                raise Refused(
                    f"{root} has images of 8 and of 16 bits; one --range cannot be that of both."
                )
            images, one = (x if x.dtype == np.uint16 else np.uint16(257) * x for x in (images, one))
        images[i] = one
    return placed(images, root, how.range)


def _one(how: Reading, path: Path) -> np.ndarray:
    """The image in a file, (C, H, W), as `how` says."""
    found = pictures.deep(path)
    if how.range is not None:
        check_within(numbers(found, path), how.range, path)
    return how.fitted(found, how.range or (0, np.iinfo(found.dtype).max))


def _like(
    how: Reading,
    shape: tuple[int, ...],
    dtype: np.dtype,
    root: Path,
    first: Path,
    path: Path,
) -> np.ndarray:
    """The image in a file, with the channels and the bits of the first one."""
    one = _one(how, path)
    _check_size(one, shape[1:], how, root, first, path.relative_to(root))
    if one.dtype != dtype:
        raise Refused(f"{path} has {one.dtype}, and {root / first} has {dtype}: save all as one.")
    if len(one) > shape[0]:
        raise Refused(f"{path} is in colour, and {root / first} is gray: save all in colour.")
    return np.broadcast_to(one, shape)


def _check_size(
    one: np.ndarray, side: tuple[int, ...], how: Reading, root: Path, first: Path, name: Path
) -> None:
    """Raise ValueError for an image of another size than the first."""
    if one.shape[1:] != tuple(side):
        sizes = [f"{width} x {height}" for height, width in (side, one.shape[1:])]
        cure = "Leave out --crop none" if how.resize else "Use --resize N"
        raise Refused(
            f"images must have one size; in {root}, {first} is {sizes[0]} pixels and {name} is "
            f"{sizes[1]}. {cure}, which makes them squares."
        )
