"""A disk that is full, has no room for another file or is read-only ends a command in one line.

With room again, the same command ends as it would have. A small file system in memory is mounted
for it, which needs root.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from faults.commands import Launched, run
from faults.kills import COMMANDS, Reference
from faults.parts import Miss, NotRun, Part, Passed, content, difference, expect

FULL, INODES, READ_ONLY = 30, 6, 6
"""Cases of each kind."""
FILLER = ".filler"
VERBS = [name for name in COMMANDS if name != "sample of a folder"]


class Disk(Part):
    name = "disk"
    about = "a disk filled at a random moment, inodes used up, a read-only folder"
    cases = FULL + INODES + READ_ONLY

    def __init__(self, home: Path, seed: int = 0, share: float = 1.0) -> None:
        super().__init__(home, seed, share)
        self.reference = Reference(home / "reference")

    def case(self, number: int, random: Random) -> Passed:
        # Kinds alternate, so that a small share has some of each.
        kind = ("full", "inodes", "read-only")[number % 3 if number < 3 * INODES else 0]
        name = VERBS[number % len(VERBS)] if kind == "full" else random.choice(VERBS)
        expected, seconds = self.reference.whole(name)
        words = self.reference.words(name)
        with mounted(self.fresh(f"{number:03d}"), "size=8m,nr_inodes=400") as disk:
            work = disk / "work"
            work.mkdir()
            if kind == "read-only":
                _mount("-o", "remount,ro", str(disk))
                code = expect(run(words, work, streams=self.home), 2).code
                _mount("-o", "remount,rw", str(disk))
            else:
                launched = Launched(words, work, streams=self.home)
                time.sleep(random.uniform(0, seconds))
                (filled if kind == "full" else used_up)(work)
                code = expect(launched.end(), 0, 2).code
                for path in work.glob(f"{FILLER}*"):
                    path.unlink()
            if code != 0:
                expect(run(words, work), 0)
            # A preview that could not be written is told, and training goes on without.
            found, wanted = (
                {key: x for key, x in each.items() if "/previews/" not in key}
                for each in (content(work), expected)
            )
            if told := difference(found, wanted):
                raise Miss(f"{name}, {kind}: {told}")
        return Passed({kind: 1, "refused": int(code != 0)})


def filled(folder: Path) -> None:
    """Leave no byte free on the folder's disk."""
    for number in range(3):  # what is freed meanwhile is filled again
        with (folder / f"{FILLER}{number}").open("wb") as stream, suppress(OSError):
            found = os.statvfs(folder)
            if found.f_bavail:
                os.posix_fallocate(stream.fileno(), 0, found.f_bavail * found.f_bsize)


def used_up(folder: Path) -> None:
    """Leave no inode free on the folder's disk."""
    with suppress(OSError):
        for number in range(100_000):
            (folder / f"{FILLER}{number}").touch()


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Within, a file system in memory is at `folder`; NotRun where it cannot be."""
    if os.geteuid() != 0:
        raise NotRun("needs root")
    _mount("-t", "tmpfs", "-o", options, "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def _mount(*words: str) -> None:
    try:
        subprocess.run(["mount", *words], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise NotRun("needs root that may mount") from None
