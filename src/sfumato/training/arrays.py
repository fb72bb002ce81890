r"""An array in a file holds images or other signals, in a .npz with labels where it has them.

x.npz    the array `images` (n, H, W, C) or (n, H, W), or `signals` (n, *shape); `labels` (n,)
x.npy    images, or the rows (n, values) that are vectors
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfumato import arrays
from sfumato.errors import Refused
from sfumato.record import KINDS
from sfumato.training.lazy import LARGEST, Stored, Values, changed
from sfumato.training.raw import Raw, Reading, classified, measured, placed

MOST = 4
"""Channels of an image."""


def array(path: Path, how: Reading) -> Raw:
    """The images or signals in the file at `path`, with their range and classes."""
    name, values, labels = found_in(path, how.key)
    rows = name is None and len(values.shape) == 2
    kind = how.kind or ("signals" if name == "signals" or rows else "images")
    if kind == "signals":
        if how.resize is not None:
            raise Refused(f"{path} holds signals; only images are resized.")
        if len(values.shape) < 2 or 0 in values.shape:
            raise Refused(f"{path} must hold signals (n, *shape); got shape {values.shape}.")
        raw = measured(values, path, how.range)
    else:
        images = channels_first(values, path)
        raw = how.applied(placed(images, path, how.range), images)
    if labels is None:
        return raw
    numbers, classes = classified(labels, len(values))
    return raw._replace(labels=numbers, classes=classes)


def channels_first(values: Values, path: Path) -> Values:
    """Images (n, H, W) or (n, H, W, C) as (n, C, H, W)."""
    if len(values.shape) not in (3, 4) or 0 in values.shape:
        raise Refused(
            f"{path} must hold images (n, height, width) or (n, height, width, channels), at least "
            f"one; got shape {values.shape}."
        )
    _, *space = values.shape
    if len(space) == 2:
        return changed(values, _gray, (1, *space), values.dtype)
    if values.shape[3] > MOST:
        cure = "Save images.transpose(0, 2, 3, 1), or " if values.shape[1] <= MOST else "Else "
        raise Refused(
            f"{path} has shape {values.shape}: channels come last here, at most {MOST}. "
            f"{cure}say --kind signals, if these are no pictures."
        )
    return changed(values, _first, (space[2], *space[:2]), values.dtype)


def _gray(values: np.ndarray) -> np.ndarray:
    return values[:, None]


def _first(values: np.ndarray) -> np.ndarray:
    return values.transpose(0, 3, 1, 2)


def found_in(path: Path, key: str | None) -> tuple[str | None, Values, np.ndarray | None]:
    """The name of an array, the array and the labels in a file, whatever its suffix.

    A large `.npy` is lazy.
    """
    large = path.suffix.lower() == ".npy" and path.stat().st_size > LARGEST
    loaded = Stored(path) if large else arrays.read(path)
    if not isinstance(loaded, arrays.Packed):
        if key is not None:
            raise Refused(f"{path} has one array without a name; leave out --key {key}.")
        return None, loaded, None
    wanted = KINDS if key is None else (key,)
    name = next((name for name in wanted if name in loaded.names), None)
    if name is None:
        wanted = key or " or ".join(KINDS)
        held = ", ".join(loaded.names) or "nothing"
        raise Refused(
            f"{path} has no array by the name {wanted}; it holds {held}. Name one by --key."
        )
    found = loaded.read(*dict.fromkeys((name, "labels") if "labels" in loaded.names else (name,)))
    return name, found[name], found.get("labels")
