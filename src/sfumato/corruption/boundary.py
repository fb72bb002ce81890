"""The boundary is where public calls check their arguments: times, signals, types.

Public functions check their arguments here once; loops do not check again. The checks read shapes
and dtypes, and values on the CPU only: reading those of another device would make the host wait.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from sfumato.algebra.place import double, home, moved, seen
from sfumato.errors import Refused, RefusedType

Time = Tensor | float
"""() or (B, 1, ..., 1) in [0, 1], 0 clean; a number is a time of all signals."""

FAR = 10.0
"""Data must be in [-1, 1]; values beyond this show that they were not scaled, such as bytes."""


def time(t: Time, x: Tensor | None = None, last: float = 1.0) -> Tensor:
    """`t` in float64 if it is a time, and one for signals `x` (B, *shape) if they are given.

    It is moved to the `home` of the signals' device, and what is computed from it stays there;
    without signals it is not moved.

    Args:
        t: () or (B, 1, ..., 1), from 0 to `last`.
        x: (B, *shape).
        last: the largest time allowed.

    Raises:
        TypeError: neither a number nor a tensor of floating-point numbers.
        ValueError: outside [0, 1], or of a shape that does not broadcast against signals.
    """
    place = None if x is None else home(x.device)
    if isinstance(t, Real) and not isinstance(t, bool):
        t = torch.tensor(float(t), dtype=torch.float64)
    if not isinstance(t, Tensor):
        raise RefusedType(f"a time is a number in [0, 1], or a tensor of such; got {_kind(t)}.")
    if not t.is_floating_point():
        raise RefusedType(
            f"times are floating-point numbers in [0, 1], 0 clean; got {t.dtype}. Step k of a "
            "chain of n steps is the time k / n."
        )
    _check_axes(t, x)
    if seen(~((t >= 0) & (t <= last))):
        raise Refused(
            f"times lie in [0, 1], 0 clean; got {float(t.min()):g} to {float(t.max()):g}. Step k "
            "of a chain of n steps is the time k / n."
        )
    if place is None or place == t.device:
        return double(t)
    return moved(double(t), place)


def _check_axes(t: Tensor, x: Tensor | None) -> None:
    """Raise ValueError unless `t` is one time, or has one for each signal and an axis for each."""
    if not t.ndim:
        return
    if t.numel() == len(t) and (t.ndim > 1 if x is None else t.ndim == x.ndim):
        if x is None or len(t) in (1, len(x)):
            return
    of = "(B, 1, ..., 1)" if x is None else f"{(len(x), *(1,) * (x.ndim - 1))}"
    cure = f" Reshape them to {of.replace('B', str(len(t)))}." if t.ndim == 1 else ""
    raise Refused(f"times have shape () or {of}, one for each signal; got {(*t.shape,)}.{cure}")


def alike(**signals: Tensor) -> None:
    """Raise unless the tensors, by their names in the call, are signals (B, *shape) of one shape.

    Raises:
        TypeError: one is not a tensor, or not of floating-point numbers.
        ValueError: their shapes differ.
    """
    for name, x in signals.items():
        if not isinstance(x, Tensor):
            raise RefusedType(f"{name} must be a tensor (B, *shape); got {_kind(x)}.")
        if not x.is_floating_point():
            raise RefusedType(
                f"{name} must be of floating-point numbers, data in [-1, 1]; got {x.dtype}. Bytes "
                "become these by x / 127.5 - 1."
            )
        if not x.ndim:
            raise Refused(f"{name} must have shape (B, *shape); got a single number.")
    (first, x), *rest = signals.items()
    for name, other in rest:
        if other.shape != x.shape:
            raise Refused(
                f"{first} and {name} must have one shape; got {(*x.shape,)} and {(*other.shape,)}."
            )


def shaped(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless `x` is signals (B, *shape); TypeError and ValueError as `alike`."""
    alike(**{name: x})
    if tuple(x.shape[1:]) != shape:
        raise Refused(
            f"{name} must have shape (B, {', '.join(map(str, shape))}); got {(*x.shape,)}."
        )


def near(name: str, x0: Tensor, far: float = FAR) -> None:
    """Raise ValueError for data on the CPU, clearly not scaled to [-1, 1]: values beyond `far`."""
    if not x0.numel():
        return
    low, high = x0.detach().aminmax()
    if seen(~((low >= -far) & (high <= far))):
        raise Refused(
            f"{name} must be data in [-1, 1]; got {float(low):g} to {float(high):g}. "
            "Scale them: bytes by x / 127.5 - 1."
        )


def expect(value: object, kind: type, needs: str) -> None:
    """Raise TypeError, the sentence `needs` with what was found, unless `value` is of this kind."""
    if not isinstance(value, kind):
        raise RefusedType(f"{needs}; got {_kind(value)}.")


def _kind(value: object) -> str:
    """How error sentences name a value of another type."""
    return repr(value) if isinstance(value, int | float | str | type) else type(value).__name__
