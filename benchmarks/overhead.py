"""Cost of Sfumato beside the network: its training and sampling loops relative to bare loops.

    python benchmarks/overhead.py [--model fashion-soft] [--threads 2] [--rounds 9]
    python benchmarks/overhead.py --parts algebra --threads 1 --rounds 5

Both sides have the same network, optimizer, noise and number of threads, and alternate within one
run. The algebra is the loss of one training step and its gradient with a network of no cost,
relative to one element-wise pass over the batch; vdm's decoder, a softmax over all values, is left
out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from PIL.Image import Image
from timing import table, turns

from sfumato import Sampler, TrainOptions, build, from_pretrained, load, train
from sfumato.config import Config
from sfumato.estimation.loss import loss, stratified
from sfumato.methods import METHODS
from sfumato.model import Model
from sfumato.record import Record
from sfumato.training.data import Data
from sfumato.training.trackers import Figures

BATCH = 64


class Clock:
    """A tracker that records the time after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, model: Model, options: TrainOptions, step: int) -> None: ...

    def log(self, step: int, figures: Figures) -> None:
        self.times.append(time.perf_counter())

    def image(self, name: str, step: int, x: Image) -> None: ...

    def stop(self) -> None: ...


def ours(model: Model, data: Data, steps: int) -> float:
    """Seconds of a step of `train`, without the first."""
    options = TrainOptions(images=steps * BATCH, batch=BATCH, preview_every=0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        train(model, data, options, Path(out) / "run", (clock,), "cpu")
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
    config = replace(model.config, record=data.record, sampler=Sampler())
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
        return model.sample(range(batch), Sampler(steps=steps), batch=batch)

    spent = turns({"sample": drawn, "calls": calls}, rounds)
    table(f"sampling a batch of {batch}, {steps} steps", spent, "calls")


class Nothing(torch.nn.Module):
    """A network of one parameter, so that only the algebra costs time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, label: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        return self.weight * x


def objective(method: str, parameters: dict[str, object], x0: torch.Tensor) -> Callable[[], None]:
    """The loss of one training step on `x0`, and its gradient."""
    record = Record("random", tuple(x0.shape[1:]))
    model = Model(Config(method, record, parameters=parameters), backbone=Nothing())
    recipe, denoiser, eps = model.recipe, model.denoiser, torch.randn(x0.shape)
    u = stratified(torch.rand(len(x0), dtype=torch.float64))
    t = recipe.times(u).reshape(-1, *(1,) * (x0.ndim - 1))
    context = None if recipe.context is None else recipe.context.draw(eps, torch.randn_like)

    def step() -> None:
        bound = denoiser
        if recipe.context is not None and context is not None:
            bound = denoiser.with_process(recipe.context.process(context))
        loss(bound, recipe.weighting, x0, t, eps).mean().backward()

    return step


def algebra(shape: tuple[int, ...], rounds: int) -> None:
    """Print the cost of the algebra of a step relative to one pass over a batch of `shape`."""
    x0 = torch.rand(shape) * 2 - 1
    steps = {"one pass": lambda: x0 * 1.5}
    for method in METHODS:
        steps[method] = objective(method, {}, x0)
    steps["soft-mask --wander"] = objective("soft-mask", {"wander": True}, x0)
    table(f"algebra of one training step, {shape}", turns(steps, rounds), "one pass")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion-soft")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parts = ("sampling", "training", "algebra")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    loaded = from_pretrained(asked.model)
    print(f"{asked.model}, {asked.threads} threads, torch {torch.__version__}")
    if "sampling" in asked.parts:
        for size, times in ((1, 12), (64, 1)):
            sampling(loaded, size, times * asked.rounds)
    if "training" in asked.parts:
        training(loaded, load("fashion-mnist", "train[:2000]"), asked.rounds)
    if "algebra" in asked.parts:
        for batch in ((256, 3, 64, 64), (128, 3, 32, 32)):
            algebra(batch, asked.rounds)
