"""The README's table of scores, and that of kernels, from the records in docs/records.

    python recipes/scores.py             # README's
    python recipes/scores.py --kernels   # docs/kernels.md's: FID by kernel and network calls

One row for each result of the models that come along, of the peers (`peer-NAME-SAMPLER-STEPS.json`)
and of real images, largest n first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.evaluation.protocol import read

RECORDS = Path(__file__).parents[1] / "docs" / "records"
HEAD = ("| | n | steps | FID | KID | precision | recall |", "|---|---|---|---|---|---|---|")
REAL = "real training images"
CALLS = (5, 10, 20, 50)


class Row(NamedTuple):
    """One result."""

    n: int
    name: str
    steps: int
    scores: dict[str, Any]

    @property
    def line(self) -> str:
        """The row in Markdown."""
        fid, kid, precision, recall = (
            self.scores[name] for name in ("fid", "kid", "precision", "recall")
        )
        return (
            f"| {self.name} | {self.n:,} | {self.steps or ''} | {fid:.3g} | {kid:.4f} | "
            f"{precision:.3f} | {recall:.3f} |"
        )


def table() -> list[str]:
    """The lines of the table, in Markdown."""
    found = {row[:3]: row for path in sorted(RECORDS.glob("*.json")) for row in rows(path)}
    ranked = sorted(found.values(), key=lambda row: (-row.n, row.name == REAL, row.name, row.steps))
    return [*HEAD, *(row.line for row in ranked)]


def rows(path: Path) -> list[Row]:
    """The results of one record, and its floor."""
    if not path.stem.startswith(("fashion-", "peer-")) or "kernel" in path.stem:
        return []
    record = read(path)
    n = record["n"]
    floor = Row(n, REAL, 0, record["floor"])
    if path.stem.startswith("peer-"):
        _, peer, sampler, steps = path.stem.split("-")
        return [Row(n, f"{peer}, {sampler}", int(steps), record["results"][0]), floor]
    name = f"`{record['subject']['run']}`"
    return [*(Row(n, name, one["steps"], one) for one in record["results"]), floor]


def kernels() -> list[str]:
    """FID at n = 2,000 of each kernel on the models that come along, in Markdown."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for path in sorted(RECORDS.glob("*fashion-*.json")):
        record = read(path) if not path.stem.startswith(("bits-", "zoo-")) else {"n": 0}
        if record["n"] != 2_000:
            continue
        for one in record["results"]:
            row = found.setdefault((record["subject"]["run"], one["kernel"]), {})
            row[one["steps"]] = one["fid"]
    lines = [
        f"| model | kernel | {' | '.join(map(str, CALLS))} |",
        f"|---|---|{'---|' * len(CALLS)}",
    ]
    for (model, kernel), row in sorted(found.items()):
        best = {c: min(r.get(c, 99.0) for (m, _), r in found.items() if m == model) for c in CALLS}
        cells = [_cell(row.get(calls), best[calls]) for calls in CALLS]
        lines.append(f"| `{model}` | {kernel} | {' | '.join(cells)} |")
    return lines


def _cell(fid: float | None, best: float) -> str:
    if fid is None:
        return ""
    return f"**{fid:.3g}**" if fid <= best else f"{fid:.3g}"


if __name__ == "__main__":
    print("\n".join(kernels() if "--kernels" in sys.argv else table()))
