"""A run folder: what the run is, its log, and checkpoints that are whole or absent.

run.json             the resolved configuration: whose folder this is, see `identity`
log.jsonl            one line per report; locked by the process that trains
latents/             of a model of latents: its data, see `latents`
checkpoints/NNN/     a model's or an autoencoder's folder (`from_pretrained` reads it) with
                     `raw.safetensors`, and the optimizer's tensors in `optimizer.safetensors`;
                     `averages.safetensors` where further averages are kept
snapshots/NNN/       these averages at earlier steps, see `snapshots`
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from sfumato import files
from sfumato.config import Config
from sfumato.errors import Refused, reason
from sfumato.files import read_tensors
from sfumato.notes import Note
from sfumato.record import LATENTS, Record
from sfumato.sampling.sample import finite
from sfumato.store import DIGITS
from sfumato.training import lock, sharding, snapshots
from sfumato.training.averages import Average
from sfumato.training.identity import Identity
from sfumato.training.objective import Subject
from sfumato.training.options import TrainOptions

SKIPPED = "skipped"
WRITTEN = ("checkpoints", "previews", snapshots.FOLDER, LATENTS)
"""Folders of a run in which an interrupted write may have left something."""


@final
class State:
    """All that changes while training: weights, their averages, the optimizer's moments.

    Args:
        trainable: whose weights.
        optimizer: of them.
        ema: their average.
        powers: further averages of them, by length.

    Attributes:
        skipped: steps in a row, up to now, that were skipped.
    """

    def __init__(
        self,
        trainable: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Average,
        powers: Mapping[float, Average],
    ) -> None:
        self.trainable = trainable
        self.optimizer = optimizer
        self.ema = ema
        self.powers = powers
        self.skipped = 0

    @property
    def averages(self) -> list[Average]:
        """All averages; each has taken in the same steps, those that were not skipped."""
        return [self.ema, *self.powers.values()]

    def step(self, rate: float, good: bool) -> None:
        """Update by the gradients at the learning rate `rate`, or not where they are not `good`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if good:
            self.optimizer.step()
            for average in self.averages:
                average.step(self.trainable.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped = 0 if good else self.skipped + 1

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return {**self.trainable.state_dict(), **self._named(self.ema)}

    def _named(self, average: Average) -> dict[str, Tensor]:
        """The tensors of an average by the names of their parameters."""
        parameters = self.trainable.parameters()
        found = {id(p): tensor for p, tensor in zip(parameters, average.tensors, strict=True)}
        # Tied weights have several names and one average.
        named = self.trainable.named_parameters(remove_duplicate=False)
        return {files.plain_name(name): found[id(parameter)] for name, parameter in named}

    def kept(self) -> dict[float, dict[str, Tensor]]:
        """The tensors of the further averages by name, by length."""
        return {length: self._named(average) for length, average in self.powers.items()}

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's tensors as `position.name`; with them `skipped`, unless it is 0."""
        state = self.optimizer.state_dict()["state"]
        skipped = {SKIPPED: torch.tensor(self.skipped)} if self.skipped else {}
        return skipped | {
            f"{i}.{name}": value for i, row in state.items() for name, value in row.items()
        }

    def restore(self, folder: Path) -> None:
        """Put back what `Checkpoints.save` wrote; ValueError where it does not fit."""
        sharding.load(self.trainable, folder / "model.safetensors")
        self.ema.copy_from(self.trainable.parameters())
        if self.powers:
            self._restore_powers(folder / snapshots.FILE)
        sharding.load(self.trainable, folder / "raw.safetensors")
        if not finite(self.trainable):
            raise Refused(f"the weights in {folder} are not finite.")
        parameters = list(self.trainable.parameters())
        rows: dict[int, dict[str, Tensor]] = {}
        path = folder / "optimizer.safetensors"
        tensors = read_tensors(path)
        self.skipped = int(tensors.pop(SKIPPED, 0))
        for key, value in tensors.items():
            position, _, name = key.partition(".")
            known = position.isdecimal() and int(position) < len(parameters)
            of = parameters[int(position)] if known else None
            if of is None or value.shape not in (of.shape, torch.Size()):
                raise Refused(f"{path} does not fit the network: '{key}' {tuple(value.shape)}.")
            # A moment has the memory layout of its parameter, whatever the file's.
            moment = (
                torch.empty_like(of, dtype=value.dtype).copy_(sharding.like(value, of))
                if value.shape == of.shape
                else value
            )
            rows.setdefault(int(position), {})[name] = moment
        # The averages count the steps that AdamW counts: neither counts skipped ones.
        made = max((int(row.get("step", 0)) for row in rows.values()), default=0)
        for average in self.averages:
            average.steps = made
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": rows, "param_groups": groups})

    def _restore_powers(self, path: Path) -> None:
        found = snapshots.read(path).averages
        if missing := {*self.powers} - {*found}:
            raise Refused(f"{path} has no average of length {min(missing):g}.")
        for length, average in self.powers.items():
            files.load_weights(self.trainable, path, self.trainable.state_dict() | found[length])
            average.copy_from(self.trainable.parameters())

    def use_average(self) -> None:
        """Put the averaged weights into the model."""
        self.ema.copy_to(self.trainable.parameters())

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        parameters = [parameter.data for parameter in self.trainable.parameters()]
        kept = [parameter.cpu().clone() for parameter in parameters]  # a device may be full
        try:
            self.use_average()
            yield
        finally:
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)


