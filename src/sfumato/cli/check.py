"""`sfumato check RUN`: which files of a run or a model are whole, and which are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

from sfumato import documents, pretrained
from sfumato.cli import common
from sfumato.cli.parser import Parser, resolved, settings
from sfumato.errors import Refused

ABOUT = (
    "Compare the files of a run, or of a model's folder, with the hashes that were written with "
    "them. Exits 1 where something is damaged or missing."
)


@final
class Found(NamedTuple):
    """What is known of one folder: a sentence on what is wrong, if anything is."""

    folder: Path
    wrong: str | None
    sealed: bool


def run(argv: Sequence[str]) -> int:
    """Check as the command line says; the exit code."""
    parser = Parser("check", ABOUT)
    common.run_argument(parser, "folder of a run or of a model, or a bundled model's name")
    parser.about_the_call()
    values = parser.read(argv, settings(argv))
    if values.run is None:
        raise Refused("check needs a run, as in sfumato check runs/soft.")
    if values.dry_run:
        print(resolved(parser, values))
        return 0
    bundled = values.run in pretrained.models()
    rows = [*_rows(pretrained.path(values.run) if bundled else Path(values.run))]
    if not rows:
        raise Refused(f"{values.run} is no folder of a run or of a model: nothing to check.")
    for row in rows:
        if not values.quiet or row.wrong:
            print(row.wrong or f"{row.folder}: {'whole' if row.sealed else 'no hashes to check'}")
    return 1 if any(row.wrong for row in rows) else 0


def _rows(home: Path) -> Iterator[Found]:
    """Each folder that was written whole, and the record of a run."""
    from sfumato import files
    from sfumato.store import DIGITS

    checkpoints = sorted((home / "checkpoints").glob(DIGITS))
    latents = sorted(path for path in (home / "latents").glob("[!.]*") if path.is_dir())
    own = [home] if (home / "config.json").is_file() else []
    snapshots = sorted((home / "snapshots").glob(DIGITS))
    for folder in (*own, *checkpoints, *snapshots, *latents):
        yield Found(folder, files.damaged(folder), (folder / files.MANIFEST).exists())
    for folder in sorted((home / "checkpoints").glob("*.damaged")):
        yield Found(folder, f"{folder} was damaged, and is not used. Remove it.", True)
    record = home / "run.json"
    if record.exists() or checkpoints:
        yield Found(record, _record(record), False)


def _record(path: Path) -> str | None:
    """What is wrong with a run's record."""
    try:
        found = documents.read_json(path)
        whole = isinstance(found, dict) and {*found} == {"model", "options"}
    except Refused as error:
        return str(error)
    return None if whole else f"{path} is damaged: it is no record of a run."
