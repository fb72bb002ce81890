r"""The loader reads the rows of coming steps ahead, in processes of its own where that pays.

Which rows a step has is known from (seed, step) alone, so a resumed run starts anywhere at once,
and the number of processes that read changes no value.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sfumato.training import draws, stop
from sfumato.training.data import Data
from sfumato.training.lazy import Lazy
from sfumato.training.options import TrainOptions

AHEAD = 4
"""Batches that each process has ready, at most."""
WAITING = 2**30
"""Bytes of batches that wait in all, at most, unless each process has one."""
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
        prefetch_factor=_ahead(data, len(mine), count),
        pin_memory=device.type == "cuda",
        worker_init_fn=_deaf,
    )
    for found in loader:
        if isinstance(found, Exception):
            raise found
        yield found


def workers(data: Data, options: TrainOptions, processes: int = 1) -> int:
    """Processes that read for one of `processes` that train: as asked, or none for arrays."""
    if options.workers is not None:
        return options.workers
    if not isinstance(data.images, Lazy):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST, (cores or 1) // _beside(processes)))


def _beside(processes: int) -> int:
    """How many of `processes` share the cores that this one may use."""
    if "SLURM_CPUS_PER_TASK" in os.environ and "LOCAL_WORLD_SIZE" not in os.environ:
        return 1  # each task has cores of its own
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(local) if local.isdecimal() and int(local) else processes


def _ahead(data: Data, rows: int, count: int) -> int:
    """Batches of `rows` that each of `count` processes has ready."""
    size = rows * data.images.nbytes // len(data.images)
    return max(1, min(AHEAD, WAITING // max(1, count * size)))


def _deaf(number: int) -> None:
    """A process that reads ends with the one that trains, which has a step and a checkpoint to
    finish when a signal reaches both."""
    for asked in stop.SIGNALS:
        signal.signal(asked, signal.SIG_IGN)


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
