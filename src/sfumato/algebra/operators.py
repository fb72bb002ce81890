r"""An operator is a linear map on signals, kept as an immutable value.

One method is required, `__call__`; transpose, inverse, symmetric root, log-determinant, product and
sum exist where the structure gives them and otherwise raise a sentence that names an alternative.

`Diagonal` is closed under everything: it stores *log*-gains in float64, so that products, ratios and
roots are sums and differences, a heat gain of 10^-2197 is an ordinary number, and a hard zero is -inf
(its inverse is the pseudo-inverse, zero). Variances subtract as signed log-sums (`expm1`), never as
differences of floats.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from sfumato.algebra.basis import Basis

# Logs of gains carry the rounding of a handful of additions; two logs closer than this many ulps
# cancel to exactly zero, so that V_s - K V_t K^T of a deterministic coupling has the root 0.
_ULPS = 2**12 * torch.finfo(torch.float64).eps


class Operator(ABC):
    """A linear map on signals (abstract: `__call__`)."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to a signal (*batch, *shape); dtype and device are those of `x`."""

    @property
    def vanishes(self) -> bool:
        """Whether this is plainly 0 (a multiple of the identity with gain 0), at no cost."""
        return _is(self, 0.0)

    @property
    def T(self) -> Operator:
        """The transpose."""
        self._refuse("transpose", "Give MatrixFree a `transpose`, or use Dense")

    def inv(self) -> Operator:
        """The inverse; for a diagonal operator the pseudo-inverse."""
        self._refuse(
            "inverse, which ancestral and noise-prediction need",
            "Use naive, ddim or momentum, and the residual parametrization",
        )

    def sqrt(self) -> Operator:
        """The symmetric root of a positive semi-definite operator."""
        self._refuse(
            "symmetric root",
            "Use a coupling whose fresh noise needs none (naive, pf_momentum), or Dense for small n",
        )

    def logdet(self, shape: Sequence[int]) -> Tensor:
        """log |det| on signals of shape `shape` (without the batch); (*batch,)."""
        self._refuse("determinant", "Use Diagonal, or Dense for small n")

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """The matrix on flattened signals of shape `shape`, float64; (*batch, n, n)."""
        n = math.prod(shape)
        probes = torch.eye(n, dtype=torch.float64).reshape(n, 1, *shape)
        columns = self(probes)
        return columns.reshape(n, -1, n).permute(1, 2, 0).squeeze(0)

    def __matmul__(self, other: Operator) -> Operator:
        match self, other:
            case Diagonal(), Diagonal() if (basis := _common(self, other)) is not _CLASH:
                sign = _product(self.sign, other.sign)
                return Diagonal(self.log_gain + other.log_gain, sign, basis)
            case Dense(), _:
                return Dense(self._matrix @ other.matrix(self.shape), self.shape)
            case _, Dense():
                return Dense(self.matrix(other.shape) @ other._matrix, other.shape)
            case _:
                if _is(self, 0.0) or _is(other, 1.0):
                    return self
                if _is(other, 0.0) or _is(self, 1.0):
                    return other
                return Composed(self, other)

    def __add__(self, other: Operator) -> Operator:
        match self, other:
            case Diagonal(), Diagonal() if (basis := _common(self, other)) is not _CLASH:
                return Diagonal(*_signed_sum(self, other), basis)
            case Dense(), _:
                return Dense(self._matrix + other.matrix(self.shape), self.shape)
            case _, Dense():
                return Dense(self.matrix(other.shape) + other._matrix, other.shape)
            case _:
                if _is(self, 0.0):
                    return other
                return self if _is(other, 0.0) else Sum(self, other)

    def __neg__(self) -> Operator:
        return scaled(-1.0) @ self

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other)

    def _refuse(self, what: str, cure: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} has no {what}. {cure}.")


