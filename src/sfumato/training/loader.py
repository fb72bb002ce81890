r"""The loader reads the rows of coming steps ahead, in processes of its own where that pays.

Which rows a step has is known from (seed, step) alone, so a resumed run starts anywhere at once,
and the number of processes that read changes no value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sfumato.training import draws
from sfumato.training.data import Data
from sfumato.training.lazy import Lazy
from sfumato.training.options import TrainOptions

AHEAD = 4
"""Batches that each process has ready."""
MOST = 8
"""Processes that read, unless more are asked for."""


def read(
    data: Data,
    options: TrainOptions,
    step: int,
    device: torch.device,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Tensor]:
    """The raw values of each step's batch from `step` on, (B, *shape), for one of `processes`.

    Raises:
        ValueError: an image cannot be read, as reading it here would raise.
    """
    mine = draws.share(options, process, processes)
    steps = _Steps(data, options, range(step, options.steps), mine)
    count = workers(data, options, processes)
    if not count:
        yield from (data.raw(rows) for rows in steps)
        return
    loader = DataLoader(
        _Batches(data),
        batch_size=None,
        sampler=steps,  # type: ignore[reportArgumentType]: of rows, not of one
        num_workers=count,
        prefetch_factor=AHEAD,
        pin_memory=device.type == "cuda",
    )
    for found in loader:
        if isinstance(found, Exception):
            raise found
        yield found


def workers(data: Data, options: TrainOptions, processes: int = 1) -> int:
    """Processes that read for one of `processes` that train: as asked, or none for arrays."""
    if options.workers is not None:
        return options.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST, (cores or 1) // processes)) if isinstance(data.images, Lazy) else 0


@final
class _Steps:
    """The rows of each step, in order."""

    def __init__(self, data: Data, options: TrainOptions, steps: range, mine: range) -> None:
        self.data = data
        self.options = options
        self.steps = steps
        self.mine = mine

    def __iter__(self) -> Iterator[Tensor]:
        for step in self.steps:
            yield draws.rows(step, self.data, self.options)[self.mine.start : self.mine.stop]

    def __len__(self) -> int:
        return len(self.steps)


@final
class _Batches(Dataset):
    """Batches by their rows; a refusal is handed over as it is, since a raised one gets a traceback
    into its sentence."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitem__(self, rows: Tensor) -> Tensor | Exception:
        try:
            return self.data.raw(rows.numpy())
        except (ValueError, OSError) as error:
            return error
