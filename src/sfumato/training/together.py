r"""Processes that train together train the same, and all end where one does, each with a sentence.

Before the first step they compare what they train on. Afterwards each waits for the others at most
`TrainOptions.timeout` seconds, whether they have ended, are stopped, or were never started.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from accelerate import InitProcessGroupKwargs
from torch import Tensor

from sfumato.errors import ProcessLost, Refused, of_memory
from sfumato.processes import here
from sfumato.training.data import Data
from sfumato.training.identity import Identity
from sfumato.training.options import TrainOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

COMPARED = 32
"""Rows of the data whose values are compared, beside the record's hash."""
TOLD = {
    "data": "Give each the same files",
    "model or options": "Start each by the same command",
}
"""What is compared, and what to do where it differs."""
LOST = ("gloo", "nccl", "timed out", "timeout", "connection", "peer")
"""Words of the errors of a collective operation; it has no type of its own for all backends."""


def patience(options: TrainOptions) -> InitProcessGroupKwargs:
    """For an `Accelerator`: how long processes wait for one another."""
    return InitProcessGroupKwargs(timeout=timedelta(seconds=options.timeout))


@contextmanager
def reported(options: TrainOptions) -> Iterator[None]:
    """Within, an error that memory or another process has caused is raised as one sentence.

    Raises:
        ProcessLost: another process is gone, or has not answered for `options.timeout` seconds.
        ValueError: this process ran out of memory.
    """
    mine = here()
    who = f"process {mine.index} of {mine.count}" if mine.count > 1 else "training"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if of_memory(error):
            raise Refused(
                f"{who} ran out of memory. Use a smaller --batch or --width, or more --accumulate."
            ) from error
        if mine.count > 1 and any(word in said for word in LOST):
            raise ProcessLost(
                f"{who} lost another one, which has ended or did not answer for {options.timeout} "
                "seconds; what that one printed says why. The same command resumes."
            ) from error
        raise


def check_same(accelerator: Accelerator, identity: Identity, data: Data, out: Path) -> None:
    """Raise ValueError, in all processes, unless they have the same data, model and options.

    The run's folder `out` may lie at another place for each, under one name.
    """
    if accelerator.num_processes == 1:
        return
    options = hashlib.sha256(
        f"{identity.digest()} {out.resolve().name}".encode(errors="surrogateescape")
    ).hexdigest()
    told = {"data": values(data), "model or options": options}
    mine = torch.tensor([[*bytes.fromhex(told[name])] for name in TOLD], device=accelerator.device)
    each = cast(Tensor, accelerator.gather(mine[None])).cpu()
    for row, (what, cure) in enumerate(TOLD.items()):
        odd = (each[:, row] != each[:1, row]).any(1).nonzero().flatten().tolist()
        if odd:
            raise Refused(
                f"process {odd[0]} of {len(each)} has other {what} than process 0. {cure}."
            )


def values(data: Data) -> str:
    """SHA-256 of the data's hash, their classes and the values of some rows, in hex."""
    found = hashlib.sha256(f"{data.record.sha256} {len(data)}".encode())
    rows = np.unique(np.linspace(0, len(data) - 1, COMPARED).astype(np.int64))
    found.update(data.raw(rows).numpy().tobytes())
    if data.labels is not None:
        found.update(data.labels.tobytes())
    return found.hexdigest()