class Diagonal(Operator):
    r"""V diag(sign * exp(log_gain)) V^T (final).

    Args:
        log_gain: logs of absolute gains; broadcasts against the basis's axes and the batch, such as
            (), (H, W) or (B, 1, H, W). -inf is a hard zero.
        sign: +1 or -1 like `log_gain`, or None where all are positive.
        basis: the basis of the coefficients; None for a multiple of the identity, which is diagonal
            in every basis (its `log_gain` must not vary along the basis's axes).
    """

    def __init__(
        self, log_gain: Tensor, sign: Tensor | None = None, basis: Basis | None = None
    ) -> None:
        if sign is not None:
            log_gain, sign = torch.broadcast_tensors(log_gain, sign)
        self.log_gain = log_gain
        self.sign = sign
        self.basis = basis
        self._gains: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def gain(self) -> Tensor:
        """Signed gains, in the dtype of `log_gain`."""
        gain = torch.exp(self.log_gain)
        return gain if self.sign is None else self.sign * gain

    def like(self, x: Tensor) -> Tensor:
        """Signed gains in the dtype and on the device of `x`, computed once."""
        place = (x.dtype, x.device)
        if place not in self._gains:
            self._gains[place] = self.gain.to(x.dtype).to(x.device)
        return self._gains[place]

    def unbind(self, x: Tensor) -> list[Diagonal]:
        """The operators along the leading axis of `log_gain`, with gains cast to the place of `x`."""
        signs = [None] * len(self.log_gain) if self.sign is None else self.sign
        parts = [
            Diagonal(log_gain, sign, self.basis)
            for log_gain, sign in zip(self.log_gain, signs, strict=True)
        ]
        for part, gain in zip(parts, self.like(x), strict=True):
            part._gains[(x.dtype, x.device)] = gain
        return parts

    def __call__(self, x: Tensor) -> Tensor:
        return apply((self, x))

    @property
    def T(self) -> Diagonal:
        return self

    def inv(self) -> Diagonal:
        zero = torch.isneginf(self.log_gain)
        return Diagonal(
            torch.where(zero, self.log_gain, -self.log_gain), self.sign, self.basis
        )

    def sqrt(self) -> Diagonal:
        if self.sign is not None:
            bad = (self.sign < 0) & ~torch.isneginf(self.log_gain)
            if bool(bad.any()):
                raise ValueError(
                    f"no root of a negative gain: {_first(bad, self.gain)}. The operator is not "
                    "positive semi-definite."
                )
        return Diagonal(self.log_gain / 2, None, self.basis)

    def logdet(self, shape: Sequence[int]) -> Tensor:
        full = torch.broadcast_shapes(tuple(shape), self.log_gain.shape)
        return self.log_gain.expand(full).reshape(*full[: len(full) - len(shape)], -1).sum(-1)

    def __repr__(self) -> str:
        basis = "multiple of I" if self.basis is None else f"{self.basis}"
        return f"Diagonal({basis}, log_gain {tuple(self.log_gain.shape)})"


class Dense(Operator):
    """An explicit matrix on signals flattened over trailing axes `shape` (final): the oracle, for small n.

    Args:
        matrix: (*batch, n, n), kept in float64.
        shape: the trailing axes it acts on, n their product.
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        n = math.prod(self.shape)
        if matrix.shape[-2:] != (n, n):
            raise ValueError(
                f"Dense on signals of shape {self.shape} needs {n} x {n} matrices; "
                f"got {tuple(matrix.shape)}."
            )
        self._matrix = matrix.to(torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[x.ndim - len(self.shape) :]) != self.shape:
            raise ValueError(
                f"Dense on {self.shape} cannot act on a signal of shape {tuple(x.shape)}."
            )
        batch = x.shape[: x.ndim - len(self.shape)]
        matrix = self._matrix.to(x.dtype).to(x.device)
        out = (matrix @ x.reshape(*batch, -1, 1)).squeeze(-1)
        return out.reshape(*out.shape[:-1], *self.shape)

    @property
    def T(self) -> Dense:
        return Dense(self._matrix.mT, self.shape)

    def inv(self) -> Dense:
        return Dense(torch.linalg.inv(self._matrix), self.shape)

    def sqrt(self) -> Dense:
        symmetric = (self._matrix + self._matrix.mT) / 2
        values, vectors = torch.linalg.eigh(symmetric)
        scale = self._matrix.abs().amax(dim=(-2, -1), keepdim=True).squeeze(-1)
        rounding = values.shape[-1] * 2**10 * torch.finfo(torch.float64).eps * scale
        if bool((values < -rounding).any()):
            raise ValueError(
                f"no root of a negative eigenvalue ({float(values.min()):.3g}): the operator is "
                "not positive semi-definite."
            )
        roots = values.clamp(min=0).sqrt()
        return Dense((vectors * roots.unsqueeze(-2)) @ vectors.mT, self.shape)

    def logdet(self, shape: Sequence[int]) -> Tensor:
        return torch.linalg.slogdet(self.matrix(shape)).logabsdet

    def matrix(self, shape: Sequence[int]) -> Tensor:
        shape = tuple(shape)
        if shape == self.shape:
            return self._matrix
        if shape[len(shape) - len(self.shape) :] != self.shape:
            raise ValueError(f"Dense on {self.shape} cannot act on a signal of shape {shape}.")
        return torch.block_diag(*[self._matrix] * (math.prod(shape) // math.prod(self.shape)))

    def __repr__(self) -> str:
        return f"Dense{self.shape}"


class MatrixFree(Operator):
    """Any linear callable (final).

    Args:
        apply: x -> A x for signals (*batch, *shape), differentiable where `transpose` is not given.
        transpose: x -> A^T x; by default the vector-Jacobian product of `apply`, which needs A to
            keep the signal's shape.
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._apply = apply
        self._transpose = transpose

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(x)

    @property
    def T(self) -> MatrixFree:
        return MatrixFree(self._transpose or self._pullback, self._apply)

    def _pullback(self, y: Tensor) -> Tensor:
        _, pull = torch.func.vjp(self._apply, torch.zeros_like(y))
        return pull(y)[0]

    def __repr__(self) -> str:
        return f"MatrixFree({getattr(self._apply, '__name__', type(self._apply).__name__)})"


