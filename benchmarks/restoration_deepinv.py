"""The measurements of `restoration.py`, restored by deepinv's DPS and DiffPIR with our network.

    python -m venv deepinv && deepinv/bin/pip install . torchvision deepinv
    deepinv/bin/python benchmarks/restoration_deepinv.py --out deepinv.json [--images 100]

deepinv's samplers take a denoiser of white noise, so the network is that of `fashion-ddpm`: asked
for noise of deviation s, it sees a_t x at the time at which its own noise is s. Both samplers make
--steps network calls. Their parameters, the weight of DPS and (lambda, zeta) of DiffPIR, are those
of the highest PSNR on the first 8 training images. deepinv's images lie in [0, 1], half of our
scale.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import deepinv
import torch
from restoration import NOISE, OPERATORS, TUNED, images, measured, psnr, scored
from torch import Tensor

import sfumato as sf

MODEL = "fashion-ddpm"
WEIGHTS = (0.3, 1.0, 3.0, 10.0)
PAIRS = tuple((lam, zeta) for lam in (0.1, 0.3, 1.0, 3.0, 7.0) for zeta in (0.3, 1.0))


class White(deepinv.models.Denoiser):
    """A model's denoiser as deepinv's: of images in [0, 1] with white noise of deviation sigma."""

    def __init__(self, model: sf.Model) -> None:
        super().__init__()
        self.inner = model.denoiser.eval()
        self.calls = 0
        process = model.recipe.process
        self.times = torch.linspace(1e-4, 1, 20001, dtype=torch.float64)
        logs = [process.log_snr(t).reshape(()) for t in self.times]
        self.levels = -torch.stack(logs) / 2  # log of noise over signal, rising with time
        self.signal = process.signal

    def forward(self, x: Tensor, sigma: Tensor | float, **ignored: object) -> Tensor:
        self.calls += 1
        level = torch.as_tensor(2 * sigma, dtype=torch.float64).flatten()[0].log()
        at = torch.searchsorted(self.levels, level).clamp(max=len(self.times) - 1)
        t = self.times[at]
        noisy = self.signal.at(t)((2 * x - 1).float())
        return (self.inner(noisy, t).mean + 1) / 2


class Physics(deepinv.physics.LinearPhysics):
    """A measurement operator as deepinv's."""

    def __init__(self, operator: sf.operators.Operator) -> None:
        super().__init__(noise_model=deepinv.physics.GaussianNoise(NOISE / 2))
        self.operator = operator

    def A(self, x: Tensor, **ignored: object) -> Tensor:
        return self.operator(x)

    def A_adjoint(self, y: Tensor, **ignored: object) -> Tensor:
        return self.operator.T(y)


def halved(y: Tensor, operator: sf.operators.Operator) -> Tensor:
    """The measurement of images in [0, 1]: (y + A 1) / 2."""
    return (y + operator(torch.ones(1, 1, 28, 28))) / 2


def dps(white: White, physics: Physics, y: Tensor, steps: int, seed: int, weight: float) -> Tensor:
    solver = deepinv.sampling.DPS(white, num_steps=steps + 1, weight=weight, rng=torch.Generator())
    return solver(y, physics, x_init=(len(y), 1, 28, 28), seed=seed).float()


def diffpir(
    white: White, physics: Physics, y: Tensor, steps: int, seed: int, pair: tuple[float, float]
) -> Tensor:
    fidelity = deepinv.optim.data_fidelity.L2()
    solver = deepinv.sampling.DiffPIR(
        white, fidelity, sigma=NOISE / 2, max_iter=steps, lambda_=pair[0], zeta=pair[1]
    )
    return solver(y, physics, seed=seed).float()


METHODS: dict[str, tuple[Callable[..., Tensor], tuple[object, ...]]] = {
    "deepinv DPS": (dps, WEIGHTS),
    "deepinv DiffPIR": (diffpir, PAIRS),
}


def row(name: str, spec: str, white: White, asked: argparse.Namespace) -> dict[str, object]:
    """Scores of one method on one operator."""
    restore, values = METHODS[name]
    truth = images(asked)
    operator = sf.measurement(spec, tuple(truth.shape[1:]))
    physics = Physics(operator)

    def drawn(x: Tensor, first: int, seed: int, value: object) -> Tensor:
        y = halved(measured(x, operator, first), operator)
        return 2 * restore(white, physics, y, asked.steps, seed, value) - 1

    known = sf.load("fashion-mnist", f"train[:{TUNED}]").batch(range(TUNED))
    found = {v: float(psnr(drawn(known, asked.images, 1, v), known).mean()) for v in values}
    chosen = max(found, key=lambda v: found[v] if found[v] == found[v] else -1.0)
    white.calls = 0
    began = time.perf_counter()
    samples = [drawn(truth, 0, 1 + j, chosen) for j in range(asked.samples)]
    seconds = (time.perf_counter() - began) / len(truth) / asked.samples
    restored = torch.stack(samples, 1)
    calls = white.calls / asked.samples
    about = {"seconds": seconds, "calls": calls, "chosen": chosen, "tried": len(values)}
    return {**scored(restored, truth), **about}


def main() -> None:
    """Compute the rows that are missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--operators", default=";".join(OPERATORS), help="separated by ;")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="restoration-deepinv.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    white = White(sf.from_pretrained(MODEL))
    out = Path(asked.out)
    rows = json.loads(out.read_text()) if out.exists() else []
    settings = {name: getattr(asked, name) for name in ("images", "samples", "steps")}
    for spec in asked.operators.split(";"):
        for name in asked.methods.split(","):
            key = {"operator": spec, "model": MODEL, "rule": name, **settings}
            if any(all(old.get(k) == v for k, v in key.items()) for old in rows):
                continue
            rows.append(key | row(name, spec, white, asked))
            out.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    print(
        "| operator | method | PSNR, one | PSNR, mean | SSIM, mean | s / sample | calls | chosen |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for one in rows:
        print(
            f"| `{one['operator']}` | {one['rule']} | {one['psnr_one']:.2f} | {one['psnr']:.2f} ± "
            f"{one['error']:.2f} | {one['ssim']:.3f} | {one['seconds']:.3f} | {one['calls']:g} | "
            f"{one['chosen']} |"
        )


if __name__ == "__main__":
    main()