def check_owned(out: Path) -> None:
    """Raise ValueError where `out` has files and is not a run's folder, or a name without UTF-8."""
    try:
        str(out.resolve()).encode()
    except UnicodeEncodeError:
        raise Refused(f"{out} is no name in UTF-8, which the files of weights need.") from None
    record = out / "run.json"
    mine = {record, out / "log.jsonl", out / LATENTS, *files.parts(record)}
    if not record.is_file() and out.is_dir() and set(out.iterdir()) - mine:
        raise Refused(f"{out} is not empty and holds no run. Choose another --out.")


def check_free(out: Path, data: Record) -> None:
    """Raise ValueError where `out` is no folder for a run on `data`: before these are computed."""
    check_owned(out)
    record = out / "run.json"
    if record.is_file() and Identity.read(record, Config).config.record.sha256 != data.sha256:
        raise Refused(
            f"{out} belongs to another run, on other data or of another codec. Choose another "
            "--out, or ask for the same."
        )


def _aside(folder: Path) -> Path:
    """A name for a damaged checkpoint that no other has."""
    path = folder.with_name(f"{folder.name}.damaged")
    for i in itertools.count(2):
        if not path.exists():
            break
        path = folder.with_name(f"{folder.name}.{i}.damaged")
    return path


@final
class Checkpoints:
    """The run folder `out`.

    Args:
        out: the folder.
        subject: what is trained.
        options: how it is trained.
    """

    def __init__(self, out: Path, subject: Subject, options: TrainOptions) -> None:
        self.out = out
        self.subject = subject
        self.options = options
        self.identity = Identity(subject.config, options)
        self.keep = options.keep

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within, the folder is reserved for this run and this process.

        Raises:
            ValueError: it belongs to another run, or another process trains in it, or it cannot be
                written; the folder is unchanged.
        """
        text = json.dumps(self.identity.to_dict(), indent=2) + "\n"
        record, log = self.out / "run.json", self.out / "log.jsonl"
        check_owned(self.out)
        with lock.held(log):
            if record.is_file():
                last = self.latest()
                step = int(last.name) if last else 0
                found = Identity.read(record, type(self.identity.config))
                self.identity.check(found, step, self.out)
                self.keep = max(self.keep, found.options.keep)
            if not record.is_file() or record.read_text() != text:
                files.write(record, text)
            for folder in (self.out, *(self.out / name for name in WRITTEN)):
                files.sweep(folder / "*")
            yield

    def resume(self, state: State | None) -> int:
        """Restore the latest whole checkpoint into `state`; the step to resume from.

        A damaged one is set aside under another name, and a warning says what is wrong with it.
        Without a state, files alone are compared.

        Raises:
            ValueError: all checkpoints are damaged or do not fit, or one cannot be read; no file
                is changed.
        """
        damage: dict[Path, str] = {}
        for path in reversed(self._all()):
            try:
                if state is not None:
                    state.restore(path)
                files.check(path)
            except ValueError as error:
                damage[path] = str(error)
                continue
            except OSError as error:  # what cannot be read now may be whole
                raise Refused(f"{path} cannot be read: {reason(error)}.") from error
            for other, told in damage.items():
                aside = other.rename(_aside(other))
                warnings.warn(f"{told} It is now {aside}; training goes on from {path}.", Note, 2)
            return int(path.name)
        if damage:
            first, told = next(iter(damage.items()))
            raise Refused(
                f"{told} No checkpoint before {first.name} is whole: choose another --out."
            )
        return 0

    def latest(self) -> Path | None:
        """The folder of the last checkpoint."""
        return max(self._all(), default=None)

    def save(self, state: State, step: int, main: bool = True) -> None:
        """Write checkpoint `step`, whole or not at all, and drop the oldest beyond `keep`.

        The `main` process writes; where weights are sharded, all processes call it. Weights that
        are not finite are not written: they would replace finite ones.
        """
        if not finite(state.trainable):
            return
        path = self.out / "checkpoints" / f"{step:08d}"
        if not path.exists():
            held = (state.weights(), state.trainable.state_dict(), state.moments())
            weights, raw, moments = (sharding.whole(tensors, main) for tensors in held)
            if not main:
                return
            with files.folder(path) as part:
                self.subject.write(part, weights, raw)
                files.write_tensors(moments, part / "optimizer.safetensors")
                if state.powers:
                    snapshots.fill(part, state.kept(), state.ema.steps)
        self._drop(self.options.keep)

    def tidy(self) -> None:
        """Drop what a run killed while it saved had still to drop.

        A smaller `keep` than the run's counts from the next checkpoint on.
        """
        self._drop(self.keep)

    def _drop(self, keep: int) -> None:
        for old in self._all()[:-keep]:
            files.remove(old)

    def keep_averages(self, state: State, step: int) -> None:
        """Write a snapshot of the further averages, if there are any and one is due at `step`."""
        count, plan = self.options.snapshots, self.options.steps
        due = step == plan or step * count // plan > (step - 1) * count // plan
        if due and state.powers and state.ema.steps and finite(state.trainable):
            snapshots.add(self.out, step, state.kept(), state.ema.steps, count)

    def _all(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob(DIGITS))
