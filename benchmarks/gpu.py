"""Cost of Sfumato beside the network on a GPU: its loops relative to bare loops, same network.

    python benchmarks/gpu.py [--device cuda] [--seconds 18] [--small]

For `ddpm`, `soft` and `ni-ddpm`: a step of `train` relative to a step of the shortest loop with the
same U-Net, optimizer, average of weights and bfloat16 autocast, whose data are on the device; and
`Model.sample` relative to as many calls of the network. Both sides alternate within one run, each
part for `--seconds` after a warm-up, so that all of it takes less than six minutes. Data are random
bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from overhead import Clock
from timing import table

from sfumato import Sampler, TrainOptions, train
from sfumato.config import Config
from sfumato.model import Model
from sfumato.networks.backbones import UNetOptions
from sfumato.record import Record
from sfumato.training.data import Data

METHODS = ("ddpm", "soft", "ni-ddpm")
SIZES = {(128, 3, 32, 32): UNetOptions(128, (1, 2, 2, 2), 2, (1,), 1)}
SIZES[64, 3, 64, 64] = UNetOptions(128, (1, 2, 2, 2), 2, (2,), 1)
SMALL = {(4, 3, 8, 8): UNetOptions(8, (1, 2), 1, (), 2)}


def noise(shape: tuple[int, ...], count: int = 1024) -> Data:
    """Random bytes as images."""
    images = np.random.default_rng(0).integers(256, size=(count, *shape), dtype=np.uint8)
    return Data(images, None, Record("noise", shape, 0.0, 255.0, count=count))


def synchronized(device: torch.device) -> None:
    """Wait for the device, so that the clock includes all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounds(
    contestants: dict[str, Callable[[], float]], seconds: float, most: int
) -> dict[str, list[float]]:
    """Seconds of each, alternating until `seconds` are over, after one warm-up call of each."""
    for call in contestants.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    for turn in range(most):
        for name, call in list(contestants.items())[:: 1 if turn % 2 else -1]:
            spent[name].append(call())
        if time.perf_counter() > end and turn >= 2:
            break
    return spent


def ours(model: Model, data: Data, batch: int, steps: int, device: torch.device) -> float:
    """Seconds of a step of `train`, without the first."""
    precision = "bfloat16" if device.type == "cuda" else "float32"
    options = TrainOptions(
        images=steps * batch, batch=batch, preview_every=0, precision=precision, keep=1
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        train(model, data, options, Path(out) / "run", (clock,), device.type)
    return (clock.times[-1] - clock.times[0]) / (steps - 1)


class Bare:
    """The shortest loop that trains this network on white noise, with data on the device."""

    def __init__(self, network: torch.nn.Module, data: Data, batch: int) -> None:
        self.network, self.batch = network, batch
        self.device = next(network.parameters()).device
        self.x0 = data.batch(range(len(data)), self.device)
        self.optimizer = torch.optim.AdamW(network.parameters(), 1e-4, betas=(0.9, 0.99))
        self.ema = EMAModel(network.parameters(), decay=0.9995, foreach=True)

    def __call__(self, steps: int) -> float:
        """Seconds of a step, without the first."""
        self.network.train()
        for step in range(steps):
            if step == 1:
                synchronized(self.device)
                began = time.perf_counter()
            self.step()
        synchronized(self.device)
        return (time.perf_counter() - began) / (steps - 1)

    def step(self) -> None:
        place = self.device
        x0 = self.x0[torch.randint(len(self.x0), (self.batch,), device=place)]
        t, eps = torch.rand(self.batch, device=place), torch.randn_like(x0)
        level = t.reshape(-1, 1, 1, 1)
        x = torch.cos(level) * x0 + torch.sin(level) * eps
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            out = self.network(x, t)
        (out.float() - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.network.parameters())


class Cast(torch.nn.Module):
    """A network under bfloat16 autocast whose output is in single precision."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            return self.network(x, label).float()


def timed(call: Callable[[], object], device: torch.device) -> float:
    synchronized(device)
    began = time.perf_counter()
    call()
    synchronized(device)
    return time.perf_counter() - began


def compare(
    method: str,
    size: tuple[int, ...],
    options: UNetOptions,
    device: torch.device,
    asked: argparse.Namespace,
) -> None:
    """Print both ratios for one method at one size."""
    batch, shape = size[0], size[1:]
    steps, most = (2, 2) if asked.small else (20, 15)
    data = noise(shape, max(64, 4 * batch))
    model = Model(Config(method, data.record, network=options)).to(device)
    network = model.denoiser.backbone
    count = sum(p.numel() for p in network.parameters()) / 1e6
    title = f"{method}, {size}, {count:.1f} M parameters"
    bare = Bare(network, data, batch)
    training = {
        "train": lambda: ours(model, data, batch, steps, device),
        "bare loop": lambda: bare(steps),
    }
    table(f"training step, {title}", rounds(training, asked.seconds, most), "bare loop")

    cast = Cast(network)
    drawing, few = Model(model.config, model.stats, backbone=cast).to(device), Sampler(steps=steps)
    x, label = torch.randn(size, device=device), torch.full((batch,), 0.5, device=device)
    asks = drawing.network_calls(few)

    @torch.no_grad()
    def calls() -> None:
        cast.eval()
        for _ in range(asks):
            cast(x, label)

    sampling = {
        "sample": lambda: timed(lambda: drawing.sample(range(batch), few, batch=batch), device),
        "calls": lambda: timed(calls, device),
    }
    table(f"sampling {steps} steps, {title}", rounds(sampling, asked.seconds, most), "calls")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=18.0)
    parser.add_argument("--small", action="store_true", help="a tiny network, in seconds")
    asked = parser.parse_args()
    device, began = torch.device(asked.device), time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    warnings.simplefilter("ignore")  # an untrained network's samples diverge
    torch.backends.cudnn.benchmark = True
    for size, options in (SMALL if asked.small else SIZES).items():
        for method in METHODS:
            compare(method, size, options, device, asked)
            print(f"  after {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
