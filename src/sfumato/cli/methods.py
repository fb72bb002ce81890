"""`sfumato methods`: the methods, and the samplers that can sample them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sfumato.cli import kinds, signatures
from sfumato.cli.parser import Parser

if TYPE_CHECKING:
    from sfumato.methods.table import Row

ABOUT = "List the methods, and the samplers that can sample them."
LEGEND = (
    "x_t = C_t x_0 + S_t eps, Sigma_t = S_t S_t^T. Lambda: squared frequencies of the basis, b_t: "
    "blur or decay, abar_t: the chain's power, Sigma: a noise's colour; scalars are multiples of "
    "the identity, as the methods are by default.\n"
    "sfumato train METHOD --help shows a method's parameters, sfumato cite METHOD its source.\n"
)


def run(argv: Sequence[str]) -> None:
    """Print METHODS and samplers: a table of each, or both as JSON."""
    parser = Parser("methods", ABOUT)
    text = "tables for people, or JSON for programs"
    parser.option("format", kinds.choice("table", "json"), "table", text)
    values = parser.read(argv, {})

    from sfumato.methods.table import rows
    from sfumato.sampling.samplers import described

    if values.format == "json":
        samplers = [
            {"name": name, "title": line, "defaults": defaults}
            for name, line, defaults in described()
        ]
        found = {"methods": [_described(row) for row in rows()], "samplers": samplers}
        print(json.dumps(found, indent=2))
        return
    _tables(rows())


def _described(row: Row) -> dict[str, Any]:
    """One method for a program."""
    signature = signatures.method(row.name)
    return {
        "name": row.name,
        "title": signature.summary,
        "source": row.source._asdict(),
        "defaults": {parameter.name: parameter.default for parameter in signature.parameters},
        "signal": row.signal,
        "noise": row.cov,
        "basis": row.basis,
        "target": row.target,
        "weight": row.weight,
        "sampler": row.sampler,
    }


def _tables(rows: Iterable[Row]) -> None:
    """Tables of two columns: names keep their width on any terminal, and the rest wraps."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sfumato.sampling.samplers import described

    def table(name: str, about: str) -> Table:
        title = f"{name.capitalize()}s"
        made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        made.add_column(name, no_wrap=True, style="bold")
        made.add_column(about)
        return made

    console = Console()
    methods = table("method", "components and source")
    for row in rows:
        made = (
            f"C_t = {row.signal}, Sigma_t = {row.cov}\n"
            f"basis {row.basis}, target {row.target}, weight {row.weight}\n"
            f"sampler {row.sampler}; {row.reference}"
        )
        methods.add_row(Text(row.name), Text(made))
    console.print(methods)
    console.print(LEGEND, highlight=False)
    samplers = table("sampler", "what it does")
    for name, line, defaults in described():
        takes = ", ".join(f"{key}={value}" for key, value in defaults.items())
        samplers.add_row(Text(name), Text(f"{line} Takes {takes}." if takes else line))
    console.print(samplers)
    console.print("As in: sfumato sample RUN --sampler ddim:eta=0.5", highlight=False)
