"""A record describes the data that a model was trained on, and is stored with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, final

from sfumato import fields as fields_
from sfumato.errors import Refused, refusing
from sfumato.limits import check_sides, check_signal, short
from sfumato.names import choose

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("images", "signals")
LATENTS = "latents"
"""The kind of data that an encoder has made: of no range, and used as they are."""
LATER = ("kind", "key", "resize", "crop", "flip")
"""Fields that JSON holds only where they are not the default: older records have none of them."""


@final
@dataclass(frozen=True)
class Record:
    """Shape, raw value range and classes of a data set.

    Attributes:
        name: as given to `--data`.
        shape: of one signal, (C, *space).
        low: raw value that becomes -1.
        high: raw value that becomes 1.
        classes: names of the classes, or None.
        count: number of signals.
        split: "train", "test" or "val", or a slice of one.
        sha256: of the raw values, in hex.
        kind: "images", "signals" or "latents"; by default images where the shape has three axes.
        key: name of the array in its file, where it was named.
        resize: shorter side that images were resized to; None where they were not.
        crop: of resized images: "center", a square, or "none"; or the pixels of the square that
            all were cropped to first.
        flip: whether each image's mirror image belongs to the data too.

    Raises:
        ValueError: another kind.

    >>> record = sf.load("digits").record
    >>> record.shape, record.low, record.high, record.count
    ((1, 8, 8), 0, 16, 1500)
    >>> record.scaled(torch.tensor([0.0, 16.0]))
    tensor([-1.,  1.])
    """

    name: str
    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0
    classes: tuple[str, ...] | None = None
    count: int = 0
    split: str = "train"
    sha256: str = ""
    kind: str = ""
    key: str | None = None
    resize: int | None = None
    crop: str = "center"
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        fields_.check(self)
        check_sides(self.shape, short(self.name))
        if not self.kind:
            object.__setattr__(self, "kind", KINDS[len(self.shape) != 3])
        choose("kind", self.kind, (*KINDS, LATENTS))

    @property
    def pictures(self) -> bool:
        """Whether the data are images, not other signals."""
        return self.kind == "images"

    def check_pictures(self, what: str) -> None:
        """Raise ValueError where the data are no images, which `what` needs."""
        if not self.pictures:
            kind = LATENTS if self.kind == LATENTS else KINDS[1]
            raise Refused(f"{what} is for images; {self.name} holds {kind} of shape {self.shape}.")

    def scaled(self, raw: Tensor) -> Tensor:
        """Raw values scaled for a model: `low` is -1 and `high` is 1. Latents are not scaled."""
        if self.kind == LATENTS:
            return raw
        return (raw - self.low).div((self.high - self.low) / 2).sub(1)

    def raw(self, x: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        if self.kind == LATENTS:
            return x
        return x.add(1).mul((self.high - self.low) / 2) + self.low

    def check_shape(self, shape: tuple[int, ...], whose: str) -> None:
        """Raise ValueError, with both shapes, unless `shape`, that of `whose`, is the data's."""
        if shape != self.shape:
            raise Refused(
                f"{self.name} has signals of shape {self.shape}; those of {whose} have {shape}. "
                "Name data of the same shape."
            )

    @property
    def values(self) -> int:
        """The number of whole numbers in the range."""
        return round(self.high - self.low) + 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        usual = Record(self.name, self.shape)
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in LATER or value != getattr(usual, name)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """From what JSON held. Raises ValueError for a field that is unknown or missing."""
        if not isinstance(values, Mapping):
            raise Refused("a data record is a table.")
        names = {field.name for field in fields(cls)}
        if unknown := set(values) - names:
            raise Refused(f"a data record has no field {sorted(unknown)[0]!r}.")
        if missing := {"name", "shape"} - set(values):
            raise Refused(f"a data record needs the field {sorted(missing)[0]!r}.")
        classes = values.get("classes")
        with refusing("a data record has a wrong field"):
            check_signal(values["shape"], short(values["name"]))
            return cls(
                **{
                    **values,
                    "shape": tuple(values["shape"]),
                    "classes": None if classes is None else tuple(classes),
                }
            )
