"""`sfumato cite METHOD`: the references of a method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sfumato import pretrained
from sfumato.cli import signatures
from sfumato.cli.parser import Parser
from sfumato.errors import Refused


def run(argv: Sequence[str]) -> None:
    """Print the references of a method: authors, year, title, address."""
    parser = Parser("cite", "Print the references of a method: title, authors, year, address.")
    parser.add_argument(
        "method", nargs="?", metavar="METHOD", help="a method, FILE.py:NAME, or a bundled model"
    )
    name = parser.read(argv, {}).method
    if name is None:
        raise Refused("cite needs a method, as in sfumato cite soft.")
    if name in pretrained.models():
        from sfumato.store import read_config

        name = str(read_config(pretrained.path(name)).method)
    _, found, references = signatures.method(name).module.partition("References:")
    if not found:
        raise Refused(f"the file of {name} names no references.")
    print(textwrap.dedent(references.strip("\n")).strip())
