"""Where models lie: folders that `save_pretrained` or training wrote, and those that come along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from sfumato import files, pretrained
from sfumato.config import Config
from sfumato.corruption.facts import Facts
from sfumato.methods.lookup import Method
from sfumato.model import Model
from sfumato.names import nearest

DIGITS = "[0-9]" * 8
"""Names of checkpoints: the step, in eight digits."""

T = TypeVar("T")


class Stored(NamedTuple):
    """What a model's folder holds (final)."""

    config: Config
    facts: Facts
    weights: dict[str, Tensor]
    path: Path
    """Of the weights."""


def from_pretrained(
    path: str | Path,
    *,
    weights: str = "ema",
    backbone: nn.Module | None = None,
    build: Method | None = None,
) -> Model:
    """The model in a folder that `save_pretrained` or training wrote.

    Args:
        path: the name of a model that comes along, such as "fashion-soft", or a model's folder, or
            a run's: then its latest checkpoint.
        weights: "ema" (averaged) or "raw".
        backbone: the module, where it is the user's own.
        build: the method, where it is the user's own.

    Raises:
        ValueError: no model there; a file is missing, truncated, of another format or of wrong
            shapes.
    """
    stored = read(path, weights)
    model = Model(stored.config, stored.facts, backbone, build)
    files.load_weights(model.learned, stored.path, stored.weights)
    model.denoiser.eval()
    return model


def read(path: str | Path, weights: str = "ema") -> Stored:
    """The files of the model at `path`, as `from_pretrained` finds it; no code of a method is run.

    Raises:
        ValueError: as `from_pretrained`.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights are 'ema' or 'raw'; got '{weights}'.")
    name = "model.safetensors" if weights == "ema" else "raw.safetensors"

    def stored(folder: Path) -> Stored:
        file = folder / name
        return Stored(read_config(folder), read_facts(folder), files.read_tensors(file), file)

    return newest(path, stored)


def newest(path: str | Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in the folder of the model at `path`.

    A run that goes on deletes old checkpoints, each at once: where one vanished while it was read,
    the run has a newer one, which is read instead.

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
    """A shipped model's folder by its name, that at `path`, or the last checkpoint of a run there.

    A name goes before a path, so that `./fashion-soft` is a folder of one's own.
    """
    if str(path) in pretrained.models():
        return pretrained.path(str(path))
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    checkpoints = sorted((path / "checkpoints").glob(DIGITS)) if path.is_dir() else []
    if checkpoints:
        return checkpoints[-1]
    raise ValueError(
        f"no model at {path}: no config.json there, and no checkpoints/ of a run. "
        + nearest("model", str(path), pretrained.models(), "name a run's folder.")
    )


def read_config(folder: Path) -> Config:
    """The config in a model's folder; ValueError where it cannot be read."""
    try:
        return Config.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}.") from error


def read_facts(folder: Path) -> Facts:
    """The facts in a model's folder; ValueError where they cannot be read."""
    path = folder / "facts.safetensors"
    try:
        return Facts(**files.read_tensors(path))
    except TypeError as error:
        raise ValueError(f"{path} does not hold the facts of a data set: {error}.") from error
