"""`sfumato demo`: a page in the browser that shows corruptions, samplers and restorations."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from sfumato import pretrained
from sfumato.cli.common import load, which_model
from sfumato.cli.kinds import WHOLE, YES, Kind, Unfit
from sfumato.cli.parser import Namespace, Parser, resolved, settings
from sfumato.errors import Refused

ABOUT = (
    "Serve a page on this machine alone: how a method corrupts your image, how a model samples it "
    "back step by step, and how it restores one. The bundled models are there, and each RUN."
)
FIRST = "fashion-soft"
"""Of the bundled models; those of the command line are before it."""
PACKAGES = ("starlette", "uvicorn")


def _port(value: object) -> int:
    port = WHOLE.read(value)
    if not 1 <= port <= 65535:
        raise Unfit(f"is a port from 1 to 65535; got {port}.")
    return port


def run(argv: Sequence[str]) -> None:
    """Serve as the command line says, until interrupted."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    _check_packages()
    if values.dry_run:
        print(resolved(parser, values))
        return

    from sfumato.demo import server
    from sfumato.store import newest, read_config

    own = [str(name) for name in values.runs]
    for name in own:
        newest(name, read_config)
    bundled = sorted(pretrained.models(), key=lambda name: name != FIRST)
    names = dict.fromkeys([*own, *bundled])

    def ready(address: str) -> None:
        if not values.quiet:
            print(f"Sfumato is at {address} (Ctrl+C stops it)", flush=True)
        if values.open:
            importlib.import_module("webbrowser").open(address)

    bare = Namespace(**{**values.as_dict(), "method": None, "weights": "ema"})
    server.serve(
        [*names], lambda name: load(name, values if name in own else bare), values.port, ready
    )


def _check_packages() -> None:
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise Refused(
            f"the page needs its packages ({error}). Install them: pip install 'sfumato[demo]'."
        ) from error


def _parser() -> Parser:
    parser = Parser("demo", ABOUT)
    text = "folder of a run or model, offered beside the bundled models"
    parser.add_argument("runs", metavar="RUN", nargs="*", help=text)
    parser.option("port", Kind(_port, "N"), 8000, "of 127.0.0.1; no other machine can reach it")
    parser.option("open", YES, False, "open the page in the browser")
    which_model(parser)
    parser.about_the_call()
    return parser
