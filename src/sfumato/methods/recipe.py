"""A recipe is what a published method is: a process, an objective and a sampler, composed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from sfumato import notebook
from sfumato.corruption.prior import Prior, RandnLike
from sfumato.corruption.process import Process
from sfumato.corruption.select import time_warped
from sfumato.errors import Refused
from sfumato.estimation.loss import Times, Weighting, uniform_times
from sfumato.estimation.predictions import Parametrization
from sfumato.methods.flow_maps import FlowMap
from sfumato.sampling.likelihood import MARKOV, Evidence
from sfumato.sampling.sample import uniform_grid
from sfumato.sampling.samplers import Sampler

FINEST = 1_000

Ends = Callable[[Process, Tensor, Tensor], Tensor]
"""(process, x0, eps) -> (B,): terms of the bound at the ends of time, added to the loss."""


@final
@dataclass(frozen=True)
class Context:
    """A random parameter of the corruption, drawn for each image, such as a mask.

    Attributes:
        channels: of the context, which the network receives beside x.
        draw: (x, randn_like) -> context (B, channels, *space), for a batch like x.
        process: context -> the process of these images.

    >>> recipe = sf.METHODS["soft-mask"]((1, 8, 8), wander=True)  # a mask for each image
    >>> drawn = recipe.context.draw(torch.zeros(2, 1, 8, 8), torch.randn_like)
    >>> drawn.shape, recipe.context.channels
    (torch.Size([2, 1, 8, 8]), 1)
    """

    channels: int
    draw: Callable[[Tensor, RandnLike], Tensor]
    process: Callable[[Tensor], Process]


@final
@dataclass(frozen=True)
class Recipe:
    """A method on signals of one shape.

    Attributes:
        process: q(x_t | x_0).
        parametrization: what the network's output means.
        weighting: the objective, || W (x_0^ - x_0) ||^2.
        sampler: as published; its grid is a function of the steps.
        prior: the law of x_1.
        reference: title, authors, year and URL of the source.
        times: how training times are drawn from uniform numbers.
        fixed: whether the sampler takes no other number of steps.
        levels: of the chain, where the network is trained at the times k / levels alone; else None.
        evidence: how the likelihood is bounded.
        own_noise: whether the noise keeps its own time where levels are selected.
        context: the random parameter of the corruption; `process` is then a typical one.
        ends: terms of the bound that train the ends of a learned process.
        fourier: frequencies f of the features sin, cos(f pi x) that the network receives beside x.
        flow_map: what maps the network learns in place of the mean of x_0; None where it does not.

    >>> recipe = sf.METHODS["soft"]((1, 8, 8))
    >>> recipe.sampler.name, recipe.grid(4)
    ('momentum', tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64))
    """

    process: Process
    parametrization: Parametrization
    weighting: Weighting
    sampler: Sampler
    prior: Prior
    reference: str
    times: Times = uniform_times
    context: Context | None = None
    ends: Ends | None = None
    fourier: tuple[float, ...] = ()
    fixed: bool = False
    levels: int | None = None
    evidence: Evidence = MARKOV
    own_noise: bool = False
    flow_map: FlowMap | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", self.sampler.over(Sampler(grid=uniform_grid)))
        _ = self.sampler.whole

    _repr_html_ = notebook.recipe

    def grid(self, steps: int) -> Tensor:
        """The method's own falling times for a number of steps, (steps + 1,), float64."""
        own = self.sampler.grid
        if not callable(own):
            raise Refused("the grid of a method is a function of the number of steps.")
        return own(steps)

    @property
    def finest(self) -> int:
        """Steps of the grid for likelihoods: 1,000, or the method's number where it has one."""
        return self.sampler.whole[1] if self.fixed else min(FINEST, self.levels or FINEST)


def with_time_warp(recipe: Recipe, warp: Sequence[float]) -> Recipe:
    """The same method at other times: see `time_warped`.

    Raises:
        ValueError: a method that learns its levels, or a warp that does not rise from 0 to 1.
    """
    if next(iter(recipe.process.parameters()), None) is not None:
        raise Refused("this method learns its own levels; train it without a time warp.")
    if len(warp) < 2 or warp[0] != 0 or warp[-1] != 1 or sorted({*warp}) != [*warp]:
        raise Refused("a time warp is two times or more that rise from 0 to 1.")

    def read(process: Process) -> Process:
        return time_warped(process, warp, recipe.own_noise)

    context = recipe.context
    if context is not None:
        of = context.process
        context = replace(context, process=lambda drawn: read(of(drawn)))
    return replace(recipe, process=read(recipe.process), context=context)


def rising(name: str, levels: tuple[float, float], unit: float = 1.0) -> tuple[float, float]:
    """Two levels in units of `unit`, the small one first; ValueError where they are not that."""
    low, high = levels
    if not 0 < low < high:
        raise Refused(f"{name} goes from a small to a large level; got {low:g}, {high:g}.")
    return unit * low, unit * high
