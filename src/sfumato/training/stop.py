"""A stop is requested by a signal and takes effect between two steps: no step is saved in part.

The signals are Ctrl-C and SIGTERM; SIGUSR1, which SLURM sends before a time limit if so configured
(`#SBATCH --signal=USR1@60`); and SIGHUP, which a terminal sends when it is closed.
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
    """Within, signals request a stop; the yielded function returns whether one did.

    A second Ctrl-C interrupts. Repeated signals of other kinds count as one, since torchrun and
    SLURM send several. One that was ignored before stays ignored, as nohup ignores SIGHUP. Outside
    the main thread, which alone may handle signals, the function returns False.
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
