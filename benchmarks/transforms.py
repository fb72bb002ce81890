"""Blur of 64 x 3 x 64 x 64 by sigma = 4: ours, two forms, against other implementations.

    pip install torch-dct        # the peer; the others come with the test extras
    python benchmarks/transforms.py [--threads 2] [--rounds 15]

`fused` applies heat as one matrix per axis; `general` analyses, multiplies by gains and
synthesises, which works for any gains. Then the time of the general form from 16 x 16 to 512 x 512.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from timing import ratio, table, turns

from sfumato.bases import dct
from sfumato.families import Heat
from sfumato.schedules import Constant

SIGMA = 4.0


def contestants(x: torch.Tensor, threads: int) -> dict:
    """One callable each, all of the same reflected blur, up to the convolution's truncation."""
    side = x.shape[-1]
    basis = dct(side, side)
    heat = Heat(Constant(SIGMA), basis).at(torch.tensor(0.5))
    gain = heat.like(x)
    radius = math.ceil(4 * SIGMA)
    taps = torch.exp(-torch.arange(-radius, radius + 1.0).square() / (2 * SIGMA**2))
    taps = (taps / taps.sum()).repeat(x.shape[1], 1)
    array, weights = x.numpy(), gain.numpy()

    def general() -> torch.Tensor:
        return basis.synthesize(gain * basis.analyze(x))

    def scipy_dct() -> np.ndarray:
        both = {"axes": (-2, -1), "norm": "ortho", "workers": threads}
        return scipy.fft.idctn(weights * scipy.fft.dctn(array, **both), **both)

    def convolution() -> torch.Tensor:
        padded = F.pad(x, (radius,) * 4, mode="reflect")
        groups = x.shape[1]
        rows = F.conv2d(padded, taps[:, None, :, None], groups=groups)
        return F.conv2d(rows, taps[:, None, None, :], groups=groups)

    found = {"fused": lambda: heat(x), "general": general, "scipy.fft": scipy_dct}
    if radius < side:
        found["separable convolution"] = convolution
    try:
        import torch_dct

        def peer() -> torch.Tensor:
            return torch_dct.idct_2d(gain * torch_dct.dct_2d(x, norm="ortho"), norm="ortho")

        found["torch-dct"] = peer
    except ImportError:
        print("torch-dct is not installed: pip install torch-dct")
    return found


def check(found: dict) -> None:
    """All give the same picture, the convolution up to its boundary and truncation."""
    ours = found["general"]()
    for name, call in found.items():
        off = float((torch.as_tensor(call()) - ours).abs().max())
        if off > (0.5 if name == "separable convolution" else 1e-4):
            raise SystemExit(f"{name} differs from ours by {off}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    print(f"{asked.threads} threads, torch {torch.__version__}")
    for side in (64, 16, 32, 128, 256, 512):
        batch = 64 if side <= 64 else max(1, 64 * 64**2 // side**2)
        images = torch.randn(batch, 3, side, side)
        runners = contestants(images, asked.threads)
        check(runners)
        spent = turns(runners, asked.rounds)
        table(f"blur of {batch} x 3 x {side} x {side}", spent, "general")
        others = [name for name in spent if name not in ("fused", "general")]
        for mine in ("fused", "general"):
            least = min(ratio(spent, name, mine)[0] for name in others)
            print(f"  fastest other over {mine} {least:.2f}")
