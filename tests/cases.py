"""The registries: one line enrols a new member in every law of its kind.

Everything here is small (at most 24 values a signal), float64 and deterministic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.algebra import (
    Basis,
    Dense,
    Diagonal,
    MatrixFree,
    Operator,
    dct,
    dense,
    haar,
    hartley,
    identity,
    pixel,
    scaled,
    zero,
)
from sfumato.corruption import coupling
from sfumato.corruption.coupling import Coupling
from sfumato.corruption.families import Fade, Family, Fixed, Heat, Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    CosineSNR,
    Geometric,
    Linear,
    Monotone,
    Schedule,
    Sigmoid,
    Table,
    cosine_betas,
    linear_betas,
)
from sfumato.estimation import denoise, loss
from sfumato.estimation.denoise import Parametrization
from sfumato.estimation.loss import Weighting
from sfumato.sampling.flow import TABLEAUX as TABLEAUX

SHAPE = (1, 4, 5)
"""Shape of the signals that PROCESSES act on: one channel, two unequal axes."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def spd(n: int, seed: int = 0) -> Tensor:
    """A random covariance that no basis here diagonalises."""
    a = normal(n, n, seed=seed)
    return a @ a.T / n + 0.1 * torch.eye(n, dtype=torch.float64)


BASES: dict[str, Basis] = {
    "pixel": pixel(4, 5),
    "dct-1d": dct(7),
    "dct-2d": dct(4, 5),
    "dct-3d": dct(2, 3, 4),
    "hartley-1d": hartley(7),
    "hartley-2d": hartley(4, 6),
    "hartley-3d": hartley(2, 3, 4),
    "haar-1d": haar(7),
    "haar-2d": haar(4, 5),
    "dense": dense(rotation(6)),
    "dense-2d": dense(rotation(20), 4, 5),
}

GAINS = torch.tensor([0.0, -1.0, -math.inf, -2000.0, 0.5, -30.0], dtype=torch.float64)

OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "identity": (identity(), (6,)),
    "zero": (zero(), (6,)),
    "minus-two": (scaled(-2.0), (6,)),
    "diagonal-pixel": (Diagonal(normal(6), None, pixel(6)), (6,)),
    "diagonal-dct": (Diagonal(normal(4, 5), None, dct(4, 5)), (2, 4, 5)),
    "diagonal-signed": (Diagonal(normal(6), normal(6, seed=1).sign(), hartley(6)), (6,)),
    "diagonal-hard": (Diagonal(GAINS, None, haar(6)), (6,)),
    "dense": (Dense(spd(6), (6,)), (6,)),
    "dense-general": (Dense(normal(6, 6), (6,)), (6,)),
    "matrix-free": (MatrixFree(lambda x: x.cumsum(-1)), (6,)),
    "composed": (Diagonal(normal(6), None, dct(6)) @ Diagonal(normal(6), None, pixel(6)), (6,)),
    "sum": (Diagonal(normal(6), None, dct(6)) + Diagonal(normal(6), None, pixel(6)), (6,)),
    "composed-free": (MatrixFree(lambda x: x.flip(-1)) @ Diagonal(normal(6), None, dct(6)), (6,)),
}

SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(0.3),
    "linear": Linear(0.1, 2.0),
    "geometric": Geometric(0.1, 3.0),
    "geometric-until": Geometric(0.02, 0.2, until=0.25),
    "geometric-zero": Geometric(0.3, 8.0, zero_at_start=True),
    "sigmoid": Sigmoid(0.1, 2.0),
    "table": Table([0.0, 0.2, 1.0], [0.1, 0.5, 3.0]),
    "monotone": Monotone(-8.0, 8.0),
    "cosine-snr": CosineSNR(10.0, -10.0),
    "linear-betas": linear_betas(),
    "cosine-betas": cosine_betas(),
}

_COSINE = CosineSNR(10.0, -10.0)
_BLUR = Geometric(0.3, 3.0, zero_at_start=True)
_SPECTRUM = Diagonal(0.5 * (1 + torch.arange(20.0).double()).reshape(4, 5).log(), None, hartley(4, 5))


def _powered(spectrum: Diagonal) -> Diagonal:
    """Noise whose power falls with frequency."""
    return Diagonal(-spectrum.log_gain, None, spectrum.basis)


