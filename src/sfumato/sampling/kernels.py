r"""A kernel moves x from one time of a grid to the next, by an estimate of x_0.

    prepare(denoiser, x, grid) -> loop           every operator, once, in float64, cast once
    loop.step(state, x, i, call) -> (x, state)   from grid[i] to grid[i + 1]

Kernels are values, equal where their parameters are: `reverse(coupling)`, `flow(tableau)`,
`langevin(delta, steps)`, and `chain` of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.operators import Operator, identity, scaled, zero
from sfumato.corruption import coupling
from sfumato.corruption.coupling import Coupling, ancestral, ancestral_large
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import NONE, Conditions, Denoiser, Update
from sfumato.limits import STEPS, whole
from sfumato.names import called, value
from sfumato.sampling.operator_table import OperatorTable


@final
class Call(NamedTuple):
    """What a loop receives besides x.

    Attributes:
        randn_like: source of the noise.
        cond: what the network receives besides x and t.

    >>> call = sf.kernels.Call(cond={"classes": torch.tensor([3])})
    >>> call.randn_like(torch.empty(2, 3)).shape, call.cond
    (torch.Size([2, 3]), {'classes': tensor([3])})
    """

    randn_like: RandnLike = torch.randn_like
    cond: Conditions = NONE


Step = Callable[[Any, Tensor, int, Call], tuple[Tensor, Any]]
"""(state, x, i, call) -> (x, state): from grid[i] to grid[i + 1]."""

Ending = Callable[[Tensor, Call], Tensor]
"""(x at the last time of a grid, call) -> x_0^."""


@final
class Loop(NamedTuple):
    """A kernel along a grid, prepared.

    Attributes:
        step: from each time of the grid to the next.
        end: the last step of a grid that ends at 0.
        state: the initial state of `step`.

    >>> denoiser = sf.from_pretrained("fashion-ddpm").denoiser
    >>> x, grid = torch.randn(1, 1, 28, 28), torch.tensor([1.0, 0.5])
    >>> loop = sf.kernels.reverse(sf.couplings.ddim()).prepare(denoiser, x, grid)
    >>> loop.step(loop.state, x, 0, sf.kernels.Call())[0].shape  # x at t = 0.5
    torch.Size([1, 1, 28, 28])
    """

    step: Step
    end: Ending
    state: Any = None


class Kernel(ABC):
    """A step of a sampler (abstract: `name`, `prepare`).

    >>> kernel = sf.kernels.reverse(sf.couplings.ancestral)
    >>> isinstance(kernel, sf.kernels.Kernel), kernel.name, kernel.markov
    (True, 'ancestral', True)
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in error sentences."""

    @property
    def markov(self) -> bool:
        """Whether it reverses the Markov process: from one x_t it draws from p(x_0 | x_t).

        Others keep the law of all x_s and not the joint one: a flow returns a single point.
        """
        return False

    @abstractmethod
    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        """The loop along `grid`, falling times above 0, for any signal like `x` (B, *shape)."""


def estimated(denoiser: Denoiser, t: Tensor) -> Ending:
    """The estimate of x_0 at `t`, the last time of a grid above 0: what most kernels end with."""
    estimate = denoiser.at(t).update(zero(), identity())
    return lambda x, call: estimate(x, call.cond)


def looped(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    make: Callable[[Tensor, Tensor], Any],
    take: Callable[[Any, Tensor, Call], Tensor],
) -> Loop:
    """The loop of a kernel without state, ended by the estimate of x_0.

    Args:
        denoiser, x, grid: as in `Kernel.prepare`.
        make: (t, s) -> what a step needs, as in `OperatorTable`.
        take: (what `make` made, x, call) -> x.
    """
    table = OperatorTable(make, x, grid)
    return Loop(
        lambda state, x, i, call: (take(table[i], x, call), state), estimated(denoiser, grid[-1])
    )


class Move(NamedTuple):
    """x_s = carry x_t + pull x_0^ + fresh eps.

    >>> process = sf.METHODS["vp"]((1, 8, 8)).process
    >>> move = sf.kernels.reverse_diffusion(process, *torch.tensor([0.5, 0.4]).double())
    >>> move.carry.gain
    tensor(0.7173, dtype=torch.float64)
    """

    carry: Operator
    pull: Operator
    fresh: Operator


Rule = Callable[[Process, Tensor, Tensor], Move]
"""(process, t, s) -> Move."""


def moved(rule: Rule, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
    """The loop of a rule, whose operators are made once for every step of the grid."""

    def make(t: Tensor, s: Tensor) -> tuple[Update, Operator]:
        carry, pull, fresh = rule(denoiser.process, t, s)
        return denoiser.at(t).update(carry, pull), fresh

    def take(row: tuple[Update, Operator], x: Tensor, call: Call) -> Tensor:
        update, fresh = row
        drawn = () if fresh.is_zero else ((fresh, call.randn_like(x)),)
        return update(x, call.cond, *drawn)

    return looped(denoiser, x, grid, make, take)


@final
@value
class reverse(Kernel):
    r"""x_s = C_s x_0^ + K (x_t - C_t x_0^) + L eps for a coupling (K, L).

    With `ancestral`, `ddim(eta)`, `momentum`, `naive`, `cold`, `annealed` ... this is DDPM, DDIM,
    Soft Diffusion's samplers, Cold Diffusion, consistent annealed sampling.

    >>> kernel = sf.kernels.reverse(sf.couplings.ddim(eta=0.5))
    >>> kernel.name, kernel == sf.kernels.reverse(sf.couplings.ddim(eta=0.5))
    ('ddim', True)
    """

    coupling: Coupling

    @property
    def name(self) -> str:
        return called(self.coupling)

    @property
    def markov(self) -> bool:
        return self.coupling in (ancestral, ancestral_large)

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        def rule(process: Process, t: Tensor, s: Tensor) -> Move:
            carry, fresh = self.coupling(process, t, s)
            return Move(carry, process.signal.at(s) - carry @ process.signal.at(t), fresh)

        return moved(rule, denoiser, x, grid)


@final
@value
class moves(Kernel):
    """The kernel of a rule (process, t, s) -> `Move`, such as `reverse_diffusion`.

    >>> sf.kernels.moves(sf.kernels.reverse_diffusion).name
    'reverse_diffusion'
    """

    rule: Rule

    @property
    def name(self) -> str:
        return called(self.rule)

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        return moved(self.rule, denoiser, x, grid)


def reverse_diffusion(process: Process, t: Tensor, s: Tensor) -> Move:
    r"""Score SDE's reverse-diffusion predictor, for any Markov process: a rule of `moves`.

    The forward step x_t = A x_s + N(0, Q) reversed in one step, x_s = (2 I - A) x_t + Q score +
    Q^1/2 eps. First order in the step; on VE it is `momentum`.

    Raises:
        ValueError: the signal-to-noise ratio of some coefficient rises from s to t.

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> carry = sf.kernels.reverse_diffusion(process, t, s).carry
    >>> torch.allclose(carry.gain, sf.couplings.momentum(process, t, s).carry.gain)
    True

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), Algorithms 2 and 3, https://arxiv.org/abs/2011.13456
    """
    forward, cov = process.transition(s, t)
    toward = cov @ process.cov(t).inv()
    carry = scaled(2.0) - forward - toward
    return Move(carry, toward @ process.signal.at(t), cov.sqrt())


@final
@value
class analytic_variance(Kernel):
    """`reverse` of `analytic_variance`: fresh noise by the data's spectrum, `denoiser.stats`.

    Data that are Gaussian with that spectrum keep their variance in any number of steps.

    Raises:
        ValueError: (on use) a denoiser without statistics.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> round(predict(sf.kernels.analytic_variance(), torch.tensor([1.0, 0.5, 1e-5])).error, 3)
    0.001
    """

    coupling: Coupling = ancestral

    @property
    def name(self) -> str:
        return f"analytic-variance {called(self.coupling)}"

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        if denoiser.stats is None:
            raise Refused(
                "analytic-variance needs statistics of the data. Give them to the denoiser, as in "
                "stats=sf.measure(batches, shape)."
            )
        gains = denoiser.process.gains(grid[0])
        cov = denoiser.stats.cov(None if gains is None else gains.basis)
        return reverse(coupling.analytic_variance(self.coupling, cov)).prepare(denoiser, x, grid)


@final
@value
class langevin(Kernel):
    r"""Langevin steps at the time s of the step's end, preconditioned by V_s.

    x <- x - delta (x - C_s x_0^) + sqrt(2 delta) S_s eps. Preconditioned so, the drift V_s score is
    minus the residual, and NCSN's rule alpha_i ~ sigma_i^2 is one constant
    delta = alpha_i / sigma_i^2. Alone it is annealed Langevin dynamics; after a predictor (`chain`)
    a corrector. Where x_s has variance M the stationary variance is M / (1 - delta V_s / 2M).

    >>> process = sf.METHODS["ncsn"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> kernels = [sf.kernels.langevin(delta=0.05, steps=n) for n in (1, 20)]
    >>> [round(predict(kernel, sf.grids.uniform_grid(10)).error, 2) for kernel in kernels]
    [2.83, 0.38]

    References:
        Generative Modeling by Estimating Gradients of the Data Distribution (Y. Song, S. Ermon,
        2019), https://arxiv.org/abs/1907.05600
    """

    delta: float
    steps: int = 1

    @property
    def name(self) -> str:
        return "langevin"

    def __post_init__(self) -> None:
        if not 0 < self.delta < 2:
            raise Refused(f"langevin needs delta in (0, 2), else it diverges; got {self.delta:g}.")
        whole("steps of langevin", self.steps, 1, STEPS)

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        process = denoiser.process
        delta = self.delta

        def make(t: Tensor, s: Tensor) -> tuple[Update, Operator]:
            pull = scaled(delta) @ process.signal.at(s)
            update = denoiser.at(s).update(scaled(1 - delta), pull)
            return update, scaled((2 * delta) ** 0.5) @ process.noise.at(s)

        def take(row: tuple[Update, Operator], x: Tensor, call: Call) -> Tensor:
            update, fresh = row
            for _ in range(self.steps):
                x = update(x, call.cond, (fresh, call.randn_like(x)))
            return x

        return looped(denoiser, x, grid, make, take)


@final
@value
class corrector(Kernel):
    r"""Score SDE's Langevin corrector: one step at time s, its size set by a ratio of norms.

    x <- x - delta r + sqrt(2 delta) S_s eps with r = x - C_s x_0^ and delta = 2 (snr ||eps|| /
    ||S_s^-1 r||)^2 for each sample, never its batch's mean; for white noise the published step
    2 (snr ||z|| / ||score||)^2 score, without the factor 1 - beta that VP has there. At most 1,
    where a step discards x: for an estimate with residual 0 the ratio is infinite.

    >>> sf.kernels.corrector(snr=0.16) == sf.kernels.corrector(0.16)  # kernels are values
    True

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), Algorithms 4 and 5, https://arxiv.org/abs/2011.13456
    """

    snr: float

    @property
    def name(self) -> str:
        return "corrector"

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise Refused(f"corrector needs a positive ratio; got {self.snr:g}.")

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        process = denoiser.process

        def make(t: Tensor, s: Tensor) -> tuple[Update, Operator, Operator]:
            pull = scaled(-1.0) @ process.signal.at(s)
            level = process.noise.at(s)
            return denoiser.at(s).update(identity(), pull), level, level.inv()

        def take(row: tuple[Update, Operator, Operator], x: Tensor, call: Call) -> Tensor:
            update, level, back = row
            away = update(x, call.cond)
            eps = call.randn_like(x)
            shape = (-1, *(1,) * (x.ndim - 1))
            white, drawn = (y.flatten(1).square().sum(1).reshape(shape) for y in (back(away), eps))
            delta = (2 * self.snr**2 * drawn / white).clamp(max=1.0)
            return x - delta * away + (2 * delta).sqrt() * level(eps)

        return looped(denoiser, x, grid, make, take)


@final
@value
class chain(Kernel):
    """One kernel after another; only the first should move in time.

    Predictor-corrector is chain(flow(...), langevin(...)).

    >>> sf.kernels.chain(sf.kernels.flow(sf.kernels.EULER), sf.kernels.langevin(0.1)).name
    'euler + langevin'
    """

    kernels: tuple[Kernel, ...]

    def __init__(self, *kernels: Kernel) -> None:
        if not kernels:
            raise Refused("chain needs one kernel or more; got none.")
        object.__setattr__(self, "kernels", kernels)

    @property
    def name(self) -> str:
        return " + ".join(kernel.name for kernel in self.kernels)

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        loops = [kernel.prepare(denoiser, x, grid) for kernel in self.kernels]

        def step(states: list[Any], x: Tensor, i: int, call: Call) -> tuple[Tensor, list[Any]]:
            after = []
            for loop, state in zip(loops, states, strict=True):
                x, state = loop.step(state, x, i, call)
                after.append(state)
            return x, after

        return Loop(step, loops[0].end, [loop.state for loop in loops])
