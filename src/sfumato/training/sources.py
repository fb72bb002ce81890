"""A source is where data come from: a name, a folder, an array in a file, or shards."""

from __future__ import annotations

import os
from pathlib import Path

from sfumato.errors import NotFound, Refused
from sfumato.names import nearest
from sfumato.paths import with_home
from sfumato.record import KINDS
from sfumato.training import cifar, columns, folders, shards
from sfumato.training.arrays import array
from sfumato.training.named import NAMED as NAMED
from sfumato.training.raw import Raw, Reading

SPLITS = tuple(folders.SPLITS)


def splits(source: str | Path) -> tuple[str, ...]:
    """The splits that a source has; raises as `read` does where there is none."""
    if str(source) in NAMED:
        return ("train", "test")
    if str(source).startswith(columns.PREFIX):
        return columns.splits(str(source))
    path = with_home(source)
    if str(source) and not path.exists() and shards.named(str(source)):
        return ("train",)
    if not str(source) or not path.exists():
        raise _unknown(str(source))
    return tuple(folders.splits(path)) if path.is_dir() else ("train",)


def held_out(source: str | Path) -> str:
    """The split to judge a model on: test, where there is one."""
    return "test" if "test" in splits(source) else "train"


def read(source: str | Path, split: str, how: Reading) -> Raw:
    """The raw values of one split of a source."""
    if split not in (there := splits(source)):
        told = "all of it is train" if there == ("train",) else f"there are {', '.join(there)}"
        raise Refused(
            f"{source} has no {split} split: {told}. A folder has the splits train, test and val "
            "where it holds subfolders of these names."
        )
    if str(source) in NAMED:
        return _named(str(source), split, how)
    if str(source).startswith(columns.PREFIX):
        if how.kind not in (None, KINDS[0]):
            raise Refused(f"{source} has images; --kind is for arrays.")
        return columns.read(str(source), split, how)
    path = with_home(source)
    base = folders.splits(path)[split] if path.is_dir() else source
    if (found := shards.named(str(base))) is not None:
        if how.kind not in (None, KINDS[0]):
            raise Refused(f"{source} has images; --kind is for arrays.")
        return shards.read(str(base), found, how)
    cifar.check_pickled(path)
    if path.is_dir():
        if how.key is not None or how.kind not in (None, KINDS[0]):
            raise Refused(f"{path} is a folder of images; --key and --kind are for arrays.")
        return folders.folder(path, split, how)
    if path.suffix.lower() in (".npz", ".npy"):
        return array(path, how)
    raise Refused(
        f"{path} is no data set: use a folder of images or of .tar shards, a .npz or a .npy."
    )


def _named(name: str, split: str, how: Reading) -> Raw:
    raw = NAMED[name](split)
    if how.key is not None or how.kind not in (None, raw.kind):
        raise Refused(f"{name} has images and no other arrays; leave out --key and --kind.")
    if how.range not in (None, (raw.low, raw.high)):
        raise Refused(f"{name} has a range of its own, {raw.low} to {raw.high}.")
    return how.applied(raw, raw.images)


def _unknown(source: str) -> Exception:
    if os.sep in source or Path(source).suffix:
        return NotFound(f"there is no folder or file {source}.")
    sentence = nearest("data set", source, NAMED)
    return Refused(f"{sentence} A folder of images, a .npz or a .npy can be given too.")
