"""Any method with any options, on signals of any shape and kind, trains and samples or refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

import sfumato as sf
from cases import SMALL
from faults.parts import Miss, Part, Passed
from sfumato.cli import signatures
from sfumato.cli.kinds import Kind
from sfumato.config import Backbone
from sfumato.methods import METHODS
from sfumato.record import Record
from sfumato.sampling.samplers import KERNELS
from sfumato.training.data import Data

SHAPES = (
    *((1, 8, 8), (3, 8, 8), (1, 4, 4), (2, 7, 5), (1, 1, 1)),
    *((1, 16), (3, 9), (12,), (1, 4, 4, 4), (2, 3, 5)),
)
COUNT = 12
"""Signals of the data."""
MOST = 20
"""Steps of a sampler that are not made fewer."""


class Mix(Part):
    name = "mix"
    about = "random methods, options, shapes and types: two steps and finite samples, or ValueError"
    cases = 500

    def case(self, number: int, random: Random) -> Passed:
        torch.set_num_threads(1)
        method = [*METHODS][number % len(METHODS)]
        told = drawn(method, random)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _tried(method, told, self.fresh(number) / "run", number)
        except ValueError as error:
            if not str(error).strip():
                raise Miss(f"{method} {told}: a refusal without a sentence") from error
            return Passed({"refused": 1})
        except Miss as error:
            raise Miss(f"{method} {told}: {error}") from None
        except Exception as error:
            raise Miss(f"{method} {told}: {type(error).__name__}: {error}") from error
        return Passed({"trained and sampled": 1})


def drawn(method: str, random: Random) -> dict[str, Any]:
    """Options of a method and of training, a shape, a type and a sampler."""
    rows = signatures.method(method).parameters
    chosen = [row for row in rows if random.random() < 0.25]
    parameters = {row.name: _value(row.kind, row.default, random) for row in chosen}
    if "memory" in (row.name for row in rows):
        parameters.setdefault("memory", 4)
    return {
        "parameters": SMALL.get(method, {}) | parameters,
        "shape": random.choice(SHAPES),
        "dtype": random.choice(["uint8", "float32"]),
        "classes": random.random() < 0.3,
        "precision": random.choice(["float32", "float32", "bfloat16"]),
        "sampler": random.choice([None, None, *KERNELS]),
        "steps": random.choice([None, None, 1, 2, 3]),
        "backbone": random.choice(["unet", "unet", "dit", "uvit"]),
    }


def _value(kind: Kind, default: Any, random: Random) -> Any:
    """A value near the default, at an edge, or senseless."""
    edges: list[Any] = [default]
    mild: list[Any] = []
    if isinstance(default, bool):
        edges = [True, False]
    elif isinstance(default, int):
        mild = [2, 3, max(1, default // 2), default, default]
        edges += [0, 1, -1, 2 * default + 1]
        edges = [one for one in edges if one <= 2_000]
    elif isinstance(default, float):
        mild = [default, 0.9 * default, 0.5 * default, 0.99 * default]
        edges += [0.0, 1.0, default / 2, 2 * default, -default, 1e-12, 1e12, float("nan")]
    elif isinstance(default, tuple) and default and not isinstance(default[0], str):
        scale = random.choice([0, 0.5, 1, 1, 2, -1])
        mild = [default, tuple(type(x)(0.9 * x) for x in default)]
        edges += [tuple(type(x)(scale * x) for x in default), default[::-1], default[:1]]
    elif kind.form.startswith("{"):
        edges += [*kind.form.strip("{}").split(",")] * 2 + ["nothing"]
    elif default is None:
        edges += [0.1, 1, (0.1, 0.4), "spectrum"]
    else:
        edges += ["", "nothing"]
    return random.choice([*edges, *mild])


def _tried(method: str, told: dict[str, Any], out: Path, seed: int) -> None:
    """Train two steps and sample."""
    shape, kind = told["shape"], "images" if len(told["shape"]) == 3 else "signals"
    source = np.random.default_rng(seed)
    byte = told["dtype"] == "uint8"
    values = source.integers(0, 256, (COUNT, *shape)).astype(told["dtype"])
    values = values if byte else (values / 127.5 - 1).astype(np.float32)
    low, high = (0.0, 255.0) if byte else (-1.0, 1.0)
    labels = np.arange(COUNT) % 3 if told["classes"] else None
    classes = ("a", "b", "c") if told["classes"] else None
    record = Record("mix", shape, low, high, classes, COUNT, "train", "0" * 64, kind)
    data = Data(values, labels, record)
    options = sf.TrainOptions(
        images=8, batch=4, preview_every=0, precision=told["precision"], seed=seed
    )
    width = 8 if len(shape) == 3 else 32
    network: dict[str, Any] = {"network": sf.UNetOptions(width=width, multipliers=(1,), patch=1)}
    if told["backbone"] != "unet" and len(shape) == 3:
        size = {"width": 16, "layers": 1, "heads": 2, "patch": 1}
        network = {"backbone": Backbone(told["backbone"], size)}
    config = sf.Config(
        method, record, told["parameters"], conditional=bool(told["classes"]), **network
    )
    model = sf.build(config, data, options)
    sf.train(model, data, options, out, device="cpu")
    own = model.recipe.sampler.steps or 4
    steps = told["steps"] if told["steps"] or own <= MOST else 4
    given = {"classes": [0, 2]} if told["classes"] else {}
    found = model.sample(range(2), sf.Sampler(told["sampler"], steps), **given)
    if found.shape != (2, *shape):
        raise Miss(f"samples of shape {tuple(found.shape)}")
    if not bool(torch.isfinite(found).all()):
        raise Miss("samples are not finite")
