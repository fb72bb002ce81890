"""Transforms are matrices applied along axes, in float32 or better, whatever autocast says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Cast:
    """A float64 matrix and its copies, one for each dtype and device, each with its transpose."""

    def __init__(self, matrix: Tensor) -> None:
        self.value = matrix.to(torch.float64)
        self._copies: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, like: Tensor) -> tuple[Tensor, Tensor]:
        place = (like.dtype, like.device)
        found = self._copies.get(place)
        if found is None:
            # A copy outlives the inference mode it may be asked for in, and training reads it too.
            with torch.inference_mode(False):
                matrix = self.value.to(dtype=like.dtype).to(like.device)
                found = self._copies[place] = matrix, matrix.mT
        return found


_HALF = {torch.float16, torch.bfloat16}


def wide(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in _HALF else x


def grid_sum(axes: Sequence[Tensor]) -> Tensor:
    """The sum of one vector for each axis, over their grid."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)


def along(x: Tensor, matrices: Sequence[Cast], transpose: bool = False) -> Tensor:
    """`x` with one square matrix applied along each of its last axes, in the dtype of `x`."""
    whole = wide(x)
    out = _along(whole, matrices, transpose)
    if out.dtype != whole.dtype:  # autocast: cheaper to see in what it did than to ask before
        with torch.autocast(x.device.type, enabled=False):
            out = _along(whole, matrices, transpose)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _along(x: Tensor, matrices: Sequence[Cast], transpose: bool) -> Tensor:
    # Products of plain matrices: broadcasting would cost a small signal more than its numbers do.
    out, shape = x, x.shape
    sides = shape[len(shape) - len(matrices) :]
    before, after = math.prod(shape[: len(shape) - len(matrices)]), math.prod(sides)
    for of, side in zip(matrices, sides, strict=True):
        matrix, turned = of(x)
        if transpose:
            matrix, turned = turned, matrix
        after //= side
        if after == 1:
            out = torch.mm(out.reshape(before, side), turned)
        elif before == 1:
            out = torch.mm(matrix, out.reshape(side, after))
        else:
            many = matrix.expand(before, side, side)
            out = torch.bmm(many, out.reshape(before, side, after))
        before *= side
    return out.view(shape)
