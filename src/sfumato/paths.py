"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import Refused


def with_home(path: str | Path) -> Path:
    """`path` with the home that `~` or `~name` at its start stands for.

    Raises:
        ValueError: there is no such home.

    >>> with_home("photos/a.png").as_posix()
    'photos/a.png'
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        raise Refused(f"{path} has no such home; give the path in full.") from None