class Composed(Operator):
    """The product A B of operators that share no structure (final): inverse and transpose stay products."""

    def __init__(self, left: Operator, right: Operator) -> None:
        self.left, self.right = left, right

    def __call__(self, x: Tensor) -> Tensor:
        return self.left(self.right(x))

    @property
    def T(self) -> Operator:
        return self.right.T @ self.left.T

    def inv(self) -> Operator:
        return self.right.inv() @ self.left.inv()

    def logdet(self, shape: Sequence[int]) -> Tensor:
        return self.left.logdet(shape) + self.right.logdet(shape)

    def __repr__(self) -> str:
        return f"({self.left} @ {self.right})"


class Sum(Operator):
    """The sum A + B of operators that share no structure (final)."""

    def __init__(self, left: Operator, right: Operator) -> None:
        self.left, self.right = left, right

    def __call__(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)

    @property
    def T(self) -> Operator:
        return self.left.T + self.right.T

    def __repr__(self) -> str:
        return f"({self.left} + {self.right})"


def scaled(value: float | Tensor) -> Diagonal:
    """`value` times the identity; 0 is a hard zero. A tensor broadcasts against the signal."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return Diagonal(value.abs().log(), torch.where(value < 0, -1.0, 1.0).to(value))


def identity() -> Diagonal:
    """I."""
    return Diagonal(torch.zeros((), dtype=torch.float64))


def zero() -> Diagonal:
    """0."""
    return Diagonal(torch.full((), -math.inf, dtype=torch.float64))


def apply(*terms: tuple[Operator, Tensor]) -> Tensor:
    """sum of A x over pairs (A, x), with one synthesis per basis however many terms share it."""
    total: Tensor | None = None
    pending: dict[Basis, Tensor] = {}
    for operator, x in terms:
        if isinstance(operator, Diagonal):
            gain = operator.like(x)
            if operator.basis is not None:
                part = gain * operator.basis.analyze(x)
                held = pending.get(operator.basis)
                pending[operator.basis] = part if held is None else held + part
                continue
            part = gain * x
        else:
            part = operator(x)
        total = part if total is None else total + part
    for basis, coefficients in pending.items():
        part = basis.synthesize(coefficients)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("apply needs at least one (operator, signal) pair; got none.")
    return total


def _is(operator: Operator, value: float) -> bool:
    """Whether an operator is plainly `value` times the identity, seen without waiting for a device."""
    return (
        isinstance(operator, Diagonal)
        and operator.log_gain.numel() == 1
        and operator.log_gain.device.type == "cpu"
        and float(operator.gain.detach()) == value
    )


class _Clash:
    """The marker for two bases that differ."""


_CLASH = _Clash()


def _common(a: Diagonal, b: Diagonal) -> Basis | None | _Clash:
    if a.basis is not None and b.basis is not None:
        return a.basis if a.basis == b.basis else _CLASH
    basis = a.basis if b.basis is None else b.basis
    if basis is not None:
        free = a.log_gain if a.basis is None else b.log_gain
        trailing = free.shape[max(0, free.ndim - len(basis.shape)) :]
        if any(n != 1 for n in trailing):
            raise ValueError(
                f"a multiple of the identity has one gain; got gains of shape {tuple(free.shape)} "
                f"beside {basis}. Name the basis of these gains, such as pixel(...)."
            )
    return basis


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a * b


def _signed_sum(a: Diagonal, b: Diagonal) -> tuple[Tensor, Tensor | None]:
    """Log and sign of sign_a e^a + sign_b e^b."""
    x, y = torch.broadcast_tensors(a.log_gain, b.log_gain)
    if a.sign is None and b.sign is None:
        return _log_add(x, y), None
    one = torch.ones((), dtype=x.dtype, device=x.device)
    sign_x = (one if a.sign is None else a.sign).expand_as(x)
    sign_y = (one if b.sign is None else b.sign).expand_as(y)
    agree = sign_x == sign_y
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    sign = torch.where(x >= y, sign_x, sign_y)
    gap = high - low
    size = torch.maximum(torch.maximum(high.abs(), low.abs()), one)
    size = torch.where(torch.isfinite(size), size, one)
    cancels = ~agree & ((gap <= _ULPS * size) | torch.isneginf(high))
    alone = torch.isneginf(low)
    safe = torch.where(agree | cancels | alone, one, gap)
    differ = torch.where(alone, high, high + torch.log(-torch.expm1(-safe)))
    log_gain = torch.where(agree, _log_add(x, y), differ)
    return torch.where(cancels, -math.inf, log_gain), torch.where(cancels, one, sign)


def _log_add(x: Tensor, y: Tensor) -> Tensor:
    # logaddexp has NaN derivatives where both are -inf; there the sum is -inf whatever they do.
    dead = torch.isneginf(x) & torch.isneginf(y)
    live = torch.logaddexp(torch.where(dead, 0.0, x), torch.where(dead, 0.0, y))
    return torch.where(dead, -math.inf, live)


def _first(bad: Tensor, values: Tensor) -> str:
    bad, values = torch.broadcast_tensors(bad, values)
    index = tuple(int(i) for i in bad.nonzero()[0])
    return f"coefficient {index} is {float(values[index]):.3g}"
