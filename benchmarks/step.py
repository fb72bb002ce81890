"""Share of a training step that is spent outside the network, and on what.

    python benchmarks/step.py [--threads 2] [--rounds 7] [--methods ddpm soft ni-ddpm] [--small]

All parts alternate within one run, each on batches of random bytes with the network of
`sfumato train`. The columns are milliseconds, medians over the rounds:

    loader       the rows of a step and their bytes, in [-1, 1] and float32
    draw         times, noise and what else a method draws
    algebra      the loss and its gradient with a network of no cost
    optimizer    AdamW
    average      the average of the weights
    network      one pass of the network and its gradient
    step         a step of `train`
    outside      the share of a step that is not the network's, with the median's deviation
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable

import torch
from gpu import METHODS, noise
from overhead import Nothing
from timing import Spent, ratio, turns

from sfumato import TrainOptions, build
from sfumato.algebra.place import CPU
from sfumato.config import Config
from sfumato.model import Model
from sfumato.networks.backbones import UNetOptions
from sfumato.training import denoising, loader
from sfumato.training import train as training
from sfumato.training.step import gradients

SIZES = ((128, 3, 32, 32), (64, 3, 64, 64))
SMALL = ((4, 3, 8, 8),)
PARTS = ("loader", "draw", "algebra", "optimizer", "average", "network", "step")


def parts(method: str, shape: tuple[int, ...], network: UNetOptions) -> dict[str, Callable]:
    """What is timed, by the name of its column."""
    batch, *signal = shape
    data = noise(tuple(signal), 8 * batch)
    options = TrainOptions(images=10**9, batch=batch, workers=0, preview_every=0)
    config = Config(method, data.record, network=network)
    model = build(config, data, options)
    trained, free = (denoising.objective(one) for one in (model, _free(config, model)))
    state = training._state(model.trainable, options)
    parameters = [*model.trainable.parameters()]
    accelerator = training._accelerator(options, "cpu")
    steps = itertools.count()
    one, two = (loader.read(data, options, 0, CPU) for _ in range(2))
    drawn, x0 = trained.draw(0, data, options), data.scaled(next(one))
    label = torch.rand(batch)

    def whole() -> None:
        step = next(steps)
        drawn, raw = trained.draw(step, data, options), next(two)
        _, good = gradients(step, drawn, accelerator, trained, data, options, raw)
        state.step(options.learning_rate, bool(good))

    def called() -> None:
        model.denoiser.backbone(x0, label).square().mean().backward()
        state.optimizer.zero_grad(set_to_none=True)

    whole()  # moments of AdamW are made at its first step
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    kept = [parameter.grad for parameter in parameters]

    def updated() -> None:
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

    return {
        "loader": lambda: data.scaled(next(one)),
        "draw": lambda: trained.draw(next(steps), data, options),
        "algebra": lambda: free.losses(drawn, slice(None), x0).each.mean().backward(),
        "optimizer": updated,
        "average": lambda: state.ema.step(parameters),
        "network": called,
        "step": whole,
    }


def _free(config: Config, model: Model) -> Model:
    """The model with a network of no cost."""
    return Model(config, model.stats, backbone=Nothing())


def row(title: str, spent: Spent) -> None:
    """Print a line of the table."""
    share, error = ratio(spent, "network", "step")
    cells = "".join(f"{1e3 * statistics.median(spent[name]):11.2f}" for name in PARTS)
    print(f"{title:<28}{cells}{1 - share:10.1%} +- {error:.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--small", action="store_true", help="a tiny network, to try this script")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    size = UNetOptions(width=8, multipliers=(1,)) if asked.small else UNetOptions()
    print(f"{asked.threads} threads, torch {torch.__version__}, {asked.rounds} rounds, ms")
    print(f"{'':<28}{''.join(f'{name:>11}' for name in PARTS)}{'outside':>10}")
    for shape in SMALL if asked.small else SIZES:
        for method in asked.methods:
            found = turns(parts(method, shape, size), asked.rounds)
            row(f"{method} {' x '.join(map(str, shape))}", found)
