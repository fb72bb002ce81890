"""A journal is a file of JSON lines, one for each ended case, from which a cut soak goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def digest(folders: Iterable[Path]) -> str:
    """Of the Python files in folders."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Journal:
    """The rows of ended cases.

    Args:
        path: of the file; a last line that was cut is not read.
        seed: of the soak; rows of another are refused.
        code: of what is tested; rows of other code are left aside, and their cases run again.
    """

    def __init__(self, path: Path, seed: int, code: str = "") -> None:
        self.path = path
        self.about = {"seed": seed, "code": code}
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        text = path.read_text() if path.is_file() else ""
        for line in text.split("\n")[:-1]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["seed"] != seed:
                raise SystemExit(f"{path} is of the seed {row['seed']}: choose another --out.")
            if row["code"] == code:
                self.rows[row["part"], row["case"]] = row
        if text and not text.endswith("\n"):
            with path.open("a") as stream:
                stream.write("\n")

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self.rows

    def add(self, row: dict[str, Any]) -> None:
        """Write a row to the disk."""
        row = row | self.about
        self.rows[row["part"], row["case"]] = row
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def of(self, part: str, cases: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The rows of these cases of a part."""
        return (self.rows[part, case] for case in cases if (part, case) in self.rows)
