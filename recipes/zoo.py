"""Every method trained for a minute on the digits: table, strips and page of docs/zoo.md.

    python recipes/zoo.py              # all of METHODS, two at a time; resumes a run
    python recipes/zoo.py ddpm soft    # only these, one after the other
    python recipes/zoo.py --pages      # only write the page, from the results in --out

Each method trains the same network for the same seconds and draws the images of seeds 0 to n - 1
with its own sampler, at most 100 network calls each; `Judge` scores them in the features of the
digits' classifier against the test split. For
comparison, as many draws of a Gaussian with the mean and the full covariance of the training images
are scored too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import files, pictures, trajectory
from sfumato.config import Config
from sfumato.evaluation.extractor import choose
from sfumato.evaluation.protocol import Judge
from sfumato.evaluation.samples import Images
from sfumato.methods import METHODS
from sfumato.methods.table import HEADINGS, row
from sfumato.model import Model
from sfumato.names import sampled
from sfumato.networks.backbones import UNetOptions
from sfumato.sampling.samplers import Sampler
from sfumato.training.data import load
from sfumato.training.train import TrainOptions, build, train

CALLS = 100
NETWORK = UNetOptions(width=32, multipliers=(1, 2), patch=1)
OPTIONS = TrainOptions(batch=64, learning_rate=2e-3, preview_every=0, checkpoint_every=10**9)
SHOWN = 14
GAUSSIAN = "gaussian"


@dataclass(frozen=True)
class Plan:
    """Steps and parameters of a method whose defaults need more than `CALLS` network calls."""

    steps: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


PLANS = {
    "ddpm": Plan(100),
    "ddim": Plan(50),
    "vdm": Plan(100, {"bins": 17, "gamma": (-7.8, 5.0)}),
    "ncsn": Plan(None, {"inner": 10}),
    "ncsnv2": Plan(None, {"count": 33, "inner": 3}),
    "ve": Plan(50),
    "vp": Plan(50),
    "subvp": Plan(50),
    "ihdm": Plan(None, {"count": 25}),
    "blurring": Plan(50),
    "soft-mask": Plan(50),
    "soft-down": Plan(50),
    "cold": Plan(50),
    "ni-ddpm": Plan(50),
    "ni-smld": Plan(None, {"inner": 10}),
}


def model_of(name: str, images: int) -> tuple[Model, TrainOptions]:
    """An untrained model of a method, and the options to train it on `images` images."""
    data, options = load("digits"), replace(OPTIONS, images=images)
    plan = PLANS.get(name, Plan())
    config = Config(name, data.record, plan.parameters, NETWORK, sampler=Sampler(steps=plan.steps))
    return build(config, data, options), options


def run(name: str, out: Path, seconds: float, n: int) -> None:
    """Train, sample and score one method into `out`/name, unless the result exists."""
    folder = out / name
    if (folder / "result.json").is_file():
        return
    data, plan = load("digits"), PLANS.get(name, Plan())
    trial, options = model_of(name, 20 * OPTIONS.batch)
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        train(trial, data, options, Path(place) / "run", device="cpu")
        rate = options.images / (time.perf_counter() - began)
    model, options = model_of(name, round(rate * seconds))
    began = time.perf_counter()
    train(model, data, options, folder / "run", device="cpu")
    spent = time.perf_counter() - began
    chosen = model.sampler
    calls = model.network_calls(chosen)
    if calls > CALLS:
        raise SystemExit(f"{name} needs {calls} network calls; the zoo allows {CALLS}.")
    began = time.perf_counter()
    images = model.sample(range(n), chosen, batch=250)
    about = {
        "seconds_training": round(spent, 1),
        "images_seen": options.images,
        "threads": torch.get_num_threads(),
        "steps": chosen.steps,
        "calls": calls,
        "sampler": chosen.name,
        "parameters": plan.parameters,
        "seconds_per_image": round((time.perf_counter() - began) / n, 5),
    }
    keep(name, folder, images, about, n)


def gaussian(out: Path, n: int) -> None:
    """Draws of N(mean, covariance) of the training images, as one more row."""
    data, generator = load("digits"), torch.Generator().manual_seed(0)
    x = data.batch(range(len(data))).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    eps = torch.randn(n, x.shape[1], generator=generator, dtype=torch.float64)
    drawn = x.mean(0) + eps * values.clamp(min=0).sqrt() @ vectors.T
    images = drawn.float().reshape(n, *data.record.shape)
    keep(GAUSSIAN, out / GAUSSIAN, images, {"steps": 0, "calls": 0}, n)


def keep(name: str, folder: Path, images: Tensor, about: dict[str, Any], n: int) -> None:
    """Score images and write images and score, each file whole or not at all."""
    judge = Judge(load("digits", "test"), load("digits"), _auto, n)
    pixels = torch.from_numpy(pictures.to_uint8(images)).permute(0, 3, 1, 2).contiguous()
    result = judge.result(Images(pixels, about)) | {"n": n, "floor": judge.floor}
    pictures.save(images, folder / "samples.npz")
    files.write(folder / "result.json", json.dumps(result, indent=2) + "\n")
    print(f"{name}: FID {result['fid']:.3f}, {about}", flush=True)


def _auto(*found: Any) -> Any:  # noqa: ANN401 - a record and images, an extractor
    return choose("auto", *found)


def page(out: Path, docs: Path) -> None:
    """Write docs/zoo.md, its record and its pictures from the results in `out`."""
    names = [name for name in METHODS if (out / name / "result.json").is_file()]
    found = {
        name: json.loads((out / name / "result.json").read_text()) for name in [GAUSSIAN, *names]
    }
    (docs / "zoo").mkdir(parents=True, exist_ok=True)
    real = load("digits", "test")
    rows = {"real": real.batch(range(SHOWN))}
    for name in [*names, GAUSSIAN]:
        with np.load(out / name / "samples.npz") as file:
            first = torch.from_numpy(file["images"][:SHOWN]).permute(0, 3, 1, 2)
        rows[name] = first.float() / 127.5 - 1
    pictures.save(pictures.strip([*rows.values()], [*rows], scale=4), docs / "zoo" / "all.png")
    for name in names:
        strips(name, out, docs / "zoo", found[name]["images_seen"])
    files.write(docs / "records" / "zoo-digits.json", json.dumps(found, indent=2) + "\n")
    files.write(docs / "zoo.md", text(names, found))


def strips(name: str, out: Path, docs: Path, images: int) -> None:
    """Strips of three images from image to noise, and of three samples from noise to image."""
    model, _ = model_of(name, images)
    x0 = load("digits", "test").batch([0, 1, 2])
    there = trajectory.forward(model.recipe.process, x0)
    pictures.save(pictures.strip(list(there.detach()), scale=4), docs / f"{name}-forward.png")
    from sfumato.store import from_pretrained

    back = trajectory.reverse(from_pretrained(out / name / "run"), range(3))
    pictures.save(pictures.strip(list(back), scale=4), docs / f"{name}-reverse.png")


def text(names: list[str], found: dict[str, Any]) -> str:
    """The page, in Markdown."""
    some, spent = found[names[0]], [found[name]["seconds_training"] for name in names]
    said = [
        "# The zoo",
        "",
        "<!-- Written by recipes/zoo.py. -->",
        "",
        "Every published method of the library, described by its own recipe; `sfumato "
        "methods` prints the same table, `sfumato cite METHOD` the references. Scalars are "
        "multiples of the identity, `Lambda` the basis's squared frequencies, `b_t` a blur or a "
        "decay, `abar_t` the chain's power, `Sigma` a colour of noise.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
    ]
    for name in names:
        cells = row(name)
        linked = f"[{cells.reference}]({cells.source.url})"
        said.append(f"| [`{name}`](#{name}) | " + " | ".join([*cells[1:-2], linked]) + " |")
    floor = some["floor"]
    said += [
        "",
        "## A minute of training each",
        "",
        f"Every method trained the same network for a minute ({min(spent):.0f} to {max(spent):.0f} "
        f"s by the clock) in {some['threads']} thread, two methods at a time, on the digits' "
        f"training split, and drew {some['n']:,} images (seeds from 0, averaged weights) with its "
        f"own sampler in at most {CALLS} network calls; levels and steps that differ from the "
        "defaults are listed below, and were chosen by one to three trials on this table. FID and "
        "the others are in the features of the bundled classifier of digits, against the images of "
        "the test split, so not comparable with other extractors. `gaussian` is a Gaussian with "
        "the mean and full covariance of the training images. A minute ranks how fast a method "
        "learns, not its final quality. `cold` has no noise and starts from blurred training "
        "images; at 8 x 8 pixels the blur loses nothing, so that it returns training images, which "
        "explains its score.",
        "",
        "| method | FID | KID | precision | recall | calls | images seen |",
        "|---|---|---|---|---|---|---|",
    ]
    ranked = sorted([*names, GAUSSIAN], key=lambda name: found[name]["fid"])
    for name in ranked:
        one = found[name]
        scores = [f"{one[score]:.3g}" for score in ("fid", "kid", "precision", "recall")]
        seen = f"{one['images_seen']:,}" if "images_seen" in one else ""
        said.append(f"| `{name}` | {' | '.join(scores)} | {one['calls']} | {seen} |")
    real = [f"{floor[score]:.3g}" for score in ("fid", "kid", "precision", "recall")]
    said += [
        f"| real, {floor['split']}, n = {floor['n']:,} | {' | '.join(real)} | | |",
        "",
        "Reproduced by `python recipes/zoo.py`; the record is "
        "[zoo-digits.json](records/zoo-digits.json).",
        "",
        "![Rows of images, one for each method](zoo/all.png)",
        "",
    ]
    for name in names:
        one = found[name]
        chosen = "".join(f" {key}={value}" for key, value in one["parameters"].items())
        said += [
            f"## {name}",
            "",
            f"{first_line(name)} Here:{chosen or ' defaults'}, {one['steps']} steps of "
            f"{sampled(one)['sampler']}.",
            "",
            f"![{name}, from image to noise](zoo/{name}-forward.png)",
            "",
            f"![{name}, from noise to image](zoo/{name}-reverse.png)",
            "",
        ]
    return "\n".join(said)


def first_line(name: str) -> str:
    """The first line of a method's docstring."""
    return (METHODS[name].__doc__ or "").partition("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--n", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2, help="methods at a time, a thread each")
    parser.add_argument("--pages", action="store_true", help="only write the page")
    asked = parser.parse_args()
    if unknown := [name for name in asked.methods if name not in METHODS]:
        parser.error(f"no method '{unknown[0]}'; there are {', '.join(METHODS)}")
    if not asked.pages:
        if not (asked.out / GAUSSIAN / "result.json").is_file():
            gaussian(asked.out, asked.n)
        if asked.methods:
            for name in asked.methods:
                run(name, asked.out, asked.seconds, asked.n)
        else:
            together(asked.out, asked.seconds, asked.n, asked.workers)
    if not asked.methods:
        page(asked.out, asked.docs)


def together(out: Path, seconds: float, n: int, workers: int) -> None:
    """All methods, each in its own process with one thread, `workers` at a time."""
    left = iter(METHODS)
    one = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--out", str(out), f"--seconds={seconds}", f"--n={n}"]

    def work() -> None:
        for name in left:
            subprocess.run([*words, name], env=one, check=True)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()


if __name__ == "__main__":
    main()
