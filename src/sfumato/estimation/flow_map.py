r"""A flow map takes x_t to x_s of the same path of the probability flow, in one network call.

    X_{t,s}(x_t) = K x_t + P x~,    K = S_s S_t^-1,    P = C_s - K C_t

It is the step of `ddim` with an x~ that the network learns in place of the mean of x_0 given x_t:
x~ = x_0^ for an infinitely short step, and the end of the path for s = 0. To learn a map is to
regress x~ on the x~ of a path that is known otherwise: by two steps of a teacher (progressive
distillation), by two of its own steps of half the length (shortcut models), or by a step of a
teacher, or of the data, and its own map from there to the end (consistency models). The loss is the
ordinary one, with x~ in place of x_0; nothing else of training changes, for any C_t and S_t.

For an x~ averaged over two `ddim` steps t -> m -> s with estimates a and b,

    x~ = A a + (I - A) b,    A = (p + q)^-1 p,
    p = (S_s / S_m) (C_m - (S_m / S_t) C_t),    q = C_s - (S_s / S_m) C_m

and A is in [0, 1] where the signal-to-noise ratio falls, and 0 for s = 0 without noise: nothing is
divided but two gains that vanish together where a blur has removed a coefficient. `target` finds
the same x~ from x_s, for a path of any solver.

References:
    Progressive Distillation for Fast Sampling of Diffusion Models (T. Salimans, J. Ho, 2022),
    https://arxiv.org/abs/2202.00512
    Consistency Models (Y. Song, P. Dhariwal, M. Chen, I. Sutskever, 2023),
    https://arxiv.org/abs/2303.01469
    One Step Diffusion via Shortcut Models (K. Frans, D. Hafner, S. Levine, P. Abbeel, 2024),
    https://arxiv.org/abs/2410.12557
    Flow Map Matching (N. M. Boffi, M. S. Albergo, E. Vanden-Eijnden, 2024),
    https://arxiv.org/abs/2406.07507
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.combine import Spectra, apply
from sfumato.algebra.operators import Dense, Diagonal, Operator, identity, scaled
from sfumato.corruption.coupling import ddim
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Ask, Conditions, Denoiser, Estimator

FLOOR = {torch.float32: 7e-5, torch.float64: 4e-10}
"""Gains P below which x~ is not recovered from x_s, where it is lost to rounding: eps^0.6."""
COARSE = 0.05
"""The same for solvers whose error in K x_t is not proportional to P, such as `heun`."""


def flow_map(process: Process, t: Tensor, s: Tensor) -> tuple[Operator, Operator]:
    """(K, P) of x_s = K x_t + P x~, for times s <= t, () or (B, 1, ..., 1)."""
    carry, _ = ddim()(process, t, s)
    return carry, process.signal.at(s) - carry @ process.signal.at(t)


class Target(NamedTuple):
    """x~ of the paths from t to s, prepared; see `target`."""

    terms: tuple[Operator, Operator, Operator]
    back: Operator

    def __call__(self, x: Tensor, end: Tensor, near: Tensor) -> Tensor:
        """x~ from x_t, x_s = `end`, and x_0^ at t, `near`; all (B, *shape)."""
        off = apply(*zip(self.terms, (end, x, near), strict=True))
        return near + self.back(off)


def target(process: Process, t: Tensor, s: Tensor, floor: float = FLOOR[torch.float64]) -> Target:
    r"""What x~ is for known paths from t to s, () or (B, 1, ..., 1): X_{t,s}(x_t) with it is x_s.

    x~ = x_0^ + P^-1 (x_s - K x_t - P x_0^), in which no coefficient divides by a P below `floor`:
    there x~ is x_0^, and x_s hardly depends on it.

    The law: on two `ddim` steps this is A a + (I - A) b of this module's formula.
    """
    carry, pull = flow_map(process, t, s)
    terms = identity(), scaled(-1.0) @ carry, scaled(-1.0) @ pull
    return Target(terms, _inverse(pull, floor))


def _inverse(pull: Operator, floor: float) -> Operator:
    if isinstance(pull, Diagonal):
        dead = pull.log_gain < math.log(floor)
        return Diagonal(torch.where(dead, -math.inf, -pull.log_gain), pull.sign, pull.basis)
    if isinstance(pull, Dense):
        return Dense(torch.linalg.pinv(pull.matrix(pull.shape), atol=floor, rtol=0.0), pull.shape)
    return pull.inv()


@final
class FirstEstimate(Denoiser):
    """A denoiser that remembers the first estimate asked for since `forget`.

    A deterministic kernel asks for that at the start of its path first; `target` needs it too.
    """

    def __init__(self, base: Denoiser) -> None:
        super().__init__()
        self.base = base
        self.process, self.stats = base.process, base.stats
        self.values: tuple[Tensor, ...] = ()

    def at(self, t: Tensor) -> Estimator:
        found = self.base.at(t)
        return found._replace(ask=_Remembering(self, found.ask))

    def forget(self) -> None:
        """Remember the next estimate."""
        self.values = ()


class _Remembering(NamedTuple):
    keeper: FirstEstimate
    ask: Ask

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        values = self.ask(x, cond, spectra)
        self.keeper.values = self.keeper.values or (x, *values)
        return values
