r"""The probability flow, and Runge-Kutta methods as data.

dx/dt = D_t x_0^ + G_t x carries every marginal q_t into the next without noise. A method is a
tableau: nodes c, weights a of earlier slopes for each stage, weights b of all slopes for the step,
and its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.combine import apply
from sfumato.algebra.operators import Operator, scaled
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, Update, flow_operators, flow_velocity
from sfumato.names import value
from sfumato.sampling.kernels import Call, Ending, Kernel, Loop, estimated
from sfumato.sampling.operator_table import OperatorTable


@final
class Tableau(NamedTuple):
    """An explicit Runge-Kutta method.

    >>> midpoint = sf.kernels.Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> kernel, grid = sf.kernels.flow(midpoint), sf.grids.uniform_grid(20)
    >>> round(predict(kernel, grid).error, 3)
    0.079
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __repr__(self) -> str:
        return _name(self)


EULER = Tableau(1, (0.0,), ((),), (1.0,))
"""Euler's method.

>>> sf.kernels.EULER.order, len(sf.kernels.EULER.c)  # network calls a step
(1, 1)
"""

HEUN = Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
"""Heun's method, the explicit trapezoidal rule: EDM's solver.

References: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
https://arxiv.org/abs/2206.00364

>>> sf.kernels.HEUN.order, len(sf.kernels.HEUN.c)  # network calls a step
(2, 2)
"""

