"""The application: the page's files, and a JSON interface to `Tasks` under /api/.

    GET  /api/options                 methods and their levels, samplers, grids, models
    GET  /api/model?name=NAME         what one model takes
    POST /api/image                   a PNG or JPEG file -> its name
    POST /api/forward, /api/measure   JSON -> pictures at once
    POST /api/sample, /api/restore    JSON -> server-sent events, a picture for each step

A job stops at the next step where the page no longer waits for it. A refused request has status 400
(403 from elsewhere, 409 where a newer request took its place) and {"error": a sentence}.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sfumato import documents
from sfumato.demo.asked import Asked
from sfumato.demo.guard import Guarded
from sfumato.demo.images import BYTES, sheet
from sfumato.demo.jobs import UNEXPECTED, Desk, Event, Job, Stopped
from sfumato.demo.tasks import Tasks
from sfumato.errors import Refused, reason
from sfumato.model import Model

STATIC = Path(__file__).parent / "static"
LONGEST = 2**16
"""Bytes of a JSON request."""

Answer = Callable[[Request], Awaitable[Response]]


def create_app(names: Sequence[str], load: Callable[[str], Model]) -> Guarded:
    """The ASGI application of the page.

    Args:
        names: models that it offers.
        load: the model of a name, called once for each when it is first chosen.
    """
    tasks = Tasks(names, load)
    desk = Desk()

    async def options(request: Request) -> Response:
        return JSONResponse(await desk.aside(tasks.offered))

    async def model(request: Request) -> Response:
        name = request.query_params.get("name", "")
        return JSONResponse(await desk.aside(lambda: tasks.described(name)))

    async def image(request: Request) -> Response:
        data = await body(request, ("image/png", "image/jpeg"), BYTES)

        def added() -> dict[str, Any]:
            name = tasks.album.add(data)
            return {"image": name, "sheet": sheet(tasks.album.whole(name))}

        return JSONResponse(await desk.aside(added))

    def at_once(work: Callable[[Asked, Job], dict[str, Any]]) -> Answer:
        async def answer(request: Request) -> Response:
            ask = await asked(request)
            return JSONResponse(await desk.result(lambda job: work(ask, job)))

        return answer

    def in_steps(work: Callable[[Asked, Job, Callable[[Event], None]], None]) -> Answer:
        async def answer(request: Request) -> Response:
            ask = await asked(request)
            events = desk.events(lambda job, tell: work(ask, job, tell), request.is_disconnected)
            return StreamingResponse(events, media_type="text/event-stream")

        return answer

    routes = [
        Route("/api/options", options),
        Route("/api/model", model),
        Route("/api/image", image, methods=["POST"]),
        Route("/api/forward", at_once(tasks.forward), methods=["POST"]),
        Route("/api/measure", at_once(tasks.measure), methods=["POST"]),
        Route("/api/sample", in_steps(tasks.sample), methods=["POST"]),
        Route("/api/restore", in_steps(tasks.restore), methods=["POST"]),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ]
    handlers = {Refused: refused, Stopped: stopped, Exception: unexpected}
    return Guarded(Starlette(routes=routes, exception_handlers=handlers))


async def asked(request: Request) -> Asked:
    """The JSON object of a request."""
    data = await body(request, ("application/json",), LONGEST)
    try:
        return Asked(documents.from_json("the request", data))
    except (ValueError, TypeError) as error:
        raise Refused(f"a request is a JSON object: {reason(error)}.") from error


async def body(request: Request, kinds: Sequence[str], most: int) -> bytes:
    """The body of a request of one of some media types, read no further than `most` bytes.

    Raises:
        ValueError: another type, or more bytes.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise Refused(f"this takes {' or '.join(kinds)}; got '{kind}'.")
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > most:
            size = f"{most // 2**20} MB" if most >= 2**20 else f"{most // 2**10} kB"
            raise Refused(f"this is larger than {size}, the most that is taken; reduce it.")
    return bytes(parts)


async def refused(request: Request, error: Exception) -> Response:
    """One sentence."""
    return JSONResponse({"error": str(error)}, 400)


async def stopped(request: Request, error: Exception) -> Response:
    """A newer request took the place of this one."""
    return JSONResponse({"error": "a newer request took the place of this one."}, 409)


async def unexpected(request: Request, error: Exception) -> Response:
    """A bug, whose traceback the server prints."""
    return JSONResponse({"error": UNEXPECTED}, 500)
