r"""Grids: falling times for a sampler, by name; `GRIDS` are the names that the command line takes.

A grid starts and ends where the method's own does: at 1, and at 0 or the last level with noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.methods.flow_maps import EXACT
from sfumato.methods.recipe import Recipe
from sfumato.methods.spacing import SPACINGS, spaced
from sfumato.names import choose
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.predict import Predictor
from sfumato.sampling.sample import check_grid, uniform_grid
from sfumato.sampling.samplers import Sampler

RHO = 7.0
LARGEST = 80.0
FINE = 2000

Grid = Callable[[Recipe, DataStatistics, Kernel, int], Tensor]
"""(recipe, stats, kernel, steps) -> falling times."""


def own(recipe: Recipe, stats: DataStatistics, kernel: Kernel, steps: int) -> Tensor:
    """The method's own grid."""
    return recipe.grid(steps)


def uniform(recipe: Recipe, stats: DataStatistics, kernel: Kernel, steps: int) -> Tensor:
    """Equal steps in t."""
    first, last = _ends(recipe, steps)
    return uniform_grid(steps, first, last)


def quadratic(recipe: Recipe, stats: DataStatistics, kernel: Kernel, steps: int) -> Tensor:
    """Equal steps in the square root of t, so shorter ones at little corruption: DDIM's."""
    first, last = _ends(recipe, steps)
    return last + (first - last) * uniform_grid(steps).square()


def karras(recipe: Recipe, stats: DataStatistics, kernel: Kernel, steps: int) -> Tensor:
    r"""Equal steps in sigma^(1/7), with sigma the noise over the signal: EDM's.

    It starts at sigma 80, EDM's largest, where the method's largest is above that. Where sigma
    differs between coefficients, it is their geometric mean, weighted by the data's spectrum.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (T. Karras, M. Aittala,
        T. Aila, S. Laine, 2022), Eq. 5, https://arxiv.org/abs/2206.00364
    """
    first, last = _ends(recipe, steps)
    fine = torch.linspace(max(last, first / FINE), first, FINE, dtype=torch.float64)
    gains = recipe.process.gains(fine[0])
    basis = None if gains is None else gains.basis
    weight = stats.cov(basis).gain
    parts = []
    for some in fine.reshape(-1, *(1,) * stats.mean.ndim).split(64):  # bounds the memory needed
        snr = recipe.process.log_snr(some)
        if snr is None:
            raise Refused("a karras grid needs signal and noise in one basis; use --grid uniform.")
        parts.append((snr.detach() * (weight / weight.sum())).flatten(1).sum(1))
    log_sigma = -torch.cat(parts) / 2
    if not bool((log_sigma.diff() > 0).all()):
        raise Refused("a karras grid needs noise that rises over the signal at all times.")
    log_sigma = log_sigma[log_sigma <= max(math.log(LARGEST), float(log_sigma[0]) + 1)]
    fine = fine[: len(log_sigma)]
    root = ((log_sigma - log_sigma[-1]) / RHO).exp()
    to_zero = last == 0.0  # as EDM's, which jumps to 0 from its smallest sigma
    inner = torch.linspace(1.0, float(root[0]), steps + (not to_zero), dtype=torch.float64)
    times = torch.from_numpy(np.interp(inner.numpy(), root.numpy(), fine.numpy()))
    times[0] = first
    return torch.cat([times, torch.zeros(int(to_zero)).double()])


def auto(recipe: Recipe, stats: DataStatistics, kernel: Kernel, steps: int) -> Tensor:
    """The grid of least predicted error for Gaussian data with the measured spectrum."""
    if recipe.context is not None:
        raise Refused("corruptions drawn for each image have no common grid; leave --grid out.")
    return Predictor(recipe.process, stats, recipe.prior).best_grid(kernel, recipe.grid(steps))


def _on_levels(name: str) -> Grid:
    def placed(recipe: Recipe, stats: DataStatistics, kernel: Kernel, steps: int) -> Tensor:
        if recipe.levels is None:
            raise Refused(
                f"a {name} grid lies on the levels of a chain, and this method is trained at all "
                "times; use --grid uniform."
            )
        return spaced(recipe.levels, SPACINGS[name])(steps)

    return placed


GRIDS: dict[str, Grid] = {
    "own": own,
    **{name: _on_levels(name) for name in SPACINGS},
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "auto": auto,
}
"""Grids by name: functions of a recipe, the data's statistics, a kernel and a number of steps.

>>> [*sf.grids.GRIDS]
['own', 'leading', 'trailing', 'linspace', 'uniform', 'quadratic', 'karras', 'auto']
"""


def times(sampler: Sampler, recipe: Recipe, stats: DataStatistics) -> Tensor:
    """The falling times of a sampler of `recipe`, (steps + 1,), float64.

    What the sampler leaves unset is the method's.

    Raises:
        ValueError: an unknown grid, or one that this method or kernel does not support.

    >>> recipe = sf.METHODS["ddpm"]((1, 8, 8))
    >>> stats = sf.statistics.default_statistics((1, 8, 8))
    >>> sf.grids.times(sf.Sampler("ddim", steps=4), recipe, stats)
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    >>> sf.grids.times(sf.Sampler("ddim", steps=4, grid="quadratic"), recipe, stats)
    tensor([1.0000, 0.5625, 0.2500, 0.0625, 0.0000], dtype=torch.float64)
    """
    chosen = sampler.over(recipe.sampler)
    kernel, steps = chosen.whole
    how = chosen.grid
    flow = recipe.flow_map
    if flow is not None and flow.maps(steps):
        flow.check_kernel(kernel)
        return _own_alone(how, recipe.grid(steps))
    if callable(how):
        return how(steps)
    if not isinstance(how, str):
        return check_grid(torch.tensor(how, dtype=torch.float64))
    grid = choose("grid", how, GRIDS)
    if recipe.fixed and how != "own":
        raise Refused("this method is defined on its own grid alone; leave --grid out.")
    return grid(recipe, stats, kernel, steps)


def _own_alone(how: object, known: Tensor) -> Tensor:
    """The grid `known` of a flow map, if `how` asks for no other."""
    asked = how(len(known) - 1) if callable(how) else how
    same = asked == "own" if isinstance(asked, str) else _equal(torch.as_tensor(asked), known)
    if not same:
        raise Refused("this model maps between its own times alone; leave --grid out.")
    return known


def _equal(asked: Tensor, known: Tensor) -> bool:
    return asked.shape == known.shape and bool(((asked - known).abs() < EXACT).all())


def _ends(recipe: Recipe, steps: int) -> tuple[float, float]:
    own_ = recipe.grid(steps)
    return float(own_[0]), float(own_[-1])
