"""Restoration of Fashion-MNIST: PSNR, SSIM and seconds an image, beside Wiener and total variation.

    pip install scikit-image     # for total variation
    python benchmarks/restoration.py --out restoration.json [--images 100] [--models fashion-soft]

Measurements of the first images of the test split, with noise of standard deviation 0.05, are
restored by each model with each rule; "one" is a single sample, "mean" the mean of several.
`wiener` is the best linear estimate under the measured mean and spectrum, with dense matrices in
float64. `tv` minimizes |A x - y|^2 / 2 + w TV(x) by FISTA, whose proximal step is scikit-image's
`denoise_tv_chambolle`. w, and the scales of dps and pigdm, are those of the highest PSNR on the
first 8 training images.

Parts that are in --out already are kept, so that the table may be computed in parts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sfumato as sf
from sfumato.evaluation.fidelity import psnr, ssim

OPERATORS = (
    *("blur:sigma=1", "blur:sigma=2", "box:10,10,18,18"),
    *("random-mask:0.5", "random-mask:0.8", "down:2", "down:4"),
)
MODELS = ("fashion-soft", "fashion-ddpm")
RULES = ("spectrum", "pigdm", "dps", "replacement")
BASELINES = ("wiener", "tv")
NOISE = 0.05
TUNED = 8
SCALES = {"pigdm": (0.1, 0.3, 1.0), "dps": (0.1, 0.3, 1.0, 3.0)}
WEIGHTS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
FISTA = 60
APART = 2**31
"""The noise's seeds begin here, apart from those of the samples."""


def measured(images: Tensor, operator: sf.operators.Operator, first: int) -> Tensor:
    """y of images (n, C, H, W); the noise of image i has the seed APART + first + i."""
    y = operator(images)
    return y + NOISE * sf.Seeds(range(APART + first, APART + first + len(y)))(y)


def wiener(y: Tensor, operator: sf.operators.Operator, stats: sf.DataStatistics) -> Tensor:
    """m + S A^T (A S A^T + R)^-1 (y - A m) of measurements (n, *measured)."""
    shape = tuple(stats.mean.shape)
    units = torch.eye(stats.mean.numel(), dtype=torch.float64).reshape(-1, *shape)
    matrix = operator(units).flatten(1).mT
    cov = stats.cov()(units).flatten(1)
    mean = stats.basis.synthesize(stats.mean)
    total = matrix @ cov @ matrix.mT + NOISE**2 * torch.eye(len(matrix), dtype=torch.float64)
    off = (y.double() - operator(mean[None])).flatten(1)
    return (mean.flatten() + torch.linalg.solve(total, off.mT).mT @ matrix @ cov).reshape(
        -1, *shape
    )


def total_variation(y: Tensor, operator: sf.operators.Operator, weight: float) -> Tensor:
    """The minimum of |A x - y|^2 / 2 + weight TV(x), for each y (n, *measured), by FISTA."""
    from skimage.restoration import denoise_tv_chambolle

    x = ahead = operator.T(y.double())
    length = 1 / _largest(operator, x)
    t = 1.0
    for _ in range(FISTA):
        moved = ahead - length * operator.T(operator(ahead) - y)
        smooth = [
            denoise_tv_chambolle(one[0], weight=weight * length, max_num_iter=30)
            for one in moved.numpy()
        ]
        new = torch.from_numpy(np.stack(smooth))[:, None]
        later = (1 + (1 + 4 * t**2) ** 0.5) / 2
        ahead = new + (t - 1) / later * (new - x)
        x, t = new, later
    return x


def _largest(operator: sf.operators.Operator, x: Tensor) -> float:
    """The largest eigenvalue of A^T A, by power iteration."""
    z = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    for _ in range(50):
        z = operator.T(operator(z / z.norm()))
    return float(z.norm())


def best(values: Iterable[float], restore: Callable[[float], Tensor], truth: Tensor) -> float:
    """The value with which `restore` has the highest PSNR."""
    found = {value: float(psnr(restore(value), truth).mean()) for value in values}
    return max(found, key=lambda value: found[value] if found[value] == found[value] else -1.0)


