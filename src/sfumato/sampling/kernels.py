r"""A kernel moves x from one time of a grid to the next, by an estimate of x_0.

    init(denoiser, x, grid) -> state      every operator of the loop, once, in float64, cast once
    step(state, x, i, randn_like) -> (x, state)      from grid[i] to grid[i + 1]

Kernels are values: `reverse(coupling)`, `flow(tableau)`, `langevin(delta, steps)`, and `chain` of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.algebra.combine import Spectra, apply
from sfumato.algebra.operators import Diagonal, Operator, identity, scaled, zero
from sfumato.corruption.coupling import Coupling, ancestral, matched
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, Precondition
from sfumato.names import called

# Steps whose operators are held in memory at once: bounds what a long grid of large images needs.
BLOCK = 64

Pulls = tuple[Operator, ...]
"""One operator for each value of an estimate, and before them one for x."""


def pulled(denoiser: Denoiser, pre: Precondition, carry: Operator, pull: Operator) -> Pulls:
    """carry x + pull x_0^ as operators on x and on each value of the estimate."""
    of_x, *maps = denoiser.maps(pre)
    keep = carry if of_x.vanishes else carry + pull @ of_x
    return keep, *(pull @ share for share in maps)


def moved(
    denoiser: Denoiser,
    pre: Precondition,
    pulls: Pulls,
    x: Tensor,
    *drawn: tuple[Operator, Tensor],
) -> Tensor:
    """The operators of `pulled` on x and its estimate, and what is drawn afresh."""
    spectra: Spectra = {}
    values = denoiser.values(x, pre, spectra)
    return apply(*zip(pulls, (x, *values), strict=True), *drawn, spectra=spectra)


Ending = Callable[[Tensor, RandnLike], Tensor]
"""(x at the last time of a grid, randn_like) -> x_0^."""


def estimated(denoiser: Denoiser, grid: Tensor) -> Ending:
    """The estimate of x_0 at the last time of `grid`, what most kernels end with."""
    pre = denoiser.precondition(grid[-1])
    pulls = pulled(denoiser, pre, zero(), identity())
    return lambda x, randn_like: moved(denoiser, pre, pulls, x)


class Kernel(NamedTuple):
    """A sampler's step (final): see the module.

    Attributes:
        init, step: of the loop.
        name: for error sentences and records.
        end: (denoiser, grid above 0) -> how a grid that goes on to 0 is ended.
    """

    init: Callable[[Denoiser, Tensor, Tensor], Any]
    step: Callable[[Any, Tensor, int, RandnLike], tuple[Tensor, Any]]
    name: str = "a kernel"
    end: Callable[[Denoiser, Tensor], Ending] = estimated


class Table:
    """Operators for each step of a grid, made in blocks by one call over the block's times (final).

    Args:
        make: (t, s) -> operators and labels, nested in tuples, for times (N, 1, ..., 1) or ().
        x: the signal they will act on; gives rank, dtype and device.
        grid: falling times.
    """

    def __init__(self, make: Callable[[Tensor, Tensor], Any], x: Tensor, grid: Tensor) -> None:
        self._make, self._x, self._grid = make, x, grid.to(torch.float64)
        self._start, self._rows = 0, []

    def __getitem__(self, i: int) -> Any:  # noqa: ANN401 - what `make` makes
        if not self._start <= i < self._start + len(self._rows):
            self._start = i - i % BLOCK
            stop = min(self._start + BLOCK, len(self._grid) - 1)
            self._rows = self._block(self._grid[self._start : stop + 1])
        return self._rows[i - self._start]

    def _block(self, grid: Tensor) -> list[Any]:
        times = grid.reshape(-1, *(1,) * (self._x.ndim - 1))
        # Operators that are not gains (matrix-free ones, say), or gains that differ from sample to
        # sample and so have no room for a batch of times, are made one time at a time. Where there
        # is one sample, none differs.
        if len(self._x) > 1 and not all(map(self._one, _leaves(self._make(grid[0], grid[1])))):
            return [self._make(t, s) for t, s in pairwise(grid)]
        made = self._make(times[:-1], times[1:])
        if not all(isinstance(leaf, Diagonal | Tensor) for leaf in _leaves(made)):
            return [self._make(t, s) for t, s in pairwise(grid)]
        return _unbind(made, len(grid) - 1, self._x)

    def _one(self, leaf: object) -> bool:
        """Whether `leaf`, made for one time, is gains or a label that all samples share."""
        if not isinstance(leaf, Diagonal | Tensor):
            return False
        values = leaf.log_gain if isinstance(leaf, Diagonal) else leaf
        return values.ndim < self._x.ndim or len(values) == 1


class Move(NamedTuple):
    """x_s = carry x_t + pull x_0^ + fresh eps."""

    carry: Operator
    pull: Operator
    fresh: Operator


def reverse(coupling: Coupling) -> Kernel:
    r"""x_s = C_s x_0^ + K (x_t - C_t x_0^) + L eps for a coupling (K, L).

    With `ancestral`, `ddim(eta)`, `momentum`, `naive`, `cold`, `annealed` ... this is DDPM, DDIM,
    Soft Diffusion's samplers, Cold Diffusion, consistent annealed sampling.
    """

    def rule(process: Process, t: Tensor, s: Tensor) -> Move:
        carry, fresh = coupling(process, t, s)
        return Move(carry, process.signal.at(s) - carry @ process.signal.at(t), fresh)

    return moves(rule, called(coupling))


def reverse_diffusion(process: Process, t: Tensor, s: Tensor) -> Move:
    r"""Score SDE's reverse-diffusion predictor, for any Markov process.

    The forward step x_t = A x_s + N(0, Q) taken back as it stands, x_s = (2 I - A) x_t + Q score +
    Q^1/2 eps. First order in the step; on VE it is `momentum`.

    Raises:
        ValueError: the signal-to-noise ratio of some coefficient rises from s to t.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), Algorithms 2 and 3, https://arxiv.org/abs/2011.13456
    """
    forward, cov = process.transition(s, t)
    toward = cov @ process.cov(t).inv()
    carry = scaled(2.0) - forward - toward
    return Move(carry, toward @ process.signal.at(t), cov.sqrt())


def moves(rule: Callable[[Process, Tensor, Tensor], Move], name: str) -> Kernel:
    """The kernel of a rule (process, t, s) -> `Move`, made once for every step of the grid."""

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> tuple[Denoiser, Table]:
        process = denoiser.process

        def make(t: Tensor, s: Tensor) -> tuple[Precondition, Pulls, Operator]:
            pre, (carry, pull, fresh) = denoiser.precondition(t), rule(process, t, s)
            return pre, pulled(denoiser, pre, carry, pull), fresh

        return denoiser, Table(make, x, grid)

    def step(
        state: tuple[Denoiser, Table], x: Tensor, i: int, randn_like: RandnLike
    ) -> tuple[Tensor, tuple[Denoiser, Table]]:
        denoiser, table = state
        pre, pulls, fresh = table[i]
        drawn = [] if fresh.vanishes else [(fresh, randn_like(x))]
        return moved(denoiser, pre, pulls, x, *drawn), state

    return Kernel(init, step, name)


def exact_variance(coupling: Coupling = ancestral) -> Kernel:
    """`reverse` of `matched`: fresh noise by the spectrum measured of the data, `denoiser.facts`.

    Data that are Gaussian with that spectrum keep their variance in any number of steps.

    Raises:
        ValueError: (on use) a denoiser without facts.
    """

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> tuple[Denoiser, Table]:
        if denoiser.facts is None:
            raise ValueError(
                "exact-variance needs what was measured of the data. Give the Denoiser its facts, "
                "as in facts=sf.measure(batches, shape)."
            )
        joint = denoiser.process.signal.at(grid[0]) @ denoiser.process.noise.at(grid[0])
        cov = denoiser.facts.cov(joint.basis if isinstance(joint, Diagonal) else None)
        return reverse(matched(coupling, cov)).init(denoiser, x, grid)

    return Kernel(init, reverse(coupling).step, f"exact-variance {called(coupling)}")


def langevin(delta: float, steps: int = 1) -> Kernel:
    r"""Langevin steps at the time arrived at, preconditioned by V_s.

    x <- x - delta (x - C_s x_0^) + sqrt(2 delta) S_s eps. Preconditioned so, the drift V_s score is
    minus the residual, and NCSN's rule alpha_i ~ sigma_i^2 is one constant
    delta = alpha_i / sigma_i^2. Alone it is annealed Langevin dynamics; after a predictor (`chain`)
    a corrector. Where x_s has variance M the stationary variance is M / (1 - delta V_s / 2M).

    References:
        Generative Modeling by Estimating Gradients of the Data Distribution (Y. Song, S. Ermon,
        2019), https://arxiv.org/abs/1907.05600
    """
    if not 0 < delta < 2:
        raise ValueError(f"langevin needs delta in (0, 2), else it diverges; got {delta:g}.")
    if steps < 1:
        raise ValueError(f"langevin needs one step or more; got {steps}.")

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> tuple[Denoiser, Table]:
        process = denoiser.process

        def make(t: Tensor, s: Tensor) -> tuple[Precondition, Pulls, Operator]:
            pre, pull = denoiser.precondition(s), scaled(delta) @ process.signal.at(s)
            pulls = pulled(denoiser, pre, scaled(1 - delta), pull)
            return pre, pulls, scaled((2 * delta) ** 0.5) @ process.noise.at(s)

        return denoiser, Table(make, x, grid)

    def step(
        state: tuple[Denoiser, Table], x: Tensor, i: int, randn_like: RandnLike
    ) -> tuple[Tensor, tuple[Denoiser, Table]]:
        denoiser, table = state
        pre, pulls, fresh = table[i]
        for _ in range(steps):
            x = moved(denoiser, pre, pulls, x, (fresh, randn_like(x)))
        return x, state

    return Kernel(init, step, "langevin")


def corrector(snr: float) -> Kernel:
    r"""Score SDE's Langevin corrector: one step at the time arrived at, sized by a ratio of norms.

    x <- x - delta r + sqrt(2 delta) S_s eps with r = x - C_s x_0^ and delta = 2 (snr ||eps|| /
    ||S_s^-1 r||)^2 for each sample, never its batch's mean; for white noise the published step
    2 (snr ||z|| / ||score||)^2 score, without the factor 1 - beta that VP has there. No larger than
    1, where a step forgets x: a network that sees no noise would ask for an infinite one.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), Algorithms 4 and 5, https://arxiv.org/abs/2011.13456
    """
    if not snr > 0:
        raise ValueError(f"corrector needs a positive ratio; got {snr:g}.")

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> tuple[Denoiser, Table]:
        process = denoiser.process

        def make(t: Tensor, s: Tensor) -> tuple[Precondition, Pulls, Operator, Operator]:
            pre, pull = denoiser.precondition(s), scaled(-1.0) @ process.signal.at(s)
            level = process.noise.at(s)
            return pre, pulled(denoiser, pre, identity(), pull), level, level.inv()

        return denoiser, Table(make, x, grid)

    def step(
        state: tuple[Denoiser, Table], x: Tensor, i: int, randn_like: RandnLike
    ) -> tuple[Tensor, tuple[Denoiser, Table]]:
        denoiser, table = state
        pre, pulls, level, back = table[i]
        away, eps = moved(denoiser, pre, pulls, x), randn_like(x)
        shape = (-1, *(1,) * (x.ndim - 1))
        white, drawn = (y.flatten(1).square().sum(1).reshape(shape) for y in (back(away), eps))
        delta = (2 * snr**2 * drawn / white).clamp(max=1.0)
        return x - delta * away + (2 * delta).sqrt() * level(eps), state

    return Kernel(init, step, "corrector")


def chain(*kernels: Kernel) -> Kernel:
    """One kernel after another; only the first should move in time.

    Predictor-corrector is chain(flow(...), langevin(...)).
    """
    if not kernels:
        raise ValueError("chain needs one kernel or more; got none.")

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> list[Any]:
        return [kernel.init(denoiser, x, grid) for kernel in kernels]

    def step(
        states: list[Any], x: Tensor, i: int, randn_like: RandnLike
    ) -> tuple[Tensor, list[Any]]:
        after = []
        for kernel, state in zip(kernels, states, strict=True):
            x, state = kernel.step(state, x, i, randn_like)
            after.append(state)
        return x, after

    return Kernel(init, step, " + ".join(kernel.name for kernel in kernels), kernels[0].end)


def _leaves(tree: Any) -> Sequence[Any]:  # noqa: ANN401
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]


def _unbind(tree: Any, count: int, x: Tensor) -> list[Any]:  # noqa: ANN401
    """A tree of operators over `count` times as `count` trees of operators."""
    if isinstance(tree, tuple):
        columns = [_unbind(part, count, x) for part in tree]
        rows = zip(*columns, strict=True)
        return [Precondition(*row) if isinstance(tree, Precondition) else row for row in rows]
    if isinstance(tree, Diagonal):
        return tree.unbind(x) if _batched(tree.log_gain, count, x) else [tree] * count
    label = tree.to(x.dtype).to(x.device)
    return list(label.flatten(1)) if _batched(tree, count, x) else [label] * count


def _batched(value: Tensor, count: int, x: Tensor) -> bool:
    return value.ndim == x.ndim and len(value) == count
