"""A record is what travels with a model about the data it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Record:
    """Shape, raw value range and classes of a data set (final).

    Attributes:
        name: as given to `--data`.
        shape: of one signal, (C, *space).
        low: raw value that becomes -1.
        high: raw value that becomes 1.
        classes: names of the classes, or None.
        count: number of signals.
        split: "train" or "test".
        sha256: of the raw values, in hex.
    """

    name: str
    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0
    classes: tuple[str, ...] | None = None
    count: int = 0
    split: str = "train"
    sha256: str = ""

    def check_shape(self, shape: tuple[int, ...], whose: str) -> None:
        """Raise ValueError, with both shapes, unless `shape`, that of `whose`, is this data's."""
        if shape != self.shape:
            raise ValueError(
                f"{self.name} has signals of shape {self.shape}; those of {whose} have {shape}. "
                "Name data of the same shape."
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """From what JSON held. Raises ValueError for a field that is unknown or missing."""
        names = {field.name for field in fields(cls)}
        if unknown := set(values) - names:
            raise ValueError(f"a data record has no field {sorted(unknown)[0]!r}.")
        if missing := {"name", "shape"} - set(values):
            raise ValueError(f"a data record needs the field {sorted(missing)[0]!r}.")
        classes = values.get("classes")
        return cls(
            **{
                **values,
                "shape": tuple(values["shape"]),
                "classes": None if classes is None else tuple(classes),
            }
        )
