"""The README's table of scores, from the records in docs/records.

    python recipes/scores.py

One row for each result of the models that come along, of the peers (`peer-NAME-SAMPLER-STEPS.json`)
and of real images, largest n first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sfumato.evaluation.protocol import read

RECORDS = Path(__file__).parents[1] / "docs" / "records"
HEAD = ("| | n | steps | FID | KID | precision | recall |", "|---|---|---|---|---|---|---|")
REAL = "real training images"


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
    if not path.stem.startswith(("fashion-", "peer-")):
        return []
    record = read(path)
    n = record["n"]
    floor = Row(n, REAL, 0, record["floor"])
    if path.stem.startswith("peer-"):
        _, peer, sampler, steps = path.stem.split("-")
        return [Row(n, f"{peer}, {sampler}", int(steps), record["results"][0]), floor]
    name = f"`{record['subject']['run']}`"
    return [*(Row(n, name, one["steps"], one) for one in record["results"]), floor]


if __name__ == "__main__":
    print("\n".join(table()))
