r"""The probability flow, and Runge-Kutta methods as data.

dx/dt = D_t x_0^ + G_t x carries every marginal q_t into the next without noise. A method is a
tableau: nodes c, weights a of earlier slopes for each stage, weights b of all slopes for the step,
and its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.algebra.combine import apply
from sfumato.algebra.operators import Operator, scaled
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, Precondition, flow_operators, velocity
from sfumato.sampling.kernels import Ending, Kernel, Pulls, Table, estimated, moved, pulled


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method (final)."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = Tableau(1, (0.0,), ((),), (1.0,))
"""Euler's method."""

HEUN = Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
"""Heun's method, the explicit trapezoidal rule: EDM's solver.

References: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
https://arxiv.org/abs/2206.00364
"""

RK4 = Tableau(
    4,
    (0.0, 0.5, 0.5, 1.0),
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
"""The classical fourth-order method of Runge and Kutta."""

TABLEAUX = {"euler": EULER, "heun": HEUN, "rk4": RK4}

Velocity = Callable[[Process, Tensor], tuple[Operator, Operator]]
"""(process, t) -> (D, G)."""

Stage = tuple[Precondition, Pulls]
Clocked = tuple[Denoiser, Table, list[float]]
"""A denoiser, its operators and the time that each step spans."""


def flow(tableau: Tableau) -> Kernel:
    """The probability flow by a Runge-Kutta method; one network call for each stage.

    Never evaluated where S_t = 0, where the flow has no velocity: end the grid at 0 (the loop then
    ends with x_0^) or above it.
    """

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> Clocked:
        spans = torch.diff(grid.to(torch.float64)).tolist()
        return denoiser, Table(lambda t, s: stages(denoiser, tableau, t, s), x, grid), spans

    def step(state: Clocked, x: Tensor, i: int, randn_like: RandnLike) -> tuple[Tensor, Clocked]:
        denoiser, table, spans = state
        return slopes(denoiser, tableau, table[i], x, spans[i]), state

    return Kernel(init, step, _name(tableau))


def adaptive(rtol: float = 1e-5, atol: float = 1e-5) -> Kernel:
    """The probability flow by Dormand and Prince's method, from one time of the grid to the next.

    Steps are as long as the tolerances allow to the whole batch, so that image i depends on its
    neighbours to about that much; network calls are not known before.

    Args:
        rtol, atol: error of a step, relative and absolute.

    References:
        torchdiffeq (R. T. Q. Chen, 2018), https://github.com/rtqichen/torchdiffeq
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"tolerances must be positive; got rtol={rtol:g}, atol={atol:g}.")

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> tuple[Denoiser, Tensor]:
        return denoiser, grid.to(torch.float64)

    def step(
        state: tuple[Denoiser, Tensor], x: Tensor, i: int, randn_like: RandnLike
    ) -> tuple[Tensor, tuple[Denoiser, Tensor]]:
        denoiser, grid = state

        def rates(t: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (velocity(denoiser, now[0], t),)

        return solved(rates, (x,), grid[i : i + 2], rtol, atol)[0], state

    return Kernel(init, step, "dormand-prince")


def solved(
    rates: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    ends: Tensor,
    rtol: float,
    atol: float,
) -> tuple[Tensor, ...]:
    """`state` after Dormand and Prince's method, from the first of two times to the second.

    `rates` is asked at times between the two alone: the solver's first look, which finds a step,
    may go beyond them, where there is no process.
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


def churn(
    tableau: Tableau, amount: float, low: float = 0.0, high: float = 1.0, noise: float = 1.0
) -> Kernel:
    r"""EDM's stochastic sampler: noise up to t^ = t (1 + gamma), then the flow from there.

    gamma = min(amount / N, sqrt(2) - 1) on N times between `low` and `high`, else 0; noise is added
    by the Markov process itself, so that x keeps its law. Where sigma_t is proportional to t, as in
    EDM, this is its Algorithm 2, from the first step, where t^ is above 1, to the last, which ends
    with the estimate at t^. A process that has no times above 1 is not taken there.

    Args:
        tableau: of the flow.
        amount: S_churn, >= 0; at 0 this is `flow(tableau)`.
        low: S_min / sigma_max.
        high: S_max / sigma_max.
        noise: S_noise, the deviation of what is added over that of the Markov process.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        Algorithm 2, https://arxiv.org/abs/2206.00364
    """
    if not amount >= 0 or not 0 <= low <= high or not noise > 0:
        raise ValueError(
            "churn needs an amount >= 0, 0 <= low <= high and a positive noise; got "
            f"{amount:g}, {low:g}, {high:g}, {noise:g}."
        )

    def raised(process: Process, t: Tensor, steps: int) -> Tensor:
        gamma = min(amount / steps, 2**0.5 - 1)
        up = (t * (1 + gamma)).clamp(max=process.last)
        return torch.where((t >= low) & (t <= high), up, t)

    def lift(process: Process, t: Tensor, up: Tensor) -> tuple[Operator, Operator]:
        forward, cov = process.transition(t, up)
        return forward, scaled(noise) @ cov.sqrt()

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> Clocked:
        process, grid = denoiser.process, grid.to(torch.float64)

        def make(t: Tensor, s: Tensor) -> tuple[Operator, Operator, tuple[Stage, ...]]:
            up = raised(process, t, len(grid))
            return *lift(process, t, up), stages(denoiser, tableau, up, s)

        spans = grid[1:] - raised(process, grid[:-1], len(grid))
        return denoiser, Table(make, x, grid), spans.tolist()

    def step(state: Clocked, x: Tensor, i: int, randn_like: RandnLike) -> tuple[Tensor, Clocked]:
        denoiser, table, spans = state
        forward, fresh, parts = table[i]
        x = apply((forward, x), (fresh, randn_like(x)))
        return slopes(denoiser, tableau, parts, x, spans[i]), state

    def end(denoiser: Denoiser, grid: Tensor) -> Ending:
        process, last = denoiser.process, grid[-1]
        up = raised(process, last, len(grid))
        (forward, fresh), finish = lift(process, last, up), estimated(denoiser, up.reshape(1))
        return lambda x, randn_like: finish(apply((forward, x), (fresh, randn_like(x))), randn_like)

    return Kernel(init, step, f"{_name(tableau)} with churn", end)


def _name(tableau: Tableau) -> str:
    return next((name for name, known in TABLEAUX.items() if known == tableau), "a tableau")


def stages(
    denoiser: Denoiser,
    tableau: Tableau,
    t: Tensor,
    s: Tensor,
    operators: Velocity = flow_operators,
) -> tuple[Stage, ...]:
    """What each stage of a step from t to s needs: dx/dt = D x_0^ + G x of `operators`."""
    made = []
    for node in tableau.c:
        at = t + node * (s - t)
        pre = denoiser.precondition(at)
        drift, grow = operators(denoiser.process, at)
        made.append((pre, pulled(denoiser, pre, grow, drift)))
    return tuple(made)


def slopes(
    denoiser: Denoiser,
    tableau: Tableau,
    parts: tuple[Stage, ...],
    x: Tensor,
    span: float,
    noise: Tensor | None = None,
) -> Tensor:
    """One step of the method over `span` of time, with `noise` added at its end."""
    found: list[Tensor] = []
    for (pre, pulls), node, weights in zip(parts, tableau.c, tableau.a, strict=True):
        at = _advance(x, span, weights, found)
        at = at if noise is None or not node else torch.add(at, noise, alpha=node)
        found.append(moved(denoiser, pre, pulls, at))
    x = _advance(x, span, tableau.b, found)
    return x if noise is None else x + noise


def _advance(x: Tensor, span: float, weights: tuple[float, ...], found: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, found, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=span * weight)
    return x
