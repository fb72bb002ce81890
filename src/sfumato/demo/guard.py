"""A guard around an application on the loopback interface, against other sites in the browser.

Any page that the browser shows can send requests to 127.0.0.1. A name of its own that resolves to
127.0.0.1 (DNS rebinding) has another Host header, and is refused; a request from another site has
an Origin or Sec-Fetch-Site header that says so, and is refused wherever it could start work.
"""

from __future__ import annotations

from typing import final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfumato.errors import Refused

HOSTS = ("127.0.0.1", "localhost")
API = "/api/"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every response: the page loads from here alone, and no other page may hold it in a frame."""


@final
class Guarded:
    """`app`, for requests of its own page alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it with status 403."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            check(Headers(scope=scope), scope["path"])
        except Refused as error:
            refusal = JSONResponse({"error": str(error)}, 403)
            return await refusal(scope, receive, guarded)
        return await self._app(scope, receive, guarded)


def check(headers: Headers, path: str) -> None:
    """Raise ValueError unless a request with these headers comes from this machine's own page."""
    host = headers.get("host", "")
    if host.partition(":")[0] not in HOSTS:
        raise Refused(f"this page is at {' or '.join(HOSTS)} alone; the request was for '{host}'.")
    if not path.startswith(API):
        return
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none") or origin not in (None, f"http://{host}"):
        told = urlsplit(origin or "").netloc or "another site"
        raise Refused(f"only the page itself may ask this; the request came from {told}.")
