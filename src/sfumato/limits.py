r"""Limits: what a file or an option may ask for, in one table.

A file may take as much memory as it has bytes, whatever they are. What it only declares, in a
header or a config, takes at most `memory()`, half a GiB; `SFUMATO_LIMIT_GIB` is another number of
GiB, for whoever trusts a file that needs more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real

from sfumato.errors import Refused

VARIABLE = "SFUMATO_LIMIT_GIB"
GIB = 0.5
"""Memory for what a file declares, in GiB, where the variable is not set."""
INFLATED = 4
"""Bytes that one byte of a compressed file may become, where that is more than `memory()`."""
PIXEL = 16
"""Bytes for each pixel of an image file: its copies while it is decoded."""
VALUE = 64
"""Bytes for each value of a signal: its statistics, gains and copies in float64."""
DOCUMENT = 2**26
"""Bytes of a JSON file, most of which may be one text."""
YAML = 2**20
"""Bytes of a YAML file, which is read slowly."""
ITEMS = 500_000
"""Values in a JSON or YAML file, in all."""
DEPTH = 64
"""Lists and tables within each other in a JSON or YAML file."""
LARGEST = 2**63 - 1
"""A whole number, such as a seed."""
IMAGES = 10**15
"""Images of a training."""
BATCH = 10**6
"""Images of one step, and of one call of a network."""
WORKERS = 1024
STEPS = 100_000
"""Steps of a sampler, a chain or a grid."""
CANDIDATES = 4096
"""Of a selection of levels, whose distances are a square of them."""
BINS = 2**32
"""Values that a pixel can have."""
WIDTH = 2**14
"""Channels of a level of a network, or of a token."""
LAYERS = 64
"""Blocks of one level of a network; layers of a transformer and its heads."""
LEVELS = 12
"""Of a network."""
PATCH = 256
TOLD = 80
"""Characters of a value in a sentence."""


def memory() -> int:
    """Bytes that what a file declares may take; ValueError for a variable that is no number."""
    said = os.environ.get(VARIABLE, "")
    try:
        found = float(said) if said else GIB
    except ValueError:
        found = math.nan
    if not 0 < found < 2**20:
        raise Refused(f"{VARIABLE} is a number of GiB, such as 2; got '{short(said)}'.")
    return int(found * 2**30)


def check_memory(what: str, wanted: int, least: int = 0) -> None:
    """Raise ValueError where `what` asks for more bytes than `memory()`, or than `least`."""
    if wanted > (most := max(memory(), least)):
        raise Refused(
            f"{what} asks for {size(wanted)} of memory, above the limit of {size(most)}. If that "
            f"is meant, set {VARIABLE} to more GiB."
        )


def check_sides(shape: Sequence[int], whose: str = "a signal") -> None:
    """Raise ValueError for a shape that is none."""
    if isinstance(shape, str) or not isinstance(shape, Sequence) or not shape:
        raise Refused(f"the shape of {whose} is a list of numbers; got {short(shape)}.")
    for side in shape:
        whole("a side of a shape", side)


def check_signal(shape: Sequence[int], whose: str = "a signal") -> None:
    """Raise ValueError for a shape that is none, or whose gains or bases need too much memory."""
    check_sides(shape, whose)
    told = f"{whose} of shape {short(tuple(shape))}"
    check_memory(told, VALUE * math.prod(shape))
    check_memory(told, 8 * max(shape[1:], default=shape[0]) ** 2)  # a basis is a matrix


def size(count: int) -> str:
    """A number of bytes for a sentence."""
    return f"{count / 2**30:.3g} GiB" if count < 2**80 else "far too much"


def short(value: object) -> str:
    """A value for a sentence, cut where it is long or cannot be shown."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # of a whole number of thousands of digits, or deep
        return f"a very large {type(value).__name__}"
    return text if len(text) <= TOLD else f"{text[:TOLD]}..."


def whole(name: str, value: object, least: int = 1, most: int = LARGEST) -> None:
    """Raise ValueError unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise Refused(f"{name} must be a whole number; got {short(value)}.")
    if value < least:  # type: ignore[reportOperatorIssue] - a number
        raise Refused(f"{name} must be {least} or more; got {short(value)}.")
    if value > most:  # type: ignore[reportOperatorIssue] - a number
        raise Refused(f"{name} must be {most} or less; got {short(value)}.")


def finite(name: str, *values: object) -> None:
    """Raise ValueError unless all values are finite numbers."""
    for value in values:
        if not is_finite(value):
            raise Refused(f"{name} needs finite numbers; got {short(value)}.")


def is_finite(value: object) -> bool:
    """Whether a value is a number, and a finite one."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
