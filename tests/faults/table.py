"""The table of a soak, from its record, and its place in docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table of the soak -->", "<!-- end of the table -->"
UNMEASURED = "`make soak` has not been run to its end on this version."


def lines(record: Mapping[str, Any] | None) -> list[str]:
    """The table as Markdown; of no record, a sentence."""
    if record is None:
        return [UNMEASURED]
    found = [
        "| part | what | cases | passed | missed | not run | minutes | memory at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["parts"]:
        counts = ", ".join(f"{count:,} {name}" for name, count in row["counts"].items())
        what = f"{row['about']}: {counts}" if counts else row["about"]
        peak = f"{row['peak_mib']:,} MiB" if row["peak_mib"] else ""
        told = [row["cases"], row["passed"], row["missed"], row["not_run"], f"{row['minutes']:.1f}"]
        found.append(f"| {row['part']} | {what} | {' | '.join(map(str, told))} | {peak} |")
    about = f"Seed {record['seed']}, {record['processor']}, torch {record['torch']}."
    return [*found, "", about]


def placed(page: str, record: Mapping[str, Any] | None) -> str:
    """The page with the table of a record at its place."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no place between {BEGIN} and {END}.")
    return "\n".join([before + BEGIN, "", *lines(record), "", END + after])


def read(path: Path) -> dict[str, Any] | None:
    """The record at `path`; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
