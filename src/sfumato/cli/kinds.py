"""A kind parses the value of an option, from a flag or a file, or raises what is needed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple, final

from sfumato import limits
from sfumato.errors import Refused
from sfumato.fields import repr_of
from sfumato.limits import short
from sfumato.paths import with_home


class Unfit(argparse.ArgumentTypeError, Refused):
    """A value that is not of its kind; the sentence follows the option's name."""


@final
class Kind(NamedTuple):
    """How a value is read, and how help shows its form."""

    read: Callable[[Any], Any]
    form: str = ""


def _text(value: object) -> str:
    if isinstance(value, dict | list | None):
        raise Unfit(f"needs a text; got {short(repr_of(value))}.")
    if "\0" in (text := _told(value)):
        raise Unfit(f"needs a text without NUL; got {text!r}.")
    return text


def _told(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # a whole number of thousands of digits
        raise Unfit(f"cannot be {short(value)}.") from None


def _path(value: object) -> str:
    text = _text(value)
    if not text.strip():
        raise Unfit("needs a path; got an empty text.")
    try:
        return str(with_home(text))
    except Refused:
        raise Unfit(f"needs a path; there is no such home: '{value}'.") from None


def _number(value: object) -> float:
    try:
        if isinstance(value, bool) or (read := float(value)) != read:  # type: ignore[arg-type] - what float refuses is caught
            raise TypeError
    except OverflowError:
        read = math.inf
    except (TypeError, ValueError):
        raise Unfit(f"needs a number; got '{short(value)}'.") from None
    if math.isinf(read):
        raise Unfit(f"needs a finite number; got '{short(value)}'.")
    return read


def _whole(value: object) -> int:
    try:
        exact = Decimal(str(value))  # so that 1e5 is whole, and 63 bits keep their last
        small = exact.is_finite() and exact.adjusted() < DIGITS
        if not exact.is_finite() or (small and exact != int(exact)):
            raise ValueError
    except (ArithmeticError, ValueError):
        raise Unfit(f"needs a whole number; got '{short(value)}'.") from None
    if not small or abs(int(exact)) > limits.LARGEST:
        raise Unfit(f"needs a number below 2^63; got '{short(value)}'.")
    return int(exact)


def _positive(value: object) -> int:
    if (read := _whole(value)) < 1:
        raise Unfit(f"must be 1 or more; got {read}.")
    return read


def _natural(value: object) -> int:
    if (read := _whole(value)) < 0:
        raise Unfit(f"must be 0 or more; got {read}.")
    return read


def _yes(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f"needs true or false; got '{short(value)}'.")
    return value


TEXT = Kind(_text, "TEXT")
PATH = Kind(_path, "PATH")
NUMBER = Kind(_number, "X")
WHOLE = Kind(_whole, "N")
POSITIVE = Kind(_positive, "N")
NATURAL = Kind(_natural, "N")
YES = Kind(_yes)
"""A switch: `--name` or `--no-name`; true or false in a file."""


def choice(*names: str) -> Kind:
    """One of a few names."""

    def read(value: object) -> str:
        if value not in names:
            raise Unfit(f"takes {', '.join(names)}; got '{short(value)}'.")
        return str(value)

    return Kind(read, f"{{{','.join(names)}}}")


def several(of: Kind, count: int | None = None, empty: bool = False) -> Kind:
    """`count` values (any number where None; none, written so, if `empty`), as 1,2,3 or [1,2,3]."""
    form = ",".join([of.form] * count) if count else f"{of.form},..."

    def read(value: object) -> tuple[Any, ...]:
        if empty and value == "none":
            return ()
        if isinstance(value, str):
            value = [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
        parts = value if isinstance(value, list | tuple) else [value]
        if not parts and not count and not empty:
            raise Unfit(f"needs one value or more, {form}; got none.")
        if count is not None and len(parts) != count:
            raise Unfit(f"needs {count} values, {form}; got {len(parts)}.")
        return tuple(of.read(part) for part in parts)

    return Kind(read, form)


def optional(of: Kind) -> Kind:
    """`of`, or none."""

    def read(value: object) -> Any:  # noqa: ANN401 - whatever `of` reads
        return None if value is None or value == "none" else of.read(value)

    return Kind(read, of.form)


MOST = 10_000_000
"""Seeds in all."""
DIGITS = 40
"""Of a number; longer ones are not converted."""


def expand(seeds: str) -> list[int]:
    """The numbers that `0-3,8,10-12` means; 0 or more, the ends of a range included."""
    found: list[int] = []
    total = 0
    for part in seeds.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise Unfit(f"needs numbers of 0 or more such as 0-3,8; got '{short(seeds)}'.")
        if max(len(first), len(last)) > DIGITS:
            raise Unfit(f"needs numbers below 2^63; got '{short(part.strip())}'.")
        if dash and int(last) < int(first):
            raise Unfit(f"needs ranges that rise; got '{part.strip()}'.")
        if int(last or first) >= 2**63:
            raise Unfit(f"needs numbers below 2^63; got '{part.strip()}'.")
        total += int(last or first) - int(first) + 1
        if total > MOST:
            raise Unfit(f"takes at most {MOST} numbers in all; got '{part.strip()}'.")
        found += range(int(first), int(last or first) + 1)
    return found


def _seeds(value: object) -> str:
    many = isinstance(value, list | tuple)
    text = ",".join(map(_told, value)) if many else _told(value)
    expand(text)
    return text


SEEDS = Kind(_seeds, "N-N")
"""Kept as written; `expand` gives the numbers."""
