"""`sfumato cite METHOD`: the references of a method."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sfumato.cli import signatures
from sfumato.cli.parser import Parser
from sfumato.errors import Refused


def run(argv: Sequence[str]) -> None:
    """Print the references of a method: authors, year, title, address."""
    parser = Parser("cite", "Print the references of a method: title, authors, year, address.")
    parser.add_argument("method", nargs="?", metavar="METHOD", help="a method, or FILE.py:NAME")
    name = parser.read(argv, {}).method
    if name is None:
        raise Refused("cite needs a method, as in sfumato cite soft.")
    _, found, references = signatures.method(name).module.partition("References:")
    if not found:
        raise Refused(f"the file of {name} names no references.")
    print(textwrap.dedent(references.strip("\n")).strip())
