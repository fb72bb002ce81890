"""Blocks are finished parts of long work, each a file: work that was cut goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import files


def kept(
    home: Path | None,
    about: Mapping[str, Any],
    first: int,
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The part of a piece of work that begins at number `first`: as it was kept, or made and kept.

    Args:
        home: a folder, which several pieces of work may share; None keeps nothing.
        about: all that decides the numbers, as JSON holds it: other work does not find this part.
        first: of the part.
        make: the part's arrays by name.

    Raises:
        ValueError: its file is damaged, or cannot be written.
    """
    if home is None:
        return make()
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = home / key / f"{first:08d}.npz"
    if path.is_file():
        return _read(path)
    made = make()
    files.write_arrays(made, path)
    return made


def beside(out: Path) -> Path:
    """Where the parts of the record `out` wait."""
    return out.with_name(f"{out.name}.blocks")


def forget(out: Path) -> None:
    """Remove the parts of the record `out`, once it is there."""
    shutil.rmtree(beside(out), ignore_errors=True)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return dict(held)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}. Remove it to make it again.") from error
