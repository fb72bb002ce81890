"""The server of the page: uvicorn, on the loopback interface alone."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence

import uvicorn

from sfumato.demo.app import create_app
from sfumato.errors import Refused
from sfumato.model import Model

ADDRESS = "127.0.0.1"
GRACE = 2
"""Seconds that open connections have when the server is interrupted."""


def listening(port: int) -> socket.socket:
    """A socket on `port` of the loopback interface.

    Raises:
        ValueError: the port is in use, or not permitted.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
        found.listen()
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise Refused(
                f"port {port} is in use; choose another, --port {_other(port)}."
            ) from None
        if error.errno == errno.EACCES:
            raise Refused(f"port {port} is not permitted; choose one above 1023.") from None
        raise
    return found


def serve(
    names: Sequence[str],
    load: Callable[[str], Model],
    port: int,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until interrupted.

    Args:
        names, load: as in `create_app`.
        port: of the loopback interface.
        ready: called with the page's address once it can be opened.

    Raises:
        ValueError: as `listening`.
    """
    with listening(port) as found:
        ready(f"http://{ADDRESS}:{port}")
        config = uvicorn.Config(
            create_app(names, load),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=GRACE,
        )
        uvicorn.Server(config).run(sockets=[found])


def _other(port: int) -> int:
    return port + 1 if port < 65535 else port - 1
