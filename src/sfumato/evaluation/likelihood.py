"""Bits per dimension of a trained model on real data, by flow and bound, as one record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import limits
from sfumato.corruption.prior import RandnLike
from sfumato.errors import Refused
from sfumato.evaluation import blocks
from sfumato.evaluation.protocol import FORMAT, RealImages, place
from sfumato.evaluation.samples import computed, fingerprint
from sfumato.limits import whole
from sfumato.model import Model
from sfumato.processes import here
from sfumato.sampling import likelihood
from sfumato.sampling.density import check_tolerance
from sfumato.sampling.likelihood import (
    Terms,
    bits_per_dim,
    bound_terms,
    check_bins,
    uniform_numbers,
)
from sfumato.sampling.sample import Seeds
from sfumato.sampling.samplers import Sampler

UNIFORM, FLOW, BOUND = ALL = ("uniform", "flow", "bound")
"""The flow's density of data with uniform noise; the flow with the decoder; the chain's bound."""


@final
@dataclass(frozen=True)
class Measurement:
    """What is measured of a likelihood, and how.

    Attributes:
        n: images, drawn without repetition.
        which: some of `ALL`.
        steps: of the chain that is bounded; 1,000 by default, or as many as the method has.
        draws: steps of the chain evaluated for each image; all where None.
        tolerance: of the solver of the flow.
        probes: of the flow's divergence; 0 for the exact trace.
        bins: values that a pixel can have; by default those of whole numbers in the data's range.
        seed: of the images, the noise and the probes.

    Raises:
        ValueError: a number out of its range.
    """

    n: int
    which: tuple[str, ...] = ALL
    steps: int | None = None
    draws: int | None = 100
    tolerance: float = 1e-4
    probes: int = 1
    bins: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole("n", self.n)
        whole("seed", self.seed, 0, limits.LARGEST >> 33)  # each image has 2^32 of them
        whole("probes", self.probes, 0, limits.STEPS)
        for name, most in (("steps", limits.STEPS), ("draws", limits.STEPS)):
            if (found := getattr(self, name)) is not None:
                whole(name, found, 1, most)
        if self.bins is not None:
            check_bins(self.bins)
        check_tolerance(self.tolerance)

    def of(self, model: Model, data: RealImages) -> Measurement:
        """The same, with what is left open as `model` and `data` have it.

        Raises:
            ValueError: more images than there are, or signals without a number of values.
        """
        if self.n > len(data):
            raise Refused(
                f"there are {len(data)} images; {self.n} were asked for. Use a smaller --n."
            )
        if self.bins is None and not data.record.pictures:
            raise Refused("signals are not discrete; give the number of their values by --bins.")
        steps = self.steps or model.recipe.finest
        return replace(self, steps=steps, bins=self.bins or data.record.values)


def measure(
    model: Model,
    data: RealImages,
    wanted: Measurement,
    batch: int = 50,
    keep: blocks.Blocks | None = None,
    tick: Callable[[float], None] = lambda _: None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Bits per dimension of images of `data`: the mean of each, with its standard error.

    Also of the gap, image by image, between the bound and the flow with the same decoder.

    Args:
        model: the model to measure.
        data: real images.
        wanted: what, and how.
        batch: images at once.
        keep: where finished batches are, from which an interrupted measurement resumes; None
            stores none.
        tick: called with the number of images done, counted for each of `wanted.which`.
        dtype: precision of the network, as `--dtype` names it.

    Returns:
        The record; {} in all but the first of several processes, which measure their share.

    Raises:
        ValueError: as `Measurement.of`, or a method whose likelihood is not defined.
    """
    wanted = wanted.of(model, data)
    generator = torch.Generator().manual_seed(wanted.seed)
    chosen = torch.randperm(len(data), generator=generator)[: wanted.n]
    about = {**asdict(wanted), "data": data.record.to_dict()}
    which = about.pop("which")
    shared = {"model": fingerprint(model), "batch": batch, **computed(model, dtype)}
    work = about | shared | {"which": [*which]}
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        tick(count)

    def make(first: int) -> dict[str, np.ndarray]:
        some = torch.arange(first, min(first + batch, wanted.n))
        return _nats(model, data.batch(chosen[some]), some, wanted, told)

    parts = []
    for part in blocks.every(keep, work, range(0, wanted.n, batch), make):
        parts.append(part)
        seen = sum(len(one[which[0]]) for one in parts) * len(which)
        told(seen - done)  # for batches that were read
    if not here().first:
        return {}
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


def _nats(
    model: Model, x0: Tensor, some: Tensor, wanted: Measurement, told: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """-log p of each of the images x0, whose numbers among those measured are `some`."""
    seeds = Seeds([wanted.seed * 2**32 + int(i) for i in some])
    steps, bins, solver = wanted.steps, wanted.bins or 256, (wanted.tolerance, wanted.probes)
    found: dict[str, Tensor] = {}
    if UNIFORM in wanted.which:
        filled = x0 + (2 / (bins - 1) * (uniform_numbers(x0, seeds) - 0.5)).to(x0)
        log_prob = model.log_prob(filled, *solver, seeds)
        found[UNIFORM] = -log_prob - x0[0].numel() * math.log(2 / (bins - 1))
        told(len(x0))
    if FLOW in wanted.which:
        found[FLOW] = flow_bound(model, x0, steps, bins, *solver, seeds)
        told(len(x0))
    if BOUND in wanted.which:
        terms = bound(model, x0, steps, bins, wanted.draws, seeds)
        found |= {BOUND: terms.total, **terms._asdict()}
        told(len(x0))
    if FLOW in found and BOUND in found:
        found["gap"] = found[BOUND] - found[FLOW]
    return {name: value.double().cpu().numpy() for name, value in found.items()}


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
    `draws` are evaluated for each signal.
    """
    recipe = model.recipe
    x0 = model.placed(x0)
    grid = model.times(Sampler(steps=steps, grid="own"))
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
    recipe = model.recipe
    x0 = model.placed(x0)
    grid = model.times(Sampler(steps=steps, grid="own"))
    denoiser = model.denoiser.eval()
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
