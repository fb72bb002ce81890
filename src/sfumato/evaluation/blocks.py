"""Blocks are finished parts of long work, each a file: work that was cut goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import files


@dataclass(frozen=True)
class Blocks:
    """Parts of one piece of work, kept in a folder until its record is written (final).

    Args:
        home: the folder, which several pieces of work may share; None keeps nothing.
        about: all that decides the numbers, as JSON holds it: other work does not find these parts.
    """

    home: Path | None
    about: Mapping[str, Any]

    def __call__(
        self, first: int, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The part that begins at number `first`: as it was kept, or made and kept.

        Raises:
            ValueError: its file is damaged, or cannot be written.
        """
        if self.home is None:
            return make()
        key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        path = self.home / key / f"{first:08d}.npz"
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
