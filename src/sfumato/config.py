"""A config is all that rebuilds a model but its weights and facts: what `config.json` holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sfumato.names import renamed
from sfumato.networks.backbones import UNetOptions
from sfumato.record import Record

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """The weights that training started from (final).

    Attributes:
        name: as given to `--from`.
        sha256: of the weights, in hex.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Config:
    """What a model is, as `config.json` holds it (final).

    Attributes:
        method: a name in METHODS, or `file.py:function` for the user's own.
        parameters: the method's keyword arguments that differ from its defaults.
        record: the data's record.
        network: the backbone's options; None for a module of the user's.
        conditional: whether the backbone is told classes.
        sha256: of the user's own method file.
        kernel: how to sample it where nobody says otherwise, as `--kernel` spells it; None for the
            method's own.
        steps: of that sampler; None for the method's own.
        clock: the method's own times at equal times, from 0 to 1, where its levels were selected.
        origin: the weights that training started from; None for weights drawn from the seed.
    """

    method: str
    record: Record
    parameters: Mapping[str, Any] = field(default_factory=dict)
    network: UNetOptions | None = field(default_factory=UNetOptions)
    conditional: bool = False
    sha256: str | None = None
    kernel: str | None = None
    steps: int | None = None
    clock: tuple[float, ...] | None = None
    origin: Origin | None = None

    @property
    def own(self) -> bool:
        """Whether the method is code in a file of the user's, which only the user may name."""
        return self.sha256 is not None or ":" in str(self.method)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        plain = asdict(self) | {"record": self.record.to_dict()}
        found = {"format": FORMAT, **json.loads(json.dumps(plain))}
        for name in ("clock", "origin"):  # so that models without one are what they were
            if found[name] is None:
                del found[name]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From what JSON held; ValueError for another format or a field out of place."""
        if not isinstance(values, Mapping):
            raise ValueError("the checkpoint's config.json holds no table.")
        values = renamed(values)
        if (found := values.pop("format", None)) != FORMAT:
            raise ValueError(
                f"the checkpoint has format {found}; this version of sfumato reads format {FORMAT}."
            )
        try:
            network = values.pop("network")
            record = Record.from_dict(values.pop("record"))
            clock, origin = values.pop("clock", None), values.pop("origin", None)
            return cls(
                record=record,
                network=None if network is None else UNetOptions(**network),
                clock=None if clock is None else tuple(clock),
                origin=None if origin is None else Origin(**origin),
                **values,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint's config.json has a wrong or missing field: {error}."
            ) from error
