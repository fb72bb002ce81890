r"""A family is an operator as a function of time: t -> C_t, or t -> S_t.

Families turn schedules into operators and compose with `@`. Time broadcasts against the signal: ()
for one time, (B, 1, ..., 1) for one per sample, in [0, 1], 0 clean; float64. An operator is on the
device of its times; with a learned schedule, on that of the parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast, final

import torch
from torch import Tensor, nn

from sfumato.algebra.basis import Basis
from sfumato.algebra.logs import log_of
from sfumato.algebra.operators import Diagonal, Operator, scaled
from sfumato.algebra.place import Placed, double, seen
from sfumato.corruption.boundary import time
from sfumato.corruption.schedules import Schedule
from sfumato.errors import Refused, RefusedType

# Step of differences where forward AD does not apply: at a hard zero of a gain, whose logarithm has
# no derivative, and for operators that are not diagonal. Errors are about 1e-9 in float64.
_STEP = 1e-5


class Family(nn.Module, ABC):
    """t -> Operator (abstract: `at`).

    >>> class Shrink(sf.families.Family):
    ...     def at(self, t):
    ...         return sf.operators.scaled(1 - t)
    >>> Shrink().at(torch.tensor(0.25))(torch.tensor([4.0]))
    tensor([3.])
    >>> Shrink().rate(torch.tensor(0.25))(torch.tensor([4.0]))
    tensor([-4.])
    """

    @abstractmethod
    def at(self, t: Tensor) -> Operator:
        """The operator at times `t`, () or (B, 1, ..., 1) in [0, 1]."""

    def rate(self, t: Tensor) -> Operator:
        r"""d/dt of `at`, finite at a hard zero of the gain.

        Exact by one `jvp` for diagonal families. Where the gain, or a term summed into it, is a
        hard zero, and at a kink, such as a table has at its times, it is the one-sided derivative
        from the cleaner side (from the other at t = 0). Other families get a central difference of
        two operators, one-sided at the ends of time.
        """
        t = time(t, last=self.last)
        here = self.at(t)
        if isinstance(here, Diagonal):
            log_gain, sign = _diagonal_rate(self, t)
            zeros = here.zeros
            # On other devices than the CPU the limit is computed whether there are zeros or not.
            if zeros.device.type != "cpu" or seen(zeros):
                limit = _limit(self, t)
                log_gain = torch.where(zeros, log_of(limit.abs()), log_gain)
                sign = torch.where(zeros, torch.where(limit < 0, -1.0, 1.0).to(sign), sign)
            return Diagonal(log_gain, sign, here.basis)
        early, late = (t - _STEP).clamp(min=0.0), (t + _STEP).clamp(max=1.0)
        span = scaled(1.0 / (late - early))
        return span @ self.at(late) - span @ self.at(early)

    def __matmul__(self, other: Family) -> Product:
        return Product(self, other)

    @property
    def factors(self) -> tuple[str, ...]:
        """The operator's factors as formulas, for tables; none for the identity."""
        return (f"{type(self).__name__.lower()}_t",)

    @property
    def last(self) -> float:
        """The largest time that has an operator; see `Schedule.last`."""
        return 1.0


@final
class Scale(Family):
    """A schedule's level times the identity, or a level for each coefficient of a basis.

    Args:
        level: t -> level; with `basis`, of the shape of its coefficients.
        basis: the coefficients' basis, where they differ.

    >>> noise = sf.families.Scale(sf.schedules.Geometric(0.01, 1.0))
    >>> noise.at(torch.tensor(0.5).double()).gain
    tensor(0.1000, dtype=torch.float64)
    """

    def __init__(self, level: Schedule, basis: Basis | None = None) -> None:
        super().__init__()
        self.level = level
        self.basis = basis

    def at(self, t: Tensor) -> Diagonal:
        return Diagonal(log_of(self.level(time(t, last=self.last))), None, self.basis)

    @property
    def factors(self) -> tuple[str, ...]:
        return () if self.level.formula == "1" else (self.level.formula,)

    @property
    def last(self) -> float:
        return self.level.last


