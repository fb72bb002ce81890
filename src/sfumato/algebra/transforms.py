"""Transforms are matrices applied along axes, in float32 or better, under autocast too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.place import Placed
from sfumato.errors import Refused, RefusedType

_HALF = {torch.float16, torch.bfloat16}
_PLANS = 64  # kept for one set of matrices; a training run needs one or two


def wide(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in _HALF else x


def grid_sum(axes: Sequence[Tensor]) -> Tensor:
    """The sum of one vector for each axis, over their grid."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)


class MatrixProduct(NamedTuple):
    """One product without broadcasting, which costs more than the product for small signals."""

    multiply: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] | None  # to reshape the signal to; None where it has it already


@final
class Axes:
    """One square matrix applied along each of the last axes of a signal, in its dtype.

    What depends on a signal's shape, dtype and device is planned once: for small images, planning
    takes longer than the products.

    Args:
        name: of the basis, for error sentences.
        matrices: one for each axis, kept in float64.
    """

    def __init__(self, name: str, matrices: Sequence[Tensor]) -> None:
        self.name = name
        self.matrices = tuple(q.to(torch.float64) for q in matrices)
        self.shape = tuple(len(q) for q in self.matrices)
        self._placed = [Placed(q) for q in self.matrices]
        self._plans: dict[tuple[object, ...], list[MatrixProduct]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        plan = self._plans.get((x.shape, x.dtype, x.device))
        if plan is None:
            return self._first(x)
        y = x
        for multiply, shape in plan:
            y = multiply(y if shape is None else y.reshape(shape))
        if y.dtype is not x.dtype:  # autocast: cheaper to detect afterwards than to query
            with torch.autocast(x.device.type, enabled=False):
                return self(x)
        return y.view(x.shape)

    def _first(self, x: Tensor) -> Tensor:
        """`self(x)` for a signal without a plan."""
        check(self.name, self.shape, x)
        if x.dtype in _HALF:
            return self(x.to(torch.float32)).to(x.dtype)
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[(x.shape, x.dtype, x.device)] = self._plan(x)
        return self(x)

    def _plan(self, x: Tensor) -> list[MatrixProduct]:
        before, after = math.prod(x.shape[: x.ndim - len(self.shape)]), math.prod(self.shape)
        plan: list[MatrixProduct] = []
        last: tuple[int, ...] | None = tuple(x.shape)
        for placed, side in zip(self._placed, self.shape, strict=True):
            matrix = placed.like(x)
            after //= side
            if after == 1:
                product = MatrixProduct(partial(torch.mm, mat2=matrix.mT), (before, side))
            elif before == 1:
                product = MatrixProduct(partial(torch.mm, matrix), (side, after))
            else:
                many = matrix.expand(before, side, side)
                product = MatrixProduct(partial(torch.bmm, many), (before, side, after))
            plan.append(product._replace(shape=None) if product.shape == last else product)
            before *= side
            last = product.shape
        return plan


def check(name: str, shape: tuple[int, ...], x: Tensor) -> None:
    """Raise unless `x` is a signal on the trailing axes `shape`."""
    if x.shape[x.ndim - len(shape) :] != shape:
        raise Refused(f"basis {name} cannot act on a signal of shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise RefusedType(f"a signal must be of floating-point numbers; got {x.dtype}.")
