"""Transforms are matrices applied along axes, in float32 or better, whatever autocast says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

_HALF = {torch.float16, torch.bfloat16}
_PLANS = 64  # that one set of matrices keeps; a training run needs one or two


def wide(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in _HALF else x


def grid_sum(axes: Sequence[Tensor]) -> Tensor:
    """The sum of one vector for each axis, over their grid."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)


class Product(NamedTuple):
    """One product of plain matrices: broadcasting would cost a small signal more than its sums."""

    multiply: Callable[[Tensor], Tensor]
    shape: tuple[int, ...] | None  # that the signal must have; None where it has it already


class Axes:
    """One square matrix applied along each of the last axes of a signal, in its dtype (final).

    What depends on a signal's shape, dtype and device is planned once: beside a network of small
    images, finding it out took longer than the products.

    Args:
        name: of the basis, for error sentences.
        matrices: one for each axis, kept in float64.
    """

    def __init__(self, name: str, matrices: Sequence[Tensor]) -> None:
        self.name, self.matrices = name, tuple(q.to(torch.float64) for q in matrices)
        self.shape = tuple(len(q) for q in self.matrices)
        self._casts: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self._plans: dict[tuple[object, ...], list[Product]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        plan = self._plans.get((x.shape, x.dtype, x.device))
        if plan is None:
            return self._first(x)
        y = x
        for multiply, shape in plan:
            y = multiply(y if shape is None else y.reshape(shape))
        if y.dtype is not x.dtype:  # autocast: cheaper to see afterwards than to ask before
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

    def _plan(self, x: Tensor) -> list[Product]:
        before, after = math.prod(x.shape[: x.ndim - len(self.shape)]), math.prod(self.shape)
        plan: list[Product] = []
        last: tuple[int, ...] | None = tuple(x.shape)
        for matrix, side in zip(self._cast(x), self.shape, strict=True):
            after //= side
            if after == 1:
                product = Product(partial(torch.mm, mat2=matrix.mT), (before, side))
            elif before == 1:
                product = Product(partial(torch.mm, matrix), (side, after))
            else:
                many = matrix.expand(before, side, side)
                product = Product(partial(torch.bmm, many), (before, side, after))
            plan.append(product._replace(shape=None) if product.shape == last else product)
            before, last = before * side, product.shape
        return plan

    def _cast(self, like: Tensor) -> list[Tensor]:
        place = (like.dtype, like.device)
        if place not in self._casts:
            # Copies outlive the inference mode they may be asked for in, and training reads them.
            with torch.inference_mode(False):
                self._casts[place] = [q.to(like.dtype).to(like.device) for q in self.matrices]
        return self._casts[place]


def check(name: str, shape: tuple[int, ...], x: Tensor) -> None:
    """Raise unless `x` is a signal on the trailing axes `shape`."""
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ValueError(f"basis {name} cannot act on a signal of shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise TypeError(f"a signal must be of floating-point numbers; got {x.dtype}.")
