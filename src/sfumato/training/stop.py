"""A stop is asked for by a signal, and made between two steps: no step is half saved.

Ctrl-C and SIGTERM ask, SIGUSR1, which SLURM sends before a limit where it is told to (`#SBATCH
--signal=USR1@60`), and SIGHUP, which a terminal sends when it is closed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Within, signals only ask: the yielded function says whether. A second Ctrl-C interrupts.

    Several signals of other kinds are one: torchrun and SLURM send them in a row. One that was
    ignored before stays ignored, as nohup ignores SIGHUP. Outside the main thread, which alone may
    handle signals, nobody asks.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in heard:
            raise KeyboardInterrupt
        heard.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None is a handler that was not set from Python, and could not be put back from it.
    ours = [number for number in SIGNALS if before[number] not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, hear)
    try:
        yield lambda: bool(heard)
    finally:
        for number in ours:
            signal.signal(number, before[number])
