r"""The reverse SDEs: one family for every diffusion nu^2, which begins with the flow at 0.

    dx = [b - nu^2 score / 2] dt + nu dw,  backwards from t = 1,   score = V_t^-1 (C_t x_0^ - x)

b is the flow's velocity. Whatever nu is, the marginals are q_t (docs/mathematics.md, "The reverse
SDE"): more noise forgets more of what went wrong before, and asks for more steps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, NotPositive, Operator, scaled
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, flow_operators
from sfumato.names import called
from sfumato.sampling.flow import EULER, HEUN, Clocked, Stage, Tableau, slopes, stages
from sfumato.sampling.kernels import Kernel, Table

Diffusion = Callable[[Process, Tensor], Operator]
"""(process, t) -> nu^2, a variance per unit of time."""


def markov(process: Process, t: Tensor) -> Operator:
    r"""g^2 = V' - C' C^-1 V - V (C' C^-1)^T: the SDE whose forward process is Markov.

    Score SDE's for VE, VP and sub-VP, Blurring Diffusion's.
    """
    fade = process.signal.rate(t) @ process.signal.at(t).inv()
    half = fade @ process.cov(t)
    return growth(process, t) - half - half.T


def growth(process: Process, t: Tensor) -> Operator:
    r"""V' = S' S^T + S S'^T: Soft Diffusion's, whose drift is C' x_0^ - V' score."""
    half = process.noise.rate(t) @ process.noise.at(t).T
    return half + half.T


def sde(diffusion: Diffusion = markov, tableau: Tableau = EULER, amount: float = 1.0) -> Kernel:
    r"""The reverse SDE of `diffusion`: Euler-Maruyama, or stochastic Heun.

    By EULER of first weak order; by HEUN, whose second slope sees the whole of the noise, of
    second.

    Args:
        diffusion: nu^2; `markov` or `growth`, or a function of one's own.
        tableau: EULER or HEUN.
        amount: what nu^2 is multiplied by, >= 0; at 0 this is the flow.

    Raises:
        ValueError: another tableau or a negative amount; on use, a nu^2 that is negative.

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), https://arxiv.org/abs/2011.13456
        Soft Diffusion: Score Matching for General Corruptions (G. Daras et al., 2022), Eq. 14,
        https://arxiv.org/abs/2209.05442
        Elucidating the Design Space of Diffusion-Based Generative Models (T. Karras et al., 2022),
        Appendix B, https://arxiv.org/abs/2206.00364
    """
    if tableau not in (EULER, HEUN):
        raise ValueError("the reverse SDE is solved by EULER or HEUN; got another tableau.")
    if not amount >= 0:
        raise ValueError(f"the reverse SDE needs an amount of 0 or more; got {amount:g}.")

    def noisy(process: Process, t: Tensor) -> Operator:
        return scaled(amount) @ diffusion(process, t)

    def velocity(process: Process, t: Tensor) -> tuple[Operator, Operator]:
        drift, grow = flow_operators(process, t)
        half = scaled(0.5) @ noisy(process, t) @ process.cov(t).inv()
        return drift - half @ process.signal.at(t), grow + half

    def init(denoiser: Denoiser, x: Tensor, grid: Tensor) -> Clocked:
        process = denoiser.process

        def make(t: Tensor, s: Tensor) -> tuple[Operator, tuple[Stage, ...]]:
            rates = [
                scaled(weight) @ noisy(process, t + node * (s - t))
                for node, weight in zip(tableau.c, tableau.b, strict=True)
            ]
            spread = Diagonal((t - s).log()) @ reduce(operator.add, rates)
            return _root(spread, called(diffusion)), stages(denoiser, tableau, t, s, velocity)

        spans = torch.diff(grid.to(torch.float64)).tolist()
        return denoiser, Table(make, x, grid), spans

    def step(state: Clocked, x: Tensor, i: int, randn_like: RandnLike) -> tuple[Tensor, Clocked]:
        denoiser, table, spans = state
        fresh, parts = table[i]
        noise = None if fresh.vanishes else fresh(randn_like(x))
        return slopes(denoiser, tableau, parts, x, spans[i], noise), state

    name = "euler-maruyama" if tableau == EULER else "stochastic heun"
    return Kernel(init, step, f"{name} of {called(diffusion)}")


def _root(spread: Operator, name: str) -> Operator:
    try:
        return spread.sqrt()
    except NotPositive as error:
        raise ValueError(
            f"the reverse SDE needs nu^2 >= 0; {name} has a negative {error.found}. Use the flow "
            "(heun) or another diffusion."
        ) from error
