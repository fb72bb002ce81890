"""Jobs run one at a time in a thread: a new one stops the one before at its next step."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

from sfumato.errors import Refused
from sfumato.notes import Note

T = TypeVar("T")
Event = Mapping[str, Any]
"""What is told of a job: JSON with a `kind`."""
UNEXPECTED = "something failed that should not; the terminal of sfumato demo shows the traceback."
PATIENCE = 0.5
"""Seconds between two looks whether the page still listens."""


@final
class Stopped(Exception):
    """A newer job has taken the place of this one, or its page no longer waits for it."""


@final
class Job:
    """A piece of work that can be stopped."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def stop(self) -> None:
        """Let the next `check` raise."""
        self._over.set()

    def check(self) -> None:
        """Raise Stopped if the job was stopped."""
        if self._over.is_set():
            raise Stopped


@final
class Desk:
    """Where jobs are handed in."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._latest = Job()

    def _next(self) -> Job:
        self._latest.stop()
        self._latest = Job()
        return self._latest

    async def result(self, work: Callable[[Job], T]) -> T:
        """What a short job returns; raises Stopped where a newer one took its place."""
        job = self._next()

        def run() -> T:
            with self._busy:
                job.check()
                return work(job)

        return await asyncio.get_running_loop().run_in_executor(None, run)

    async def aside(self, work: Callable[[], T]) -> T:
        """What a look-up returns, which neither stops a job nor waits for one."""
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def events(
        self,
        work: Callable[[Job, Callable[[Event], None]], None],
        gone: Callable[[], Awaitable[bool]],
    ) -> AsyncIterator[str]:
        """A long job as server-sent events: what it tells, then an end, an error, or a stop.

        Args:
            work: receives the job and a function that tells an event, which raises Stopped.
            gone: whether the page no longer listens, which stops the job.
        """
        job = self._next()
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Event | None] = asyncio.Queue()

        def put(event: Event | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, event)

        def tell(event: Event) -> None:
            job.check()
            put(event)

        def run() -> None:
            try:
                with self._busy, _heard() as notes:
                    job.check()
                    work(job, tell)
                put({"kind": "end", "notes": notes})
            except Stopped:
                put({"kind": "stopped"})
            except Refused as error:
                put({"kind": "error", "error": str(error)})
            except BaseException:
                put({"kind": "error", "error": UNEXPECTED})
                raise
            finally:
                put(None)

        ended = loop.run_in_executor(None, run)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(told.get(), PATIENCE)
                except TimeoutError:
                    if await gone():
                        return
                    continue
                if event is None:
                    break
                yield f"data: {json.dumps(event)}\n\n"
            await ended
        finally:
            job.stop()


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Within, notes are collected for the page; other warnings are shown as ever."""
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        plain = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, Note):
                found.append(str(message))
            else:
                plain(message, category, *where)

        warnings.showwarning = show
        yield found
