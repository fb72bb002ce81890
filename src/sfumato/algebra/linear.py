r"""An operator is a linear map on signals, kept as an immutable value.

One method is required, `__call__`; transpose, inverse, symmetric root, log-determinant, product and
sum exist where the structure gives them and otherwise raise a sentence that names an alternative.
Products and sums of operators without common structure are kept as such; see `operators` for
structured ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NoReturn, final

import torch
from torch import Tensor

from sfumato.errors import Refused, Unsupported


class NotPositive(Refused):
    """There is no symmetric root: `found` names a negative gain or eigenvalue, of row `sample`."""

    def __init__(self, found: str, sample: int) -> None:
        super().__init__(
            f"no root of a negative {found}. The operator is not positive semi-definite."
        )
        self.found = found
        self.sample = sample


class Operator(ABC):
    """A linear map on signals (abstract: `__call__`).

    >>> class Flip(sf.operators.Operator):
    ...     def __call__(self, x):
    ...         return x.flip(-1)
    >>> (Flip() @ Flip())(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    >>> Flip().inv()
    Traceback (most recent call last):
    ...
    sfumato.errors.Unsupported: Flip has no inverse, ...
    """

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply to a signal (*batch, *shape); dtype and device are those of `x`."""

    def on(self, device: torch.device) -> Operator:
        """The same operator with its numbers at the `home` of `device`."""
        return self

    @property
    def is_zero(self) -> bool:
        """Whether this is 0 by construction: a multiple of the identity with gain 0."""
        return False

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
        """The symmetric root of a positive semi-definite operator; NotPositive for any other."""
        self._refuse(
            "symmetric root",
            "Use a coupling whose fresh noise needs none (naive, pf_momentum), "
            "or Dense for small n",
        )

    def logdet(self, shape: Sequence[int]) -> Tensor:
        """log |det| on signals of shape `shape` (without the batch); (*batch,)."""
        self._refuse("determinant", "Use Diagonal, or Dense for small n")

    def matrix(self, shape: Sequence[int]) -> Tensor:
        """The matrix on flattened signals of shape `shape`, float64; (*batch, n, n)."""
        probes = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, 1, *shape)
        columns = torch.stack([self(probe) for probe in probes], -1)
        return columns.flatten(columns.ndim - 1 - len(shape), -2).squeeze(0)

    def __matmul__(self, other: Operator) -> Operator:
        return self._times(other) or other._after(self) or Composed(self, other)

    def __add__(self, other: Operator) -> Operator:
        return self._plus(other) or other._plus(self) or Sum(self, other)

    def __neg__(self) -> Operator:
        return Negated(self)

    def __sub__(self, other: Operator) -> Operator:
        return self + (-other)

    def _times(self, other: Operator) -> Operator | None:
        """self @ other where this operator gives a simpler form than a product."""
        return None

    def _after(self, other: Operator) -> Operator | None:
        """other @ self where this operator gives a simpler form than a product."""
        return None

    def _plus(self, other: Operator) -> Operator | None:
        """self + other where this operator gives a simpler form than a sum."""
        return None

    def _refuse(self, what: str, cure: str) -> NoReturn:
        raise Unsupported(f"{type(self).__name__} has no {what}. {cure}.")


@final
class MatrixFree(Operator):
    """Any linear callable.

    Args:
        apply: x -> A x for signals (*batch, *shape), differentiable where `transpose` is not given.
        transpose: x -> A^T x; by default the vector-Jacobian product of `apply`, which needs A to
            keep the signal's shape.

    >>> running = sf.operators.MatrixFree(lambda x: x.cumsum(-1))
    >>> running(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 3., 6.])
    >>> running.T(torch.tensor([1.0, 2.0, 3.0]))
    tensor([6., 5., 3.])
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
        pull = torch.func.vjp(self._apply, torch.zeros_like(y))[1]
        return pull(y)[0]

    def __repr__(self) -> str:
        return f"MatrixFree({getattr(self._apply, '__name__', type(self._apply).__name__)})"


@final
class Composed(Operator):
    """The product A B of operators that share no structure: T and inv stay products."""

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


@final
class Sum(Operator):
    """The sum A + B of operators that share no structure."""

    def __init__(self, left: Operator, right: Operator) -> None:
        self.left, self.right = left, right

    def __call__(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)

    @property
    def T(self) -> Operator:
        return self.left.T + self.right.T

    def __repr__(self) -> str:
        return f"({self.left} + {self.right})"


@final
class Negated(Operator):
    """-A for an operator A without a simpler form of it."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def __call__(self, x: Tensor) -> Tensor:
        return -self.operator(x)

    @property
    def T(self) -> Operator:
        return -self.operator.T

    def inv(self) -> Operator:
        return -self.operator.inv()

    def logdet(self, shape: Sequence[int]) -> Tensor:
        return self.operator.logdet(shape)

    def __neg__(self) -> Operator:
        return self.operator

    def __repr__(self) -> str:
        return f"-{self.operator}"