FAMILIES: dict[str, Family] = {
    "scale": Scale(Geometric(0.1, 3.0)),
    "vp-signal": Scale(Amplitude(_COSINE)),
    "vp-noise": Scale(Complement(_COSINE)),
    "heat-dct": Heat(_BLUR, dct(4, 5)),
    "heat-hartley": Heat(_BLUR, hartley(4, 5)),
    "heat-floor": Heat(_BLUR, dct(4, 5), floor=0.001),
    "fade-pixel": Fade(Linear(0.0, 2.0), torch.linspace(0, 1, 20).reshape(4, 5), pixel(4, 5), 0.4),
    "fade-haar": Fade(Linear(0.0, 2.0), torch.linspace(1, 0.1, 20).reshape(4, 5), haar(4, 5), 0.5),
    "product": Heat(_BLUR, dct(4, 5)) @ Scale(Amplitude(_COSINE)),
    "fixed": Fixed(_powered(_SPECTRUM)),
    "mapping": Mapping(lambda t: scaled(1 + t)),
}

PROCESSES: dict[str, Process] = {
    "vp": Process(Scale(Amplitude(_COSINE)), Scale(Complement(_COSINE))),
    "ve": Process(Scale(Constant(1.0)), Scale(Geometric(0.02, 20.0))),
    "blurring": Process(
        Heat(_BLUR, dct(4, 5), floor=0.001) @ Scale(Amplitude(_COSINE)), Scale(Complement(_COSINE))
    ),
    "soft": Process(Heat(_BLUR, dct(4, 5)), Scale(Geometric(0.02, 0.2, until=0.25))),
    "coloured": Process(
        Scale(Amplitude(_COSINE)), Fixed(_powered(_SPECTRUM)) @ Scale(Complement(_COSINE))
    ),
    "haar": Process(
        Heat(_BLUR, haar(4, 5)) @ Scale(Amplitude(_COSINE)), Scale(Complement(_COSINE))
    ),
}
"""Processes on signals of shape SHAPE whose signal-to-noise ratio falls in every coefficient, with noise at every time."""


class CouplingCase(NamedTuple):
    """A coupling and what it declares.

    consistency: "exact" (V_s = K V_t K^T + L L^T), "first" (excess of second order in t - s), or "none".
    """

    coupling: Coupling
    consistency: str


COUPLINGS: dict[str, CouplingCase] = {
    "ancestral": CouplingCase(coupling.ancestral, "exact"),
    "ancestral-large": CouplingCase(coupling.ancestral_large, "first"),
    "ddim": CouplingCase(coupling.ddim(0.0), "exact"),
    "ddim-half": CouplingCase(coupling.ddim(0.5), "exact"),
    "ddim-one": CouplingCase(coupling.ddim(1.0), "exact"),
    "bridge": CouplingCase(coupling.bridge, "exact"),
    "momentum": CouplingCase(coupling.momentum, "first"),
    "pf-momentum": CouplingCase(coupling.pf_momentum, "first"),
    "naive": CouplingCase(coupling.naive, "exact"),
    "annealed": CouplingCase(coupling.annealed(0.9), "exact"),
    "cold": CouplingCase(coupling.cold, "none"),
}

PARAMETRIZATIONS: dict[str, Parametrization] = {
    "clean": denoise.clean,
    "residual": denoise.residual,
    "noise": denoise.noise,
    "angular": denoise.angular,
    "wiener": denoise.wiener(scaled(0.25)),
}
"""`angular` is for variance-preserving processes only."""

WEIGHTINGS: dict[str, Weighting] = {
    "flat": loss.flat,
    "soft": loss.soft,
    "simple": loss.simple,
    "score": loss.score,
    "bound": loss.bound(coupling.ancestral),
}

RANKS: dict[str, tuple[Process, tuple[int, ...]]] = {
    "1-d": (Process(Heat(_BLUR, dct(9)), Scale(Constant(0.1))), (2, 9)),
    "vector": (Process(Scale(Amplitude(_COSINE)), Scale(Complement(_COSINE))), (6,)),
    "3-d": (Process(Heat(_BLUR, dct(3, 4, 2)), Scale(Constant(0.1))), (1, 3, 4, 2)),
}
