"""A schedule through given levels without kinks: what a selection from data returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.corruption.schedules import Table


class Cubic(Table):
    """Levels at increasing times, a monotone cubic between them (final): no jumps in its rate.

    It rises, falls or stays where the levels do, and has their slope of three points elsewhere.

    References:
        Monotone Piecewise Cubic Interpolation (F. N. Fritsch, R. E. Carlson, 1980),
        https://doi.org/10.1137/0717021
        A Method for Constructing Local Monotone Piecewise Cubic Interpolants (F. N. Fritsch,
        J. Butland, 1984), https://doi.org/10.1137/0905021 (the slopes)
    """

    def __init__(self, times: Sequence[float] | Tensor, levels: Sequence[float] | Tensor) -> None:
        super().__init__(times, levels)
        h, d = self.times.diff(), self.levels.diff() / self.times.diff()
        slopes = torch.zeros_like(self.times)
        if len(d) == 1:
            slopes[:] = d[0]
        else:
            left, right = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
            mean = (left + right) / (left / d[:-1] + right / d[1:])
            slopes[1:-1] = torch.where(d[:-1] * d[1:] > 0, mean, 0.0)
            slopes[0] = _end(h[0], h[1], d[0], d[1])
            slopes[-1] = _end(h[-1], h[-2], d[-1], d[-2])
        self.slopes = slopes

    def forward(self, t: Tensor) -> Tensor:
        times, levels, slopes = (x.to(t.device) for x in (self.times, self.levels, self.slopes))
        right = torch.searchsorted(times, t.detach().contiguous()).clamp(1, len(times) - 1)
        left = right - 1
        h = times[right] - times[left]
        u = (t - times[left]) / h
        rise = levels[right] - levels[left]
        ends = slopes[left] * (1 - u) - slopes[right] * u
        return levels[left] + rise * u**2 * (3 - 2 * u) + h * u * (1 - u) * ends


def _end(h0: Tensor, h1: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """A slope at the end by three points, no steeper than keeps the first piece monotone."""
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if slope * d0 <= 0:
        return torch.zeros_like(slope)
    return 3 * d0 if d0 * d1 < 0 and slope.abs() > 3 * d0.abs() else slope
