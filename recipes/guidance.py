"""FID and accuracy of the class against the weight of guidance: the table of docs/guidance.md.

    python recipes/guidance.py                                    # print the table of the records
    python recipes/guidance.py runs/classes --name ddpm           # evaluate a run of classes
    python recipes/guidance.py runs/plain --name ddpm-classifier --classifier runs/classifier
    python recipes/guidance.py runs/plain --name ddpm-auto --guide runs/weak

Each weight is one `sfumato evaluate`, whose record is docs/records/guidance-NAME-WEIGHT.json; one
that is there is not made again. Further options are those of `evaluate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sfumato.cli import main as sfumato
from sfumato.evaluation.protocol import read

RECORDS = Path(__file__).parents[1] / "docs" / "records"
WEIGHTS = ("0", "0.5", "1", "2", "4")
HEAD = (
    "| guidance | weight | sampler | steps | network calls | FID | accuracy |",
    "|---" * 7 + "|",
)


def evaluate(run: str, name: str, more: list[str]) -> None:
    """Evaluate `run` at each weight, unless its record is there."""
    for weight in WEIGHTS:
        out = RECORDS / f"guidance-{name}-{weight}.json"
        # Without a weight there is nothing that a guide or a classifier could do.
        others = more if float(weight) else plain(more)
        words = ["evaluate", run, "--guidance", weight, "--out", str(out), *others]
        if not out.exists() and (code := sfumato(words)):
            raise SystemExit(code)


def plain(more: list[str]) -> list[str]:
    """Options without the names of a guide or a classifier."""
    found, words = [], iter(more)
    for word in words:
        if word in ("--guide", "--classifier"):
            next(words)
        else:
            found.append(word)
    return found


def table() -> list[str]:
    """The lines of the table, in Markdown."""
    rows = []
    for path in sorted(RECORDS.glob("guidance-*.json")):
        name, _, weight = path.stem.removeprefix("guidance-").rpartition("-")
        for one in read(path)["results"]:
            right = f"{100 * one['accuracy']:.1f} %" if "accuracy" in one else ""
            told = f"{one['sampler']} | {one['steps']} | {one['network_calls']} | {one['fid']:.3g}"
            line = f"| {name} | {weight} | {told} | {right} |"
            rows.append((name, one["sampler"], one["steps"], float(weight), line))
    return [*HEAD, *(line for *_, line in sorted(rows))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # lest --n be --name
    )
    parser.add_argument("run", nargs="?", help="a trained run")
    parser.add_argument("--name", help="of the rows")
    asked, more = parser.parse_known_args()
    if asked.run:
        if not asked.name:
            parser.error("a run needs the --name of its rows")
        evaluate(asked.run, asked.name, more)
    print("\n".join(table()))


if __name__ == "__main__":
    main()
