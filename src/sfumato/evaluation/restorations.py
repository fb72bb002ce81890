r"""A restoration is what was drawn from p(x_0 | y) for one measurement, as arrays and as a strip.

    measurement (H', W', C)    mean (H, W, C)    samples (k, H, W, C)    truth (H, W, C), if known

Arrays are float32; images lie in about [-1, 1]. A folder keeps one restoration in a file, so that
interrupted work resumes; `restoration.json` says what all of them depend on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from sfumato import arrays as packed
from sfumato import documents, files, pictures
from sfumato.errors import Refused

REQUEST = "restoration.json"
WHITE = 0.5
"""Standard deviation that is drawn white."""

Arrays = dict[str, np.ndarray]


def arrays(y: Tensor, samples: Tensor, truth: Tensor | None) -> Arrays:
    """The restoration of one measurement from its samples (k, C, H, W)."""
    found = {"mean": _last(samples.mean(0)), "samples": _last(samples), "measurement": _last(y)}
    return found if truth is None else found | {"truth": _last(truth)}


def stacked(restorations: Sequence[Arrays]) -> Arrays:
    """The arrays of several restorations, along a new first axis."""
    return {name: np.stack([one[name] for one in restorations]) for name in restorations[0]}


def strip(restorations: Sequence[Arrays]) -> Image.Image:
    """A row for each: measurement, mean, spread, samples, and the truth where it is known.

    The spread is the samples' standard deviation, `WHITE` drawn white. A measurement that is no
    image is left out.
    """
    return pictures.strip([_row(one) for one in restorations])


def _row(one: Arrays) -> Tensor:
    samples = _first(one["samples"])
    spread = samples.std(0, correction=0)[None] * (2 / WHITE) - 1
    cells = [_first(one["mean"][None]), spread.mean(1, keepdim=True).expand_as(spread), samples]
    y = _first(one["measurement"][None]) if one["measurement"].ndim == 3 else None
    if y is not None and y.shape[1] == samples.shape[1]:
        cells.insert(0, interpolate(y, samples.shape[2:], mode="nearest-exact"))
    if "truth" in one:
        cells.append(_first(one["truth"][None]))
    return torch.cat(cells)


@final
@dataclass(frozen=True)
class Shelf:
    """A folder of restorations by name.

    Attributes:
        home: the folder, created with the first restoration.
        request: all that the restorations depend on beside y, as JSON holds it, for a folder that
            keeps it, and each restoration's strip, NAME.png; else None.
    """

    home: Path
    request: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise ValueError where the folder is that of another request, or holds other files."""
        path = self.home / REQUEST
        new = self.request or {}
        if not path.is_file():
            if self.home.is_dir() and any(self.home.iterdir()):
                raise Refused(f"{self.home} holds other files. Choose another --out.")
            return
        old = documents.read_table(path)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                raise Refused(
                    f"{self.home} holds restorations of another request: its {name} was "
                    f"{old.get(name)}, not {new.get(name)}. Choose another --out."
                )

    def kept(self, name: str, y: Tensor) -> Arrays | None:
        """The restoration `name`, or None where it is not whole.

        Raises:
            ValueError: it is that of another measurement than `y`, or damaged.
        """
        path = self.home / f"{name}.npz"
        if not path.is_file():
            return None
        try:
            found = packed.read_packed(path)
        except Refused as error:
            raise Refused(f"{error} Remove it to compute it again.") from error
        if not np.array_equal(found.get("measurement", np.empty(0)), _last(y)):
            raise Refused(f"{path} is of another measurement. Choose another --out, or remove it.")
        return found

    def keep(self, name: str, one: Arrays) -> None:
        """Write a restoration; its arrays last, by which it counts as whole."""
        path = self.home / f"{name}.npz"
        if self.request is not None:
            if not (about := self.home / REQUEST).is_file():
                files.write(about, json.dumps(self.request, indent=2) + "\n")
            pictures.save(strip([one]), path.with_name(f"{name}.png"))
        files.write_arrays(one, path)


def _last(x: Tensor) -> np.ndarray:
    """(..., C, H, W) as an array (..., H, W, C); other signals as they are."""
    x = x.detach().float().cpu()
    return (x.movedim(-3, -1) if x.ndim > 2 else x).contiguous().numpy()


def _first(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).movedim(-1, -3)
