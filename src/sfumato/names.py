"""Names that users type: an error suggests the nearest known one; old ones are replaced."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast, dataclass_transform, overload

from sfumato.errors import Refused

Entry = TypeVar("Entry")

T = TypeVar("T")

RENAMED: dict[str, dict[str, str]] = {
    "parameters of ihdm": {"levels": "count"},
    "parameters of soft-down": {"width": "scale"},
    "samplers": {
        "exact-variance": "analytic-variance",
        "pc": "euler-langevin",
        "redrawn": "ihdm",
        "reverse": "reverse-diffusion",
        "sde": "reverse-diffusion-pc",
    },
    "config": {"clock": "time_warp"},
    "values of prediction": {"clean": "x0"},
    "options": {
        "kernel": "sampler",
        "clock": "time_warp",
    },
}
"""Names in older files, by their place: {old: current}. Every reader of a file replaces them."""


def nearest(what: str, name: str, known: Iterable[str], else_: str | None = None) -> str:
    """The sentence for an unknown name, with the nearest known one, or `else_`, or all names."""
    bare = {other.lstrip("-"): other for other in known}
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.4)
    if near:
        return f"no {what} '{name}'; did you mean '{bare[near[0]]}'?"
    hint = else_ or f"choose from {', '.join(bare.values())}."
    return f"no {what} '{name}'; {hint}"


@overload
def choose(what: str, name: str, table: Mapping[str, Entry], else_: str | None = None) -> Entry: ...


@overload
def choose(what: str, name: str, table: Sequence[str], else_: str | None = None) -> str: ...


def choose(
    what: str, name: str, table: Mapping[str, object] | Sequence[str], else_: str | None = None
) -> object:
    """Look `name` up in `table`: the entry of a mapping; for a list of names, the name itself.

    Args:
        what: kind of the name, such as "method", for the error sentence.
        name: as typed.
        table: the entries by name, or the names.
        else_: end of the error sentence where no name is near, in place of all names.

    Raises:
        Refused: the name is unknown; the sentence suggests the nearest.
    """
    if name not in table:
        raise Refused(nearest(what, str(name), table, else_))
    return table[name] if isinstance(table, Mapping) else name


def called(function: object) -> str:
    """The public name of a function, or of the function that returned it."""
    if is_dataclass(function):
        return type(function).__name__
    return getattr(function, "__qualname__", "yours").partition(".")[0]


@dataclass_transform(frozen_default=True)
def value(made: type[T]) -> type[T]:
    """A frozen dataclass, printed as the call that makes it.

    For functions with parameters: `ddim(0.5)`, `reverse(ancestral)`.
    """

    def shown(self: T) -> str:
        given = (getattr(self, field.name) for field in fields(cast(Any, made)))
        return f"{made.__name__}({', '.join(map(_shown, given))})"

    cast(Any, made).__repr__ = shown
    return dataclass(frozen=True, repr=False)(made)


def _shown(parameter: object) -> str:
    """A parameter as `repr` prints it, and a function by its name."""
    if type(parameter) is tuple:
        return ", ".join(map(_shown, parameter))
    plain = callable(parameter) and not is_dataclass(parameter)
    return called(parameter) if plain else repr(parameter)


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config read from JSON, with its current names."""
    found = reworded("config", config)
    if "kernel" in found:  # older files have two fields for the sampler
        parts = {"kernel": found.pop("kernel"), "steps": found.pop("steps", None), "grid": None}
        found["sampler"] = parts
    if isinstance(found.get("parameters"), Mapping):
        where = f"parameters of {found.get('method')}"
        given = reworded(where, found["parameters"])
        if isinstance(given.get("prediction"), str):
            said = given["prediction"]
            given["prediction"] = RENAMED["values of prediction"].get(said, said)
        found["parameters"] = given
    if isinstance(found.get("sampler"), Mapping):
        found["sampler"] = {**found["sampler"]}
        found["sampler"]["kernel"] = sampler(found["sampler"].get("kernel"))
    return found


def reworded(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A table of an older file with its current keys."""
    now = RENAMED.get(where, {})
    return {now.get(name, name): value for name, value in values.items()}


def sampler(name: str | None) -> str | None:
    """The current name of a sampler in an older file."""
    if name is None:
        return None
    base, colon, rest = name.partition(":")
    return f"{RENAMED['samplers'].get(base, base)}{colon}{rest}"


def sampled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options, or a part of a record, of an older file, with current keys and sampler names."""
    found = reworded("options", values)
    return {**found, "sampler": sampler(found["sampler"])} if "sampler" in found else found
