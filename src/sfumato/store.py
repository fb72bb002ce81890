"""Stored models: folders written by `save_pretrained` or training, and the bundled ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, final

from torch import Tensor, nn

from sfumato import files, pretrained
from sfumato.config import Config
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.methods.lookup import Method
from sfumato.model import Model
from sfumato.names import nearest

DIGITS = "[0-9]" * 8
"""Names of checkpoints: the step, in eight digits."""

T = TypeVar("T")


@final
class Stored(NamedTuple):
    """What a model's folder holds."""

    config: Config
    stats: DataStatistics
    weights: dict[str, Tensor]
    path: Path
    """The file of the weights."""


def from_pretrained(
    path: str | Path,
    *,
    weights: str = "ema",
    backbone: nn.Module | None = None,
    method: Method | None = None,
) -> Model:
    """The model in a folder that `save_pretrained` or training wrote.

    Args:
        path: the name of a bundled model, such as "fashion-soft", or a model's folder, or a run's:
            then its latest checkpoint.
        weights: "ema" (averaged) or "raw".
        backbone: the module, where it is the user's own.
        method: the method, where it is the user's own.

    Raises:
        ValueError: no model there; a file is missing, truncated, of another format or of wrong
            shapes.
    """
    stored = read(path, weights)
    model = Model(stored.config, stored.stats, backbone, method)
    files.load_weights(model.trainable, stored.path, stored.weights)
    model.denoiser.eval()
    return model


def read(path: str | Path, weights: str = "ema") -> Stored:
    """The files of the model at `path`, as `from_pretrained` finds it; no code of a method is run.

    Raises:
        ValueError: as `from_pretrained`.
    """
    if weights not in ("ema", "raw"):
        raise Refused(f"weights are 'ema' or 'raw'; got '{weights}'.")
    name = "model.safetensors" if weights == "ema" else "raw.safetensors"

    def stored(folder: Path) -> Stored:
        file = folder / name
        return Stored(read_config(folder), read_stats(folder), files.read_tensors(file), file)

    return newest(path, stored)


def newest(path: str | Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in the folder of the model at `path`.

    A run in progress deletes old checkpoints atomically: where one was deleted while it was read,
    the newer one is read instead.

    Raises:
        ValueError: no model there, or what `read` raises.
    """
    while True:
        folder = locate(path)
        try:
            return read(folder)
        except ValueError:
            if folder.is_dir():
                raise


def locate(path: str | Path) -> Path:
    """The folder of a bundled model by its name, of a model, or of a run's last checkpoint.

    A name takes precedence over a path: `./fashion-soft` is a folder of your own.
    """
    if str(path) in pretrained.models():
        return pretrained.path(str(path))
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    checkpoints = sorted((path / "checkpoints").glob(DIGITS)) if path.is_dir() else []
    if checkpoints:
        return checkpoints[-1]
    raise Refused(
        f"no model at {path}: no config.json there, and no checkpoints/ of a run. "
        + nearest("model", str(path), pretrained.models(), "name a run's folder.")
    )


def read_config(folder: Path) -> Config:
    """The config in a model's folder; ValueError where it cannot be read."""
    try:
        return Config.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{folder / 'config.json'} cannot be read: {error}.") from error


def read_stats(folder: Path) -> DataStatistics:
    """The statistics in a model's folder; ValueError where they cannot be read."""
    path = folder / "facts.safetensors"
    try:
        return DataStatistics(**files.read_tensors(path))
    except TypeError as error:
        raise Refused(f"{path} does not hold the statistics of a data set: {error}.") from error
