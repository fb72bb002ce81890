"""Students of the bundled models, and three ways to learn them: docs/few-steps.md.

    python recipes/few_steps.py                    # print the tables of the records
    python recipes/few_steps.py students fashion-soft runs/few-soft    # distil
    python recipes/few_steps.py scores fashion-soft runs/few-soft      # score student and teacher
    python recipes/few_steps.py ways               # three ways on the digits at equal minutes
    python recipes/few_steps.py plot               # docs/few-steps.png

`students` takes about 50 minutes on one core for each model, and resumes where it was cut; so does
`scores`, whose images are kept until all are scored. Records are
docs/records/few-NAME-N.json, for N samples, and few-ways.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

import sfumato as sf
from sfumato import charts, files
from sfumato.cli import main as sfumato
from sfumato.evaluation import blocks
from sfumato.evaluation.extractor import choose
from sfumato.evaluation.protocol import Judge
from sfumato.evaluation.samples import Drawing, Images
from sfumato.training.distill import By, without_teacher

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "records"
CALLS = (1, 2, 4, 8)
Way = By | Literal["consistency training"]
COUNTS = (2_000, 10_000)
NAMES = ("fashion-soft", "fashion-ddpm")
TEACHER = ("--sampler", "ddim", "--grid", "auto")
"""How the teachers walk their 16 steps: of the samplers at hand, the one of the best FID."""
IMAGES = 28_000
"""Training images of each of four stages."""
ROWS = {"ddim": ("ddim", None), "unipc": ("unipc", None), "ddim, auto grid": ("ddim", "auto")}
"""Samplers and grids of the teacher to compare with."""

WAYS: dict[Way, int] = {
    "progressive": 600,
    "consistency": 320,
    "shortcut": 700,
    "consistency training": 510,
}
"""Numbers of steps of each way, of about equal time of the processor."""
METHODS = {"soft": {"prediction": "wiener"}, "ddpm": {"betas": "cosine", "prediction": "velocity"}}
SIZE = sf.UNetOptions(width=16, patch=1, multipliers=(1, 2))
BATCH = 64


def students(name: str, out: Path) -> None:
    """Distil the bundled model `name` to 8, 4, 2 and 1 steps."""
    words = ["distill", name, *TEACHER, "--images", str(IMAGES)]
    if code := sfumato([*words, "--checkpoint-every", "7000", "--n", "0", "--out", str(out)]):
        raise SystemExit(code)


def scores(name: str, out: Path, counts: Sequence[int], rows: Sequence[str]) -> None:
    """Score the students in `out`, and their teacher at as many calls, on `counts` samples."""
    teacher = sf.from_pretrained(name)
    found = [sf.from_pretrained(out / str(n)) for n in CALLS if (out / str(n)).is_dir()]
    jobs = [("distilled", model, model.sampler) for model in found if "distilled" in rows]
    for told, (kernel, grid) in ROWS.items():
        chosen = [teacher.chosen(sf.Sampler(kernel, n, grid)) for n in CALLS if told in rows]
        jobs += [(told, teacher, one) for one in chosen]
    judges = {count: _judge("fashion-mnist", count) for count in counts}
    keep = blocks.beside(RECORDS / f"few-{name}.json")
    for told, model, sampler in jobs:
        whole = _drawn(model, sampler, max(counts), keep)
        for count, judge in judges.items():
            about = {**whole.about, "seeds": f"0-{count - 1}"}
            row = {"row": told, **judge.result(Images(whole.pixels[:count], about))}
            print(name, told, row["steps"], count, f"{row['fid']:.3f}", flush=True)
            _keep(RECORDS / f"few-{name}-{count}.json", judge, name, row)
    keep.forget()


def _keep(path: Path, judge: Judge, name: str, row: dict[str, Any]) -> None:
    """Add a row to its record, in place of one of the same row and steps."""
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    rows = [old for old in rows if any(old[key] != row[key] for key in ("row", "steps"))]
    record = judge.record({"run": name}, [*rows, row])
    files.write(path, json.dumps(record, indent=2) + "\n")


def _drawn(
    model: sf.Model, sampler: sf.Sampler, count: int, keep: blocks.Blocks | None = None
) -> Images:
    return Drawing(model, count, sampler, keep=keep).images()


def _judge(source: str, count: int) -> Judge:
    real, other = sf.load(source, "test"), sf.load(source, "train")
    return Judge(real, other, lambda *found: choose("auto", *found), count)


def ways(out: Path) -> None:
    """Three ways on the digits, after a teacher of 3,000 steps."""
    data, judge = sf.load("digits"), _judge("digits", 1_000)
    results = []
    for method, parameters in METHODS.items():
        config = sf.Config(method, data.record, parameters, SIZE)
        options = _options(3_000, 2e-3)
        began = time.process_time()
        teacher = sf.build(config, data, options)
        teacher = sf.train(teacher, data, options, out / method / "teacher")
        seconds = time.process_time() - began
        rows = _rows(judge, teacher, ("ddim", "unipc"), (*CALLS, 16))
        results += [{"row": f"{method}, teacher", "seconds": seconds, **row} for row in rows]
        for way, steps in WAYS.items():
            for model, kernels, calls, spent in _learned(way, steps, config, data, out / method):
                rows = _rows(judge, model, kernels, calls)
                results += [{"row": f"{method}, {way}", "seconds": spent, **row} for row in rows]
                print(method, way, round(spent), [round(row["fid"], 2) for row in rows], flush=True)
    record = judge.record({"run": "digits"}, results)
    files.write(RECORDS / "few-ways.json", json.dumps(record, indent=2) + "\n")


def _options(steps: int, rate: float = 1e-3) -> sf.TrainOptions:
    return sf.TrainOptions(images=BATCH * steps, batch=BATCH, learning_rate=rate, preview_every=0)


def _learned(
    way: Way, steps: int, config: sf.Config, data: sf.Data, home: Path
) -> Iterator[tuple[sf.Model, tuple[str, ...], tuple[int, ...], float]]:
    """Models learned one way: with their kernels, their numbers of calls, and seconds in all."""
    teacher, began = home / "teacher", time.process_time()
    both = ("naive", "ddim")
    if way == "consistency training":
        options = _options(steps)
        flow = without_teacher(config, data.stats(), "consistency", 16)
        model = sf.build(replace(config, flow_map=flow), data, options, teacher)
        model = sf.train(model, data, options, home / "training")
        yield model, both, CALLS, time.process_time() - began
        return
    each = steps // len(CALLS) if way == "progressive" else steps
    found = sf.distill(teacher, data, _options(each), home / way, way, sampler="ddim")
    spent = time.process_time() - began
    for stage in found:
        own = stage.model.sampler.whole[1]
        calls = (own,) if way == "progressive" else CALLS
        yield stage.model, both if way == "consistency" else ("ddim",), calls, spent


def _rows(
    judge: Judge, model: sf.Model, kernels: Sequence[str], calls: Sequence[int]
) -> list[dict[str, Any]]:
    return [
        judge.result(_drawn(model, model.chosen(sf.Sampler(kernel, n)), judge.count))
        for kernel in kernels
        for n in calls
    ]


def scores_table() -> list[str]:
    """FID / precision / recall of the bundled models and their students, in Markdown."""
    lines = [f"| | n | {' | '.join(map(str, CALLS))} |", "|---" * (2 + len(CALLS)) + "|"]
    for name in NAMES:
        for count in COUNTS:
            path = RECORDS / f"few-{name}-{count}.json"
            found = json.loads(path.read_text())["results"] if path.exists() else []
            for told in ("distilled", *ROWS):
                known = {row["steps"]: row for row in found if row["row"] == told}
                cells = [_cell(known.get(n)) for n in CALLS]
                if known:
                    lines.append(f"| `{name}`, {told} | {count:,} | {' | '.join(cells)} |")
    return lines


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['fid']:.3g} / {row['precision']:.2f} / {row['recall']:.2f}"


def ways_table() -> list[str]:
    """FID of the three ways by sampler and network calls, in Markdown."""
    path = RECORDS / "few-ways.json"
    found = json.loads(path.read_text())["results"] if path.exists() else []
    calls = (*CALLS, 16)
    head = f"| | sampler | seconds | {' | '.join(map(str, calls))} |"
    lines = [head, "|---" * (3 + len(calls)) + "|"]
    for told, kernel in dict.fromkeys((row["row"], row["sampler"]) for row in found):
        rows = [row for row in found if (row["row"], row["sampler"]) == (told, kernel)]
        known = {row["steps"]: row["fid"] for row in rows}
        cells = [f"{known[n]:.2f}" if n in known else "" for n in calls]
        lines.append(f"| {told} | {kernel} | {rows[0]['seconds']:.0f} | {' | '.join(cells)} |")
    return lines


def plot() -> None:
    """FID by network calls: the bundled models and their students, and the three ways."""
    panels = []
    for name in NAMES:
        found = json.loads((RECORDS / f"few-{name}-2000.json").read_text())["results"]
        rows = [(row["row"], row["steps"], row["fid"]) for row in found]
        panels.append(_panel(f"{name}, n = 2,000", rows))
    found = json.loads((RECORDS / "few-ways.json").read_text())["results"]
    for method in METHODS:
        rows = [
            (f"{row['row'].partition(', ')[2]}, {row['sampler']}", row["steps"], row["fid"])
            for row in found
            if row["row"].startswith(method) and row["steps"] in CALLS
        ]
        panels.append(_panel(f"digits, {method}, n = 1,000", rows))
    charts.save(panels, ROOT / "docs" / "few-steps.png")


def _panel(title: str, rows: Sequence[tuple[str, int, float]]) -> charts.Panel:
    lines = {}
    for told in dict.fromkeys(row[0] for row in rows):
        points = sorted((steps, fid) for name, steps, fid in rows if name == told)
        lines[told] = ([x for x, _ in points], [y for _, y in points])
    return charts.Panel(title, "network calls", "FID", lines, marks=True, logs=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = ("tables", "students", "scores", "ways", "plot")
    parser.add_argument("what", nargs="?", default="tables", choices=verbs)
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--n", type=int, nargs="+", default=COUNTS, help="numbers of samples")
    rows = ["distilled", *ROWS]
    parser.add_argument("--rows", nargs="+", default=rows, choices=rows, help="what is scored")
    parser.add_argument("--threads", type=int, help="of the processor (default: all)")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.what in ("students", "scores") and not (asked.name and asked.out):
        parser.error(f"{asked.what} needs a bundled model and a folder of runs")
    if asked.what == "students":
        students(asked.name, asked.out)
    elif asked.what == "scores":
        scores(asked.name, asked.out, asked.n, asked.rows)
    elif asked.what == "ways":
        ways(asked.out or ROOT / "runs" / "few-ways")
    elif asked.what == "plot":
        plot()
    else:
        print("\n".join([*scores_table(), "", *ways_table()]))


if __name__ == "__main__":
    main()
