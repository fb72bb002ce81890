r"""Operators that are diagonal in a basis, and the names of all others.

`Diagonal` is closed under everything: it stores *log*-gains in float64, so that products, ratios
and roots are sums and differences, a heat gain of 10^-2197 is an ordinary number, and a hard zero
is -inf (its inverse is the pseudo-inverse, zero). Variances subtract as signed log-sums (`expm1`),
never as differences of floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.algebra.basis import Basis, Pixel, Separable
from sfumato.algebra.linear import Composed as Composed
from sfumato.algebra.linear import MatrixFree as MatrixFree
from sfumato.algebra.linear import Negated as Negated
from sfumato.algebra.linear import NotPositive as NotPositive
from sfumato.algebra.linear import Operator as Operator
from sfumato.algebra.linear import Sum as Sum
from sfumato.algebra.logs import log_of, product_sign, signed_sum
from sfumato.algebra.matrix import Dense as Dense
from sfumato.algebra.transforms import Axes


class Diagonal(Operator):
    r"""V diag(sign * exp(log_gain)) V^T (final).

    Args:
        log_gain: logs of absolute gains; broadcasts against the basis's axes and the batch, such as
            (), (H, W) or (B, 1, H, W). -inf is a hard zero.
        sign: +1 or -1 like `log_gain`, or None where all are positive.
        basis: the basis of the coefficients; None for a multiple of the identity, which is diagonal
            in every basis (its `log_gain` must not vary along the basis's axes).

    Raises:
        ValueError: no basis, and gains that vary along the last axis.
    """

    def __init__(
        self, log_gain: Tensor, sign: Tensor | None = None, basis: Basis | None = None
    ) -> None:
        if sign is not None:
            log_gain, sign = torch.broadcast_tensors(log_gain, sign)
        if basis is None:
            _check_one_gain(log_gain, 1)
        self.log_gain = log_gain.to(torch.float64)
        self.sign = None if sign is None else sign.to(torch.float64)
        self.basis = basis
        self._summed: Tensor | None = None
        self._gains: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._fused: Axes | bool | None = False  # not asked yet
        self._vanishes: bool | None = None  # likewise

    @property
    def gain(self) -> Tensor:
        """Signed gains, in the dtype of `log_gain`."""
        gain = torch.exp(self.log_gain)
        return gain if self.sign is None else self.sign * gain

    @property
    def zeros(self) -> Tensor:
        """Where the gain, or a term that was summed into it, is a hard zero, as booleans.

        The logarithm of the sum has no derivative there that would tell of such a term.
        """
        own = torch.isneginf(self.log_gain)
        return own if self._summed is None else own | self._summed

    def like(self, x: Tensor) -> Tensor:
        """Signed gains in the dtype and on the device of `x`, computed once unless learned."""
        place = (x.dtype, x.device)
        found = self._gains.get(place)
        if found is None:
            if not x.is_floating_point():
                raise TypeError(f"a signal must be of floating-point numbers; got {x.dtype}.")
            if self.log_gain.requires_grad:
                return self._heard(x.dtype).to(x.device)
            # They outlive the inference mode they may be asked for in, as an operator that does not
            # change with time does; training reads them too.
            with torch.inference_mode(False):
                found = self._gains[place] = self._heard(x.dtype).to(x.device)
        return found

    def _heard(self, dtype: torch.dtype) -> Tensor:
        """Gains, 0 where the sum over coefficients that comes next could not hear them.

        What they leave would be subnormal numbers, which many processors are very slow at.
        """
        gain = self.gain
        if self.basis is not None and not isinstance(self.basis, Pixel):
            kind = torch.finfo(torch.promote_types(dtype, torch.float32))
            gain = torch.where(gain.abs() < kind.tiny / kind.eps, 0.0, gain)
        return gain.to(dtype)

    def unbind(self, x: Tensor) -> list[Diagonal]:
        """The operators along the leading axis of `log_gain`, gains cast to the place of `x`."""
        signs = [None] * len(self.log_gain) if self.sign is None else self.sign.unbind()
        parts = [
            Diagonal(log_gain, sign, self.basis)
            for log_gain, sign in zip(self.log_gain.unbind(), signs, strict=True)
        ]
        for part, gain in zip(parts, self.like(x).unbind(), strict=True):
            part._gains[(x.dtype, x.device)] = gain
            part._fused = None  # to find out costs more than the one use such a part has
        return parts

    def coefficient(self, index: Sequence[int]) -> str:
        """What error sentences call the coefficient at `index` of `gain`."""
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
        """V diag(gain) V^T as a matrix for each axis; None where gains are no product of axes.

        Heat is one: it costs half of analyse, weigh, synthesise. Asked once, where no derivative
        and no batch of gains is wanted.
        """
        if isinstance(self._fused, bool):
            plain = not self.log_gain.requires_grad and self.sign is None
            basis = self.basis if isinstance(self.basis, Separable) and plain else None
            alike = basis is not None and tuple(self.log_gain.shape) == basis.shape
            with torch.inference_mode(False):  # as in `like`
                self._fused = basis.fuse(self.log_gain) if basis is not None and alike else None
        return self._fused

    @property
    def vanishes(self) -> bool:
        if self._vanishes is None:
            self._vanishes = self._is(0.0)
        return self._vanishes

    @property
    def T(self) -> Diagonal:
        return self

    def inv(self) -> Diagonal:
        zero = torch.isneginf(self.log_gain)
        log_gain = torch.where(zero, self.log_gain, -self.log_gain)
        return Diagonal(log_gain, self.sign, self.basis)._of(self)

    def sqrt(self) -> Diagonal:
        if self.sign is not None:
            bad = (self.sign < 0) & ~torch.isneginf(self.log_gain)
            if bool(bad.any()):
                at = tuple(int(i) for i in bad.nonzero()[0])
                found = f"gain: {self.coefficient(at)} is {float(self.gain[at]):.3g}"
                raise NotPositive(found, sample=at[0] if at else 0)
        return Diagonal(self.log_gain / 2, None, self.basis)._of(self)

    def logdet(self, shape: Sequence[int]) -> Tensor:
        full = torch.broadcast_shapes(tuple(shape), self.log_gain.shape)
        return self.log_gain.expand(full).reshape(*full[: len(full) - len(shape)], -1).sum(-1)

    def __neg__(self) -> Diagonal:
        sign = torch.ones_like(self.log_gain) if self.sign is None else self.sign
        return Diagonal(self.log_gain, -sign, self.basis)._of(self)

    def _times(self, other: Operator) -> Operator | None:
        if isinstance(other, Diagonal) and self._shares_basis(other):
            sign = product_sign(self.sign, other.sign)
            log_gain, basis = self.log_gain + other.log_gain, self.basis or other.basis
            return Diagonal(log_gain, sign, basis)._of(self, other)
        if self._is(0.0):
            return self
        return other if self._is(1.0) else None

    def _after(self, other: Operator) -> Operator | None:
        if self._is(0.0):
            return self
        return other if self._is(1.0) else None

    def _plus(self, other: Operator) -> Operator | None:
        if isinstance(other, Diagonal) and self._shares_basis(other):
            total = signed_sum(self.log_gain, self.sign, other.log_gain, other.sign)
            made = Diagonal(*total, self.basis or other.basis)
            made._summed = self.zeros | other.zeros
            return made
        return other if self._is(0.0) else None

    def _of(self, *factors: Diagonal) -> Diagonal:
        """This operator, with what its factors know of zeros that were summed into them."""
        for summed in (factor._summed for factor in factors if factor._summed is not None):
            self._summed = summed if self._summed is None else self._summed | summed
        return self

    def _is(self, value: float) -> bool:
        """Whether this is plainly `value` times the identity, without waiting for a device."""
        one = self.log_gain.numel() == 1 and self.log_gain.device.type == "cpu"
        return one and float(self.gain.detach()) == value

    def _shares_basis(self, other: Diagonal) -> bool:
        if self.basis is None or other.basis is None:
            basis, free = (other.basis, self) if self.basis is None else (self.basis, other)
            if basis is not None:
                _check_one_gain(free.log_gain, len(basis.shape))
            return True
        return self.basis == other.basis

    def __repr__(self) -> str:
        basis = "multiple of I" if self.basis is None else f"{self.basis}"
        return f"Diagonal({basis}, log_gain {tuple(self.log_gain.shape)})"


def scaled(value: float | Tensor) -> Diagonal:
    """`value` times the identity; 0 is a hard zero. A tensor broadcasts against the signal."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return Diagonal(log_of(value.abs()), torch.where(value < 0, -1.0, 1.0).to(value))


def identity() -> Diagonal:
    """I."""
    return Diagonal(torch.zeros((), dtype=torch.float64))


def zero() -> Diagonal:
    """0."""
    return Diagonal(torch.full((), -math.inf, dtype=torch.float64))


def _check_one_gain(log_gain: Tensor, rank: int) -> None:
    """Refuse gains that vary along the last `rank` axes of a signal and name no basis."""
    if any(n != 1 for n in log_gain.shape[-rank:]):
        raise ValueError(
            "a multiple of the identity has one gain for each sample, of shape () or "
            f"(B, 1, ..., 1) like the times; got {tuple(log_gain.shape)}. Gains that differ from "
            "coefficient to coefficient name their basis, such as pixel(...)."
        )
