"""A schedule through given levels without kinks, such as levels selected from data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.algebra.place import Placed
from sfumato.corruption.schedules import Table


@final
class Cubic(Table):
    """Levels at increasing times, a monotone cubic between them: no jumps in its rate.

    It rises, falls or stays where the levels do; slopes at the two ends are of three points.

    >>> times, levels = [0, 0.5, 1], [0, 1, 4]
    >>> sf.schedules.Cubic(times, levels)(torch.tensor([0.25, 0.5, 0.75]).double())
    tensor([0.3125, 1.0000, 2.1875], dtype=torch.float64)

    References:
        Monotone Piecewise Cubic Interpolation (F. N. Fritsch, R. E. Carlson, 1980),
        https://doi.org/10.1137/0717021
        A Method for Constructing Local Monotone Piecewise Cubic Interpolants (F. N. Fritsch,
        J. Butland, 1984), https://doi.org/10.1137/0905021 (the slopes)
    """

    def __init__(self, times: Sequence[float] | Tensor, levels: Sequence[float] | Tensor) -> None:
        super().__init__(times, levels)
        nodes, heights = self._times.value, self._levels.value
        h, d = nodes.diff(), heights.diff() / nodes.diff()
        slopes = torch.zeros_like(nodes)
        if len(d) == 1:
            slopes[:] = d[0]
        else:
            left, right = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
            mean = (left + right) / (left / d[:-1] + right / d[1:])
            slopes[1:-1] = torch.where(d[:-1] * d[1:] > 0, mean, 0.0)
            slopes[0] = _end(h[0], h[1], d[0], d[1])
            slopes[-1] = _end(h[-1], h[-2], d[-1], d[-2])
        self._slopes = Placed(slopes)

    def forward(self, t: Tensor) -> Tensor:
        read = self._times, self._levels, self._slopes
        times, levels, slopes = (placed.on(t.device) for placed in read)
        right = torch.searchsorted(times, t.detach().contiguous()).clamp(1, len(times) - 1)
        left = right - 1
        t0, y0 = times.take(left), levels.take(left)
        h, rise = times.take(right) - t0, levels.take(right) - y0
        u = (t - t0) / h
        ends = slopes.take(left) * (1 - u) - slopes.take(right) * u
        return y0 + rise * u**2 * (3 - 2 * u) + h * u * (1 - u) * ends


def _end(h0: Tensor, h1: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """The three-point slope at an end, limited so that the piece there is monotone."""
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if slope * d0 <= 0:
        return torch.zeros_like(slope)
    return 3 * d0 if d0 * d1 < 0 and slope.abs() > 3 * d0.abs() else slope
