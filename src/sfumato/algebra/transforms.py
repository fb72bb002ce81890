"""Transforms are matrices applied along axes, in float32 or better, whatever autocast says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Cast:
    """A float64 matrix and its copies, one for each dtype and device asked for."""

    def __init__(self, matrix: Tensor) -> None:
        self.value = matrix.to(torch.float64)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, like: Tensor) -> Tensor:
        place = (like.dtype, like.device)
        if place not in self._copies:
            # A copy outlives the inference mode it may be asked for in, and training reads it too.
            with torch.inference_mode(False):
                self._copies[place] = self.value.to(dtype=like.dtype).to(like.device)
        return self._copies[place]


def wide(x: Tensor) -> Tensor:
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(device: str) -> AbstractContextManager[object]:
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def grid_sum(axes: Sequence[Tensor]) -> Tensor:
    """The sum of one vector for each axis, over their grid."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0)


def along(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """`x` with one matrix applied along each of its last axes, in the dtype of `x`."""
    out = wide(x)
    with full_precision(x.device.type):
        for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
            if axis == -1:
                out = out @ matrix.mT
            elif axis == -2:
                out = matrix @ out
            else:
                out = (out.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
    return out.to(x.dtype)
