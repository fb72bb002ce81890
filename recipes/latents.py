"""Pixels against latents of Fashion-MNIST in equal time: the tables of docs/latents.md.

    python recipes/latents.py                        # print the tables of the records
    python recipes/latents.py train runs/latents     # the autoencoder, and three models in latents
    python recipes/latents.py scores runs/latents    # FID, of reconstructions too
    python recipes/latents.py speed runs/latents     # seconds of training and of sampling
    python recipes/latents.py blur runs/latents      # spectra, and blur in latents
    python recipes/latents.py tokens runs/tokens     # digits as tokens

The model of pixels is the bundled fashion-ddpm. `train` resumes where it was cut; it takes about
two hours on one core. Records are docs/records/latent-*.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from sfumato import files
from sfumato.cli import main as sfumato
from sfumato.evaluation import reconstructions
from sfumato.evaluation.extractor import choose
from sfumato.evaluation.protocol import Judge
from sfumato.training.reconstruction import Reconstruction

RECORDS = Path(__file__).parents[1] / "docs" / "records"
PIXELS = "fashion-ddpm"
DATA = "fashion-mnist"
SAMPLERS = ("ddim", "unipc")
CALLS, COUNT, BATCH = 20, 2_000, 64
AUTOENCODER = ("--channels", "4", "--down", "4", "--width", "16", "--perceptual", "0.1")
CODED = 120_000
"""Training images of the autoencoder."""
SIZE = ("--width", "64", "--multipliers", "1,2", "--attention", "0", "--patch", "1")
MODELS = {
    "ddpm": ("ddpm", "--betas", "cosine", "--prediction", "velocity"),
    "soft": ("soft", "--prediction", "spectrum"),
    "ni-ddpm": ("ni-ddpm", "--noise", "data"),
}
TRAINED = 480_000
"""Training images of each model in latents, so that it has, with its autoencoder, the time of the
180,000 of the model of pixels: `speed` measures both."""
WIDTHS = (0.05, 0.1, 0.2)
"""Of a blur, as shares of a side."""


def train(out: Path) -> None:
    """Train the autoencoder, then the models of its latents."""
    home = str(out / "autoencoder")
    words = ["train-autoencoder", "--data", DATA, *AUTOENCODER, "--images", str(CODED)]
    _run(*words, "--preview-every", "60000", "--out", home)
    for name, method in MODELS.items():
        words = ["train", *method, "--data", DATA, "--latent", home, *SIZE]
        words += ["--images", str(TRAINED), "--preview-every", "240000"]
        _run(*words, "--out", str(out / name))


def scores(out: Path) -> None:
    """Score samples of each model, and reconstructions, where the record is not there."""
    for name in MODELS:
        for sampler in SAMPLERS:
            record = RECORDS / f"latent-{name}-{sampler}.json"
            how = ("--sampler", sampler, "--steps", str(CALLS), "--n", str(COUNT))
            if (out / name).is_dir() and not record.exists():
                _run("evaluate", str(out / name), *how, "--out", str(record))
    real, other = sf.load(DATA, "test"), sf.load(DATA, "train")
    judge = Judge(real, other, lambda *found: choose("auto", *found), COUNT)
    auto = sf.autoencoders.read_autoencoder(out / "autoencoder")

    @torch.no_grad()
    def back(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([auto.decode(auto.encode(part).mean) for part in x.split(250)])

    images = reconstructions.reconstructions(back, real, COUNT)
    _keep("autoencoder", judge.record({"run": str(out / "autoencoder")}, [judge.result(images)]))


def speed(out: Path, rounds: int = 5) -> None:
    """Seconds of a training step of each, and of 1,000 images, by turns in one process."""
    data = sf.load(DATA)
    pixels = sf.from_pretrained(PIXELS)
    latents = {name: sf.from_pretrained(out / name) for name in MODELS}
    auto = sf.autoencoders.read_autoencoder(out / "autoencoder")
    coded, _ = sf.latents.encoded(data, auto, out / "ni-ddpm")
    steps: dict[str, Callable[[], object]] = {"autoencoder": _coding(out, data)}
    draws: dict[str, Callable[[], object]] = {}
    for name, model in {PIXELS: pixels, **latents}.items():
        steps[name] = _step(model, data if model is pixels else coded)
        sampler = model.chosen(sf.Sampler("ddim", CALLS))
        draws[name] = lambda model=model, sampler=sampler: model.sample(range(100), sampler)
    found = {}
    for what, calls in (("step", steps), ("hundred", draws)):
        spent: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 1):
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if turn:  # the first also makes what is kept
                    spent[name].append(time.perf_counter() - began)
        found[what] = {name: statistics.median(times) for name, times in spent.items()}
    _keep("speed", {"threads": torch.get_num_threads(), "rounds": rounds, **found})


def blur(out: Path) -> None:
    """Ranges of spectra, and the distance of decoded blurred latents from blurred images."""
    model = sf.from_pretrained(out / "ddpm")
    codec, x = model.codec, sf.load(DATA, "test").batch(range(500))
    z = codec.encode(x)
    rows = {}
    for width in (0.0, *WIDTHS):
        rows[str(width)] = _rms(codec.decode(_blurred(z, width)) - _blurred(x, width))
    images = {str(width): _rms(_blurred(x, width) - x) for width in WIDTHS}
    spectra = {
        "pixels": _fall(sf.from_pretrained(PIXELS).stats.spectrum),
        "latents": _fall(model.stats.spectrum),
    }
    _keep("blur", {"images": len(x), "fall": spectra, "decoded": rows, "blurred": images})


def tokens(out: Path) -> None:
    """Train an autoencoder of digits as tokens and a model of its latents, and score both."""
    home, model, record = out / "autoencoder", str(out / "ddpm"), RECORDS / "latent-tokens.json"
    size = ("--categorical", "--channels", "4", "--down", "1", "--width", "32", "--kl", "1e-3")
    _run("train-autoencoder", *size, "--images", "150000", "--out", str(home))
    method = ("--betas", "cosine", "--prediction", "velocity")
    words = ("train", "ddpm", *method, *SIZE, "--latent", str(home), "--images", "150000")
    _run(*words, "--out", model)
    if not record.exists():
        how = ("--sampler", "unipc", "--steps", str(CALLS), "--n", "1000")
        _run("evaluate", model, *how, "--out", str(record))
    _keep("tokens-autoencoder", json.loads((home / "scores.json").read_text()))


def _run(*words: str) -> None:
    if code := sfumato(list(words)):
        raise SystemExit(code)


def _keep(name: str, record: dict[str, Any]) -> None:
    files.write(RECORDS / f"latent-{name}.json", json.dumps(record, indent=2) + "\n")


def _coding(out: Path, data: sf.Data) -> Callable[[], object]:
    """A step of the autoencoder's training."""
    from sfumato.autoencoding import TrainedAutoencoder, read
    from sfumato.evaluation.extractor import bundled
    from sfumato.store import newest

    old = newest(out / "autoencoder", read)
    trained = TrainedAutoencoder(old.config)
    objective = Reconstruction(trained, bundled(DATA).net)
    options = sf.TrainOptions(batch=BATCH)
    optimizer = torch.optim.AdamW(trained.network.parameters())

    def step() -> None:
        drawn = objective.draw(0, data, options)
        objective.losses(drawn, slice(None), data.batch(drawn.rows)).each.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _step(model: sf.Model, data: sf.Data) -> Callable[[], object]:
    """A step of a new model's training like this one."""
    mine = sf.Model(model.config, model.stats, codec=model.codec)
    optimizer = torch.optim.AdamW(mine.denoiser.parameters())

    def step() -> None:
        x0, t = data.batch(torch.randint(len(data), (BATCH,))), torch.rand(BATCH, 1, 1, 1)
        noise = torch.randn_like(x0)
        sf.loss(mine.denoiser, mine.recipe.weighting, x0, t, noise).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _blurred(x: torch.Tensor, width: float) -> torch.Tensor:
    if not width:
        return x
    side = max(x.shape[-2:])
    heat = sf.families.Heat(sf.schedules.Constant(width * side), sf.bases.dct(*x.shape[-2:]))
    return heat.at(torch.zeros((), dtype=torch.float64))(x)


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def _fall(spectrum: torch.Tensor) -> float:
    """The variance of the lowest seventh of frequencies over that of the highest."""
    flat = spectrum.mean(0)
    part = max(1, flat.shape[0] // 7)
    return float(flat[:part, :part].mean() / flat[-part:, -part:].mean())


def scores_table() -> list[str]:
    """FID at 20 calls, with seconds of training and sampling, in Markdown."""
    speeds, floor = _read("speed"), _read("autoencoder")["results"][0]
    lines = [
        "| | sampler | FID | precision | recall | minutes of training | seconds for 1,000 images |",
        "|---" * 7 + "|",
    ]
    coded = speeds["step"]["autoencoder"] * CODED / BATCH
    for name in (PIXELS, *MODELS):
        images, before = (180_000, 0.0) if name == PIXELS else (TRAINED, coded)
        minutes = (before + speeds["step"][name] * images / BATCH) / 60
        for sampler in SAMPLERS:
            row = _row(name, sampler)
            shown = f"`{name}`, pixels" if name == PIXELS else f"`{name}`, latents"
            lines.append(
                f"| {shown} | {sampler} | {row['fid']:.3g} | {row['precision']:.2f} | "
                f"{row['recall']:.2f} | {minutes:.0f} | {10 * speeds['hundred'][name]:.0f} |"
            )
    lines.append(
        f"| reconstructions | | {floor['fid']:.3g} | {floor['precision']:.2f} | "
        f"{floor['recall']:.2f} | {coded / 60:.0f} | |"
    )
    return lines


def blur_table() -> list[str]:
    """The distance of decoded blurred latents from blurred images, in Markdown."""
    found = _read("blur")
    lines = ["| blur, share of a side | decoded from latents | the blurred image from the image |"]
    lines.append("|---" * 3 + "|")
    for width, error in found["decoded"].items():
        other = found["blurred"].get(width, 0.0)
        lines.append(f"| {width} | {error:.3f} | {other:.3f} |")
    return lines


def tokens_table() -> list[str]:
    """Of digits as tokens: what comes back from the autoencoder, and samples, in Markdown."""
    back, drawn = (_read(name)["results"][0] for name in ("tokens-autoencoder", "tokens"))
    return [
        "| | tokens that come back | images of which all do | FID | copies |",
        "|---" * 5 + "|",
        f"| reconstructions | {100 * back['tokens']:.1f} % | {100 * back['exact']:.1f} % | "
        f"{back['fid']:.3g} | |",
        f"| samples | | | {drawn['fid']:.3g} | {100 * drawn['copies']:.1f} % |",
    ]


def _row(name: str, sampler: str) -> dict[str, Any]:
    """The result of a model at 20 calls."""
    known = {"ddim": "fashion-ddpm-2000", "unipc": "kernel-fashion-ddpm-unipc"}
    stem = known[sampler] if name == PIXELS else f"latent-{name}-{sampler}"
    results = json.loads((RECORDS / f"{stem}.json").read_text())["results"]
    return next(row for row in results if row["steps"] == CALLS)


def _read(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"latent-{name}.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = {"train": train, "scores": scores, "speed": speed, "blur": blur, "tokens": tokens}
    parser.add_argument("what", nargs="?", default="tables", choices=["tables", *verbs])
    parser.add_argument("out", nargs="?", type=Path, help="folder of the runs")
    parser.add_argument("--threads", type=int, help="of the processor (default: all)")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.what == "tables":
        print("\n".join([*scores_table(), "", *blur_table(), "", *tokens_table()]))
    elif asked.out is None:
        parser.error(f"{asked.what} needs a folder of runs")
    else:
        verbs[asked.what](asked.out)


if __name__ == "__main__":
    main()
