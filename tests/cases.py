"""The registries: one line enrols a new member in every law of its kind.

Everything here is small (at most 24 values a signal), float64 and deterministic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor, nn

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
from sfumato.config import Config
from sfumato.corruption import coupling
from sfumato.corruption.coupling import Coupling
from sfumato.corruption.families import Damp, Fade, Family, Fixed, Heat, Mapping, Scale, TimeWarped
from sfumato.corruption.learned import Bands, FromGamma, Monotone, Span
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    CosineSNR,
    Geometric,
    Linear,
    LinearBeta,
    Schedule,
    Sigmoid,
    Sine,
    Table,
    cosine_betas,
    linear_betas,
)
from sfumato.corruption.tables import Cubic
from sfumato.estimation import loss, predictions
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.loss import Weighting
from sfumato.estimation.oracle import Mixture, gaussian
from sfumato.estimation.predictions import Parametrization, wiener, x0
from sfumato.networks.backbones import UNetOptions
from sfumato.sampling.flow import TABLEAUX as TABLEAUX
from sfumato.sampling.kernels import Call, Kernel
from sfumato.training.data import load
from sfumato.training.train import TrainOptions, build

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
    "cubic": Cubic([0.0, 0.2, 0.7, 1.0], [0.1, 0.5, 0.6, 3.0]),
    "monotone": Monotone(-8.0, 8.0),
    "span": Span(Monotone(0.0, 1.0), -8.0, 8.0),
    "from-gamma": FromGamma(Span(Monotone(0.0, 1.0), -8.0, 8.0)),
    "cosine-snr": CosineSNR(10.0, -10.0),
    "sine": Sine(3.0),
    "linear-beta": LinearBeta(0.1, 20.0),
    "linear-betas": linear_betas(),
    "cosine-betas": cosine_betas(),
}

_COSINE = CosineSNR(10.0, -10.0)
_BLUR = Geometric(0.3, 3.0, zero_at_start=True)
_SPECTRUM = Diagonal(
    0.5 * (1 + torch.arange(20.0).double()).reshape(4, 5).log(), None, hartley(4, 5)
)


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
    "damp-pixel": Damp(Linear(0.0, 2.0), torch.linspace(0.1, 1, 20).reshape(4, 5), pixel(4, 5)),
    "damp-haar": Damp(Linear(0.0, 2.0), torch.linspace(0.1, 1, 20).reshape(4, 5), haar(4, 5), 3.0),
    "product": Heat(_BLUR, dct(4, 5)) @ Scale(Amplitude(_COSINE)),
    "fixed": Fixed(_powered(_SPECTRUM)),
    "paced": TimeWarped(Heat(_BLUR, dct(4, 5)), Cubic([0.0, 0.3, 1.0], [0.0, 0.6, 1.0])),
    "bands": Scale(
        Amplitude(
            FromGamma(
                Bands(
                    Span(Monotone(0.0, 1.0, count=3), -8.0, 8.0, count=3),
                    torch.arange(20).reshape(4, 5) % 3,
                )
            )
        ),
        dct(4, 5),
    ),
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
"""Processes on signals of shape SHAPE whose signal-to-noise ratio falls in every coefficient.

All have noise at every time.
"""


class CouplingCase(NamedTuple):
    """A coupling and what it declares.

    consistency: "exact" (V_s = K V_t K^T + L L^T), "first" (excess of second order in t - s), or
    "none".
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
    "ihdm": CouplingCase(coupling.ihdm(0.3), "none"),
}

PARAMETRIZATIONS: dict[str, Parametrization] = {
    "x0": predictions.x0,
    "residual": predictions.residual,
    "noise": predictions.noise,
    "score": predictions.score,
    "coloured": predictions.coloured_noise(Linear(0.1, 0.9)),
    "velocity": predictions.velocity,
    "wiener": predictions.wiener(scaled(0.25)),
}
"""`velocity` is for variance-preserving processes only."""

WEIGHTINGS: dict[str, Weighting] = {
    "unweighted": loss.unweighted,
    "soft_score_matching": loss.soft_score_matching,
    "simple": loss.simple,
    "score": loss.score,
    "likelihood": loss.likelihood,
    "variational_bound": loss.variational_bound(coupling.ancestral),
}

