"""Linear systems whose operator is only applied, never written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHECK = 8
"""Steps between two readings of the residual: each makes the host wait for a device."""


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], b: Tensor, tolerance: float = 1e-5, most: int = 1000
) -> Tensor:
    """The solution z of A z = b for each row, for a symmetric positive semi-definite A.

    The residual of a row is at most `tolerance` times the norm of its b, unless `most` steps do not
    reach it. Rows that are solved stay as they are, so that a batch does not change its rows.

    Args:
        system: z -> A z for (B, *shape).
        b: (B, *shape), float64 where the condition of A is above about 1e4.
        tolerance: of the relative residual.
        most: bound on the steps.

    References:
        Methods of Conjugate Gradients for Solving Linear Systems (M. Hestenes, E. Stiefel, 1952),
        https://doi.org/10.6028/jres.049.044
    """

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).flatten(1).sum(1).reshape(-1, *(1,) * (b.ndim - 1))

    z = torch.zeros_like(b)
    left, way = b, b
    norm = dot(left, left)
    goal = tolerance**2 * norm
    for i in range(most):
        active = norm > goal
        if i % CHECK == 0 and not bool(active.any()):
            break
        ahead = system(way)
        curve = dot(way, ahead)
        length = torch.where(active & (curve > 0), norm / curve, 0.0)
        z = z + length * way
        left = left - length * ahead
        found = dot(left, left)
        way = left + torch.where(active, found / norm, 0.0) * way
        norm = torch.where(active, found, norm)
    return z