@final
class Heat(Family):
    r"""Heat flow for the time that blurs by a Gaussian of width b_t.

    C_t = (1 - floor) exp(-Laplacian b_t^2 / 2) + floor, diagonal in `basis`: blur with the edges
    that the basis has (DCT: reflected, Hartley: periodic). F(t) of IHDM, d_t of Blurring Diffusion,
    C_t of Soft Diffusion. Identity where b_t = 0.

    Args:
        blur: standard deviation of the blur in samples, >= 0.
        basis: whose `laplacian` is damped.
        floor: smallest gain, in [0, 1); Blurring Diffusion's d_min.

    >>> blur = sf.families.Heat(sf.schedules.Linear(0, 2), sf.bases.dct(4))
    >>> blur.at(torch.tensor(1.0).double()).gain
    tensor([1.0000e+00, 2.9121e-01, 7.1919e-03, 1.5062e-05], dtype=torch.float64)

    References:
        Generative Modelling with Inverse Heat Dissipation (S. Rissanen, M. Heinonen, A. Solin,
        2022), https://arxiv.org/abs/2206.13397
        Blurring Diffusion Models (E. Hoogeboom, T. Salimans, 2022), https://arxiv.org/abs/2209.05557
    """

    def __init__(self, blur: Schedule, basis: Basis, floor: float = 0.0) -> None:
        super().__init__()
        if not 0 <= floor < 1:
            raise Refused(f"Heat needs a floor in [0, 1); got {floor:g}.")
        self.blur = blur
        self.basis = basis
        self.floor = float(floor)
        self._squared = Placed(basis.laplacian)

    def at(self, t: Tensor) -> Diagonal:
        width = self.blur(time(t))
        log_gain = -self._squared.on(width.device) * (width**2 / 2)
        if self.floor:
            log_floor = torch.full_like(width, math.log(self.floor))
            log_gain = torch.logaddexp(math.log1p(-self.floor) + log_gain, log_floor)
        return Diagonal(log_gain, None, self.basis)

    @property
    def factors(self) -> tuple[str, ...]:
        return ("((1 - d) exp(-Lambda b_t^2 / 2) + d)" if self.floor else "exp(-Lambda b_t^2 / 2)",)

    def extra_repr(self) -> str:
        return f"{self.basis}, floor={self.floor:g}"


@final
class Damp(Family):
    r"""Coefficients that each decay at their own rate: exp(-(rate level_t)^power).

    Never a hard zero: between two times each coefficient is multiplied by a factor, and none is
    generated from nothing. In pixels this is a fading mask, in Haar bands a downsampling, with
    power 2 and rates sqrt of the Laplacian a blur.

    Args:
        level: schedule from 0 at t = 0 upwards.
        rates: how fast each coefficient decays, >= 0; broadcasts against `basis.shape`, or one set
            for each sample, (B, 1, *basis.shape).
        basis: the coefficients' basis.
        power: 1 or more; with large ones the coefficients vanish one after another.

    >>> rates = torch.tensor([0.0, 1.0, 2.0])
    >>> mask = sf.families.Damp(sf.schedules.Linear(0, 1), rates, sf.bases.pixel(3))
    >>> mask.at(torch.tensor(1.0).double()).gain
    tensor([1.0000, 0.3679, 0.1353], dtype=torch.float64)
    """

    def __init__(self, level: Schedule, rates: Tensor, basis: Basis, power: float = 1.0) -> None:
        super().__init__()
        if seen(~(rates >= 0)):
            raise Refused(f"Damp needs rates >= 0; got {float(rates.min()):g}.")
        if not power >= 1:
            raise Refused(f"Damp needs a power of 1 or more; got {power:g}.")
        self.level = level
        self.basis = basis
        self.power = float(power)
        self._rates = Placed(double(rates))

    def at(self, t: Tensor) -> Diagonal:
        level = self.level(time(t))
        rates = self._rates.on(level.device)
        return Diagonal(-((rates * level) ** self.power), None, self.basis)

    @property
    def factors(self) -> tuple[str, ...]:
        return ("exp(-r b_t)" if self.power == 1 else f"exp(-(r b_t)^{self.power:g})",)

    def extra_repr(self) -> str:
        return f"{self.basis}, power={self.power:g}"


