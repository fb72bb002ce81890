r"""Restoration draws from p(x_0 | y) for y = A x_0 + r, r ~ N(0, R), with a model trained on x_0.

Given x_t, y is Gaussian around A x_0^ where x_0 is: with P_t = Cov[x_0 | x_t],

    x_0^ <- x_0^ + P_t A^T (R + A P_t A^T)^-1 (y - A x_0^)

`spectrum` takes P_t from the data's measured spectrum, for each coefficient: exact for Gaussian
data of that spectrum, without a gradient through the network. `pigdm`, `dps` and `replacement` are
the published alternatives. Where blur keeps the image's mean, x_1 depends on y: see
`Restored.start`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, MatrixFree, Operator, identity, scaled
from sfumato.algebra.place import double, sent
from sfumato.algebra.solve import conjugate_gradients
from sfumato.corruption.boundary import alike, expect
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, Estimator
from sfumato.estimation.guided import FLOOR, Guide, Guided, Push, tilt
from sfumato.names import choose

TOLERANCE = 1e-5
"""Of the relative residual of conjugate gradients, at every step of a sampler."""


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """y = A x_0 + S eps, the same at all times.

    Attributes:
        operator: A, which may change the signal's shape, with a transpose.
        y: (B, *measured).
        noise: S, a root of the noise's covariance R = S S^T on measured signals.

    >>> half = sf.measurement("down:2", (1, 4, 4))
    >>> y = torch.ones(1, 1, 2, 2)
    >>> measured = sf.guides.Measured(half, y, sf.operators.scaled(0.1))
    >>> measured.off(torch.zeros(1, 1, 4, 4)).shape, measured.cov.gain
    (torch.Size([1, 1, 2, 2]), tensor(0.0100, dtype=torch.float64))
    """

    operator: Operator
    y: Tensor
    noise: Operator

    @cached_property
    def cov(self) -> Operator:
        """R."""
        return self.noise @ self.noise.T

    def off(self, x0: Tensor) -> Tensor:
        """y - A x_0."""
        return sent(self.y, x0) - self.operator(x0)


class _Gain(NamedTuple):
    """P A^T (R + A P A^T)^-1 where all four share a basis: one operator."""

    gain: Operator
    measured: Measured

    def __call__(self, x: Tensor, x0: Tensor) -> Tensor:
        return self.gain(self.measured.off(x0))


class _Solved(NamedTuple):
    """The same for any A and R, by conjugate gradients in float64."""

    cov: Operator
    measured: Measured
    tolerance: float = TOLERANCE

    def __call__(self, x: Tensor, x0: Tensor) -> Tensor:
        return sent(self.pull(self.measured.off(x0)), x)

    def white(self, off: Tensor) -> Tensor:
        """(R + A P A^T)^-1 of `off`, float64."""
        operator, noise = self.measured.operator, self.measured.cov
        back = operator.T

        def system(z: Tensor) -> Tensor:
            return noise(z) + operator(self.cov(back(z)))

        return conjugate_gradients(system, double(off), self.tolerance)

    def pull(self, off: Tensor) -> Tensor:
        """P A^T (R + A P A^T)^-1 of `off`, float64."""
        return self.cov(self.measured.operator.T(self.white(off)))


def posterior_cov(process: Process, t: Tensor, cov: Operator) -> Operator:
    """P_t = S - S C^T (C S C^T + V)^-1 C S for data of covariance S = `cov`.

    S V (C S C^T + V)^-1 in log-gains where all are diagonal in one basis, without a difference.
    """
    signal, noise = process.signal.at(t), process.cov(t)
    total = signal @ cov @ signal.T + noise
    if isinstance(total, Diagonal):
        return cov @ noise @ total.inv()
    pull = cov @ signal.T @ total.inv()
    return cov - pull @ signal @ cov


@final
class spectrum(Guide):
    """P_t from a covariance of the data; no gradient through the network.

    What PiGDM and its relatives take as a multiple of the identity is measured here for each
    coefficient: x_0^ is corrected where the data vary and x_t tells little.

    Args:
        measured: y, how it was made, and its noise.
        cov: S, the data's covariance; diagonal in the process's basis, or `Dense` for small n.
        tolerance: relative residual of the linear systems where A is not diagonal in that basis.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> same, certain = sf.operators.identity(), sf.operators.scaled(1e-3)
    >>> measured = sf.guides.Measured(same, torch.ones(1, 1), certain)
    >>> push = sf.guides.spectrum(measured, cov=same).at(process, torch.tensor(0.5).double())
    >>> push.value(torch.zeros(1, 1), torch.zeros(1, 1))  # from x_0^ = 0 nearly to y = 1
    tensor([[1.0000]])
    """

    def __init__(self, measured: Measured, cov: Operator, tolerance: float = TOLERANCE) -> None:
        self.measured = measured
        self.cov = cov
        self.tolerance = tolerance

    def at(self, process: Process, t: Tensor) -> Push:
        cov = posterior_cov(process, t, self.cov)
        return Push(identity(), update(self.measured, cov, self.tolerance))


def update(measured: Measured, cov: Operator, tolerance: float = TOLERANCE) -> _Gain | _Solved:
    """x_0^ -> P A^T (R + A P A^T)^-1 (y - A x_0^) for P = `cov`, in the simplest exact form."""
    operator, noise = measured.operator, measured.cov
    if isinstance(operator, Diagonal):
        total = noise + operator @ cov @ operator.T
        if isinstance(total, Diagonal):
            return _Gain(cov @ operator.T @ total.inv(), measured)
    return _Solved(cov, measured, tolerance)


class _Jacobian(NamedTuple):
    """J^T A^T (R + A P A^T)^-1 (y - A x_0^) with J = d x_0^ / d x_t."""

    solve: _Solved
    scale: float

    def __call__(self, x: Tensor, x0: Tensor) -> Tensor:
        off = self.solve.measured.off(x0)
        white = sent(self.solve.white(off.detach()), off)
        (gradient,) = torch.autograd.grad((off * white).sum(), x)
        return -self.scale * gradient


@final
class pigdm(Guide):
    """PiGDM: P_t for data of unit variance, and the gradient through the network.

    Under blur C_t^-1 amplifies a network's errors; coefficients of low SNR are not moved.

    Args:
        measured: as in `spectrum`.
        scale: of the push; 1 is the published rule.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> y = torch.zeros(1, 1, 14, 14)
    >>> half = sf.measurement("down:2", model.shape)
    >>> measured = sf.guides.Measured(half, y, sf.operators.scaled(0.1))
    >>> guided = sf.Guided(model.denoiser, sf.guides.pigdm(measured, scale=1.0))
    >>> guided(torch.randn(1, 1, 28, 28), 0.5).mean.shape
    torch.Size([1, 1, 28, 28])

    References:
        Pseudoinverse-Guided Diffusion Models for Inverse Problems (J. Song, A. Vahdat, M. Mardani,
        J. Kautz, 2023), https://openreview.net/forum?id=9_gsMA8MRKQ
    """

    def __init__(self, measured: Measured, scale: float) -> None:
        self.measured = measured
        self.scale = scale

    def at(self, process: Process, t: Tensor) -> Push:
        cov = posterior_cov(process, t, identity())
        value = _Jacobian(_Solved(cov, self.measured), self.scale)
        return Push(tilt(process, t, FLOOR), value, "gradient")


class _Norm(NamedTuple):
    """-scale grad |y - A x_0^|."""

    measured: Measured
    scale: float

    def __call__(self, x: Tensor, x0: Tensor) -> Tensor:
        norm = self.measured.off(x0).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(norm.sum(), x)
        return -self.scale * gradient


@final
class dps(Guide):
    """Diffusion posterior sampling: x_0^ - scale C_t^-1 V_t grad |y - A x_0^|, for any function A.

    The published algorithm subtracts its gradient after an ancestral step; as a share of the
    estimate the same push serves every sampler.

    Args:
        measured: its `operator` is any differentiable function of x_0, linear or not.
        scale: of the push, found by trial.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1), sf.operators.identity())
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> square = sf.operators.MatrixFree(lambda x: x**2)  # not linear: y = x_0^2
    >>> measured = sf.guides.Measured(square, torch.ones(1, 1), sf.operators.zero())
    >>> guided = sf.Guided(denoiser, sf.guides.dps(measured, scale=0.1))
    >>> x = torch.full((1, 1), 0.5)
    >>> guided(x, 0.5).mean > denoiser(x, 0.5).mean  # towards y
    tensor([[True]])

    References:
        Diffusion Posterior Sampling for General Noisy Inverse Problems (H. Chung, J. Kim, M.
        McCann, M. Klasky, J. Ye, 2022), https://arxiv.org/abs/2209.14687
    """

    def __init__(self, measured: Measured, scale: float) -> None:
        self.measured = measured
        self.scale = scale

    def at(self, process: Process, t: Tensor) -> Push:
        return Push(tilt(process, t, FLOOR), _Norm(self.measured, self.scale), "gradient")


@final
class replacement(Guide):
    """x_0^ + A^+ (y - A x_0^): what was measured replaces its part of the estimate, noise and all.

    For inpainting and averages; a blur's pseudo-inverse amplifies noise without bound.

    >>> process = sf.METHODS["ddpm"]((1, 1, 4)).process
    >>> oracle = sf.oracles.dataset(process, torch.zeros(1, 1, 1, 4))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> mask = sf.measurement("box:2,0,4,1", (1, 1, 4))
    >>> measured = sf.guides.Measured(mask, mask(torch.ones(1, 1, 1, 4)), sf.operators.zero())
    >>> guided = sf.Guided(denoiser, sf.guides.replacement(measured))
    >>> guided(torch.zeros(1, 1, 1, 4), 0.5).mean  # seen pixels are those of y
    tensor([[[[1., 1., 0., 0.]]]])

    References:
        Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (Y. Wang, J. Yu, J.
        Zhang, 2022), https://arxiv.org/abs/2212.00490
    """

    def __init__(self, measured: Measured) -> None:
        self.measured = replace(measured, noise=scaled(0.0))

    def at(self, process: Process, t: Tensor) -> Push:
        return Push(identity(), update(self.measured, identity()))


RULES: Mapping[str, Callable[[Measured, Operator, float], Guide]] = {
    "spectrum": lambda measured, cov, scale: spectrum(measured, cov),
    "pigdm": lambda measured, cov, scale: pigdm(measured, scale),
    "dps": lambda measured, cov, scale: dps(measured, scale),
    "replacement": lambda measured, cov, scale: replacement(measured),
}
"""How the estimate follows y, by name: (measured, covariance of the data, scale) -> guide."""


@final
class Restored(Denoiser):
    """The denoiser of p(x_0 | y), y = A x_0 + noise; every sampler takes it as any other.

    Start at `start`, not at the prior: blur keeps the image's mean, so x_1 depends on y.

    Args:
        base: an unconditional denoiser.
        operator: A, with a transpose; it may change the signal's shape. `dps` takes any
            differentiable function.
        y: (B, *measured), one for each signal sampled.
        noise: standard deviation of the noise >= 0, or a root of its covariance for coloured noise.
        rule: one of `RULES`.
        scale: of the push of `pigdm` and `dps`.
        mean, cov: of the data, (*shape) and an operator; by default those measured.

    Raises:
        TypeError, ValueError: arguments of other kinds; negative noise; a process that is diagonal
            in no basis; no measured spectrum; an A that does not fit `y`.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> half = sf.measurement("down:2", model.shape)
    >>> denoiser = sf.Restored(model.denoiser, half, torch.zeros(2, 1, 14, 14), noise=0.1)
    >>> x1 = denoiser.start(torch.empty(2, 1, 28, 28), torch.randn_like)
    >>> kernel = sf.kernels.reverse(sf.couplings.ddim())
    >>> x0 = sf.sample(kernel, denoiser, x1, sf.grids.uniform_grid(4))
    >>> half(x0).abs().mean() < 0.2  # near y = 0
    tensor(True)
    """

    def __init__(
        self,
        base: Denoiser,
        operator: Operator | Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float | Operator,
        rule: str = "spectrum",
        scale: float = 1.0,
        mean: Tensor | None = None,
        cov: Operator | None = None,
    ) -> None:
        super().__init__()
        expect(base, Denoiser, "restoration needs a Denoiser first")
        build = choose("rule of restoration", rule, RULES)
        alike(y=y)
        if not isinstance(operator, Operator):
            if rule != "dps":
                raise Refused(f"{rule} needs a linear operator; use dps for other functions.")
            operator = MatrixFree(operator)
        if not isinstance(noise, Operator):
            if not 0 <= noise < math.inf:
                raise Refused(f"noise is a standard deviation of 0 or more; got {noise}.")
            noise = scaled(float(noise))
        self.process, self.stats = base.process, base.stats
        self.mean, self.cov = self._law(mean, cov)
        self.measured = Measured(operator, y, noise)
        self._guided = Guided(base, build(self.measured, self.cov, scale))

    def at(self, t: Tensor) -> Estimator:
        return self._guided.at(t)

    def start(self, like: Tensor, randn_like: RandnLike) -> Tensor:
        """x_1 given y where data are Gaussian of the measured mean and spectrum.

        C_1 x_0 + S_1 eps with x_0 ~ N(m', S'): a draw of N(m, S) moved by the update of its own
        simulated measurement (Matheron's rule), so that S' is never formed.

        Args:
            like: a tensor (B, *shape) whose values are not read.
            randn_like: source of the noise.
        """
        one = torch.ones((), dtype=torch.float64)
        measured = self.measured
        drawn = double(self.mean + self.cov.sqrt()(double(randn_like(like))))
        y = double(sent(measured.y, like).expand(len(like), *measured.y.shape[1:]))
        simulated = measured.operator(drawn) + measured.noise(double(randn_like(y.to(like.dtype))))
        x0 = drawn + _Solved(self.cov, measured, tolerance=1e-8).pull(y - simulated)
        x1 = self.process.signal.at(one)(x0)
        return sent(x1 + self.process.noise.at(one)(double(randn_like(like))), like)

    def _law(self, mean: Tensor | None, cov: Operator | None) -> tuple[Tensor, Operator]:
        """Mean and covariance of the data."""
        if mean is not None and cov is not None:
            return mean, cov
        if self.stats is None:
            raise Refused("restoration needs what was measured of the data: mean and spectrum.")
        gains = self.process.gains(torch.full((), 0.5, dtype=torch.float64))
        if gains is None:
            raise Refused(
                "restoration needs a process whose signal and noise are diagonal in one basis."
            )
        found = self.stats.cov(gains.basis)
        here = self.stats.basis.synthesize(self.stats.mean)
        return (here if mean is None else mean), (found if cov is None else cov)