RANKS: dict[str, tuple[Process, tuple[int, ...]]] = {
    "1-d": (Process(Heat(_BLUR, dct(9)), Scale(Constant(0.1))), (2, 9)),
    "vector": (Process(Scale(Amplitude(_COSINE)), Scale(Complement(_COSINE))), (6,)),
    "3-d": (Process(Heat(_BLUR, dct(3, 4, 2)), Scale(Constant(0.1))), (1, 3, 4, 2)),
}

# Helpers of the laws about estimates and kernels: exact moments instead of sampling.


def time(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def matrix(operator: Operator, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """The matrix of an operator on flattened signals, from what it does to unit vectors."""
    n = math.prod(shape)
    return operator(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, n).T


def basis_of(process: Process) -> Basis:
    """The basis that diagonalises a process of PROCESSES or RANKS; DCT where every basis does."""
    product = process.signal.at(time(0.5)) @ process.noise.at(time(0.5))
    return getattr(product, "basis", None) or dct(*SHAPE[1:])


def diagonal_cov(basis: Basis) -> Diagonal:
    """A data covariance that `basis` diagonalises: a falling spectrum of variances near 1/4."""
    n = math.prod(basis.shape)
    spectrum = 0.6 / (1 + torch.arange(n, dtype=torch.float64) / 4).reshape(basis.shape)
    return Diagonal(spectrum.log(), None, basis)


def densified(process: Process) -> Process:
    """The same process as explicit matrices: no structure is left to rely on."""

    def family(of: Family) -> Mapping:
        def at(t: Tensor) -> Dense:
            each = [matrix(of.at(one)) for one in t.flatten()]
            return Dense(torch.stack(each) if len(each) > 1 else each[0], SHAPE)

        return Mapping(at)

    return Process(family(process.signal), family(process.noise))


STRUCTURES = [
    *((process, "basis") for process in PROCESSES),
    *((process, "none") for process in ("vp", "blurring", "coloured")),
]
"""(process, structure): in its own basis, or `densified`."""


class Zero(nn.Module):
    """A backbone that answers 0: under `wiener(cov)`, the exact one of data N(0, cov)."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Toy(nn.Module):
    """A backbone that is neither linear nor local: f(x, label) in (-1, 1)."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        n = x[0].numel()
        mix = normal(n, n, seed=3).to(x) / n**0.5
        return torch.tanh(x.flatten(1) @ mix.T + label[:, None]).reshape(x.shape)


class Affine(NamedTuple):
    """One step x -> gain x + shift + fresh eps on signals flattened to n values."""

    gain: Tensor
    shift: Tensor
    fresh: Tensor


def affine(
    kernel: Kernel, denoiser: Denoiser, grid: Tensor, shape: tuple[int, ...], draws: int = 1
) -> list[Affine]:
    """Each step of a kernel as matrices, exact because Gaussian denoisers are affine.

    One batch holds the unit vectors, zero, and zero again for each unit of each draw of noise.
    """
    n = math.prod(shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    probe = torch.zeros(n + 1 + draws * n, *shape, dtype=torch.float64)
    probe[:n] = unit

    def taken(y: Tensor) -> Affine:
        y = y.flatten(1)
        return Affine((y[:n] - y[n]).T, y[n], (y[n + 1 :] - y[n]).T)

    inner = grid[:-1] if grid[-1] == 0 else grid
    loop, steps = kernel.prepare(denoiser, probe, inner), []
    state = loop.state
    for i in range(len(inner) - 1):
        drawn = iter(range(draws))

        def noise(x: Tensor, drawn: Iterator[int] = drawn) -> Tensor:
            eps, start = torch.zeros_like(x), n + 1 + next(drawn) * n
            eps[start : start + n] = unit
            return eps

        y, state = loop.step(state, probe, i, Call(noise))
        steps.append(taken(y))
    if grid[-1] == 0:
        steps.append(taken(denoiser(probe, inner[-1]).mean))
    return steps


def driven(
    kernel: Kernel, denoiser: Denoiser, x: Tensor, grid: Tensor, randn_like: RandnLike
) -> Iterator[Tensor]:
    """What each step of a kernel along `grid` makes of the same `x`."""
    loop = kernel.prepare(denoiser, x, grid)
    state = loop.state
    for i in range(len(grid) - 1):
        y, state = loop.step(state, x, i, Call(randn_like))
        yield y


def push(steps: Iterable[Affine], mean: Tensor, cov: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance after each step."""
    moments = []
    for gain, shift, fresh in steps:
        mean, cov = gain @ mean + shift, gain @ cov @ gain.T + fresh @ fresh.T
        moments.append((mean, cov))
    return moments


def modal(
    kernel: Kernel, denoiser: Denoiser, grid: Tensor, basis: Basis, shape: tuple[int, ...] = SHAPE
) -> Tensor:
    """(B, l) of each step, (steps, 2, *shape): x -> B x + l eps for each coefficient of `basis`.

    What `affine` is where data of mean 0 and the process share a basis, at a fraction of the cost,
    for kernels that draw at most once a step.
    """
    ones = basis.synthesize(torch.ones(shape, dtype=torch.float64))
    probe = torch.stack([ones, torch.zeros_like(ones)])
    made = driven(kernel, denoiser, probe, grid, lambda x: probe.flip(0))
    return torch.stack([basis.analyze(y) for y in made])


def variance(steps: Tensor, start: Tensor) -> Tensor:
    """The variance that `modal` steps make of a starting variance, for each coefficient."""
    for gain, fresh in steps:
        start = gain**2 * start + fresh**2
    return start


# What the laws of algebra and corruption compare with: numpy and scipy, formulas re-typed.

FAMILIES |= {
    "linear-from-zero": Scale(Linear(0.0, 1.0)),
    "fade-ended": Fade(Linear(0.0, 3.0), torch.linspace(0, 1, 20).reshape(4, 5), dct(4, 5), 0.3),
    "non-commuting": Heat(_BLUR, dct(4, 5)) @ Fixed(_powered(_SPECTRUM)),
    "summed": Mapping(lambda t: scaled(1 - t) + scaled(t) @ _powered(_SPECTRUM)),
    "summed-through-zero": Mapping(
        lambda t: _powered(_SPECTRUM) @ (scaled(t - 0.5203) + scaled(t**2) @ _powered(_SPECTRUM))
    ),
    "matrix-free": Mapping(lambda t: MatrixFree(lambda x: torch.sin(3 * t) * x.cumsum(-1))),
    "dense": Mapping(lambda t: Dense(torch.linalg.matrix_exp(-_axis(t) * spd(20)), SHAPE)),
}


def _axis(t: Tensor) -> Tensor:
    """Times () or (B, 1, ..., 1) against matrices (n, n) or (B, n, n)."""
    return t.reshape(*t.shape[:1], 1, 1)


def columns(apply: Callable[[Tensor], Tensor], shape: Sequence[int] = SHAPE) -> np.ndarray:
    """The matrix of a linear map on flattened signals: column j is what unit vector j becomes."""
    n = math.prod(shape)
    return (
        apply(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, n).detach().numpy().T
    )


@functools.cache
def transform(basis: Basis) -> np.ndarray:
    """V^T as a matrix: scipy's DCT, the definition of Hartley; Haar and dense ones as they are."""
    shape, name = basis.shape, basis.name.partition("(")[0]
    unit = np.eye(math.prod(shape)).reshape(-1, *shape)
    axes = tuple(range(1, unit.ndim))
    if name == "dct":
        return scipy.fft.dctn(unit, axes=axes, norm="ortho").reshape(len(unit), -1).T
    if name == "hartley":
        spectrum = np.fft.fftn(unit, axes=axes, norm="ortho").reshape(len(unit), -1).T
        return spectrum.real - spectrum.imag
    return columns(basis.analyze, shape)


class Closed(NamedTuple):
    """A process of PROCESSES by its formulas: gains of C_t and V_t on coefficients of `basis`."""

    basis: Basis
    gain: Callable[[float], np.ndarray]
    variance: Callable[[float], np.ndarray]

    def matrices(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """C_t and V_t as 20 x 20 matrices."""
        q = transform(self.basis)
        return tuple(
            (q.T * np.ravel(d(t) + np.zeros((4, 5)))) @ q for d in (self.gain, self.variance)
        )


def _power(t: float) -> float:
    """abar of a log-SNR -2 log tan(A t + B) from 10 to -10."""
    offset = math.atan(math.exp(-5))
    return math.cos((math.atan(math.exp(5)) - offset) * t + offset) ** 2


def _width(t: float) -> float:
    """A geometric path from .3 to 3 samples, shifted to start at 0."""
    return 3.0 * (10.0**t - 1) / 9


def _heat(basis: Basis, t: float) -> np.ndarray:
    """exp(-lambda tau), tau = sigma_B^2 / 2."""
    return np.exp(-basis.laplacian.numpy() * _width(t) ** 2 / 2)


def _one(t: float) -> np.ndarray:
    return np.ones((4, 5))


_DCT, _HAAR, _HARTLEY = dct(4, 5), haar(4, 5), hartley(4, 5)
_COLOUR = 1 / np.arange(1.0, 21.0).reshape(4, 5)

CLOSED: dict[str, Closed] = {
    "vp": Closed(_DCT, lambda t: _power(t) ** 0.5 * _one(t), lambda t: (1 - _power(t)) * _one(t)),
    "ve": Closed(_DCT, _one, lambda t: (0.02 * 1000**t) ** 2 * _one(t)),
    "blurring": Closed(
        _DCT,
        lambda t: _power(t) ** 0.5 * (0.999 * _heat(_DCT, t) + 0.001),
        lambda t: (1 - _power(t)) * _one(t),
    ),
    "soft": Closed(
        _DCT, lambda t: _heat(_DCT, t), lambda t: (0.02 * 10 ** min(t / 0.25, 1)) ** 2 * _one(t)
    ),
    "coloured": Closed(
        _HARTLEY, lambda t: _power(t) ** 0.5 * _one(t), lambda t: (1 - _power(t)) * _COLOUR
    ),
    "haar": Closed(
        _HAAR,
        lambda t: _power(t) ** 0.5 * _heat(_HAAR, t),
        lambda t: (1 - _power(t)) * _one(t),
    ),
}
"""PROCESSES once more, re-typed."""


class General(NamedTuple):
    """A process that no basis diagonalises, its C_t and V_t by numpy and scipy, and its signals."""

    process: Process
    matrices: Callable[[float], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, ...]


def _random() -> General:
    """C_t = exp(-t G), V_t = A + t^2 B: no two of these commute. Markov on [0, 1]."""
    drift = 0.3 * normal(6, 6, seed=5) + torch.eye(6, dtype=torch.float64)
    start, growth = spd(6), 9 * spd(6, seed=1)

    def signal(t: Tensor) -> Dense:
        return Dense(torch.linalg.matrix_exp(-_axis(t) * drift), (6,))

    def noise(t: Tensor) -> Dense:
        return Dense(start + _axis(t) ** 2 * growth, (6,)).sqrt()

    def matrices(t: float) -> tuple[np.ndarray, np.ndarray]:
        return scipy.linalg.expm(-t * drift.numpy()), start.numpy() + t**2 * growth.numpy()

    return General(Process(Mapping(signal), Mapping(noise)), matrices, (6,))


def _crossed() -> General:
    """Blur with reflected edges, noise with a periodic spectrum."""
    colour = Diagonal(-0.3 * torch.arange(20.0).double().reshape(4, 5).log1p(), None, hartley(4, 5))
    noise = Fixed(colour) @ Scale(Linear(0.1, 0.9))

    def matrices(t: float) -> tuple[np.ndarray, np.ndarray]:
        d, h = transform(dct(4, 5)), transform(hartley(4, 5))
        blur = np.exp(-dct(4, 5).laplacian.numpy().ravel() * (1.5 * t) ** 2 / 2)
        power = (1 + np.arange(20.0)) ** -0.6 * (0.1 + 0.8 * t) ** 2
        return (d.T * blur) @ d, (h * power) @ h

    return General(Process(Heat(Linear(0.0, 1.5), dct(4, 5)), noise), matrices, SHAPE)


def _free() -> General:
    """A moving average mixed with the signal, wrapped round: a user's own linear callable."""

    def signal(t: Tensor) -> MatrixFree:
        return MatrixFree(lambda x: (1 - t / 2) * x + t / 4 * (x.roll(1, -1) + x.roll(-1, -1)))

    def matrices(t: float) -> tuple[np.ndarray, np.ndarray]:
        row = np.array([1 - t / 2, t / 4, 0, 0, 0, t / 4])
        return scipy.linalg.circulant(row), (0.2 + 0.6 * t) ** 2 * np.eye(6)

    return General(Process(Mapping(signal), Scale(Linear(0.2, 0.8))), matrices, (6,))


GENERAL: dict[str, General] = {"matrices": _random(), "crossed": _crossed(), "matrix-free": _free()}
"""Processes for couplings that need no inverse of C_t and no root of a sum, or for matrices."""


def times(*values: float, rank: int) -> Tensor:
    """(B, 1, ..., 1) against signals of `rank` axes."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *(1,) * rank)


def close(found: Tensor | np.ndarray, expected: np.ndarray, tolerance: float = 1e-11) -> None:
    """Equal to a fraction of the largest entry; zeros must be zeros."""
    atol = tolerance * float(np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)


# What laws of several files share.


def impossible(name: str, process: str, t: float, s: float) -> bool:
    """Annealed sampling with eta = .9 needs v_s >= .01 v_t; VE falls faster over long steps."""
    v_t, v_s = (CLOSED[process].variance(x) for x in (t, s))
    return name == "annealed" and bool((0.01 * v_t > v_s).any())


TINY = UNetOptions(width=8, multipliers=(1, 2), patch=2)


OPTIONS = TrainOptions(images=640, batch=16, checkpoint_every=160, preview_every=0, keep=3)


SMALL = {
    "ihdm": {"count": 3},
    "vdm": {"bins": 17},
    "ncsn": {"count": 3, "inner": 1},
    "ncsnv2": {"count": 3, "inner": 1},
    "ni-smld": {"count": 3, "inner": 1},
}
"""Parameters that make a method cheap to sample in 3 steps."""


def tiny(method: str = "soft", options: TrainOptions = OPTIONS, **config):
    data = load("digits")
    config = {"parameters": SMALL.get(method, {}), **config}
    return build(Config(method, data.record, network=TINY, **config), data, options), data


N = math.prod(SHAPE)


def exact(process: Process, mean: Tensor, cov: Operator) -> Denoiser:
    """The exact denoiser of N(mean, cov)."""
    known = densified(process) if isinstance(cov, Dense) else process
    return NetworkDenoiser(process, x0, gaussian(known, mean, cov))


def centred(process: Process, cov: Diagonal) -> Denoiser:
    """The exact denoiser of N(0, cov) in a process's own basis, all of it made before the loop."""
    return NetworkDenoiser(process, wiener(cov), Zero())


def amount(basis_cov: Diagonal) -> Tensor:
    """The variances of a diagonal covariance, one for each coefficient."""
    return basis_cov.gain.expand(SHAPE)


def marginal(process: Process, cov: Diagonal, t: float) -> Tensor:
    """M_t = c_t^2 s + v_t for each coefficient."""
    gain, level = process.signal.at(time(t)).gain, process.noise.at(time(t)).gain
    return gain**2 * amount(cov) + level**2


class Bimodal:
    """Data with one coefficient of two modes, the others Gaussian, all independent.

    The exact flow keeps the quantile of each coefficient: F_s(u_s) = F_t(u_t).
    """

    WEIGHT, INDEX, MODES = 0.3, 6, (-0.9, 0.7)

    def __init__(self, process: Process) -> None:
        self.process, self.basis = process, basis_of(process)
        self.cov = Diagonal(diagonal_cov(self.basis).log_gain - 2, None, self.basis)
        modes = torch.zeros(2, N, dtype=torch.float64)
        modes[:, self.INDEX] = torch.tensor(self.MODES, dtype=torch.float64)
        self.modes = modes.reshape(2, *SHAPE)

    def oracle(self) -> Mixture:
        weights = torch.tensor([self.WEIGHT, 1 - self.WEIGHT], dtype=torch.float64)
        return Mixture(self.process, self.basis.synthesize(self.modes), [self.cov] * 2, weights)

    def quantile(self, u: Tensor, t: float) -> Tensor:
        gain, deviation = (
            self.process.signal.at(time(t)).gain,
            marginal(self.process, self.cov, t).sqrt(),
        )
        parts = [torch.special.ndtr((u - gain * mode) / deviation) for mode in self.modes]
        return self.WEIGHT * parts[0] + (1 - self.WEIGHT) * parts[1]

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        level = self.quantile(self.basis.analyze(x), t)
        reach = 2 + 10 * marginal(self.process, self.cov, s).sqrt()
        low, high = (-reach).expand_as(x), reach.expand_as(x)
        for _ in range(70):
            middle = (low + high) / 2
            right = self.quantile(middle, s) < level
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        return self.basis.synthesize((low + high) / 2)
