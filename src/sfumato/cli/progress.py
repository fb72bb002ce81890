"""Progress of a long command: on a terminal a bar with ETA, elsewhere a plain line at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def bar(what: str, total: float, quiet: bool) -> Iterator[Callable[[float], None]]:
    """What tells standard error that so much more of `total` is done, and how long the rest takes.

    Args:
        what: is counted, such as "images".
        total: of it.
        quiet: whether to tell nothing.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with _bar(what, total, console) as advance:
            yield advance
    else:
        yield _lines(what, total, console)


@contextmanager
def _bar(what: str, total: float, console: Console) -> Iterator[Callable[[float], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=total)
        yield lambda more: shown.advance(task, more)


def _lines(what: str, total: float, console: Console) -> Callable[[float], None]:
    from sfumato.training.watch import SECONDS_BETWEEN_LINES

    done, began = 0.0, time.monotonic()
    last = began

    def advance(more: float) -> None:
        nonlocal done, last
        done, now = done + more, time.monotonic()
        if done < total and now - last >= SECONDS_BETWEEN_LINES:
            last, left = now, (total - done) * (now - began) / done
            console.print(f"{done:,.0f}/{total:,.0f} {what}  ETA {left / 60:.1f} min")

    return advance
