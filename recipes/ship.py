"""Put a trained run into the package: averaged weights in half precision, and a card.

    python recipes/ship.py runs/fashion-soft fashion-soft [RECORD.json ...] --sampler ddim
        --steps 20

The card gives the training data, the training time (from the run's log) and the scores in the
records of `sfumato evaluate`; without records it says that the model is not evaluated yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from sfumato import files, pretrained
from sfumato.evaluation.protocol import read
from sfumato.model import Model
from sfumato.sampling.samplers import Sampler
from sfumato.store import from_pretrained

SCORES = ("fid", "kid", "precision", "recall")
LIMIT = 8 * 2**20


def minutes(run: Path) -> tuple[float, int]:
    """Minutes of training in the log, without pictures and checkpoints, and images seen."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    spent, seen = 0.0, 0
    for line in lines:
        if "event" in line:
            seen = line["step"] * json.loads((run / "run.json").read_text())["options"]["batch"]
        else:
            spent += (line["images"] - seen) / line["images_per_second"]
            seen = line["images"]
    return spent / 60, seen


def card(name: str, run: Path, model: Model, records: list[Path]) -> str:
    """The card, in Markdown."""
    spent, images = minutes(run)
    config, options = model.config, json.loads((run / "run.json").read_text())["options"]
    parameters = sum(p.numel() for p in model.denoiser.backbone.parameters())
    results = [(record["n"], row) for record in map(read, records) for row in record["results"]]
    results.sort(key=lambda result: (-result[0], result[1]["steps"]))
    rows = [
        f"| {row['steps']} | {n} | " + " | ".join(f"{row[s]:.4g}" for s in SCORES) + " |"
        for n, row in results
    ]
    table = ["| steps | n | FID | KID | precision | recall |", "|---|---|---|---|---|---|", *rows]
    scored = []
    if rows:
        features = read(records[0])["extractor"]["name"]
        scored = [f"Against the test split; extractor: {features}."]
    settings = ", ".join(f"{key}={value}" for key, value in config.parameters.items())
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{config.method}` ({settings}) on {config.record.count:,} images of "
            f"{config.record.name} ({config.record.split}), unconditional.",
            "",
            f"- {parameters:,} parameters, averaged weights in half precision.",
            f"- {images:,} training images seen, batch {options['batch']}, seed {options['seed']}, "
            f"{spent:.0f} minutes on one core of two; the other core trained the other bundled "
            "model.",
            f"- Reproduced by `recipes/{name}.yaml` and `recipes/ship.py`.",
            f"- Default sampler: `{config.sampler.name}`, {config.sampler.steps} steps.",
            f"- Images: Fashion-MNIST (MIT license), {config.record.shape}; the model samples no "
            "other.",
            "",
            *(table if rows else ["Not evaluated yet."]),
            "",
            *scored,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--sampler", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("records", type=Path, nargs="*")
    asked = parser.parse_args()
    model = from_pretrained(asked.run)
    model.config = replace(model.config, sampler=Sampler(asked.sampler, asked.steps))
    home = pretrained.path(asked.name)
    shutil.rmtree(home, ignore_errors=True)
    half = {name: value.half() for name, value in model.denoiser.backbone.state_dict().items()}
    with files.folder(home) as part:
        model.write(part, half)
        (part / "README.md").write_text(card(asked.name, asked.run, model, asked.records))
    size = sum(file.stat().st_size for file in home.iterdir())
    if size > LIMIT:
        raise SystemExit(f"{home} has {size} bytes, over {LIMIT}.")
    print(f"{home}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
