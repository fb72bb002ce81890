"""`sfumato methods`: what can be trained, and what can sample it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sfumato.cli import signatures
from sfumato.cli.parser import Parser

LEGEND = (
    "x_t = C_t x_0 + S_t eps, Sigma_t = S_t S_t^T. Lambda: squared frequencies of the basis, b_t: "
    "blur or decay, abar_t: the chain's power, Sigma: a noise's colour; scalars are multiples of "
    "the identity, as the methods are by default.\n"
    "sfumato train METHOD --help shows a method's parameters, sfumato cite METHOD its source.\n"
)


def run(argv: Sequence[str]) -> None:
    """Print a table of METHODS and one of KERNELS."""
    Parser("methods", "List the methods, and the kernels that can sample them.").read(argv, {})

    from sfumato.methods.table import HEADINGS, rows

    console = Console()
    table = Table(*HEADINGS, title="Methods", title_justify="left", show_lines=True)
    for row in rows():
        table.add_row(Text(row.name, style="bold"), *map(Text, row[1 : len(HEADINGS)]))
    console.print(table)
    console.print(LEGEND, highlight=False)
    table = Table("kernel", "takes", "what it does", title="Kernels", title_justify="left")
    for name, takes, line in signatures.kernels():
        takes = re.sub(r": *\w+", "", takes).replace(" ", "")
        table.add_row(Text(name, style="bold"), Text(takes), Text(line))
    console.print(table)
    console.print("As in: sfumato sample RUN --kernel ddim:eta=0.5", highlight=False)
