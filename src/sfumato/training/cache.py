r"""A cache keeps what was computed of large data in the user's folder for caches.

    $SFUMATO_CACHE/KIND/HASH/        or the folder of the platform, such as ~/.cache/sfumato/

HASH is of all that the result depends on, which is kept beside it and compared. An entry is written
whole or not at all, and one that is damaged is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sfumato import files
from sfumato.errors import Refused
from sfumato.notes import Note
from sfumato.paths import with_home

T = TypeVar("T")

ABOUT = "about.json"
DIGITS = 32
"""Of the hash, in the name of an entry."""


def home() -> Path:
    """`$SFUMATO_CACHE`, or a folder `sfumato` where this platform keeps caches.

    Raises:
        ValueError: there is no home folder for it.
    """
    if given := os.environ.get("SFUMATO_CACHE"):
        return with_home(given)
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return with_home(base) / "sfumato"
    except Refused:
        raise Refused("there is no home for the cache: set SFUMATO_CACHE to a folder.") from None


def kept(
    kind: str,
    about: Mapping[str, Any],
    make: Callable[[], T],
    write: Callable[[T, Path], None],
    read: Callable[[Path], T],
) -> T:
    """What `make` returns, from the cache where it was made before.

    Of several processes that ask for the same on one machine, one makes it. A cache that is damaged
    or cannot be written is reported by a note, and stops nothing.

    Args:
        kind: of the result, the name of a folder.
        about: all that it depends on, as JSON holds it.
        make: computes it.
        write: puts it into a folder.
        read: gets it from there; ValueError where the files hold something else.
    """
    told = json.dumps(about, sort_keys=True)
    folder = home() / kind / hashlib.sha256(told.encode()).hexdigest()[:DIGITS]
    with alone(folder):
        try:
            if folder.is_dir():
                return _checked(folder, told, read)
        except (ValueError, OSError, LookupError) as error:
            # A sentence of the files may end in advice to keep them, which is not followed here.
            what = str(error).split(". ")[0].rstrip(".")
            warnings.warn(f"the cache has a damaged entry, made again: {what}.", Note, stacklevel=2)
        made = make()
        try:
            _replace(folder, told, lambda part: write(made, part))
        except (ValueError, OSError) as error:
            told = str(error).rstrip(".")
            warnings.warn(f"nothing is kept for the next run: {told}.", Note, stacklevel=2)
        return made


def _checked(folder: Path, told: str, read: Callable[[Path], T]) -> T:
    files.check(folder)
    if not (folder / files.MANIFEST).is_file():
        raise Refused(f"{folder} has no {files.MANIFEST}.")
    if (folder / ABOUT).read_text(encoding="utf-8") != told:
        raise Refused(f"{folder} is of other data.")
    return read(folder)


def _replace(folder: Path, told: str, write: Callable[[Path], None]) -> None:
    if folder.is_dir():
        files.remove(folder)
    files.sweep(folder)
    with files.folder(folder) as part:
        write(part)
        (part / ABOUT).write_text(told, encoding="utf-8")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within, no other process of this machine is; where nothing can be locked, any may be."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = folder.with_name(f".{folder.name}.lock").open("a")
    except OSError:
        yield
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield
