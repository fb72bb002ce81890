"""Progress of long work: a bar with ETA on a terminal and in a notebook, elsewhere plain lines."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_BARS = 0.2
"""Of a notebook, to which every change is a message."""


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
    elif console.is_jupyter:
        with _notebook(what, total, done) as advance:
            yield advance
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


@contextmanager
def _notebook(what: str, total: float, done: float) -> Iterator[Advance]:
    """A bar that the output of the cell shows; rich's own would need ipywidgets."""
    display = import_module("IPython.display")
    before, began = done, time.monotonic()
    last = began
    beside = ""

    def shown() -> object:
        passed = time.monotonic() - began
        text = f"{done:,.0f}/{total:,.0f} {what}  {beside}  {_clock(passed)}"
        if before < done < total:
            text += f"  ETA {_clock((total - done) * passed / (done - before))}"
        return display.HTML(
            f'<progress value="{done}" max="{total}"></progress> <code>{html.escape(text)}</code>'
        )

    handle = display.display(shown(), display_id=True)

    def advance(more: float, note: str = "") -> None:
        nonlocal done, last, beside
        done += more
        beside = note
        if time.monotonic() - last >= SECONDS_BETWEEN_BARS:
            last = time.monotonic()
            handle.update(shown())

    try:
        yield advance
    finally:
        handle.update(shown())


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


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
