"""What the page asks: the values of a JSON object, each checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

from sfumato.errors import Refused
from sfumato.names import choose


@final
class Asked:
    """Values by name.

    Args:
        values: as JSON holds them.

    Raises:
        ValueError: they are no object.
    """

    def __init__(self, values: object) -> None:
        if not isinstance(values, Mapping):
            raise Refused("a request is a JSON object.")
        self._values = values

    def text(self, name: str) -> str:
        """A text."""
        found = self._values.get(name)
        if not isinstance(found, str):
            raise Refused(f"{name} needs a text; got {found!r}.")
        return found

    def one_of(self, name: str, known: Sequence[str] | Mapping[str, object]) -> str:
        """One of the names in `known`."""
        found = self.text(name)
        choose(name, found, [*known])
        return found

    def number(self, name: str, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return number(name, self._values.get(name), low, high)

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        found = self.number(name, low, high)
        if found != int(found):
            raise Refused(f"{name} needs a whole number; got {found:g}.")
        return int(found)

    def yes(self, name: str) -> bool:
        """True or false."""
        found = self._values.get(name)
        if not isinstance(found, bool):
            raise Refused(f"{name} needs true or false; got {found!r}.")
        return found

    def part(self, name: str) -> Mapping[str, Any]:
        """An object within this one."""
        found = self._values.get(name)
        if not isinstance(found, Mapping):
            raise Refused(f"{name} needs an object; got {found!r}.")
        return found

    def missing(self, name: str) -> bool:
        """Whether it is absent or null."""
        return self._values.get(name) is None


def number(name: str, found: Any, low: float = -math.inf, high: float = math.inf) -> float:  # noqa: ANN401 - of JSON
    """`found`, if it is a finite number from `low` to `high`; else ValueError that names it."""
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        raise Refused(f"{name} needs a number; got {found!r}.")
    if not low <= found <= high:
        raise Refused(f"{name} is from {low:g} to {high:g}; got {found:g}.")
    return found
