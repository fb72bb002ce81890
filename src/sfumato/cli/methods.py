"""`sfumato methods`: what can be trained, and what can sample it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfumato.cli import signatures
from sfumato.cli.parser import Parser


def run(argv: Sequence[str]) -> None:
    """Print a table of METHODS and one of KERNELS."""
    Parser("methods", "List the methods, and the kernels that can sample them.").read(argv, {})
    console = Console()
    table = Table("method", "what it is", title="Methods", title_justify="left", show_lines=True)
    for name in signatures.methods():
        table.add_row(Text(name, style="bold"), Text(_about(signatures.method(name).module)))
    console.print(table)
    console.print(
        "sfumato train METHOD --help shows its parameters, sfumato cite METHOD its source.\n",
        highlight=False,
    )
    table = Table("kernel", "takes", "what it does", title="Kernels", title_justify="left")
    for name, takes, line in signatures.kernels():
        takes = re.sub(r": *\w+", "", takes).replace(" ", "")
        table.add_row(Text(name, style="bold"), Text(takes), Text(line))
    console.print(table)
    console.print("As in: sfumato sample RUN --kernel ddim:eta=0.5", highlight=False)


def _about(text: str) -> str:
    """A method's docstring up to its references, one line for each paragraph."""
    paragraphs = text.partition("References:")[0].strip().split("\n\n")
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
