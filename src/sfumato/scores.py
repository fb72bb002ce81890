"""Scores are the results in a record of `sfumato evaluate`, of the model with its fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from sfumato import documents, files
from sfumato.config import Config
from sfumato.errors import Refused, refusing
from sfumato.names import sampled

FORMAT = 1


class Holder(Protocol):
    """What has tensors by name: statistics, or a codec."""

    def tensors(self) -> dict[str, Tensor]: ...


class Scored(Protocol):
    """What a record can be of: a `Model`."""

    @property
    def config(self) -> Config: ...
    @property
    def stats(self) -> Holder: ...
    @property
    def codec(self) -> Holder: ...
    @property
    def trainable(self) -> nn.Module: ...


def fingerprint(model: Scored) -> str:
    """SHA-256 of what samples depend on beside the sampler: config, stats, weights, codec."""
    plain = {k: v for k, v in model.config.to_dict().items() if k != "sampler"}
    config = json.dumps(plain, sort_keys=True).encode()
    weights = files.plain(model.trainable.state_dict())
    return files.digest({**model.stats.tensors(), **weights, **model.codec.tensors()}, config)


def read(path: Path) -> dict[str, Any]:
    """A record from its file; ValueError where it is none."""
    found = documents.read_json(path)
    tables = {"subject": dict, "results": list}
    whole = isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in tables.items())
    if not whole or found.get("format") != FORMAT:
        raise Refused(f"{path} is no record of an evaluation in format {FORMAT}.")
    with refusing(f"{path} is no record of an evaluation"):
        subject = sampled(found["subject"])
        results = [sampled(one) for one in found["results"]]
    return {**found, "subject": subject, "results": results}


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write a record, whole or not at all."""
    files.write(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
