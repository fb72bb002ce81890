"""Names as people type them: an unknown one gets the one that was meant, an old one the new."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

RENAMED = {"ihdm": {"levels": "count"}, "soft-down": {"width": "scale"}}
"""Parameters of methods that had another name: {method: {then: now}}."""


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


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON held it, with its method's parameters by the names that they have now."""
    now, given = RENAMED.get(str(config.get("method")), {}), config.get("parameters")
    if not isinstance(given, Mapping):
        return {**config}
    return {**config, "parameters": {now.get(name, name): given[name] for name in given}}
