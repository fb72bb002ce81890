"""A stop is asked for by Ctrl-C or SIGTERM, and made between two steps: no step is half saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Within, signals only ask: the yielded function says whether. A second one interrupts at once.

    Outside the main thread, which alone may handle signals, nobody asks.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = [signal.signal(number, hear) for number in SIGNALS]
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            # None is a handler that was not set from Python, and cannot be put back from it.
            if handler is not None:
                signal.signal(number, handler)
