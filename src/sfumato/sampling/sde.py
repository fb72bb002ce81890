r"""The reverse SDEs: one for each diffusion nu^2, of which the flow is that at 0.

    dx = [b - nu^2 score / 2] dt + nu dw,  backwards from t = 1,   score = V_t^-1 (C_t x_0^ - x)

b is the flow's velocity. Whatever nu is, the marginals are q_t (docs/mathematics.md, "The reverse
SDE"): more noise removes more of the errors of earlier steps, and needs more steps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import final

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, NotPositive, Operator, scaled
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, flow_operators
from sfumato.names import called, value
from sfumato.sampling.flow import EULER, HEUN, Stages, Tableau, slopes, stages
from sfumato.sampling.kernels import Call, Kernel, Loop, estimated
from sfumato.sampling.operator_table import OperatorTable

Diffusion = Callable[[Process, Tensor], Operator]
"""(process, t) -> nu^2, a variance per unit of time."""


def markov(process: Process, t: Tensor) -> Operator:
    r"""g^2 = V' - C' C^-1 V - V (C' C^-1)^T: the SDE whose forward process is Markov.

    Score SDE's for VE, VP and sub-VP, Blurring Diffusion's.

    >>> process = sf.METHODS["vp"]((1, 8, 8)).process
    >>> sf.kernels.markov(process, torch.tensor(0.5).double()).gain  # beta_t of the VP SDE
    tensor(10.0500, dtype=torch.float64)
    """
    fade = process.signal.rate(t) @ process.signal.at(t).inv()
    half = fade @ process.cov(t)
    return growth(process, t) - half - half.T


def growth(process: Process, t: Tensor) -> Operator:
    r"""V' = S' S^T + S S'^T: Soft Diffusion's, whose drift is C' x_0^ - V' score.

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> t = torch.tensor(0.5).double()
    >>> sf.kernels.growth(process, t).gain / sf.kernels.markov(process, t).gain  # equal for VE
    tensor(1., dtype=torch.float64)
    """
    half = process.noise.rate(t) @ process.noise.at(t).T
    return half + half.T


@final
@value
class sde(Kernel):
    r"""The reverse SDE of `diffusion`: Euler-Maruyama, or stochastic Heun.

    EULER has weak order 1; HEUN, whose second slope is at x with all the noise added, weak order 2.

    Args:
        diffusion: nu^2; `markov` or `growth`, or a user-defined function.
        tableau: EULER or HEUN.
        amount: factor of nu^2, >= 0; at 0 this is the flow.

    Raises:
        ValueError: another tableau or a negative amount; on use, a nu^2 that is negative.

    >>> process = sf.METHODS["vp"]((1, 8, 8)).process
    >>> predict = sf.Predictor(process, sf.statistics.default_statistics((1, 8, 8)))
    >>> kernel = sf.kernels.sde(tableau=sf.kernels.HEUN)
    >>> [round(predict(kernel, sf.grids.uniform_grid(n)).error, 3) for n in (10, 20)]
    [0.21, 0.071]

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), https://arxiv.org/abs/2011.13456
        Soft Diffusion: Score Matching for General Corruptions (G. Daras et al., 2022), Eq. 14,
        https://arxiv.org/abs/2209.05442
        Elucidating the Design Space of Diffusion-Based Generative Models (T. Karras et al., 2022),
        Appendix B, https://arxiv.org/abs/2206.00364
    """

    diffusion: Diffusion = markov
    tableau: Tableau = EULER
    amount: float = 1.0

    def __post_init__(self) -> None:
        if self.tableau not in (EULER, HEUN):
            raise Refused("the reverse SDE is solved by EULER or HEUN; got another tableau.")
        if not self.amount >= 0:
            raise Refused(f"the reverse SDE needs an amount of 0 or more; got {self.amount:g}.")

    @property
    def name(self) -> str:
        solver = "euler-maruyama" if self.tableau == EULER else "stochastic heun"
        return f"{solver} of {called(self.diffusion)}"

    @property
    def markov(self) -> bool:
        return self.diffusion is markov and self.amount == 1

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        process = denoiser.process
        tableau = self.tableau

        def make(t: Tensor, s: Tensor) -> tuple[Operator, Stages]:
            rates = [
                scaled(weight) @ self._noise(process, t + node * (s - t))
                for node, weight in zip(tableau.c, tableau.b, strict=True)
            ]
            spread = Diagonal((t - s).log()) @ reduce(operator.add, rates)
            fresh = _root(spread, called(self.diffusion))
            return fresh, stages(denoiser, tableau, t, s, self._velocity)

        spans = torch.diff(grid.to(torch.float64)).tolist()
        table = OperatorTable(make, x, grid)

        def step(state: None, x: Tensor, i: int, call: Call) -> tuple[Tensor, None]:
            fresh, parts = table[i]
            noise = None if fresh.is_zero else fresh(call.randn_like(x))
            return slopes(tableau, parts, x, spans[i], call, noise), state

        return Loop(step, estimated(denoiser, grid[-1]))

    def _noise(self, process: Process, t: Tensor) -> Operator:
        """nu^2."""
        return scaled(self.amount) @ self.diffusion(process, t)

    def _velocity(self, process: Process, t: Tensor) -> tuple[Operator, Operator]:
        drift, grow = flow_operators(process, t)
        half = scaled(0.5) @ self._noise(process, t) @ process.cov(t).inv()
        return drift - half @ process.signal.at(t), grow + half


def _root(spread: Operator, name: str) -> Operator:
    try:
        return spread.sqrt()
    except NotPositive as error:
        raise Refused(
            f"the reverse SDE needs nu^2 >= 0; {name} has a negative {error.found}. Use the flow "
            "(heun) or another diffusion."
        ) from error
