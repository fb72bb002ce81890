r"""The probability flow, and Runge-Kutta methods as data.

dx/dt = D_t x_0^ + G_t x carries every marginal q_t into the next without noise. A method is a
tableau: nodes c, weights a of earlier slopes for each stage, weights b of all slopes for the step,
and its order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.corruption.prior import RandnLike
from sfumato.estimation.denoise import Denoiser, Precondition, flow_operators
from sfumato.sampling.kernels import Kernel, Pulls, Table, moved, pulled


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

Stage = tuple[Precondition, Pulls]


def flow(tableau: Tableau) -> Kernel:
    """The probability flow by a Runge-Kutta method; one network call for each stage.

    Never evaluated where S_t = 0, where the flow has no velocity: end the grid at 0 (the loop then
    ends with x_0^) or above it.
    """

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> tuple[Denoiser, Table, list[float]]:
        process = denoiser.process

        def make(t: Tensor, s: Tensor) -> tuple[Stage, ...]:
            stages = []
            for node in tableau.c:
                at = t + node * (s - t)
                pre = denoiser.precondition(at)
                drift, grow = flow_operators(process, at)
                stages.append((pre, pulled(denoiser, pre, grow, drift)))
            return tuple(stages)

        spans = torch.diff(grid.to(torch.float64)).tolist()
        return denoiser, Table(make, x, grid), spans

    def step(
        state: tuple[Denoiser, Table, list[float]], x: Tensor, i: int, randn_like: RandnLike
    ) -> tuple[Tensor, tuple[Denoiser, Table, list[float]]]:
        denoiser, table, spans = state
        slopes: list[Tensor] = []
        for (pre, pulls), weights in zip(table[i], tableau.a, strict=True):
            y = _advance(x, spans[i], weights, slopes)
            slopes.append(moved(denoiser, pre, pulls, y))
        return _advance(x, spans[i], tableau.b, slopes), state

    return Kernel(init, step)


def _advance(x: Tensor, span: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=span * weight)
    return x
