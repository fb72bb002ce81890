"""Names as people type them: one that nobody knows gets the one that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(what: str, name: str, known: Iterable[str], else_: str | None = None) -> str:
    """The sentence for a name that nobody knows: the one meant, or `else_`, or all there are."""
    bare = {other.lstrip("-"): other for other in known}
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.4)
    if near:
        return f"no {what} '{name}'; did you mean '{bare[near[0]]}'?"
    hint = else_ or f"choose from {', '.join(bare.values())}."
    return f"no {what} '{name}'; {hint}"


def called(function: object) -> str:
    """What a function, or what made it, is called: the name that users know it by."""
    return getattr(function, "__qualname__", "yours").partition(".")[0]
