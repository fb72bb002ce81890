"""The processes that torchrun, accelerate or SLURM's srun started for one command, by environment.

They share a file system, and divide work by files: each writes its parts, and the first reads all.
Nothing but the loop of training needs them to talk to one another.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import final

from sfumato.errors import Refused


@final
@dataclass(frozen=True)
class Processes:
    """Which of how many this process is.

    Attributes:
        index: of this process, from 0.
        count: of all.
        local: its index on its machine, and of the GPU that it uses.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process gathers, and is the one that prints."""
        return self.index == 0


def here() -> Processes:
    """What RANK, WORLD_SIZE and LOCAL_RANK say; one process where they are not set.

    Raises:
        ValueError: the index is not below the count.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = [os.environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in found[:2]):
        return Processes()
    index, count = int(found[0]), max(1, int(found[1]))
    if index >= count:
        raise Refused(
            f"RANK={index} is no index of WORLD_SIZE={count} processes, which is from 0 to "
            f"{count - 1}: set both as torchrun does, or none."
        )
    return Processes(index, count, int(found[2]) if found[2].isdecimal() else 0)
