"""A run folder: what the run is, its log, and checkpoints that are whole or absent.

run.json             the resolved configuration: whose folder this is
log.jsonl            one line per report
checkpoints/NNN/     a model's folder (`from_pretrained` reads it) with `raw.safetensors`, and the
                     optimizer's tensors apart in `optimizer.safetensors`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sfumato import files
from sfumato.files import load_weights, read_tensors
from sfumato.model import Model
from sfumato.names import renamed
from sfumato.store import DIGITS


class State:
    """All that changes while training: weights, their average, the optimizer's moments (final)."""

    def __init__(self, learned: nn.Module, optimizer: torch.optim.Optimizer, ema: EMAModel) -> None:
        self.learned, self.optimizer, self.ema = learned, optimizer, ema

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        averages = {
            id(parameter): shadow
            for parameter, shadow in zip(
                self.learned.parameters(), self.ema.shadow_params, strict=True
            )
        }
        # Tied weights have several names and one average.
        named = self.learned.named_parameters(remove_duplicate=False)
        return {
            **self.learned.state_dict(),
            **{name: averages[id(parameter)] for name, parameter in named},
        }

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's tensors as `position.name`."""
        state = self.optimizer.state_dict()["state"]
        return {f"{i}.{name}": value for i, row in state.items() for name, value in row.items()}

    def restore(self, folder: Path, step: int) -> None:
        """Put back what `Checkpoints.save` wrote at `step`; ValueError where it does not fit."""
        load_weights(self.learned, folder / "model.safetensors")
        for parameter, shadow in zip(
            self.learned.parameters(), self.ema.shadow_params, strict=True
        ):
            shadow.copy_(parameter.detach())
        load_weights(self.learned, folder / "raw.safetensors")
        self.ema.optimization_step = step
        parameters = list(self.learned.parameters())
        rows: dict[int, dict[str, Tensor]] = {}
        path = folder / "optimizer.safetensors"
        for key, value in read_tensors(path).items():
            position, _, name = key.partition(".")
            of = parameters[int(position)] if position.isdecimal() else None
            if of is None or value.shape not in (of.shape, torch.Size()):
                raise ValueError(f"{path} does not fit the network: '{key}' {tuple(value.shape)}.")
            # A moment lies in memory as its parameter does, whatever the file's order is.
            moment = (
                torch.empty_like(of, dtype=value.dtype).copy_(value)
                if value.shape == of.shape
                else value
            )
            rows.setdefault(int(position), {})[name] = moment
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": rows, "param_groups": groups})

    def use_average(self) -> None:
        """Put the averaged weights into the model."""
        self.ema.copy_to(self.learned.parameters())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        self.ema.store(self.learned.parameters())
        try:
            self.use_average()
            yield
        finally:
            self.ema.restore(self.learned.parameters())


class Checkpoints:
    """The run folder `out` of the run `identity` (final).

    Args:
        out: the folder.
        model: the model being trained.
        identity: what makes a run this run; JSON.
        keep: checkpoints kept.
    """

    def __init__(self, out: Path, model: Model, identity: Mapping[str, Any], keep: int) -> None:
        self.out, self.model, self.keep = out, model, keep
        self.identity = json.loads(json.dumps(identity))

    def open(self, state: State, write: bool = True) -> int:
        """Claim the folder, or restore its latest checkpoint into `state`; the step to go on from.

        Raises:
            ValueError: the folder belongs to another run, or cannot be written.
        """
        record = self.out / "run.json"
        if record.is_file():
            self._check(_read(record))
        elif self.out.is_dir() and set(self.out.iterdir()) - set(files.parts(record)):
            raise ValueError(f"{self.out} is not empty and holds no run. Choose another --out.")
        elif write:
            files.write(record, json.dumps(self.identity, indent=2) + "\n")
        if write:
            files.sweep(record)
            files.sweep(self.out / "checkpoints" / DIGITS)
        latest = self._all()
        if not latest:
            return 0
        step = int(latest[-1].name)
        try:
            state.restore(latest[-1], step)
        except ValueError as error:
            raise ValueError(
                f"{error} Remove {latest[-1]} to go on from the checkpoint before it."
            ) from error
        return step

    def save(self, state: State, step: int) -> None:
        """Write checkpoint `step`, whole or not at all, and drop the oldest beyond `keep`."""
        path = self.out / "checkpoints" / f"{step:08d}"
        if not path.exists():
            with files.folder(path) as part:
                self.model.write(part, state.weights(), self.model.learned.state_dict())
                files.write_tensors(state.moments(), part / "optimizer.safetensors")
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        with (self.out / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def _all(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob(DIGITS))

    def _check(self, found: Mapping[str, Any]) -> None:
        mine, theirs = _flat(self.identity), _flat(found)
        for name in sorted(set(mine) | set(theirs)):
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"{self.out} belongs to another run: there {name} is {theirs.get(name)}, "
                    f"here {mine.get(name)}. Choose another --out, or ask for the same."
                )


def _read(record: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(record.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{record} cannot be read: {error}.") from error
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise ValueError(f"{record} is not the record of a run.")
    return {**found, "model": renamed(found["model"])}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(_flat(value, f"{prefix}{name}."))
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
