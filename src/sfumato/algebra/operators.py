r"""Operators that are diagonal in a basis, and the names of all others.

`Diagonal` is closed under all operations: it stores *log*-gains in float64, so that products,
ratios and roots are sums and differences, a heat gain of 10^-2197 is an ordinary number, and a hard
zero is -inf (its inverse is the pseudo-inverse, zero). Variances subtract as signed log-sums
(`expm1`), never as differences of floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from sfumato.algebra.basis import Basis, Pixel, Separable
from sfumato.algebra.linear import Composed as Composed
from sfumato.algebra.linear import MatrixFree as MatrixFree
from sfumato.algebra.linear import Negated as Negated
from sfumato.algebra.linear import NotPositive as NotPositive
from sfumato.algebra.linear import Operator as Operator
from sfumato.algebra.linear import Sum as Sum
from sfumato.algebra.logs import log_of, product_sign, signed_sum
from sfumato.algebra.matrix import Dense as Dense
from sfumato.algebra.place import CPU, Place, home, lasting, moved, seen
from sfumato.algebra.transforms import Axes
from sfumato.errors import Refused, RefusedType


@final
class Diagonal(Operator):
    r"""V diag(sign * exp(log_gain)) V^T.

    Args:
        log_gain: logs of absolute gains; broadcasts against the basis's axes and the batch, such as
            (), (H, W) or (B, 1, H, W). -inf is a hard zero.
        sign: +1 or -1 like `log_gain`, or None where all are positive.
        basis: the basis of the coefficients; None for a multiple of the identity, which is diagonal
            in every basis (its `log_gain` must not vary along the basis's axes).

    Raises:
        ValueError: no basis, and gains that vary along the last axis.

    >>> blur = sf.operators.Diagonal(-200 * sf.bases.dct(4).laplacian, basis=sf.bases.dct(4))
    >>> blur.gain.tolist()[2:]  # the last is below what float64 holds, and yet
    [4.8335...e-215, 0.0]
    >>> (blur.inv() @ blur).gain
    tensor([1., 1., 1., 1.], dtype=torch.float64)
    """

    def __init__(
        self, log_gain: Tensor, sign: Tensor | None = None, basis: Basis | None = None
    ) -> None:
        if sign is not None and sign.ndim:
            log_gain, sign = torch.broadcast_tensors(log_gain, sign)
        if basis is None:
            _check_one_gain(log_gain, 1)
        # The log-gain is a sum of parts, each of which varies along some axes only: a level for
        # each sample and a colour for each coefficient are not multiplied out until needed.
        self._parts = (log_gain.to(torch.float64),)
        self._sign = None if sign is None else sign.to(torch.float64)
        self.basis = basis
        self._terms: tuple[Tensor, ...] = ()
        self._gains: dict[Place, Tensor] = {}
        self._moved: dict[torch.device, Diagonal] = {}
        self._fused: Axes | bool | None = False  # False: not computed yet
        self._vanishes: bool | None = None  # None: not computed yet

    @property
    def log_gain(self) -> Tensor:
        """Logs of absolute gains."""
        if len(self._parts) > 1:
            with lasting():
                self._parts = (reduce(torch.add, self._parts),)
        return self._parts[0]

    @property
    def sign(self) -> Tensor | None:
        """Signs like `log_gain`; None where all are positive."""
        if self._sign is None or self._sign.ndim:
            return self._sign
        return moved(self._sign, self.device).expand(self._shape)

    @property
    def device(self) -> torch.device:
        """Where the gains are."""
        return self._parts[-1].device

    @property
    def gain(self) -> Tensor:
        """Signed gains, in the dtype of `log_gain`."""
        gain = torch.exp(self.log_gain)
        return gain if self._sign is None else self._sign * gain

    @property
    def zeros(self) -> Tensor:
        """Where the gain, or a term that was summed into it, is a hard zero, as booleans.

        There the derivative of the logarithm of the sum does not include that of the term.
        """
        return reduce(torch.logical_or, map(torch.isneginf, (self.log_gain, *self._terms)))

    def on(self, device: torch.device) -> Diagonal:
        """The same operator with its gains at the `home` of `device`, moved once."""
        device = home(device)
        if device == self.device:
            return self
        found = self._moved.get(device)
        if found is None:
            with nullcontext() if self._learned else lasting():
                parts = tuple(moved(part, device) for part in self._parts)
                sign = self._sign if self._sign is None else moved(self._sign, device)
                found = self._with(parts, sign)
            if not self._learned:
                self._moved[device] = found
        return found

    def like(self, x: Tensor) -> Tensor:
        """Signed gains in the dtype and on the device of `x`, computed once unless learned.

        A single gain for all samples stays on the CPU: multiplying by it needs no copy.
        """
        place = (x.dtype, x.device)
        found = self._gains.get(place)
        if found is None:
            if not x.is_floating_point():
                raise RefusedType(f"a signal must be of floating-point numbers; got {x.dtype}.")
            device = x.device if self._shape else self.device
            if self._learned:
                return self._without_subnormals(x.dtype).to(device)
            with lasting():  # an operator that is constant in time outlives an inference mode
                found = self._gains[place] = self._without_subnormals(x.dtype).to(device)
        return found

    def _without_subnormals(self, dtype: torch.dtype) -> Tensor:
        """Gains, 0 where they are below the precision of the sum over coefficients that follows.

        Their products would be subnormal numbers, which are very slow on many processors.
        """
        # A product in float64 covers the range of float32, unless one factor is beyond 10^265.
        parts = self._parts if dtype != torch.float64 else (self.log_gain,)
        sign = () if self._sign is None else (self._sign,)
        gain = reduce(torch.mul, (*sign, *map(torch.exp, parts)))
        if self.basis is not None and not isinstance(self.basis, Pixel):
            kind = torch.finfo(torch.promote_types(dtype, torch.float32))
            gain = hardshrink(gain, math.nextafter(kind.tiny / kind.eps, 0.0))
        return gain.to(dtype)

    def unbind(self, x: Tensor) -> list[Diagonal]:
        """The operators along the leading axis of `log_gain`, gains cast to the place of `x`."""
        logs = self.log_gain.unbind()
        sign = self.sign
        signs = [None] * len(logs) if sign is None else sign.unbind()
        parts = [Diagonal(log, s, self.basis) for log, s in zip(logs, signs, strict=True)]
        for part, gain in zip(parts, self.like(x).unbind(), strict=True):
            part._gains[(x.dtype, x.device)] = gain
            part._fused = None  # computing it costs more than the single use of a part
        return parts

    def coefficient(self, index: Sequence[int]) -> str:
        """How error sentences name the coefficient at `index` of `gain`."""
        if self.basis is None:
            return "every coefficient"
        return f"coefficient {tuple(index)[-len(self.basis.shape) :]}"

    def __call__(self, x: Tensor) -> Tensor:
        fused = self.fused()
        if fused is not None:
            return fused(x)
        if self.basis is None:
            return self.like(x) * x
        return self.basis.synthesize(self.like(x) * self.basis.analyze(x))

    def fused(self) -> Axes | None:
        """V diag(gain) V^T as a matrix for each axis; None where gains are no product over axes.

        Those of heat are: half the cost of analysis, product and synthesis. Computed once; None
        for gains that are learned, signed or a batch.
        """
        if isinstance(self._fused, bool):
            plain = not self._learned and self._sign is None
            basis = self.basis if isinstance(self.basis, Separable) and plain else None
            alike = basis is not None and tuple(self._shape) == basis.shape
            with lasting():
                self._fused = basis.fuse(self.log_gain) if basis is not None and alike else None
        return self._fused

    @property
    def singular(self) -> bool:
        """Whether some gain is a hard zero; False on other devices than the CPU, see `seen`."""
        return any(seen(torch.isneginf(part)) for part in self._parts)

    @property
    def is_zero(self) -> bool:
        if self._vanishes is None:
            self._vanishes = self._is(0.0)
        return self._vanishes

    @property
    def T(self) -> Diagonal:
        return self

    def inv(self) -> Diagonal:
        if self is _IDENTITY:
            return self
        parts = tuple(torch.where(torch.isneginf(part), part, -part) for part in self._parts)
        return self._with(parts, self._sign)

    def sqrt(self) -> Diagonal:
        if self._sign is not None:
            bad = self._sign < 0
            if seen(bad) and seen(bad := bad & ~torch.isneginf(self.log_gain)):
                at = tuple(int(i) for i in bad.nonzero()[0])
                found = f"gain: {self.coefficient(at)} is {float(self.gain[at]):.3g}"
                raise NotPositive(found, sample=at[0] if at else 0)
        return self._with(tuple(part / 2 for part in self._parts), None)

    def logdet(self, shape: Sequence[int]) -> Tensor:
        full = torch.broadcast_shapes(tuple(shape), self._shape)
        return self.log_gain.expand(full).reshape(*full[: len(full) - len(shape)], -1).sum(-1)

    def __neg__(self) -> Diagonal:
        return self._with(self._parts, _MINUS if self._sign is None else -self._sign)

    def _times(self, other: Operator) -> Operator | None:
        if isinstance(other, Diagonal) and self._shares_basis(other):
            if _IDENTITY in (self, other):
                return other if self is _IDENTITY else self
            a, b = self._beside(other), other._beside(self)
            parts = _merged((*a._parts, *b._parts))
            made = a._with(parts, product_sign(a._sign, b._sign), a.basis or b.basis)
            made._terms = (*a._terms, *b._terms)
            return made
        if self._is(0.0):
            return self
        return other if self._is(1.0) else None

    def _after(self, other: Operator) -> Operator | None:
        if self._is(0.0):
            return self
        return other if self._is(1.0) else None

    def _plus(self, other: Operator) -> Operator | None:
        if isinstance(other, Diagonal) and self._shares_basis(other):
            a, b = self._beside(other), other._beside(self)
            total = signed_sum(a.log_gain, a.sign, b.log_gain, b.sign)
            made = Diagonal(*total, a.basis or b.basis)
            made._terms = (a.log_gain, b.log_gain, *a._terms, *b._terms)
            return made
        return other if self._is(0.0) else None

    def _with(
        self, parts: tuple[Tensor, ...], sign: Tensor | None, basis: Basis | None = None
    ) -> Diagonal:
        """An operator of these parts, with the summed terms of this one; see `zeros`."""
        made = Diagonal(parts[0], None, basis or self.basis)
        made._parts = parts
        made._sign = sign
        made._terms = self._terms
        return made

    def _beside(self, other: Diagonal) -> Diagonal:
        """This operator, moved from the CPU to the device of `other`."""
        return self.on(other.device) if self.device == CPU else self

    @property
    def _shape(self) -> torch.Size:
        shapes = [part.shape for part in self._parts]
        return shapes[0] if len(shapes) == 1 else torch.broadcast_shapes(*shapes)

    @property
    def _learned(self) -> bool:
        return any(part.requires_grad for part in self._parts)

    def _is(self, value: float) -> bool:
        """Whether this is `value` times the identity by one gain on the CPU: no device is read."""
        one = self._shape.numel() == 1 and self.device == CPU
        return one and float(self.gain.detach()) == value

    def _shares_basis(self, other: Diagonal) -> bool:
        if self.basis is None or other.basis is None:
            basis, free = (other.basis, self) if self.basis is None else (self.basis, other)
            if basis is not None:
                _check_one_gain(free._parts[0], len(basis.shape))
            return True
        return self.basis == other.basis

    def __repr__(self) -> str:
        basis = "multiple of I" if self.basis is None else f"{self.basis}"
        return f"Diagonal({basis}, log_gain {tuple(self._shape)})"


def scaled(value: float | Tensor) -> Diagonal:
    """`value` times the identity; 0 is a hard zero. A tensor broadcasts against the signal.

    >>> sf.operators.scaled(-2.0)(torch.tensor([1.0, 3.0]))
    tensor([-2., -6.])
    """
    value = torch.as_tensor(value, dtype=torch.float64)
    return Diagonal(log_of(value.abs()), torch.where(value < 0, -1.0, 1.0).to(value))


def identity() -> Diagonal:
    """I.

    >>> (sf.operators.identity() - sf.operators.scaled(0.25))(torch.tensor([4.0]))
    tensor([3.])
    """
    return _IDENTITY


def zero() -> Diagonal:
    """0.

    >>> sf.operators.zero().is_zero, sf.operators.zero()(torch.tensor([4.0]))
    (True, tensor([0.]))
    """
    return Diagonal(torch.full((), -math.inf, dtype=torch.float64))


def _check_one_gain(log_gain: Tensor, rank: int) -> None:
    """Raise ValueError for gains without a basis that vary along the last `rank` axes."""
    if any(n != 1 for n in log_gain.shape[-rank:]):
        raise Refused(
            "a multiple of the identity has one gain for each sample, of shape () or "
            f"(B, 1, ..., 1) like the times; got {tuple(log_gain.shape)}. Gains that differ from "
            "coefficient to coefficient need a basis, such as pixel(...)."
        )


def _merged(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The parts of a sum, added where the result has no more elements than one of them."""
    kept: list[Tensor] = []
    for part in parts:
        for other in tuple(kept):
            size = torch.broadcast_shapes(part.shape, other.shape).numel()
            if size == max(part.numel(), other.numel()):
                kept = [x for x in kept if x is not other]
                part = other + part
        kept.append(part)
    return tuple(kept)


_IDENTITY = Diagonal(torch.zeros((), dtype=torch.float64))
_MINUS = torch.tensor(-1.0, dtype=torch.float64)
