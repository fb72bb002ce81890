"""Transforms are matrices applied along axes, in float32 or better, whatever autocast says."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Cast:
    """A float64 matrix and its copies, one for each dtype and device asked for."""

    def __init__(self, matrix: Tensor) -> None:
        self.value = matrix.to(torch.float64)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, like: Tensor) -> Tensor:
        place = (like.dtype, like.device)
        found = self._copies.get(place)
        if found is None:
            # A copy outlives the inference mode it may be asked for in, and training reads it too.
            with torch.inference_mode(False):
                found = self._copies[place] = self.value.to(dtype=like.dtype).to(like.device)
        return found


_HALF = {torch.float16, torch.bfloat16}


def wide(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in _HALF else x


_autocasts = functools.cache(torch.amp.is_autocast_available)


def grid_sum(axes: Sequence[Tensor]) -> Tensor:
    """The sum of one vector for each axis, over their grid."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)


def along(x: Tensor, matrices: Sequence[Cast], transpose: bool = False) -> Tensor:
    """`x` with one matrix applied along each of its last axes, in the dtype of `x`."""
    device = x.device.type
    if _autocasts(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _along(x, matrices, transpose)
    return _along(x, matrices, transpose)


def _along(x: Tensor, matrices: Sequence[Cast], transpose: bool) -> Tensor:
    out, axis = wide(x), -len(matrices)
    for of in matrices:
        matrix = of(out).mT if transpose else of(out)
        if axis == -1:
            out = F.linear(out, matrix)
        elif axis == -2:
            out = matrix @ out
        else:
            out = F.linear(out.movedim(axis, -1), matrix).movedim(-1, axis)
        axis += 1
    return out if out.dtype == x.dtype else out.to(x.dtype)
