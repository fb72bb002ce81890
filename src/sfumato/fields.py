"""Fields of a dataclass are checked against their annotations, for what was read from a file."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sfumato.errors import Refused
from sfumato.limits import is_finite, short


def check(instance: Any) -> None:  # noqa: ANN401 - any dataclass
    """Raise ValueError for a field that is not of its annotation.

    Whole numbers of any kind are ints, real ones that are finite are floats; names of classes are
    taken as they are.
    """
    kind = type(instance)
    hints = _hints(kind)
    for field in fields(instance):
        found, wanted = getattr(instance, field.name), hints[field.name]
        if not fits(found, wanted):
            told = getattr(wanted, "__name__", str(wanted))
            told = told if get_origin(wanted) is None else str(wanted).replace("typing.", "")
            raise Refused(
                f"{field.name} of a {kind.__name__} must be {told.replace('NoneType', 'None')}; "
                f"got {short(repr_of(found))}."
            )


def repr_of(value: object) -> str:
    """A value as Python prints it, where it can."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return short(value)


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - an annotation
    """Whether a value is of an annotation: the few forms that configs have."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(each, parts[0]) for each in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return is_finite(value)
    if hint is str:
        return isinstance(value, str) and "\0" not in value
    return not isinstance(hint, type) or isinstance(value, hint)
