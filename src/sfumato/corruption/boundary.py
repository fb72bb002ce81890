"""A boundary is where a call from outside is checked, in one sentence: times, signals, kinds.

Public functions check here what they are given, once; what a loop then does with it is not checked
again. The checks look at shapes and dtypes, and at values on the CPU only: elsewhere, reading them
would make the device wait.
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

Time = Tensor | float
"""() or (B, 1, ..., 1) in [0, 1], 0 clean; a number is a time of all signals."""

FAR = 10.0
"""Data are to lie in [-1, 1]; beyond this they were not scaled: bytes, say."""


def time(t: Time, x: Tensor | None = None, last: float = 1.0) -> Tensor:
    """`t` in float64 where it is a time, and one of the signals `x` (B, *shape) if they are given.

    Args:
        t: () or (B, 1, ..., 1), from 0 to `last`.
        x: (B, *shape).
        last: the last time there is.

    Raises:
        TypeError: neither a number nor a tensor of floating-point numbers.
        ValueError: outside [0, 1], or of a shape that does not broadcast against signals.
    """
    if isinstance(t, Real) and not isinstance(t, bool):
        t = torch.tensor(float(t), dtype=torch.float64)
    if not isinstance(t, Tensor):
        raise TypeError(f"a time is a number in [0, 1], or a tensor of such; got {_kind(t)}.")
    if not t.is_floating_point():
        raise TypeError(
            f"times are floating-point numbers in [0, 1], 0 clean; got {t.dtype}. Step k of a "
            "chain of n steps is the time k / n."
        )
    _check_axes(t, x)
    if t.device.type == "cpu" and not bool(((t >= 0) & (t <= last)).all()):
        raise ValueError(
            f"times lie in [0, 1], 0 clean; got {float(t.min()):g} to {float(t.max()):g}. Step k "
            "of a chain of n steps is the time k / n."
        )
    return t.to(torch.float64)


def _check_axes(t: Tensor, x: Tensor | None) -> None:
    """Raise ValueError unless `t` is one time, or has one for each signal and an axis for each."""
    if not t.ndim:
        return
    if t.numel() == len(t) and (t.ndim > 1 if x is None else t.ndim == x.ndim):
        if x is None or len(t) in (1, len(x)):
            return
    of = "(B, 1, ..., 1)" if x is None else f"{(len(x), *(1,) * (x.ndim - 1))}"
    cure = f" Reshape them to {of.replace('B', str(len(t)))}." if t.ndim == 1 else ""
    raise ValueError(f"times have shape () or {of}, one for each signal; got {(*t.shape,)}.{cure}")


def alike(**signals: Tensor) -> None:
    """Raise unless the tensors, by their names in the call, are signals (B, *shape) of one shape.

    Raises:
        TypeError: one is no tensor, or not of floating-point numbers.
        ValueError: their shapes differ.
    """
    for name, x in signals.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor (B, *shape); got {_kind(x)}.")
        if not x.is_floating_point():
            raise TypeError(
                f"{name} must be of floating-point numbers, data in [-1, 1]; got {x.dtype}. Bytes "
                "become these by x / 127.5 - 1."
            )
        if not x.ndim:
            raise ValueError(f"{name} must have shape (B, *shape); got a single number.")
    (first, x), *rest = signals.items()
    for name, other in rest:
        if other.shape != x.shape:
            raise ValueError(
                f"{first} and {name} must have one shape; got {(*x.shape,)} and {(*other.shape,)}."
            )


def shaped(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless `x` is signals (B, *shape); TypeError and ValueError as `alike`."""
    alike(**{name: x})
    if tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"{name} must have shape (B, {', '.join(map(str, shape))}); got {(*x.shape,)}."
        )


def near(name: str, x0: Tensor) -> None:
    """Raise ValueError for data on the CPU that were plainly not scaled to [-1, 1]."""
    if x0.device.type == "cpu" and x0.numel() and not float(x0.detach().abs().max()) <= FAR:
        raise ValueError(
            f"{name} must be data in [-1, 1]; got {float(x0.min()):g} to {float(x0.max()):g}. "
            "Scale them: bytes by x / 127.5 - 1."
        )


def expect(value: object, kind: type, needs: str) -> None:
    """Raise TypeError, the sentence `needs` with what was found, unless `value` is of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{needs}; got {_kind(value)}.")


def _kind(value: object) -> str:
    """What error sentences call a value of another kind."""
    return repr(value) if isinstance(value, int | float | str | type) else type(value).__name__