def scored(restored: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean PSNR, its standard error, and mean SSIM over images, of one sample and of the mean.

    `restored` is (n, k, C, H, W).
    """
    mean = restored.mean(1)
    one = [restored[:, j] for j in range(restored.shape[1])]
    return {
        "psnr": float(psnr(mean, truth).mean()),
        "error": float(psnr(mean, truth).std() / len(truth) ** 0.5),
        "ssim": float(ssim(mean, truth).mean()),
        "psnr_one": float(np.mean([float(psnr(x, truth).mean()) for x in one])),
        "ssim_one": float(np.mean([float(ssim(x, truth).mean()) for x in one])),
    }


def sampled(
    model: sf.Model, rule: str, spec: str, asked: argparse.Namespace
) -> dict[str, float | str]:
    """The row of a model's rule."""
    operator = sf.measurement(spec, model.shape)
    sampler = sf.Sampler(asked.sampler, asked.steps)

    def drawn(y: Tensor, count: int, scale: float) -> Tensor:
        seeds = range(count)
        return sf.restore(
            model, y, operator, NOISE, seeds, sampler, batch=100, rule=rule, scale=scale
        )

    scale = 1.0
    if rule in SCALES:
        known = sf.load("fashion-mnist", f"train[:{TUNED}]").batch(range(TUNED))
        y = measured(known, operator, asked.images)
        scale = best(SCALES[rule], lambda value: drawn(y, 1, value)[:, 0], known)
    truth = images(asked)
    began = time.perf_counter()
    restored = drawn(measured(truth, operator, 0), asked.samples, scale)
    seconds = (time.perf_counter() - began) / len(truth) / asked.samples
    row: dict[str, float | str] = {**scored(restored, truth), "seconds": seconds}
    if rule in SCALES:
        row["scale"] = scale
    return row


def linear(spec: str, asked: argparse.Namespace) -> dict[str, float | str]:
    """The row of the Wiener filter."""
    model = sf.from_pretrained(MODELS[0])
    operator = sf.measurement(spec, model.shape)
    truth = images(asked)
    began = time.perf_counter()
    restored = wiener(measured(truth, operator, 0), operator, model.stats)
    seconds = (time.perf_counter() - began) / len(truth)
    return {**scored(restored[:, None], truth), "seconds": seconds}


def smooth(spec: str, asked: argparse.Namespace) -> dict[str, float | str]:
    """The row of total variation."""
    truth = images(asked)
    operator = sf.measurement(spec, tuple(truth.shape[1:]))
    known = sf.load("fashion-mnist", f"train[:{TUNED}]").batch(range(TUNED))
    y = measured(known, operator, asked.images)
    weight = best(WEIGHTS, lambda value: total_variation(y, operator, value), known)
    began = time.perf_counter()
    restored = total_variation(measured(truth, operator, 0), operator, weight)
    seconds = (time.perf_counter() - began) / len(truth)
    return {**scored(restored[:, None], truth), "seconds": seconds, "scale": weight}


def images(asked: argparse.Namespace) -> Tensor:
    """The true images."""
    return sf.load("fashion-mnist", f"test[:{asked.images}]").batch(range(asked.images))


def table(rows: list[dict[str, float | str]]) -> str:
    """The rows as markdown, by operator."""
    head = "| operator | model | rule | PSNR, one | PSNR, mean | SSIM, mean | s / sample | scale |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: OPERATORS.index(str(row["operator"]))):
        scale = f"{row['scale']:g}" if "scale" in row else ""
        lines.append(
            f"| `{row['operator']}` | {row['model']} | {row['rule']} | {row['psnr_one']:.2f} | "
            f"{row['psnr']:.2f} ± {row['error']:.2f} | {row['ssim']:.3f} | {row['seconds']:.3f} | "
            f"{scale} |"
        )
    return "\n".join(lines)


def parts(asked: argparse.Namespace) -> Iterable[tuple[str, str, str]]:
    """(operator, model, rule) of each row that is asked for; baselines have no model."""
    for spec in asked.operators.split(";"):
        for rule in asked.rules.split(","):
            for model in [""] if rule in BASELINES else asked.models.split(","):
                yield spec, model, rule


def main() -> None:
    """Compute the rows that are missing, and print all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sampler", default="ancestral")
    parser.add_argument("--operators", default=";".join(OPERATORS), help="separated by ;")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rules", default=",".join((*BASELINES, *RULES)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="restoration.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = Path(asked.out)
    settings = {name: getattr(asked, name) for name in ("images", "samples", "steps", "sampler")}
    rows = json.loads(out.read_text()) if out.exists() else []
    for spec, name, rule in parts(asked):
        key = {"operator": spec, "model": name, "rule": rule, **settings}
        if any(all(row.get(k) == v for k, v in key.items()) for row in rows):
            continue
        if rule in BASELINES:
            row = {"wiener": linear, "tv": smooth}[rule](spec, asked)
        else:
            row = sampled(sf.from_pretrained(name), rule, spec, asked)
        rows.append(key | row)
        out.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    print(table([row for row in rows if all(row.get(k) == v for k, v in settings.items())]))


if __name__ == "__main__":
    main()