@final
class Fade(Family):
    r"""Coefficients that fade to zero one after another: masks in pixels, bands in Haar.

    gain = ramp((onset + width - level) / width) with ramp(y) = sin^2(pi/2 clip(y, 0, 1)), so that a
    coefficient is untouched until the level passes its onset and a hard zero `width` later. Gains
    never rise, as a Markov kernel needs.

    Args:
        level: schedule from <= 0 at t = 0 upwards.
        onset: tensor of shape `basis.shape`, the level at which a coefficient starts to fade.
        basis: the coefficients' basis.
        width: length of the ramp, positive.

    >>> onset = torch.tensor([0.0, 0.5])
    >>> mask = sf.families.Fade(sf.schedules.Linear(0, 1), onset, sf.bases.pixel(2), width=0.5)
    >>> mask.at(torch.tensor(0.75).double()).gain
    tensor([0.0000, 0.5000], dtype=torch.float64)
    """

    def __init__(self, level: Schedule, onset: Tensor, basis: Basis, width: float) -> None:
        super().__init__()
        if not width > 0:
            raise Refused(f"Fade needs a positive width; got {width:g}.")
        if tuple(onset.shape) != basis.shape:
            raise Refused(
                f"Fade needs one onset per coefficient of {basis}; got {tuple(onset.shape)}."
            )
        self.level = level
        self.basis = basis
        self.width = float(width)
        self._onset = Placed(double(onset))

    def at(self, t: Tensor) -> Diagonal:
        level = self.level(time(t))
        onset = self._onset.on(level.device)
        left = ((onset + self.width - level) / self.width).clamp(0.0, 1.0)
        return Diagonal(log_of(torch.sin(math.pi / 2 * left) ** 2), None, self.basis)

    @property
    def factors(self) -> tuple[str, ...]:
        return ("ramp(onset - b_t)",)


@final
class Fixed(Family):
    """The same operator at all times: a noise colour, a camera, a user-defined matrix.

    >>> white = sf.families.Fixed(sf.operators.identity())
    >>> white.at(torch.tensor(0.3))(torch.tensor([2.0]))
    tensor([2.])
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    def at(self, t: Tensor) -> Operator:
        return self.operator.on(t.device)

    @property
    def factors(self) -> tuple[str, ...]:
        return ("L",)

    def extra_repr(self) -> str:
        return repr(self.operator)


@final
class Mapping(Family):
    """Any function t -> Operator: a corruption without a class.

    Args:
        at: takes t of shape () or (B, 1, ..., 1), float64, and returns the operator at those times.

    >>> fade = sf.families.Mapping(lambda t: sf.operators.scaled(1 - t**2))
    >>> fade.at(torch.tensor(0.5))(torch.tensor([4.0]))
    tensor([3.])
    """

    def __init__(self, at: Callable[[Tensor], Operator]) -> None:
        super().__init__()
        self._at = at

    def at(self, t: Tensor) -> Operator:
        return self._at(time(t))


@final
class Product(Family):
    """t -> A_t B_t."""

    def __init__(self, left: Family, right: Family) -> None:
        super().__init__()
        self.left, self.right = left, right

    def at(self, t: Tensor) -> Operator:
        return self.left.at(t) @ self.right.at(t)

    @property
    def factors(self) -> tuple[str, ...]:
        return self.left.factors + self.right.factors


@final
class TimeWarped(Family):
    """Another family under a time warp: t -> of.at(warp(t)).

    Args:
        of: the family.
        warp: an increasing schedule from 0 to 1.

    >>> scale = sf.families.Scale(sf.schedules.Linear(1, 0))
    >>> late = sf.families.TimeWarped(scale, sf.schedules.Sigmoid(0, 1))
    >>> late.at(torch.tensor(0.25).double()).gain
    tensor(0.8509, dtype=torch.float64)
    """

    def __init__(self, of: Family, warp: Schedule) -> None:
        super().__init__()
        self.of = of
        self.warp = warp

    def at(self, t: Tensor) -> Operator:
        return self.of.at(self.warp(time(t)).clamp(0.0, 1.0))

    @property
    def factors(self) -> tuple[str, ...]:
        return self.of.factors


def _limit(family: Family, t: Tensor) -> Tensor:
    """The rate of each gain at t, extrapolated from two times on the cleaner side."""
    step = torch.where(t < 2 * _STEP, -_STEP, _STEP)
    beside = (_diagonal_rate(family, t - many * step) for many in (1, 2))
    near, far = (sign * log_gain.exp() for log_gain, sign in beside)
    return 2 * near - far


def _diagonal_rate(family: Family, t: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm and sign of the rate of each gain, where its logarithm has a derivative."""

    def logs(at: Tensor) -> tuple[Tensor, Tensor]:
        operator = family.at(at)
        if not isinstance(operator, Diagonal):
            raise RefusedType(f"{type(family).__name__}.at returned a Diagonal at one time only.")
        sign = torch.ones_like(operator.log_gain) if operator.sign is None else operator.sign
        return operator.log_gain, sign

    # d gain = gain d log|gain|, which is exact where the gain itself underflows.
    found = torch.func.jvp(logs, (t,), (torch.ones_like(t),), has_aux=True)
    log_gain, slope, sign = cast(tuple[Tensor, Tensor, Tensor], found)
    return log_gain + log_of(slope.abs()), torch.where(slope < 0, -sign, sign)
