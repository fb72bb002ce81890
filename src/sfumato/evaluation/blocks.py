"""Blocks are finished parts of long work, each a file, from which interrupted work resumes."""

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
from sfumato.errors import Refused


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
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = home / key / f"{first:08d}.npz"
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


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return dict(held)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Refused(f"{path} is damaged: {error}. Remove it to compute it again.") from error
