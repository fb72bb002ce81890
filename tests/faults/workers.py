"""Of several processes one is killed, stopped, slow, out of memory or has other data.

Training ends within the timeout, with one line of each process that is left, and resumes; samples,
which are shared by files, are finished by the first process.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from faults.commands import End, Launched, run
from faults.parts import Miss, Part, Passed, content, difference, expect

SIZE = "--width 8 --multipliers 1 --patch 1 --device cpu --quiet"
PATIENCE = 10
"""Seconds of `--timeout`."""
SPARE = 60.0
"""Seconds beyond it until all have ended, for the rest of a step and the end of a process."""
STEPS = 100
"""Of training."""
TRAIN = (
    f"train ddpm {SIZE} --batch 16 --images {16 * STEPS} --checkpoint-every 160 --preview-every 0 "
    f"--timeout {PATIENCE} --out out"
)
SAMPLE = "sample MODEL --seeds 0-119 --sampler ddim --steps 3 --device cpu --quiet --out s.npz"
MEMORY = 120 << 20
"""Bytes of address space that a starved process may ask for, beyond what it starts with."""
LARGE = 16_384
"""A batch that needs more."""


class Workers(Part):
    name = "workers"
    about = "1, 2 and 4 processes, one killed, stopped, slow, without memory or with other data"

    def __init__(self, home: Path, seed: int = 0, share: float = 1.0) -> None:
        super().__init__(home, seed, share)
        self._models: list[Path] = []

    def case(self, number: int, random: Random) -> Passed:
        world, fault = CASES[number % len(CASES)]
        try:
            FAULTS[fault](self, self.fresh(number), world, random)
        except Miss as error:
            raise Miss(f"{fault} of {world}: {error}") from None
        return Passed({fault: 1})

    def model(self) -> Path:
        """A model to sample."""
        if not self._models:
            work = self.fresh("model")
            words = f"train ddpm {SIZE} --batch 8 --images 8 --preview-every 0 --out out"
            expect(run(words.split(), work), 0)
            self._models.append(work / "out")
        return self._models[0]

    def killed(self, work: Path, world: int, random: Random) -> None:
        """One process is killed in training."""
        self._gone(work, world, random, signal.SIGKILL)

    def stopped(self, work: Path, world: int, random: Random) -> None:
        """One process is stopped in training, and never goes on."""
        self._gone(work, world, random, signal.SIGSTOP)

    def _gone(self, work: Path, world: int, random: Random, how: int) -> None:
        started = together(TRAIN.split(), work, world)
        _checkpoint(started, work)
        one = random.randrange(1, world) if world > 1 else 0
        started[one].signal(how)
        _left(started, {one})
        if world == 1 and how == signal.SIGSTOP:
            started[0].signal(signal.SIGCONT)
            expect(started[0].end(), 0)
        expect_all(together(TRAIN.split(), work, world), 0)
        _whole(work)

    def unstarted(self, work: Path, world: int, random: Random) -> None:
        """One process is never started."""
        one = random.randrange(1, world)
        _left(together(TRAIN.split(), work, world, without={one}), set())

    def slow(self, work: Path, world: int, random: Random) -> None:
        """One process is stopped for less than the timeout, three times: the same weights."""
        words = TRAIN.replace(f"{16 * STEPS}", "640").split()
        whole = work / "whole"
        whole.mkdir()
        expect_all(together(words, whole, world), 0)
        cut = work / "cut"
        cut.mkdir()
        started = together(words, cut, world)
        _checkpoint(started, cut)
        one = started[random.randrange(world)]
        for _ in range(3):
            one.signal(signal.SIGSTOP)
            time.sleep(PATIENCE / 5)
            one.signal(signal.SIGCONT)
            time.sleep(0.2)
        expect_all(started, 0)
        found, wanted = (_tensors(folder) for folder in (cut, whole))
        if told := difference(found, wanted):
            raise Miss(told)

    def starved(self, work: Path, world: int, random: Random) -> None:
        """One process runs out of memory."""
        words = TRAIN.replace(
            f"--batch 16 --images {16 * STEPS}", f"--batch {LARGE} --images {LARGE}"
        )
        one = random.randrange(world)
        started = together(words.split(), work, world, memory={one: MEMORY})
        ends = _left(started, set())
        if "memory" not in ends[one].err:
            raise Miss(f"the starved process says: {ends[one].err.strip()[-200:]}")

    def other_data(self, work: Path, world: int, random: Random) -> None:
        """One process has other data: none trains."""
        source = np.random.default_rng(0)
        values = source.integers(0, 256, (64, 8, 8), np.uint8)
        one = random.randrange(1, world)
        for number in range(world):
            (work / f"{number}").mkdir()
            mine = values.copy()
            mine[40, 3, 3] += number == one
            np.save(work / f"{number}" / "data.npy", mine)
        words = [*TRAIN.split()[:-1], "../out", "--kind", "images", "--data", "data.npy"]
        started = together(words, work, world, apart=True)
        ends = _left(started, set(), codes=(2,))
        if not all(f"process {one} of {world} has other data" in end.err for end in ends):
            raise Miss(f"process 0 says: {ends[0].err.strip()[-200:]}")
        if (work / "out" / "checkpoints").exists():
            raise Miss("it trained")

    def sampling(self, work: Path, world: int, random: Random) -> None:
        """One process is killed or stopped while they sample: the first one does its part."""
        words = [str(self.model()) if x == "MODEL" else x for x in SAMPLE.split()]
        whole = work / "whole"
        whole.mkdir()
        expect(run(words, whole), 0)
        cut = work / "cut"
        cut.mkdir()
        started = together(words, cut, world)
        one = random.randrange(1, world)
        how = random.choice([signal.SIGKILL, signal.SIGSTOP])
        started[one].signal(how)
        for number, launched in enumerate(started):
            if number != one:
                expect(launched.end(), 0)
        started[one].signal(signal.SIGKILL)
        started[one].end()
        found, wanted = (content(folder)["s.npz"] for folder in (cut, whole))
        if found != wanted:
            raise Miss("other samples")


FAULTS: dict[str, Callable[[Workers, Path, int, Random], None]] = {
    "killed": Workers.killed,
    "stopped": Workers.stopped,
    "never started": Workers.unstarted,
    "slow": Workers.slow,
    "without memory": Workers.starved,
    "other data": Workers.other_data,
    "killed in sampling": Workers.sampling,
}
ALONE = ("killed", "stopped", "slow", "without memory")
"""Faults of a process that has no others."""
CASES = [(world, fault) for fault in FAULTS for world in (2, 4, 1) if world > 1 or fault in ALONE]
Workers.cases = len(CASES)


def together(
    words: list[str],
    work: Path,
    world: int,
    memory: dict[int, int] | None = None,
    apart: bool = False,
    without: set[int] | None = None,
) -> list[Launched]:
    """A command in several processes, as torchrun starts them, `without` those of some numbers.

    With `apart` each has its own folder.
    """
    port = str(_free())
    started = []
    for number in sorted({*range(world)} - (without or set())):
        told = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        home = work / str(number) if apart else work
        given = {"memory": (memory or {}).get(number), "streams": work, "tells": f"{number}"}
        started.append(Launched(words, home, told if world > 1 else None, **given))
    return started


def expect_all(started: list[Launched], *codes: int) -> list[End]:
    """The ends of all processes, if each has one of these codes."""
    return [expect(launched.end(), *codes) for launched in started]


def _left(started: list[Launched], gone: set[int], codes: tuple[int, ...] = (1, 2)) -> list[End]:
    """The ends of the processes that are left: each in time, and in one line."""
    began = time.monotonic()
    ends = []
    for number, launched in enumerate(started):
        if number in gone:
            continue
        end = launched.end(max(1.0, PATIENCE + SPARE - (time.monotonic() - began)))
        if end.code is None:
            raise Miss(f"process {number} goes on after {PATIENCE + SPARE:.0f} s")
        ends.append(expect(end if number == 0 else _own(end), *codes))
    for number in gone:
        if len(started) > 1:
            started[number].signal(signal.SIGKILL)
            started[number].end()
    return ends


def _own(end: End) -> End:
    """An end without what torch itself logs; the promise of one line is of process 0."""
    rows = [row for row in end.err.splitlines(keepends=True) if row.startswith("sfumato: ")]
    return end if "Traceback" in end.err else end._replace(err="".join(rows))


def _checkpoint(started: list[Launched], work: Path) -> None:
    """Wait for the first checkpoint."""
    while not [*work.glob("out/checkpoints/0*")]:
        if not started[0].process.is_alive():
            raise Miss(f"ended before a checkpoint: {started[0].end().err.strip()[-300:]}")
        time.sleep(0.01)


def _whole(work: Path) -> None:
    """Raise Miss where a run has no last checkpoint, or a damaged one."""
    expect(run(["check", "out", "--quiet"], work), 0)
    if not (work / "out" / "checkpoints" / f"{STEPS:08d}").is_dir():
        raise Miss("no last checkpoint")


def _tensors(work: Path) -> dict[str, str]:
    return {name: value for name, value in content(work).items() if name.endswith("safetensors")}


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
