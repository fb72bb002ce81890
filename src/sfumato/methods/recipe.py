"""A recipe is what a published method is: a process, an objective and a sampler, composed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sfumato.corruption.prior import Prior, RandnLike
from sfumato.corruption.process import Process
from sfumato.corruption.select import paced
from sfumato.estimation.denoise import Denoiser, Parametrization
from sfumato.estimation.loss import Times, Weighting, uniform
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.likelihood import MARKOV, Evidence
from sfumato.sampling.sample import even

FINEST = 1_000

Ends = Callable[[Process, Tensor, Tensor], Tensor]
"""(process, x0, eps) -> (B,): terms of the bound at the ends of time, added to the loss."""


@dataclass(frozen=True)
class Context:
    """What is drawn of the corruption itself for each image, such as a random mask (final).

    Attributes:
        channels: of the context, which the network is told beside x.
        draw: (x, randn_like) -> context (B, channels, *space), for a batch like x.
        process: context -> the process of these images.
    """

    channels: int
    draw: Callable[[Tensor, RandnLike], Tensor]
    process: Callable[[Tensor], Process]

    def bind(self, denoiser: Denoiser, context: Tensor) -> Denoiser:
        """The denoiser of images corrupted so; weights are shared."""
        return denoiser.under(self.process(context), context=context)


@dataclass(frozen=True)
class Recipe:
    """A method on signals of one shape (final).

    Attributes:
        process: q(x_t | x_0).
        parametrization: what the network's output means.
        weighting: the objective, || W (x_0^ - x_0) ||^2.
        kernel: the sampler as published.
        prior: the law of x_1.
        reference: title, authors, year and URL of the source.
        times: how training times are drawn from uniform numbers.
        steps: steps of the sampler where nobody says otherwise.
        fixed: whether the sampler takes that number of steps and no other.
        levels: of a chain at whose times k / levels alone the network is trained; None for all.
        evidence: how the likelihood is bounded.
        own_noise: whether the noise has a time of its own, that selected levels leave alone.
        grid: number of steps -> falling times.
        context: what is drawn of the corruption for each image; `process` is then a typical one.
        ends: terms of the bound that train the ends of a learned process.
        fourier: frequencies f of the features sin, cos(f pi x) that the network is told beside x.
    """

    process: Process
    parametrization: Parametrization
    weighting: Weighting
    kernel: Kernel
    prior: Prior
    reference: str
    times: Times = uniform
    steps: int = 100
    grid: Callable[[int], Tensor] = even
    context: Context | None = None
    ends: Ends | None = None
    fourier: tuple[float, ...] = ()
    fixed: bool = False
    levels: int | None = None
    evidence: Evidence = MARKOV
    own_noise: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs one step or more; got {self.steps}.")

    @property
    def finest(self) -> int:
        """Steps of the grid that likelihoods are taken on: 1,000, or as many as the method has."""
        return self.steps if self.fixed else min(FINEST, self.levels or FINEST)


def reclocked(recipe: Recipe, clock: Sequence[float]) -> Recipe:
    """The same method by another clock: see `sfumato.paced`.

    Raises:
        ValueError: a method that learns its own, or a clock that does not rise from 0 to 1.
    """
    if next(iter(recipe.process.parameters()), None) is not None:
        raise ValueError("this method learns its own levels; train it without a clock.")
    if len(clock) < 2 or clock[0] != 0 or clock[-1] != 1 or sorted({*clock}) != [*clock]:
        raise ValueError("a clock is two times or more that rise from 0 to 1.")

    def read(process: Process) -> Process:
        return paced(process, clock, recipe.own_noise)

    context = recipe.context
    if context is not None:
        of = context.process
        context = replace(context, process=lambda drawn: read(of(drawn)))
    return replace(recipe, process=read(recipe.process), context=context)


def rising(name: str, levels: tuple[float, float], unit: float = 1.0) -> tuple[float, float]:
    """Two levels in units of `unit`, the small one first; ValueError where they are not that."""
    low, high = levels
    if not 0 < low < high:
        raise ValueError(f"{name} goes from a small to a large level; got {low:g}, {high:g}.")
    return unit * low, unit * high
