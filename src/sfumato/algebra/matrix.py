"""A dense operator is an explicit matrix, the oracle for small n.

Its entries are float64; what a matrix loses to rounding, `Diagonal` keeps in log-gains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.algebra.linear import NotPositive, Operator


class Dense(Operator):
    """An explicit matrix on signals flattened over trailing axes `shape` (final): for small n.

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
        # A difference is as uncertain as what it is taken of, however small it comes out.
        self._scale = self._matrix.abs().amax(dim=(-2, -1))

    def __call__(self, x: Tensor) -> Tensor:
        self._check(x.shape)
        batch = x.shape[: x.ndim - len(self.shape)]
        matrix = self._matrix.to(x.dtype).to(x.device)
        lead = matrix.shape[:-2]
        # One matrix for each sample, whatever axes (channels) stand between it and the signal.
        matrix = matrix.reshape(*lead, *(1,) * (len(batch) - len(lead)), *matrix.shape[-2:])
        out = (matrix @ x.reshape(*batch, -1, 1)).squeeze(-1)
        return out.reshape(*out.shape[:-1], *self.shape)

    @property
    def T(self) -> Dense:
        return Dense(self._matrix.mT, self.shape)

    def inv(self) -> Dense:
        """The inverse, refused where it would be rounding: a matrix has no log-gains to keep."""
        condition = float(torch.linalg.cond(self._matrix.detach()).max())
        if not condition < 0.1 / torch.finfo(torch.float64).eps:
            raise ValueError(
                f"Dense{self.shape} is singular to rounding (condition {condition:.2g}) and has no "
                "inverse. Give it a floor, or use Diagonal, whose inverse is the pseudo-inverse."
            )
        return Dense(torch.linalg.inv(self._matrix), self.shape)

    def sqrt(self) -> Dense:
        symmetric = (self._matrix + self._matrix.mT) / 2
        rounding = self._matrix.shape[-1] * 2**10 * torch.finfo(torch.float64).eps * self._scale
        skew = (self._matrix - self._matrix.mT).abs().amax(dim=(-2, -1))
        if bool((skew > rounding).any()):
            raise ValueError(
                f"Dense{self.shape} is not symmetric (off by {float(skew.max()):.3g}) and has no "
                "symmetric root."
            )
        values, vectors = torch.linalg.eigh(symmetric)
        bad = values.amin(-1) < -rounding
        if bool(bad.any()):
            sample = int(bad.flatten().nonzero()[0])
            raise NotPositive(f"eigenvalue: one is {float(values.min()):.3g}", sample)
        roots = values.clamp(min=0).sqrt()
        return Dense((vectors * roots.unsqueeze(-2)) @ vectors.mT, self.shape)

    def logdet(self, shape: Sequence[int]) -> Tensor:
        return torch.linalg.slogdet(self.matrix(shape)).logabsdet

    def matrix(self, shape: Sequence[int]) -> Tensor:
        self._check(shape)
        copies = math.prod(shape) // math.prod(self.shape)
        return torch.kron(torch.eye(copies, dtype=torch.float64), self._matrix)

    def __neg__(self) -> Dense:
        return Dense(-self._matrix, self.shape)

    def _times(self, other: Operator) -> Dense:
        return Dense(self._matrix @ other.matrix(self.shape), self.shape)

    def _after(self, other: Operator) -> Dense:
        return Dense(other.matrix(self.shape) @ self._matrix, self.shape)

    def _plus(self, other: Operator) -> Dense:
        added = other.matrix(self.shape)
        total = Dense(self._matrix + added, self.shape)
        total._scale = torch.maximum(self._scale, added.abs().amax(dim=(-2, -1)))
        return total

    def _check(self, shape: Sequence[int]) -> None:
        if tuple(shape[max(0, len(shape) - len(self.shape)) :]) != self.shape:
            raise ValueError(
                f"Dense on {self.shape} cannot act on a signal of shape {tuple(shape)}."
            )

    def __repr__(self) -> str:
        return f"Dense{self.shape}"
