r"""Operators of deepinv's as ours, and our denoisers as theirs.

Nothing here imports deepinv: `from_deepinv` needs an object with `A` and `A_adjoint`, and what
`to_deepinv_denoiser` returns is called as `denoiser(x, sigma)`.

Their images lie in [0, 1], ours in [-1, 1]. With x = 2 x' - 1 and y' = A x' + r,

    2 y' - A 1 = A x + 2 r,

so that a measurement of theirs is one of ours with twice the noise.

References: DeepInverse (J. Tachella, M. Terris, S. Hurault et al., 2025),
https://arxiv.org/abs/2505.20160
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.algebra.operators import MatrixFree, Operator, identity, scaled
from sfumato.corruption.boundary import time
from sfumato.corruption.families import Family
from sfumato.corruption.measurement import check_measured, check_transpose, measured
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Linear, Schedule
from sfumato.errors import Refused
from sfumato.methods.flow_maps import check_mean
from sfumato.model import Model

HALVINGS = 60
"""Of the interval of times in which a noise level is sought."""
TOLERANCE = 1e-4
"""Of the relative error of superposition, in single precision."""
POWER_STEPS = 30
"""Of the power iteration for the norm of an operator."""


@final
@dataclass(frozen=True, eq=False)
class Measurement:
    """A linear physics of deepinv's: y' = A x' + noise.

    Attributes:
        operator: A, from signals of `shape` to measurements, with its transpose.
        shape: of one signal, (C, ...).
        noise: standard deviation for signals in [-1, 1], twice theirs; for `sf.restore`.
    """

    operator: Operator
    shape: tuple[int, ...]
    noise: float

    def read(self, y: Tensor) -> Tensor:
        """A measurement (n, ...) of theirs, of images in [0, 1], as one of images in [-1, 1].

        Raises:
            ValueError: `y` has another shape than measurements have.
        """
        check_measured(self.operator, self.shape, y)
        return 2 * y - self.operator(torch.ones(1, *self.shape).to(y))

    @cached_property
    def backprojection(self) -> Operator:
        """A^T A / ||A||^2, which keeps a signal's shape: what a measurement retains of it."""
        normal = self.operator.T @ self.operator
        x = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0))
        norm = 0.0
        for _ in range(POWER_STEPS):
            x = normal(x / x.norm())
            norm = float(x.norm())
            if norm == 0:
                raise Refused("this physics measures nothing: A x is 0 for every x.")
        return scaled(1 / norm) @ normal

    def family(self, strength: Schedule | None = None, of: Operator | None = None) -> Family:
        r"""The corruption C_t = (1 - a_t) I + a_t B, whose strength a_t rises with time.

        Args:
            strength: t -> a_t in [0, 1]; t itself by default.
            of: B, which keeps a signal's shape; by default A where it does, as a blur or a mask
                does, else `backprojection`.

        Raises:
            ValueError: `of` does not keep the shape, or a strength leaves [0, 1].
        """
        if of is None:
            keeps = measured(self.operator, self.shape) == self.shape
            of = self.operator if keeps else self.backprojection
        if (found := measured(of, self.shape)) != self.shape:
            raise Refused(
                f"a corruption keeps the shape {self.shape} of signals; this operator gives "
                f"{found}. Use the measurement's `backprojection`."
            )
        return Strength(Linear(0.0, 1.0) if strength is None else strength, of)


@final
class Strength(Family):
    """C_t = (1 - a_t) I + a_t B.

    Args:
        strength: t -> a_t in [0, 1].
        of: B.
    """

    def __init__(self, strength: Schedule, of: Operator) -> None:
        super().__init__()
        self.strength = strength
        self.of = of
        levels = strength(torch.linspace(0, 1, 65, dtype=torch.float64)).detach()
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise Refused(
                "the strength of a corruption lies in [0, 1]; this schedule goes from "
                f"{float(levels.min()):g} to {float(levels.max()):g}."
            )

    def at(self, t: Tensor) -> Operator:
        level = self.strength(time(t))
        return scaled(1 - level) @ identity() + scaled(level) @ self.of

    @property
    def factors(self) -> tuple[str, ...]:
        return ("((1 - a_t) I + a_t A)",)