RK4 = Tableau(
    4,
    (0.0, 0.5, 0.5, 1.0),
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
"""The classical fourth-order method of Runge and Kutta.

>>> sf.kernels.RK4.order, len(sf.kernels.RK4.c)  # network calls a step
(4, 4)
"""

TABLEAUX = {"euler": EULER, "heun": HEUN, "rk4": RK4}

Velocity = Callable[[Process, Tensor], tuple[Operator, Operator]]
"""(process, t) -> (D, G)."""

Stages = tuple[Update, ...]
"""The velocity at each node of a tableau."""


@final
@value
class flow(Kernel):
    """The probability flow by a Runge-Kutta method; one network call for each stage.

    Never evaluated where S_t = 0, where the flow has no velocity: end the grid at 0 (the loop then
    ends with x_0^) or above it.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> kernel = sf.kernels.flow(sf.kernels.HEUN)
    >>> [round(predict(kernel, sf.grids.uniform_grid(n)).error, 3) for n in (10, 20, 40)]
    [0.187, 0.07, 0.022]
    """

    tableau: Tableau

    @property
    def name(self) -> str:
        return _name(self.tableau)

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        spans = torch.diff(grid.to(torch.float64)).tolist()
        table = OperatorTable(lambda t, s: stages(denoiser, self.tableau, t, s), x, grid)

        def step(state: None, x: Tensor, i: int, call: Call) -> tuple[Tensor, None]:
            return slopes(self.tableau, table[i], x, spans[i], call), state

        return Loop(step, estimated(denoiser, grid[-1]))


@final
@value
class dopri5(Kernel):
    """The probability flow by Dormand and Prince's method, from one time of the grid to the next.

    Steps are as long as the tolerances allow for the whole batch, so that image i depends on the
    others within about these tolerances; the number of network calls is not known beforehand.

    Args:
        rtol, atol: error of a step, relative and absolute.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1), sf.operators.scaled(0.25))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> kernel = sf.kernels.dopri5(rtol=1e-3, atol=1e-3)
    >>> x0 = sf.sample(kernel, denoiser, torch.ones(1, 1), torch.tensor([1.0, 0.001, 0.0]))
    >>> x0.round(decimals=2)  # one deviation from 0, as x_1 was
    tensor([[0.5000]])

    References:
        torchdiffeq (R. T. Q. Chen, 2018), https://github.com/rtqichen/torchdiffeq
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise Refused(
                f"tolerances must be positive; got rtol={self.rtol:g}, atol={self.atol:g}."
            )

    @property
    def name(self) -> str:
        return "dopri5"

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        grid = grid.to(torch.float64)

        def step(state: None, x: Tensor, i: int, call: Call) -> tuple[Tensor, None]:
            def rates(t: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return (flow_velocity(denoiser, now[0], t, call.cond),)

            return solved(rates, (x,), grid[i : i + 2], self.rtol, self.atol)[0], state

        return Loop(step, estimated(denoiser, grid[-1]))


def solved(
    rates: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    ends: Tensor,
    rtol: float,
    atol: float,
) -> tuple[Tensor, ...]:
    """`state` after Dormand and Prince's method, from the first of two times to the second.

    `rates` is evaluated only between the two: the solver's choice of a first step may go beyond
    them, where there is no process.
    """
    from torchdiffeq import odeint

    low, high = ends.aminmax()
    stops = ends.to(state[0].device)
    way = odeint(
        lambda t, now: rates(t.cpu().clamp(low, high), now),
        state,
        stops,
        rtol=rtol,
        atol=atol,
        method="dopri5",
        options={"dtype": torch.float64, "step_t": stops},
    )
    return tuple(part[-1] for part in way)


@final
@value
class churn(Kernel):
    r"""EDM's stochastic sampler: noise up to t^ = t (1 + gamma), then the flow from there.

    gamma = min(amount / N, sqrt(2) - 1) on N times between `low` and `high`, else 0; noise is added
    by the Markov process itself, so that x keeps its law. Where sigma_t is proportional to t, as in
    EDM, this is its Algorithm 2, from the first step, where t^ is above 1, to the last, which ends
    with the estimate at t^. t^ is at most the last time of the process.

    Args:
        tableau: of the flow.
        amount: S_churn, >= 0; at 0 this is `flow(tableau)`.
        low: S_min / sigma_max.
        high: S_max / sigma_max.
        noise: S_noise, the deviation of the added noise relative to that of the Markov process.

    >>> kernel = sf.kernels.churn(sf.kernels.HEUN, amount=0.0)
    >>> process = sf.METHODS["edm"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> grid = sf.grids.uniform_grid(20)
    >>> predict(kernel, grid).error == predict(sf.kernels.flow(sf.kernels.HEUN), grid).error
    True

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        Algorithm 2, https://arxiv.org/abs/2206.00364
    """

    tableau: Tableau
    amount: float
    low: float = 0.0
    high: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not self.amount >= 0 or not 0 <= self.low <= self.high or not self.noise > 0:
            raise Refused(
                "churn needs an amount >= 0, 0 <= low <= high and a positive noise; got "
                f"{self.amount:g}, {self.low:g}, {self.high:g}, {self.noise:g}."
            )

    @property
    def name(self) -> str:
        return f"{_name(self.tableau)} with churn"

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        process = denoiser.process
        grid = grid.to(torch.float64)
        count = len(grid)

        def make(t: Tensor, s: Tensor) -> tuple[Operator, Operator, Stages]:
            up = self._raised(process, t, count)
            return *self._lift(process, t, up), stages(denoiser, self.tableau, up, s)

        spans = (grid[1:] - self._raised(process, grid[:-1], count)).tolist()
        table = OperatorTable(make, x, grid)

        def step(state: None, x: Tensor, i: int, call: Call) -> tuple[Tensor, None]:
            forward, fresh, parts = table[i]
            x = apply((forward, x), (fresh, call.randn_like(x)))
            return slopes(self.tableau, parts, x, spans[i], call), state

        return Loop(step, self._end(denoiser, grid[-1], count))

    def _raised(self, process: Process, t: Tensor, steps: int) -> Tensor:
        gamma = min(self.amount / steps, 2**0.5 - 1)
        up = (t * (1 + gamma)).clamp(max=process.last)
        return torch.where((t >= self.low) & (t <= self.high), up, t)

    def _lift(self, process: Process, t: Tensor, up: Tensor) -> tuple[Operator, Operator]:
        forward, cov = process.transition(t, up)
        return forward, scaled(self.noise) @ cov.sqrt()

    def _end(self, denoiser: Denoiser, last: Tensor, steps: int) -> Ending:
        up = self._raised(denoiser.process, last, steps)
        forward, fresh = self._lift(denoiser.process, last, up)
        finish = estimated(denoiser, up)
        return lambda x, call: finish(apply((forward, x), (fresh, call.randn_like(x))), call)


def _name(tableau: Tableau) -> str:
    return next((name for name, known in TABLEAUX.items() if known == tableau), "a tableau")


def stages(
    denoiser: Denoiser,
    tableau: Tableau,
    t: Tensor,
    s: Tensor,
    operators: Velocity = flow_operators,
) -> Stages:
    """The velocity at each stage of a step from t to s: dx/dt = D x_0^ + G x of `operators`."""
    made = []
    for node in tableau.c:
        at = t + node * (s - t)
        drift, grow = operators(denoiser.process, at)
        made.append(denoiser.at(at).update(grow, drift))
    return tuple(made)


def slopes(
    tableau: Tableau,
    parts: Stages,
    x: Tensor,
    span: float,
    call: Call,
    noise: Tensor | None = None,
) -> Tensor:
    """One step of the method over `span` of time, with `noise` added at its end."""
    found: list[Tensor] = []
    for velocity, node, weights in zip(parts, tableau.c, tableau.a, strict=True):
        at = _advance(x, span, weights, found)
        at = at if noise is None or not node else torch.add(at, noise, alpha=node)
        found.append(velocity(at, call.cond))
    x = _advance(x, span, tableau.b, found)
    return x if noise is None else x + noise


def _advance(x: Tensor, span: float, weights: tuple[float, ...], found: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, found, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=span * weight)
    return x
