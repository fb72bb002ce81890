"""Put a trained run into the package: averaged weights in half precision, and a card.

    python recipes/ship.py runs/fashion-soft fashion-soft [RECORD.json ...] --sampler ddim
        --steps 20
    python recipes/ship.py runs/few-soft/4 fashion-soft-4 [RECORD.json ...]    # a student

The card gives the training data, the training time (from the run's log) and the scores in the
records of `sfumato evaluate`; without records it says that the model is not evaluated yet. That of
a student counts all stages up to it, which are beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from sfumato import cards, files, pretrained
from sfumato.model import Model
from sfumato.sampling.samplers import Sampler
from sfumato.scores import read
from sfumato.store import from_pretrained

LIMIT = 8 * 2**20
ELSEWHERE = " on one core of two; the other core trained the other bundled model"


def card(name: str, run: Path, model: Model, records: list[Path]) -> str:
    """The card, in Markdown."""
    made = [
        cards.training(run).line(ELSEWHERE),
        f"- Reproduced by `recipes/{name}.yaml` and `recipes/ship.py`.",
    ]
    if model.config.flow_map is not None:
        made = student(name, run, model)
    found = {str(path): read(path) for path in records}
    return "\n".join(
        [
            f"# {name}",
            "",
            cards.headline(model.config),
            "",
            *cards.facts(model, ", averaged weights in half precision", made),
            f"- Images: Fashion-MNIST (MIT license), {model.config.record.shape}; the model "
            "samples no other.",
            "",
            *(cards.table(found, linked=False) or ["Not evaluated yet."]),
            "",
            *cards.against(found),
            "",
        ]
    )


def student(name: str, run: Path, model: Model) -> list[str]:
    """The lines of a student's card about its making."""
    flow, options = model.config.flow_map, json.loads((run / "run.json").read_text())["options"]
    stages = [run.parent / str(n) for n in (8, 4, 2, 1) if flow is not None and n >= flow.steps]
    trained = [cards.training(stage) for stage in stages]
    spent, images = sum(one.minutes for one in trained), sum(one.images for one in trained)
    teacher = name.rpartition("-")[0]
    return [
        f"- Distilled from `{teacher}` by halving its 16 steps: {len(stages)} stages, {images:,} "
        f"training images seen, batch {options['batch']}, seed {options['seed']}, {spent:.0f} "
        "minutes on one core of two, while the other had other work.",
        f"- Reproduced by `recipes/few_steps.py students {teacher}` and `recipes/ship.py`.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("records", type=Path, nargs="*")
    asked = parser.parse_args()
    model = from_pretrained(asked.run)
    if model.config.flow_map is None:
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
