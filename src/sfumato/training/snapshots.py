r"""Snapshots are averages of a run's weights at some of its steps, from which others are made.

RUN/snapshots/NNNNNNNN/averages.safetensors     after step NNNNNNNN: `LENGTH:NAME` is the weight
                                                NAME of the average of LENGTH, and `steps` the
                                                number of steps in it

Their weighted sum with the shares of `averages.mixed` is the average of another length, up to the
error of its profile.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sfumato import files, store
from sfumato.errors import Refused
from sfumato.store import DIGITS
from sfumato.training.averages import Power, exponent, mixed

if TYPE_CHECKING:
    from sfumato.model import Model

FOLDER, FILE = "snapshots", "averages.safetensors"
STEPS = "steps"
OWN = ("raw.safetensors", "optimizer.safetensors", FILE, files.MANIFEST)
"""Files of a checkpoint that are no part of a model's folder."""
WORST = 0.1
"""Error of a profile from which on its average is not made."""


@final
class Snapshot(NamedTuple):
    """Averages by length and name, and the number of steps in each."""

    averages: dict[float, dict[str, Tensor]]
    steps: int


@final
class Averaged(NamedTuple):
    """An average that was made from snapshots.

    Attributes:
        weights: by name.
        steps: in the average.
        snapshots: how many it was made from.
        error: of its profile, see `averages.Mixture`.

    >>> sf.averages.Averaged({}, steps=1000, snapshots=32, error=0.001).steps
    1000
    """

    weights: dict[str, Tensor]
    steps: int
    snapshots: int
    error: float


def fill(folder: Path, averages: Mapping[float, Mapping[str, Tensor]], steps: int) -> None:
    """Write `averages` into a folder that is being made."""
    tensors = {
        f"{length!r}:{name}": tensor
        for length, named in averages.items()
        for name, tensor in named.items()
    }
    files.write_tensors(tensors | {STEPS: torch.tensor(steps)}, folder / FILE)


def read(path: Path) -> Snapshot:
    """The averages in a file that `fill` wrote; ValueError where it is another."""
    tensors = files.read_tensors(path)
    averages: dict[float, dict[str, Tensor]] = {}
    try:
        steps = int(tensors.pop(STEPS))
        for key, tensor in tensors.items():
            length, _, name = key.partition(":")
            averages.setdefault(float(length), {})[name] = tensor
    except (KeyError, ValueError, RuntimeError) as error:
        raise Refused(f"{path} does not hold averages of a run: {error}.") from error
    return Snapshot(averages, steps)


def add(
    out: Path, step: int, averages: Mapping[float, Mapping[str, Tensor]], steps: int, most: int
) -> None:
    """Write the snapshot of `step` in the run `out`, whole or not at all; then keep `most`.

    Where there are more, as in a run that was made longer, the one with the nearest neighbours is
    dropped, so that those kept are about evenly spaced.
    """
    path = out / FOLDER / f"{step:08d}"
    if not path.exists():
        with files.folder(path) as part:
            fill(part, averages, steps)
    kept = _all(out)
    while len(kept) > most:
        numbers = [int(folder.name) for folder in kept]
        gaps = [b - a for a, b in zip([0, *numbers], numbers[1:], strict=False)]
        files.remove(kept.pop(gaps.index(min(gaps))))


def reconstructed(run: str | Path, length: float) -> Averaged:
    """The average of another length, from the snapshots of a run, as of the last of them.

    Args:
        run: the folder of a run that was trained with `TrainOptions(averages=...)`.
        length: of the average, as those: the share of the run that it is spread over.

    Raises:
        ValueError: no snapshots there, or too few for this length; a damaged one.

    >>> digits = sf.load("digits")
    >>> config = sf.Config("soft", digits.record, {}, sf.UNetOptions(width=8, patch=1))
    >>> options = sf.TrainOptions(256, batch=32, averages=(0.05, 0.1), preview_every=0)
    >>> model = sf.train(sf.build(config, digits, options), digits, options, "runs/averages")
    >>> found = sf.averages.reconstructed("runs/averages", 0.08)
    >>> found.steps, found.snapshots, found.error < 0.02
    (8, 8, True)
    """
    exponent(length)  # refused before anything is read
    folders = _all(Path(run))
    if not folders:
        raise Refused(
            f"{run} has no snapshots of averages: train it with --averages 0.05,0.1 to make "
            "others afterwards."
        )
    for folder in folders:
        files.check(folder)
    found = [_profiles(folder) for folder in folders]
    known = [profile for row in found for profile in row]
    wanted = Power(length, max(profile.steps for profile in known))
    shares, error = mixed(known, wanted)
    if error > WORST:
        raise Refused(
            f"the {len(folders)} snapshots of {run} give an average of length {length:g} with an "
            f"error of {error:.0%}; ask for a length nearer to those that were kept, "
            f"{', '.join(f'{s:g}' for s in sorted({profile.length for profile in known}))}."
        )
    return Averaged(_summed(folders, shares), wanted.steps, len(folders), error)


