"""The values of a verb's options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, final


@final
class Namespace(argparse.Namespace):
    """The values of options, by name: `values.steps` or `values["steps"]`."""

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - of any kind
        return getattr(self, name)

    def __setitem__(self, name: str, value: object) -> None:
        setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - so that checkers know that any may be
        raise AttributeError(f"no option {name!r}")

    def items(self) -> Iterable[tuple[str, Any]]:
        """Names and values, in the order of the options."""
        return vars(self).items()

    def as_dict(self) -> dict[str, Any]:
        """The values by name."""
        return dict(vars(self))
