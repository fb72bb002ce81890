"""What Sfumato costs beside the network: its training and sampling loops over bare ones.

    python benchmarks/overhead.py [--model fashion-soft] [--threads 2] [--rounds 9]

Both sides have the same network, optimizer, noise and number of threads, in turns of one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from timing import table, turns

from sfumato import TrainOptions, build, from_pretrained, load, train
from sfumato.model import Model
from sfumato.training.data import Data
from sfumato.training.watch import Watch

BATCH = 64


class Clock(Watch):
    """A silent watch that notes when each step was done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def step(self, step: int, value: torch.Tensor) -> None:
        super().step(step, value)
        self.times.append(time.perf_counter())


def ours(model: Model, data: Data, steps: int) -> float:
    """Seconds of a step of `train`, the first left out."""
    options = TrainOptions(images=steps * BATCH, batch=BATCH, preview_every=0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        train(model, data, options, Path(out) / "run", clock, "cpu")
    return (clock.times[-1] - clock.times[0]) / (steps - 1)


def bare(network: torch.nn.Module, data: Data, steps: int) -> float:
    """Seconds of a step of the shortest loop that trains this network on white noise."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.99))
    ema = EMAModel(network.parameters(), decay=0.9995, foreach=True)
    times = []
    network.train()
    for _ in range(steps):
        x0 = data.batch(torch.randint(len(data), (BATCH,)))
        t, eps = torch.rand(BATCH), torch.randn(x0.shape)
        level = t.reshape(-1, 1, 1, 1)
        out = network(torch.cos(level) * x0 + torch.sin(level) * eps, t)
        (out - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(network.parameters())
        times.append(time.perf_counter())
    return (times[-1] - times[0]) / (steps - 1)


def training(model: Model, data: Data, rounds: int, steps: int = 8) -> None:
    """Print the ratio of a step of `train` to one of the bare loop."""
    network, spent = model.denoiser.backbone, {"train": [], "bare loop": []}
    config = replace(model.config, record=data.record, kernel=None, steps=None)
    for _ in range(rounds):
        mine = build(config, data, TrainOptions())
        spent["train"].append(ours(mine, data, steps))
        spent["bare loop"].append(bare(network, data, steps))
    table(f"training, a step of {BATCH}", spent, "bare loop")


def sampling(model: Model, batch: int, rounds: int, steps: int = 20) -> None:
    """Print the ratio of `Model.sample` of one batch to as many network calls."""
    network = model.denoiser.backbone.eval()
    x, label = torch.randn(batch, *model.shape), torch.full((batch,), 0.5)

    @torch.no_grad()
    def calls() -> None:
        for _ in range(steps):
            network(x, label)

    def drawn() -> torch.Tensor:
        return model.sample(range(batch), steps, batch=batch)

    spent = turns({"sample": drawn, "calls": calls}, rounds)
    table(f"sampling a batch of {batch}, {steps} steps", spent, "calls")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-soft")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    loaded = from_pretrained(asked.model)
    print(f"{asked.model}, {asked.threads} threads, torch {torch.__version__}")
    for size, times in ((1, 12), (64, 1)):
        sampling(loaded, size, times * asked.rounds)
    training(loaded, load("fashion-mnist", "train[:2000]"), asked.rounds)
