"""Progress of long work: on a terminal a bar with ETA, elsewhere a plain line at intervals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """Called with the amount of work done since the last call, and a note to show beside it."""

    def __call__(self, more: float, note: str = "") -> None: ...


@contextmanager
def bar(
    what: str,
    total: float,
    quiet: bool = False,
    done: float = 0,
    console: Console | None = None,
) -> Iterator[Advance]:
    """Within, progress is shown: the yielded function advances it; the time left is estimated.

    Args:
        what: the unit that is counted, such as "images".
        total: number of units.
        quiet: whether to show nothing.
        done: units done before.
        console: where to show it; standard error by default.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    if quiet:
        yield lambda more, note="": None
    elif console.is_terminal:
        with _bar(what, total, done, console) as advance:
            yield advance
    else:
        yield _lines(what, total, done, console)


@contextmanager
def _bar(what: str, total: float, done: float, console: Console) -> Iterator[Advance]:
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
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=total, completed=done, note="")  # type: ignore[arg-type] - fractions are shown too
        yield lambda more, note="": shown.update(task, advance=more, note=note)


def _lines(what: str, total: float, done: float, console: Console) -> Advance:
    before = done
    began = time.monotonic()
    last = began

    def advance(more: float, note: str = "") -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if done < total and now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (total - done) * (now - began) / (done - before)
            beside = f"  {note}" if note else ""
            console.print(f"{done:,.0f}/{total:,.0f} {what}{beside}  ETA {left / 60:.1f} min")

    return advance
