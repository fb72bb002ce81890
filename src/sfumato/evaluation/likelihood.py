"""Bits per dimension of a trained model on real data, by flow and bound, as one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.corruption.prior import RandnLike
from sfumato.evaluation import blocks
from sfumato.evaluation.protocol import FORMAT, RealImages, place
from sfumato.evaluation.samples import fingerprint
from sfumato.model import Model
from sfumato.sampling import likelihood
from sfumato.sampling.likelihood import Terms, bits_per_dim, bound_terms, uniform
from sfumato.sampling.sample import Seeds

UNIFORM, FLOW, BOUND = ALL = ("uniform", "flow", "bound")
"""The flow's density of data in uniform noise; the flow from the decoder on; the chain's bound."""


def measure(
    model: Model,
    data: RealImages,
    n: int,
    *,
    which: Sequence[str] = ALL,
    steps: int | None = None,
    draws: int | None = 100,
    tolerance: float = 1e-4,
    probes: int = 1,
    bins: int | None = None,
    seed: int = 0,
    batch: int = 50,
    keep: Path | None = None,
    tick: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Bits per dimension of `n` images of `data`: the mean of each, with its standard error.

    And of the gap, image by image, by which the bound is above the flow with the same decoder.

    Args:
        model: what is judged.
        data: real images.
        n: how many, drawn without repetition.
        which: some of `ALL`.
        steps: of the chain that is bounded; 1,000 by default, or as many as the method has.
        draws: steps of the chain looked at for each image; all where None.
        tolerance: of the solver of the flow.
        probes: of the flow's divergence; 0 for the exact trace.
        bins: values that a pixel can have; by default those of whole numbers in the data's range.
        seed: of the images, the noise and the probes.
        batch: images at once.
        keep: folder of finished batches, from which a cut measurement goes on; None keeps none.
        tick: called with the number of images done, each by each of `which`.

    Raises:
        ValueError: more images than there are, or a method whose likelihood is not defined.
    """
    if n > len(data):
        raise ValueError(f"there are {len(data)} images; {n} were asked for. Use a smaller --n.")
    steps = steps or model.recipe.finest
    if bins is None and not data.record.pictures:
        raise ValueError("signals have no natural cells; say by --bins how many values they have.")
    bins = bins or data.record.values
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:n]
    about = {
        "n": n,
        "seed": seed,
        "bins": bins,
        "steps": steps,
        "draws": draws,
        "tolerance": tolerance,
        "probes": probes,
        "data": data.record.to_dict(),
    }
    shared = {"model": fingerprint(model), "batch": batch, "torch": torch.__version__}
    work, done = about | shared | {"which": [*which]}, 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        tick(count)

    def nats(some: Tensor) -> dict[str, np.ndarray]:
        x0, seeds = data.batch(chosen[some]), Seeds([seed * 2**32 + int(i) for i in some])
        found: dict[str, Tensor] = {}
        if UNIFORM in which:
            filled = x0 + (2 / (bins - 1) * (uniform(x0, seeds) - 0.5)).to(x0)
            log_prob = model.log_prob(filled, tolerance, probes, seeds)
            found[UNIFORM] = -log_prob - x0[0].numel() * math.log(2 / (bins - 1))
            told(len(x0))
        if FLOW in which:
            found[FLOW] = flow_bound(model, x0, steps, bins, tolerance, probes, seeds)
            told(len(x0))
        if BOUND in which:
            terms = bound(model, x0, steps, bins, draws, seeds)
            found |= {BOUND: terms.total, **terms._asdict()}
            told(len(x0))
        if FLOW in found and BOUND in found:
            found["gap"] = found[BOUND] - found[FLOW]
        return {name: value.double().cpu().numpy() for name, value in found.items()}

    parts = []
    for some in torch.arange(n).split(batch):
        parts.append(blocks.kept(keep, work, int(some[0]), partial(nats, some)))
        told((int(some[-1]) + 1) * len(which) - done)  # where it was kept
    size = math.prod(model.shape)
    return {
        "format": FORMAT,
        **about,
        "model": model.config.to_dict(),
        "bits_per_dim": {
            name: _summary(np.concatenate([part[name] for part in parts]), size)
            for name in parts[0]
        },
        **place(),
    }


def bound(
    model: Model,
    x0: Tensor,
    steps: int | None = None,
    bins: int = 256,
    draws: int | None = None,
    randn_like: RandnLike = torch.randn_like,
) -> Terms:
    """The terms of the bound on -log p(x_0) in nats, (B,) each; see `sfumato.bound_terms`.

    For x_0 (B, *shape) of values -1 + 2 k / (bins - 1), on a chain of `steps` steps, of which
    `draws` are looked at for each signal.
    """
    recipe, x0 = model.recipe, model.placed(x0)
    grid = recipe.grid(steps or model.steps)
    denoiser = model.denoiser.eval()
    return bound_terms(denoiser, recipe.prior, x0, grid, recipe.evidence, bins, draws, randn_like)


def flow_bound(
    model: Model,
    x0: Tensor,
    steps: int | None = None,
    bins: int = 256,
    tolerance: float = 1e-4,
    probes: int = 1,
    randn_like: RandnLike = torch.randn_like,
) -> Tensor:
    """`bound` with the flow in place of the chain, in nats, (B,); see `sfumato.flow_bound`."""
    recipe, x0 = model.recipe, model.placed(x0)
    grid, denoiser = recipe.grid(steps or model.steps), model.denoiser.eval()
    return likelihood.flow_bound(
        denoiser,
        recipe.prior,
        x0,
        grid,
        recipe.evidence,
        bins,
        probes=probes,
        randn_like=randn_like,
        tolerance=tolerance,
    )


def _summary(nats: np.ndarray, size: int) -> dict[str, float]:
    bits = bits_per_dim(torch.from_numpy(nats), size)
    error = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
    return {"mean": float(bits.mean()), "standard_error": error}
