"""A long training takes no more memory and no more open files than a short one."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from random import Random

from faults.commands import FORK
from faults.parts import Miss, Part, Passed

STEPS, FIRST, EVERY = 10_000, 500, 500
"""Steps in all, the step that others are compared with, and steps between two looks."""
GROWTH = 1.02
SHORTEST = 1_500


class Long(Part):
    name = "long"
    about = f"{STEPS:,} steps: memory at most 2 % over that at step {FIRST}, as many open files"
    cases = 1

    def case(self, number: int, random: Random) -> Passed:
        work = self.fresh(number)
        steps = max(SHORTEST, round(self.share * STEPS))
        process = FORK.Process(target=_train, args=(str(work), steps))
        process.start()
        process.join()
        if process.exitcode:
            raise Miss(f"training ended with {process.exitcode}")
        looks = json.loads((work / "looks.json").read_text())
        check(looks)
        return Passed({"steps": steps}, max(row["memory"] for row in looks))


def check(looks: list[dict[str, int]]) -> None:
    """Raise Miss where a later look found more than that at step FIRST."""
    (first,) = (row for row in looks if row["step"] == FIRST)
    for row in looks:
        if row["step"] < FIRST:
            continue
        if row["memory"] > GROWTH * first["memory"]:
            grown = row["memory"] / first["memory"] - 1
            raise Miss(f"{grown:.1%} more memory at step {row['step']} than at step {FIRST}")
        if row["files"] != first["files"]:
            raise Miss(f"{row['files']} open files at step {row['step']}, {first['files']} before")


class Looks:
    """A tracker of resident memory and of open files."""

    def __init__(self) -> None:
        self.rows: list[dict[str, int]] = []

    def start(self, model: object, options: object, step: int) -> None: ...

    def log(self, step: int, figures: object) -> None:
        if step % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * resource.getpagesize()
            files = len(os.listdir("/proc/self/fd"))
            self.rows.append({"step": step, "memory": memory, "files": files})

    def image(self, name: str, step: int, x: object) -> None: ...

    def stop(self) -> None: ...


def _train(home: str, steps: int) -> None:
    import torch

    import sfumato as sf

    torch.set_num_threads(1)
    options = sf.TrainOptions(
        images=4 * steps, batch=4, checkpoint_every=2_000, preview_every=4_000, keep=2
    )
    data = sf.load("digits")
    network = sf.UNetOptions(width=8, multipliers=(1,), patch=2)
    config = sf.Config("ddpm", data.record, network=network, sampler=sf.Sampler("ddim", 3))
    looks = Looks()
    model = sf.build(config, data, options)
    sf.train(model, data, options, Path(home) / "run", [looks], device="cpu")
    (Path(home) / "looks.json").write_text(json.dumps(looks.rows))
    sys.exit(0)
