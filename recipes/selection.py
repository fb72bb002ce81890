"""Soft diffusion with selected blur levels and with the measured spectrum: does FID improve?

    python recipes/selection.py              # trains, evaluates, writes records
    python recipes/selection.py --part 0/2   # every second run, for two processes in parallel
    python recipes/selection.py --table      # only print the table of the records
    python recipes/selection.py --picture    # docs/selection.png

Three blur paths (linear in t; geometric, the default; 32 levels at equal W2 of 256 candidates) and
two predictions (the residual, as published; what a Wiener filter for the measured spectrum leaves),
three seeds each: the same network, 60,000 images of Fashion-MNIST, FID of 2,000 images at 10 and 20
steps of `ddim`. Interrupted runs are resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from sfumato import files
from sfumato.cli import main
from sfumato.corruption.select import gaussian, still, time_warp
from sfumato.names import reworded

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = DOCS / "records"
PATHS, PREDICTIONS, SEEDS = ("linear", "geometric", "selected"), ("residual", "spectrum"), (0, 1, 2)
STEPS, N = (10, 20), 2000
SIZE = "--images 60000 --width 24 --patch 4 --preview-every 0"
TITLES = {
    "linear": "linear",
    "geometric": "geometric",
    "selected": "selected",
    "residual": "residual",
    "spectrum": "Wiener, measured spectrum",
}


def time_warps() -> dict[str, list[float]]:
    """The blur paths as times of the default one, which is geometric."""
    data = sf.load("fashion-mnist", "train")
    recipe = sf.METHODS["soft"](data.record.shape, data.stats())
    blur = recipe.process.signal.blur
    growth = math.log(blur.end / blur.start)
    place = torch.linspace(0, 1, 257, dtype=torch.float64)
    straight = torch.log1p(place * math.expm1(growth)) / growth
    times = torch.linspace(0, 1, 256, dtype=torch.float64)
    path = sf.levels.select(gaussian(still(recipe.process, 0.0), data.stats(), times), 32)
    return {"linear": [0.0, *straight[1:-1].tolist(), 1.0], "selected": time_warp(times, path)}


def run(path: str, prediction: str, seed: int) -> None:
    """Train and evaluate one, where its record is missing."""
    name = f"selection-{path}-{prediction}-{seed}"
    record = (RECORDS / f"{name}.json").resolve()
    if record.is_file():
        return
    words = f"train soft --data fashion-mnist {SIZE} --prediction {prediction} --seed {seed}"
    given = [] if path == "geometric" else ["--time-warp", f"{path}.json"]
    call([*words.split(), *given, "--out", name])
    steps = ",".join(map(str, STEPS))
    judge = f"evaluate {name} --n {N} --steps {steps} --sampler ddim --threads 1"
    call([*judge.split(), "--out", str(record)])


def call(words: list[str]) -> None:
    """Run one command; a failure ends the recipe."""
    if main(words):
        raise SystemExit(f"sfumato {' '.join(words)} failed")


def found() -> dict[tuple[str, str], dict[int, list[float]]]:
    """FID by path and prediction, by steps, of each seed."""
    rows: dict[tuple[str, str], dict[int, list[float]]] = {}
    for prediction in PREDICTIONS:
        for path in PATHS:
            rows[path, prediction] = {steps: [] for steps in STEPS}
            for seed in SEEDS:
                record = RECORDS / f"selection-{path}-{prediction}-{seed}.json"
                for result in json.loads(record.read_text(encoding="utf-8"))["results"]:
                    rows[path, prediction][result["steps"]].append(result["fid"])
    return rows


def table() -> list[str]:
    """The table in Markdown: mean and range over seeds."""
    head = "| blur path | prediction |" + "".join(f" {steps} steps |" for steps in STEPS)
    lines = [head, "|---|---|" + "---|" * len(STEPS)]
    for (path, prediction), by_steps in found().items():
        cells = [
            f" {statistics.mean(fids):.2f} ({min(fids):.2f} to {max(fids):.2f}) |"
            for fids in by_steps.values()
        ]
        lines.append(f"| {TITLES[path]} | {TITLES[prediction]} |{''.join(cells)}")
    return lines


def picture(target: Path) -> None:
    """Blur paths against time, and FID of each seed."""
    import matplotlib.pyplot as plt

    figure, (left, *panels) = plt.subplots(1, 3, figsize=(11, 3.4))
    times = torch.linspace(0, 1, 200, dtype=torch.float64)
    recipe = sf.METHODS["soft"]((1, 28, 28))
    made: dict[str, Any] = {
        name: json.loads(Path(f"{name}.json").read_text()) for name in PATHS[::2]
    }
    for name in PATHS:
        u = times
        if name in made:
            given = reworded("config", made[name])["time_warp"]
            u = sf.schedules.Cubic(torch.linspace(0, 1, len(given), dtype=torch.float64), given)(
                times
            )
        left.plot(times, recipe.process.signal.blur(u), label=TITLES[name])
    left.set(xlabel="t", ylabel="blur, pixels", title="blur paths")
    left.legend()
    for panel, steps in zip(panels, STEPS, strict=True):
        for j, ((path, prediction), by_steps) in enumerate(found().items()):
            colour = f"C{PATHS.index(path)}"
            mark = "o" if prediction == "residual" else "s"
            panel.plot([j] * len(by_steps[steps]), by_steps[steps], mark, color=colour, alpha=0.7)
        panel.set(title=f"FID, {steps} steps", xticks=[1, 4], xticklabels=["residual", "Wiener"])
    figure.tight_layout()
    files.write(target, lambda part: figure.savefig(part, dpi=110, format="png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="out/selection")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", action="store_true")
    asked = parser.parse_args()
    Path(asked.folder).mkdir(parents=True, exist_ok=True)
    os.chdir(asked.folder)
    if asked.picture:
        picture(DOCS / "selection.png")
    elif not asked.table:
        for name, times in time_warps().items():
            files.write(Path(f"{name}.json"), json.dumps({"time_warp": times}) + "\n")
        part, parts = map(int, asked.part.split("/"))
        every = [(a, b, c) for c in SEEDS for b in PREDICTIONS for a in PATHS]
        for each in every[part::parts]:
            run(*each)
    if not asked.picture:
        with contextlib.suppress(FileNotFoundError):  # the other part is not finished
            print("\n".join(table()))