def from_deepinv(
    physics: Any,  # noqa: ANN401 - any object with A and A_adjoint
    shape: Sequence[int] | None = None,
    noise: float | None = None,
) -> Measurement:
    """A linear physics of deepinv's, to restore from or to corrupt with.

    Args:
        physics: an object with `A(x)` and `A_adjoint(y)` on batches.
        shape: of one signal, (C, ...); by default `physics.img_size`.
        noise: standard deviation for images in [0, 1]; by default that of `physics.noise_model`,
            which is Gaussian or absent.

    Returns:
        `operator`, `noise` and `read(y)` for `sf.restore`, and `family(strength)` for `sf.Process`.

    Raises:
        ValueError: A is not linear, its adjoint is not its transpose, its measurements are not one
            tensor of real numbers, the shape is not known, or the noise is not Gaussian.

    >>> class Columns:  # deepinv's interface: A, A_adjoint and img_size
    ...     img_size = (1, 2, 2)
    ...     def A(self, x):
    ...         return x.sum(-2, keepdim=True)
    ...     def A_adjoint(self, y):
    ...         return y.expand(-1, 1, 2, 2)
    >>> found = sf.from_deepinv(Columns(), noise=0.05)
    >>> found.noise, found.operator(torch.ones(1, 1, 2, 2))
    (0.1, tensor([[[[2., 2.]]]]))
    """
    missing = [name for name in ("A", "A_adjoint") if not callable(getattr(physics, name, None))]
    if missing:
        raise Refused(
            f"{_name(physics)} has no {missing[0]}; only linear physics, with A and A_adjoint, "
            "become operators."
        )
    shape = getattr(physics, "img_size", None) if shape is None else shape
    if shape is None:
        raise Refused(
            f"{_name(physics)} does not say the shape of its images; give it: "
            "sf.from_deepinv(physics, shape=(C, H, W))."
        )
    shape = tuple(int(n) for n in shape)
    operator = _operator(physics)
    _check_linear(physics, operator, shape)
    check_transpose(operator, shape)
    return Measurement(operator, shape, 2 * (_deviation(physics) if noise is None else noise))


def to_deepinv_denoiser(model: Model) -> WhiteDenoiser:
    """A model of white noise as a denoiser of deepinv's, for its PnP, DPS, DiffPIR and the like.

    Args:
        model: of images, whose corruption is white noise, such as `fashion-ddpm`.

    Returns:
        `denoiser(x, sigma)`, a module, differentiable in x.

    Raises:
        ValueError: the model's corruption is not white noise, or its network estimates another
            thing than images.

    >>> denoiser = sf.to_deepinv_denoiser(sf.from_pretrained("fashion-ddpm"))
    >>> denoiser(torch.rand(2, 1, 28, 28), sigma=0.1).shape
    torch.Size([2, 1, 28, 28])
    """
    model.codec.check_pixels("a denoiser of deepinv's")
    check_mean(model.recipe, "denoisers of deepinv's")
    return WhiteDenoiser(model)


