"""Scores of 10,000 against 10,000 images: seconds and peak memory of ours and of other libraries.

    pip install prdc             # for precision, recall, density and coverage
    python benchmarks/metrics.py [--threads 2] [--n 10000]

Each implementation runs in its own process, so that its peak memory is measured alone.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

WIDTHS = (192, 2048)
CONTESTANTS = ("ours FID", "torchmetrics FID", "ours neighbours", "prdc")


def sets(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator) / d**0.5
    real, fake = (torch.randn(n, d, generator=generator) @ mix for _ in range(2))
    return real, 1.1 * fake


def judged(name: str, real: torch.Tensor, fake: torch.Tensor) -> str:
    from sfumato.evaluation import metrics

    if name == "ours FID":
        return f"{metrics.frechet(real, fake):.5f}"
    if name == "torchmetrics FID":
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(metrics._Given(real.shape[1]))
        metric.update(real, real=True)
        metric.update(fake, real=False)
        return f"{float(metric.compute()):.5f}"
    if name == "prdc":
        from prdc import compute_prdc

        found = compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
        return ", ".join(f"{key} {float(value):.4f}" for key, value in sorted(found.items()))
    found = {}
    for metric in (metrics.PrecisionRecall(5), metrics.DensityCoverage(5)):
        metric.update(real, real=True)
        metric.update(fake, real=False)
        found |= metric.compute()
    return ", ".join(f"{key} {float(value):.4f}" for key, value in sorted(found.items()))


def one(name: str, n: int, d: int) -> None:
    """Time one contestant, and print its seconds, peak memory beyond the features, and values."""
    real, fake = sets(n, d)
    unit = 1024 if sys.platform != "darwin" else 1024**2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    began = time.perf_counter()
    try:
        values = judged(name, real, fake)
    except ImportError as error:
        print(f"  {name:<18} not installed: {error.name}")
        return
    spent = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before
    print(f"  {name:<18} {spent:8.2f} s  {peak:8.0f} MiB   {values}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.one:
        one(asked.one[0], asked.n, int(asked.one[1]))
        raise SystemExit
    for width in WIDTHS:
        print(f"\n{asked.n} against {asked.n}, {width} features, {asked.threads} threads")
        for contestant in CONTESTANTS:
            words = ["--threads", str(asked.threads), "--n", str(asked.n)]
            words += ["--one", contestant, str(width)]
            subprocess.run([sys.executable, __file__, *words], check=True)
