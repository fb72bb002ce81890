"""Commands of the library, each in a process that forks from one server with torch imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FORK = multiprocessing.get_context("forkserver")
PRELOADED = [
    *("sfumato.cli.train", "sfumato.training.train", "sfumato.training.distill"),
    *("sfumato.cli.evaluate", "sfumato.evaluation.protocol", "sfumato.evaluation.likelihood"),
    *("sfumato.training.reconstruction", "diffusers.models.unets.unet_2d", "sklearn.datasets"),
    *("torchmetrics.image.fid", "scipy.linalg", "torchdiffeq", "rich.console", "rich.table"),
    *("torch.nn.parallel", "torch._dynamo", "faults.commands"),
]
"""Modules that cost seconds to import; the server imports them once."""
FORK.set_forkserver_preload(PRELOADED)
BLOCK = 20
"""Images in a block of `sample` and `evaluate`, so that small work has several."""
WAIT = 5.0
"""Seconds that the first of several processes waits for a block of another."""
LIMIT = 600.0
"""Seconds until a command counts as hung."""
TELLS = (".stdout", ".stderr", ".peak")
"""Files that a command leaves of itself in its folder."""


class End(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code, negative for a signal; None where it hung and was killed.
        err: its standard error.
        seconds: that it took.
        peak: its resident memory at most, in bytes; 0 where it was killed.
        busy: seconds of a processor that it took; 0 where it was killed.
    """

    code: int | None
    err: str
    seconds: float
    peak: int
    busy: float

    @property
    def wrong(self) -> str | None:
        """What is wrong with how it ended, whatever its code: a traceback, many lines, a hang."""
        if self.code is None:
            return "hung"
        if "Traceback" in self.err:
            return f"a traceback: {self.err.strip().splitlines()[-1]}"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}: {self.err.strip()[-300:]}"
        odd = [line for line in self.err.splitlines() if not line.startswith("sfumato: ")]
        if odd and self.code:
            return f"a line that is no sentence of the command: {odd[0][:300]}"
        told = [x for x in self.err.splitlines() if not x.startswith("sfumato: note: ")]
        if self.code and len(told) != 1:
            return f"{len(told)} lines in place of one: {self.err.strip()[-300:]}"
        return None


class Launched:
    """A command in a process of its own.

    Args:
        words: of the command line.
        home: its working folder.
        environment: variables beside those of this process.
        memory: bytes of address space beyond those that it starts with; None for any.
        streams: the folder of what it prints; by default `home`.
        tells: the end of the names there, where several commands print into one folder.
    """

    def __init__(
        self,
        words: Sequence[object],
        home: Path,
        environment: Mapping[str, str] | None = None,
        memory: int | None = None,
        streams: Path | None = None,
        tells: str = "",
    ) -> None:
        self.streams = home if streams is None else streams
        self.tells = tells
        told = [str(word) for word in words]
        left = [str(self.streams / f"{name}{tells}") for name in TELLS]
        arguments = (told, str(home), dict(environment or {}), memory, left)
        self.process = FORK.Process(target=_command, args=arguments)
        self.began = time.perf_counter()
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def signal(self, number: int) -> None:
        """Send a signal; nothing where the process has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def stopped(self) -> bool:
        """Stop the process, and wait until it is; False where it has ended before."""
        self.signal(signal.SIGSTOP)
        while self.process.is_alive():
            if _state(self.pid) == "T":
                return True
            time.sleep(0.0002)
        return False

    def end(self, seconds: float = LIMIT) -> End:
        """Wait for its end; after so many seconds it is killed."""
        self.process.join(seconds)
        hung = self.process.is_alive()
        if hung:
            self.process.kill()
            self.process.join()
        took = time.perf_counter() - self.began
        code = None if hung else self.process.exitcode
        peak = self.streams / f".peak{self.tells}"
        most, _, busy = (peak.read_text() if peak.is_file() else "").partition(" ")
        errors = self.streams / f".stderr{self.tells}"
        return End(
            code,
            errors.read_text(errors="replace") if errors.exists() else "",
            took,
            int(most or 0),
            float(busy or 0),
        )


def run(words: Sequence[object], home: Path, **given: object) -> End:
    """Run a command to its end."""
    return Launched(words, home, **given).end()  # type: ignore[arg-type]


def _state(pid: int) -> str:
    """The letter of /proc for what a process does."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _command(
    words: list[str],
    home: str,
    environment: dict[str, str],
    memory: int | None,
    left: list[str],
) -> None:
    """One command in a forked process."""
    os.environ.update(environment)
    os.chdir(home)
    out, err, peak = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for path in left)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(err, sys.stderr.fileno())
    if memory is not None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    import torch

    from sfumato.cli import main
    from sfumato.evaluation import blocks, samples

    torch.set_num_threads(1)
    samples.BLOCK = BLOCK
    blocks.WAIT = WAIT
    before = time.process_time()
    try:
        code = main(words)
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        told = f"{used.ru_maxrss * 1024} {used.ru_utime + used.ru_stime - before}"
        try:
            os.write(peak, told.encode())
        except OSError:  # a disk that the test has filled
            pass
    sys.stdout.flush()
    sys.exit(code)
