"""The soak: PYTHONPATH=src:tests python -m faults, or `make soak`; it goes on where it was cut.

    python -m faults --share 0.02              # a short try of all parts
    python -m faults kills disk --share 0.1    # of two
    python -m faults                           # all of it; exits with 1 on any miss
    python -m faults kills --only 17           # one case again, whatever the journal says

Each case has its own seed, so that `--only` reproduces a miss. The journal is
OUT/journal.jsonl, the table OUT/table.md and the record OUT/soak.json; with `--publish` a whole
soak also writes docs/records/soak.json and the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from faults import table
from faults.journal import Journal, digest
from faults.parts import Miss, NotRun, Part
from faults.registry import PARTS
from sfumato import machine

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RECORD = ROOT / "docs" / "records" / "soak.json"


def main() -> int:
    """Run the parts that are asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faults", description="Faults on purpose.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, from 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="by default out/soak, or out/soak-SHARE")
    parser.add_argument("--only", type=int, help="one case of one part, again")
    parser.add_argument("--publish", action="store_true", help="fill docs/reliability.md")
    values = parser.parse_args()
    named = "out/soak" if values.share == 1 else f"out/soak-{values.share:g}"
    out = (values.out or Path(named)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    code = digest([ROOT / "src" / "sfumato", Path(__file__).parent])
    journal = Journal(out / "journal.jsonl", values.seed, code)
    names = values.parts or [*PARTS]
    rows = []
    for name in names:
        part = PARTS[name](out / name, values.seed, values.share)
        count = max(1, round(values.share * part.cases))
        cases = range(count) if values.only is None else [values.only]
        for case in cases:
            if (name, case) not in journal or values.only is not None:
                journal.add(_ended(part, case))
        rows.append(_summary(part, [*journal.of(name, cases)]))
    record = {
        "seed": values.seed,
        "share": values.share,
        "system": machine.system(),
        "processor": machine.processor(),
        "torch": torch.__version__,
        "parts": rows,
    }
    _write(record, out)
    missed = sum(row["missed"] for row in rows)
    whole = values.share == 1 and names == [*PARTS] and values.only is None
    if values.publish and whole and not missed:
        RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        PAGE.write_text(table.placed(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    return 1 if missed else 0


def _ended(part: Part, case: int) -> dict[str, Any]:
    """Run a case; its row of the journal."""
    began = time.perf_counter()
    row = {"part": part.name, "case": case, "counts": {}, "peak": 0, "detail": ""}
    try:
        passed = part.case(case, part.random(case))
        row |= {"verdict": "passed", "counts": passed.counts, "peak": passed.peak}
    except NotRun as error:
        row |= {"verdict": "not run", "detail": str(error)}
    except Miss as error:
        row |= {"verdict": "missed", "detail": str(error)}
    except Exception:  # a slip of the soak itself must not pass for a promise kept
        row |= {"verdict": "missed", "detail": traceback.format_exc()}
    row["seconds"] = round(time.perf_counter() - began, 2)
    told = f"{part.name} {case}: {row['verdict']} after {row['seconds']:.1f} s"
    print(f"{told}: {row['detail']}" if row["detail"] else told, file=sys.stderr)
    return row


def _summary(part: Part, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a line of the table tells of a part."""
    counts: dict[str, int] = {}
    for row in rows:
        for name, count in row["counts"].items():
            counts[name] = counts.get(name, 0) + count
    told = [row["verdict"] for row in rows]
    return {
        "part": part.name,
        "about": part.about,
        "cases": len(rows),
        "passed": told.count("passed"),
        "missed": told.count("missed"),
        "not_run": told.count("not run"),
        "counts": counts,
        "minutes": round(sum(row["seconds"] for row in rows) / 60, 2),
        "peak_mib": max(row["peak"] for row in rows) >> 20,
        "reasons": sorted({row["detail"] for row in rows if row["verdict"] == "not run"}),
        "misses": [
            {"case": row["case"], "detail": row["detail"]}
            for row in rows
            if row["verdict"] == "missed"
        ],
    }


def _write(record: dict[str, Any], out: Path) -> None:
    """The record and its table, which is printed too."""
    (out / "soak.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(table.lines(record)) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")
    for row in record["parts"]:
        for reason in row["reasons"]:
            print(f"{row['part']}: not run: {reason}")
        for miss in row["misses"]:
            again = f"python -m faults {row['part']} --only {miss['case']} --seed {record['seed']}"
            print(f"{row['part']} {miss['case']} missed ({again}): {miss['detail']}")


if __name__ == "__main__":
    sys.exit(main())