def _summed(folders: Sequence[Path], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted sum of all averages in the snapshots, in their order, in float64."""
    total: dict[str, Tensor] = {}
    left = iter(shares)
    for folder in folders:
        for _, named in sorted(read(folder / FILE).averages.items()):
            share = next(left)
            for name, tensor in named.items():
                part = tensor.double() * share
                total[name] = total[name].add_(part) if name in total else part
    return total


def averaged(run: str | Path, length: float, **own: Any) -> Model:
    """The model of a run with the average of another length, made from its snapshots.

    Args:
        run, length: as in `reconstructed`.
        own: what is the user's own: `method`, `backbone`, `codec` of `Model`.

    Raises:
        ValueError: as `reconstructed`; no checkpoint of a model there.

    >>> digits = sf.load("digits")
    >>> config = sf.Config("soft", digits.record, {}, sf.UNetOptions(width=8, patch=1))
    >>> options = sf.TrainOptions(256, batch=32, averages=(0.05, 0.1), preview_every=0)
    >>> model = sf.train(sf.build(config, digits, options), digits, options, "runs/averages")
    >>> sf.averages.averaged("runs/averages", 0.08).sample([0], sf.Sampler(steps=2)).shape
    torch.Size([1, 1, 8, 8])
    """
    found = reconstructed(run, length)
    stored = store.read(run)
    own.setdefault("codec", store.codec_of(stored))
    model = store.loaded(stored._replace(weights=_cast(found, stored.weights)), **own)
    store.verify(stored)
    return model


def save_averaged(run: str | Path, length: float, out: str | Path) -> Averaged:
    """Write the folder of a model, or of an autoencoder, with the average of another length.

    Args:
        run, length: as in `reconstructed`.
        out: a folder that does not exist yet.

    Raises:
        ValueError: as `reconstructed`; `out` exists.

    >>> digits = sf.load("digits")
    >>> config = sf.Config("soft", digits.record, {}, sf.UNetOptions(width=8, patch=1))
    >>> options = sf.TrainOptions(256, batch=32, averages=(0.05, 0.1), preview_every=0)
    >>> model = sf.train(sf.build(config, digits, options), digits, options, "runs/averages")
    >>> _ = sf.averages.save_averaged("runs/averages", 0.08, "runs/longer")
    >>> sf.from_pretrained("runs/longer").shape
    (1, 8, 8)
    """
    files.new(out)
    found = reconstructed(run, length)

    def copied(folder: Path, part: Path) -> None:
        files.check(folder)
        shutil.copytree(folder, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*OWN))

    with files.folder(out) as part:
        store.newest(run, lambda folder: copied(folder, part))
        path = part / "model.safetensors"
        files.write_tensors(_cast(found, files.read_tensors(path)), path)
    return found


def _cast(found: Averaged, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with those that were averaged in place of their own, in their dtypes."""
    cast = {name: tensor.to(weights[name].dtype) for name, tensor in found.weights.items()}
    return {**weights, **cast}


def _profiles(folder: Path) -> list[Power]:
    """Of the averages in a snapshot, by their length; the weights are not read."""
    path = folder / FILE
    try:
        with safe_open(path, "pt") as opened:
            steps = int(opened.get_tensor(STEPS))
            keys = {*opened.keys()} - {STEPS}
        lengths = sorted({float(key.partition(":")[0]) for key in keys})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise Refused(f"{path} does not hold averages of a run: {error}.") from error
    return [Power(length, steps) for length in lengths]


def _all(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob(DIGITS))
