"""Learned schedules: paths whose shape and ends are trained with the network.

`interior` are the parameters that change a path between its ends. The bound of continuous time does
not depend on them (docs/mathematics.md, "Learned schedules"), so that they are trained to lower the
loss's variance instead. Levels are on the device of the parameters, whatever that of the times.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from sfumato.algebra.place import Placed, moved
from sfumato.corruption.schedules import Schedule


@final
class Monotone(Schedule):
    r"""A learned level, monotone from `start` to `end`.

    f(t) = w t + sum_j a_j sigmoid(b_j (t - 1/2) + c_j) with w, a_j, b_j > 0, scaled to meet both
    ends: VDM's monotone network of one hidden layer.

    Args:
        start: level at t = 0.
        end: level at t = 1.
        hidden: number of sigmoids.
        count: number of parallel paths, of shape (*t.shape, count); by default one, shaped as t.

    >>> path = sf.schedules.Monotone(-13.3, 5.0)
    >>> path(torch.tensor([0.0, 1.0]).double()).tolist()
    [-13.3, 5.0]
    >>> sum(p.numel() for p in path.parameters())
    193

    References:
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """

    def __init__(
        self, start: float, end: float, hidden: int = 64, count: int | None = None
    ) -> None:
        super().__init__()
        self.start, self.end = float(start), float(end)
        shape = () if count is None else (count,)
        centres = torch.linspace(-4, 4, hidden, dtype=torch.float64)
        self.linear = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        self.heights = nn.Parameter(torch.full((*shape, hidden), -math.log(hidden) - 4.0).double())
        self.slopes = nn.Parameter(torch.full((*shape, hidden), math.log(8.0)).double())
        self.shifts = nn.Parameter(-centres.repeat(*shape, 1) if shape else -centres)

    def forward(self, t: Tensor) -> Tensor:
        t = moved(t, self.linear.device)
        ends = torch.arange(2, dtype=t.dtype, device=t.device)
        low, high = self._raw(ends)
        return self.start + (self.end - self.start) * (self._raw(t) - low) / (high - low)

    def _raw(self, t: Tensor) -> Tensor:
        t = t.reshape(t.shape + (1,) * self.linear.ndim)
        steps = torch.sigmoid(self.slopes.exp() * (t.unsqueeze(-1) - 0.5) + self.shifts)
        return self.linear.exp() * t + (self.heights.exp() * steps).sum(-1)

    def extra_repr(self) -> str:
        return f"{self.start:g}, {self.end:g}"


@final
class Span(Schedule):
    """start + (end - start) path(t) with both ends learned.

    Args:
        path: from 0 at t = 0 to 1 at t = 1, perhaps learned.
        start: initial value of the level at t = 0.
        end: initial value of the level at t = 1.
        count: number of parallel paths of `path`, each with its own ends.

    >>> path = sf.schedules.Span(sf.schedules.Linear(0, 1), -13.3, 5.0)
    >>> path.ends.tolist()
    [-13.3, 5.0]
    """

    def __init__(self, path: Schedule, start: float, end: float, count: int | None = None) -> None:
        super().__init__()
        self.path = path
        ends = torch.tensor([start, end], dtype=torch.float64)
        self.ends = nn.Parameter(ends if count is None else ends.unsqueeze(1).repeat(1, count))

    def forward(self, t: Tensor) -> Tensor:
        start, end = self.ends
        return start + (end - start) * self.path(t)


@final
class Bands(Schedule):
    """One of several paths for each coefficient.

    Args:
        paths: t -> (*t.shape, count).
        which: path of each coefficient, integers of the coefficients' shape; times have that many
            trailing axes of length 1, or none at all.

    >>> paths = sf.schedules.Monotone(0.0, 1.0, count=2)
    >>> bands = sf.schedules.Bands(paths, which=torch.tensor([0, 0, 1, 1]))
    >>> bands(torch.tensor(1.0).double()).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, paths: Schedule, which: Tensor) -> None:
        super().__init__()
        self.paths = paths
        self._which = Placed(which)

    def forward(self, t: Tensor) -> Tensor:
        levels = self.paths(t)
        which = self._which.on(levels.device)
        return levels[..., which].reshape(t.shape[: max(0, t.ndim - which.ndim)] + which.shape)


@final
class FromGamma(Schedule):
    """log abar_t = log sigmoid(-gamma_t) from gamma_t, VDM's negative log-SNR.

    >>> gamma = sf.schedules.Linear(-13.3, 5.0)
    >>> sf.schedules.FromGamma(gamma)(torch.tensor([0.0, 1.0])).exp()
    tensor([1.0000, 0.0067])
    """

    def __init__(self, gamma: Schedule) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, t: Tensor) -> Tensor:
        return nn.functional.logsigmoid(-self.gamma(t))


def interior(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that change a learned path between its ends and not the ends.

    The bound of continuous time does not depend on them; they are trained to lower its variance.
    """
    paths = [part for part in module.modules() if isinstance(part, Monotone)]
    return [parameter for path in paths for parameter in path.parameters()]
