"""A dense operator is an explicit matrix, for small n.

Its entries are float64, and small gains are lost to rounding that log-gains of `Diagonal` keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.algebra.linear import NotPositive, Operator
from sfumato.algebra.place import Placed, seen
from sfumato.errors import Refused


@final
class Dense(Operator):
    """An explicit matrix on signals flattened over trailing axes `shape`: for small n.

    Args:
        matrix: (*batch, n, n), kept in float64.
        shape: the trailing axes it acts on, n their product.

    >>> a = sf.operators.Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), (2,))
    >>> a(torch.tensor([1.0, 0.0])), a.inv()(torch.tensor([2.0, 1.0]))
    (tensor([2., 1.]), tensor([1., 0.]))
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        n = math.prod(self.shape)
        if matrix.shape[-2:] != (n, n):
            raise Refused(
                f"Dense on signals of shape {self.shape} needs {n} x {n} matrices; "
                f"got {tuple(matrix.shape)}."
            )
        self._matrix = matrix.to(torch.float64)
        self._placed = Placed(self._matrix)
        # The rounding of a difference scales with its operands, however small the difference.
        self._scale = self._matrix.abs().amax(dim=(-2, -1))

    def __call__(self, x: Tensor) -> Tensor:
        self._check(x.shape)
        batch = x.shape[: x.ndim - len(self.shape)]
        matrix = self._placed.like(x)
        lead = matrix.shape[:-2]
        # One matrix for each sample, whatever axes (channels) lie between batch and signal.
        matrix = matrix.reshape(*lead, *(1,) * (len(batch) - len(lead)), *matrix.shape[-2:])
        out = (matrix @ x.reshape(*batch, -1, 1)).squeeze(-1)
        return out.reshape(*out.shape[:-1], *self.shape)

    @property
    def T(self) -> Dense:
        return Dense(self._matrix.mT, self.shape)

    def inv(self) -> Dense:
        """The inverse; ValueError for a matrix that is singular to rounding."""
        condition = torch.linalg.cond(self._matrix.detach())
        if seen(~(condition < 0.1 / torch.finfo(torch.float64).eps)):
            raise Refused(
                f"Dense{self.shape} is singular to rounding (condition "
                f"{float(condition.max()):.2g}) and has no inverse. Give it a floor, or use "
                "Diagonal, whose inverse is the pseudo-inverse."
            )
        return Dense(torch.linalg.inv(self._matrix), self.shape)

    def sqrt(self) -> Dense:
        symmetric = (self._matrix + self._matrix.mT) / 2
        rounding = self._matrix.shape[-1] * 2**10 * torch.finfo(torch.float64).eps * self._scale
        skew = (self._matrix - self._matrix.mT).abs().amax(dim=(-2, -1))
        if seen(skew > rounding):
            raise Refused(
                f"Dense{self.shape} is not symmetric (off by {float(skew.max()):.3g}) and has no "
                "symmetric root."
            )
        values, vectors = torch.linalg.eigh(symmetric)
        bad = values.amin(-1) < -rounding
        if seen(bad):
            sample = int(bad.flatten().nonzero()[0])
            raise NotPositive(f"eigenvalue: one is {float(values.min()):.3g}", sample)
        roots = values.clamp(min=0).sqrt()
        return Dense((vectors * roots.unsqueeze(-2)) @ vectors.mT, self.shape)

    def logdet(self, shape: Sequence[int]) -> Tensor:
        return torch.linalg.slogdet(self.matrix(shape)).logabsdet

    def matrix(self, shape: Sequence[int]) -> Tensor:
        self._check(shape)
        copies = math.prod(shape) // math.prod(self.shape)
        eye = torch.eye(copies, dtype=torch.float64, device=self._matrix.device)
        return torch.kron(eye, self._matrix)

    def __neg__(self) -> Dense:
        return Dense(-self._matrix, self.shape)

    def _times(self, other: Operator) -> Dense:
        return Dense(self._matrix @ self._of(other), self.shape)

    def _after(self, other: Operator) -> Dense:
        return Dense(self._of(other) @ self._matrix, self.shape)

    def _plus(self, other: Operator) -> Dense:
        added = self._of(other)
        total = Dense(self._matrix + added, self.shape)
        total._scale = torch.maximum(self._scale, added.abs().amax(dim=(-2, -1)))
        return total

    def _of(self, other: Operator) -> Tensor:
        """The matrix of `other` on the device of this one."""
        return other.matrix(self.shape).to(self._matrix.device)

    def _check(self, shape: Sequence[int]) -> None:
        if tuple(shape[max(0, len(shape) - len(self.shape)) :]) != self.shape:
            raise Refused(f"Dense on {self.shape} cannot act on a signal of shape {tuple(shape)}.")

    def __repr__(self) -> str:
        return f"Dense{self.shape}"
