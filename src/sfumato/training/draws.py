r"""Draws depend on (seed, step) and the place in the *global* batch alone.

Rows of the data are drawn for the whole batch, noise in parts of `PART` rows with a stream each; a
process draws the parts that its rows are in. Noise is drawn on the device. So a resumed run equals
an uninterrupted one, and several processes draw what one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sfumato.corruption.prior import RandnLike
from sfumato.training.data import Data
from sfumato.training.options import TrainOptions
from sfumato.training.order import permuted

PART = 32
"""Rows of the global batch whose noise comes from one stream."""

T = TypeVar("T")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's global random numbers are those of `seed`; after it, the caller's again."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
        torch.manual_seed(seed)
        yield


def share(options: TrainOptions, process: int, processes: int) -> range:
    """Places in the global batch of the rows that one of `processes` has."""
    each = options.batch // processes
    return range(process * each, (process + 1) * each)


def rows(step: int, data: Data, options: TrainOptions) -> Tensor:
    """Rows of the data that the global batch of `step` has: each once an epoch."""
    positions = torch.arange(step * options.batch, (step + 1) * options.batch)
    epochs, places = (part.numpy() for part in (positions // len(data), positions % len(data)))
    found = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        mine = epochs == epoch
        key = number(options.seed, "order", epoch)
        found[mine] = permuted(places[mine], len(data), key)
    return torch.from_numpy(found)


def parts(
    step: int,
    options: TrainOptions,
    mine: range,
    device: torch.device,
    draw: Callable[[int, RandnLike], T],
) -> tuple[list[T], slice]:
    """What `draw` gives for each part of the global batch that has rows of `mine`.

    `draw` receives the rows of a part and a function that draws noise like a tensor.

    Returns:
        One entry for each part, and which of all their rows are those of `mine`.
    """
    found = []
    numbers = range(mine.start // PART, -(-mine.stop // PART))
    for part in numbers:
        source = stream(device, options.seed, "noise", step, part)

        def normal(x: Tensor, source: torch.Generator = source) -> Tensor:
            return torch.randn(x.shape, generator=source, dtype=torch.float32, device=device)

        found.append(draw(min(PART, options.batch - part * PART), normal))
    first = numbers.start * PART
    return found, slice(mine.start - first, mine.stop - first)


def stream(device: torch.device, *name: object) -> torch.Generator:
    """A stream of random numbers on `device`, from anything printable."""
    return torch.Generator(device).manual_seed(number(*name))


def number(*name: object) -> int:
    """A seed of 63 bits from anything printable, so that streams of other names are independent."""
    digest = hashlib.sha256(":".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