@final
class WhiteDenoiser(nn.Module):
    """The mean of x_0 given x_0 + sigma eps, of images in [0, 1], by a model's network.

    The network is asked at the time at which S_t / C_t is the noise asked for, in [-1, 1]. Below
    the model's smallest level the time is that of the smallest.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        if model.recipe.context is not None or not _white(model.recipe.process):
            raise Refused(
                f"deepinv's denoisers are of white noise, and {model.config.method} corrupts "
                "otherwise. Use a model of white noise, such as ddpm or edm."
            )
        self.denoiser = model.denoiser.eval()
        self._model = model

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        classes: Sequence[int] | None = None,
        **ignored: object,
    ) -> Tensor:
        """The estimate of images from noisy ones.

        Args:
            x: (B, C, H, W), images in [0, 1] plus noise.
            sigma: its standard deviation: one number, or one for each image, (B,).
            classes: one for each image, for a model of classes.
            ignored: what deepinv passes beside.

        Returns:
            (B, C, H, W), in about [0, 1].

        Raises:
            ValueError: sigma is negative, or above the model's largest level.
        """
        place = self._model.place()
        levels = torch.as_tensor(sigma).detach().to(torch.float64).reshape(-1).cpu()
        if len(levels) not in (1, len(x)):
            raise Refused(f"{len(x)} images have one sigma or {len(x)}; got {len(levels)}.")
        level = levels.reshape(-1, *[1] * (x.ndim - 1))
        t = self._time(2 * level)
        noisy = self.denoiser.process.signal.at(t)((2 * x - 1).to(place))
        told = self._model.conditions(len(x), self._model.labels(classes, len(x)))
        return ((self.denoiser(noisy, t, **told).mean + 1) / 2).to(x)

    def _time(self, level: Tensor) -> Tensor:
        """The time at which S_t / C_t is `level`, by bisection."""
        process = self.denoiser.process
        high = torch.full_like(level, process.last)
        low = torch.zeros_like(high)
        largest = float(_log_level(process, high).max())
        if not bool((level >= 0).all()) or float(level.max()) > math.exp(largest) * (1 + 1e-6):
            raise Refused(
                f"this model denoises sigma from 0 to {math.exp(largest) / 2:.4g}; got "
                f"{float(level.min()) / 2:.4g} to {float(level.max()) / 2:.4g}."
            )
        wanted = level.log()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = _log_level(process, middle) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high


def _log_level(process: Process, t: Tensor) -> Tensor:
    """log(S_t / C_t), -inf without noise, one for each time."""
    log_snr = process.log_snr(t)
    if log_snr is None:
        raise Refused("this process has no signal-to-noise ratio.")
    return (-log_snr.detach() / 2).expand(torch.broadcast_shapes(log_snr.shape, t.shape)).cpu()


def _white(process: Process) -> bool:
    """Whether C_t and S_t are multiples of the identity at some times between 0 and 1."""
    for t in (0.25, 0.5, 1.0):
        gains = process.gains(torch.tensor(t, dtype=torch.float64))
        if gains is None or gains.signal.basis is not None or gains.noise.basis is not None:
            return False
    return True


def _operator(physics: Any) -> Operator:  # noqa: ANN401 - any object with A and A_adjoint
    """A and A^T on (*batch, *signal), in the dtype and on the device of the physics' numbers."""
    place = next(_numbers(physics), torch.zeros(()))

    def through(function: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - a bound method
        found = function(x.to(place))
        if not isinstance(found, Tensor) or found.is_complex():
            kind = "complex numbers" if isinstance(found, Tensor) else type(found).__name__
            raise Refused(
                f"{_name(physics)} measures {kind}; an operator needs one tensor of real numbers. "
                "Take the parts of a stack one by one."
            )
        return found.to(x)

    def apply(x: Tensor) -> Tensor:
        return through(physics.A, x)

    apply.__name__ = _name(physics)  # for the operator's repr
    return MatrixFree(apply, lambda y: through(physics.A_adjoint, y))


def _numbers(physics: object) -> Iterator[Tensor]:
    """Floating-point parameters and buffers, of a physics that is a module."""
    if isinstance(physics, nn.Module):
        held = (*physics.parameters(), *physics.buffers())
        yield from (number for number in held if number.is_floating_point())


def _check_linear(physics: object, operator: Operator, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless A (2 x - 3 z) = 2 A x - 3 A z."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 1, *shape, generator=generator)
    try:
        joint = operator(2 * x - 3 * z)
        apart = 2 * operator(x) - 3 * operator(z)
    except Refused:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise Refused(
            f"{_name(physics)} does not take real signals of shape {shape}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    if not float((joint - apart).norm()) <= TOLERANCE * float(apart.norm()):
        raise Refused(
            f"{_name(physics)} is not linear: A(2 x - 3 z) differs from 2 A x - 3 A z; only "
            "linear physics become operators."
        )


def _deviation(physics: object) -> float:
    """The standard deviation of the physics' noise."""
    noise = getattr(physics, "noise_model", None)
    if noise is None or type(noise).__name__ == "ZeroNoise":
        return 0.0
    sigma = torch.as_tensor(getattr(noise, "sigma", math.nan))
    if type(noise).__name__ != "GaussianNoise" or sigma.numel() != 1:
        raise Refused(
            f"{_name(physics)} has {_name(noise)}, and restoration needs Gaussian noise of one "
            "deviation; give it: sf.from_deepinv(physics, noise=0.05)."
        )
    return float(sigma)


def _name(thing: object) -> str:
    return type(thing).__name__
