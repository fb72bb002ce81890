"""A command that was killed, at any instant, ends as the command that was not when it is repeated.

A third of the kills are inside the writing of a file: the process is stopped when a temporary file
appears, and killed if that is still there.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

from faults.commands import Launched, run
from faults.parts import Miss, Part, Passed, content, difference, expect

SIZE = "--width 8 --multipliers 1 --patch 1 --device cpu --quiet"
MODEL = f"train ddpm {SIZE} --batch 8 --images 32 --preview-every 0 --out model"
COMMANDS = {
    "train": f"train soft {SIZE} --images 320 --batch 16 --accumulate 2 --dropout 0.1 --steps 3 "
    "--checkpoint-every 32 --preview-every 96 --out out",
    "distill": "distill MODEL --teacher-steps 4 --to 1 --sampler ddim --images 64 --batch 16 "
    "--checkpoint-every 16 --n 0 --device cpu --quiet --out out",
    "train-autoencoder": "train-autoencoder --channels 2 --down 2 --width 8 --images 96 --batch 16 "
    "--checkpoint-every 16 --preview-every 48 --n 40 --extractor pca --device cpu --quiet "
    "--out out",
    "evaluate": "evaluate MODEL --n 120 --sampler ddim --steps 3 --extractor pca --device cpu "
    "--quiet --out e.json",
    "likelihood": "likelihood MODEL --n 16 --batch 2 --by bound --draws 4 --steps 21 --threads 1 "
    "--device cpu --quiet --out l.json",
    "sample": "sample MODEL --seeds 0-159 --sampler ddim --steps 3 --device cpu --quiet "
    "--out s.npz",
    "sample of a folder": "sample MODEL --seeds 0-79 --sampler ddim --steps 3 --device cpu --quiet "
    "--out s",
}
"""Each of some seconds; MODEL is a model that is trained first."""
EACH = 2
"""Kills in one case."""
TRIES = 10


class Reference:
    """The commands, and what each leaves where nothing interrupts it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @functools.cached_property
    def model(self) -> Path:
        shutil.rmtree(self.home / "model", ignore_errors=True)
        self.home.mkdir(parents=True, exist_ok=True)
        expect(run(["--version"], self.home), 0)  # the server's imports are no part of any time
        expect(run(MODEL.split(), self.home), 0)
        return self.home / "model"

    def words(self, name: str) -> list[str]:
        model = str(self.model)
        return [model if x == "MODEL" else x for x in COMMANDS[name].split()]

    @functools.cache  # noqa: B019 - as long as the soak
    def whole(self, name: str) -> tuple[dict[str, str], float]:
        """What the command leaves, and the seconds that it takes."""
        words, work = self.words(name), self.home / name / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        end = expect(run(words, work), 0)
        return content(work), end.seconds


class Kills(Part):
    name = "kills"
    about = "SIGKILL at random instants of seven commands, a third inside the writing of a file"
    cases = 100

    def __init__(self, home: Path, seed: int = 0, share: float = 1.0) -> None:
        super().__init__(home, seed, share)
        self.reference = Reference(home / "reference")

    def case(self, number: int, random: Random) -> Passed:
        name = [*COMMANDS][number % len(COMMANDS)]
        expected, seconds = self.reference.whole(name)
        work = self.fresh(f"{number:03d}/work")
        words = self.reference.words(name)
        inside = 0
        for kill in range(number * EACH, (number + 1) * EACH):
            before = latest(work)
            if kill % 3 == 0:
                anew = self._killed_inside(words, work, random, expected)
                inside += 1
            else:
                anew = self._killed(words, work, random, seconds, expected)
            if not anew and latest(work) < before:
                raise Miss(f"{name}: checkpoint {before} is lost")
        end = expect(run(words, work), 0)
        if told := difference(content(work), expected):
            raise Miss(f"{name}: {told}")
        shutil.rmtree(work.parent)
        return Passed({"kills": EACH, "inside a write": inside}, end.peak)

    def _killed(
        self, words: list[str], work: Path, random: Random, seconds: float, expected: dict[str, str]
    ) -> bool:
        """Kill the command at an instant of its time; whether it began anew before."""
        for i in range(TRIES):
            launched = Launched(words, work)
            time.sleep(random.uniform(0, seconds))
            launched.signal(signal.SIGKILL)
            if launched.end().code == -signal.SIGKILL:
                return i > 0
            self._again(work, expected)
            seconds /= 2
        raise Miss(f"ended {TRIES} times before it was killed")

    def _killed_inside(
        self, words: list[str], work: Path, random: Random, expected: dict[str, str]
    ) -> bool:
        """Kill the command while a file has its temporary name; whether it began anew before."""
        most = 8
        for i in range(TRIES):
            launched = Launched(words, work)
            left, seen = random.randint(1, most), parts(work)
            while launched.process.is_alive():
                new = parts(work) - seen
                seen |= new
                left -= len(new)
                if new and left <= 0 and launched.stopped():
                    if any(path.exists() for path in new):
                        launched.signal(signal.SIGKILL)
                        launched.end()
                        return i > 0
                    launched.signal(signal.SIGCONT)
                time.sleep(0.0003)
            expect(launched.end(), 0)
            self._again(work, expected)
            most = max(1, most // 2)
        raise Miss(f"ended {TRIES} times before it was killed")

    def _again(self, work: Path, expected: dict[str, str]) -> None:
        """The command ended before it was killed: compare what it left, and begin anew."""
        if told := difference(content(work), expected):
            raise Miss(told)
        shutil.rmtree(work)
        work.mkdir()


def parts(work: Path) -> set[Path]:
    """The files and folders with temporary names, though some of them go while they are listed."""
    found = set()
    for home, folders, names in os.walk(work):
        found |= {Path(home, name) for name in (*folders, *names) if name.endswith(".part")}
    return found


def latest(work: Path) -> str:
    """The names of the last checkpoints in a folder."""
    found = [path for path in work.rglob("checkpoints/*") if path.name.isdecimal()]
    return max((path.relative_to(work).as_posix() for path in found), default="")
