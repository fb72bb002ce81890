r"""A schedule is a level as a function of time: t in [0, 1] -> level, 0 clean, 1 most corrupted.

The family defines what a level means: a scale, a width of blur in samples, a log-SNR, the log of a
signal's power. Schedules are differentiable in t (float64), and `nn.Module`s so that a level may be
learned.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from sfumato.algebra.logs import log_of
from sfumato.algebra.place import Placed
from sfumato.errors import Refused
from sfumato.limits import STEPS, finite, whole

RAISED = 2**0.5
"""The largest time to which EDM's churn raises the noise."""


class Schedule(nn.Module, ABC):
    """t -> level (abstract: `forward`).

    >>> class Square(sf.schedules.Schedule):
    ...     def forward(self, t):
    ...         return t**2
    >>> Square()(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.2500, 1.0000])
    """

    @abstractmethod
    def forward(self, t: Tensor) -> Tensor:
        """The level at times `t` in [0, 1], any shape; float64 of the same shape."""

    @property
    def formula(self) -> str:
        """The level as a formula, for tables."""
        return f"{type(self).__name__.lower()}_t"

    @property
    def last(self) -> float:
        """The largest time that has a level: 1, or `RAISED` for constant and linear schedules."""
        return 1.0


@final
class Constant(Schedule):
    """The same level at all times.

    >>> sf.schedules.Constant(0.1)(torch.tensor([0.0, 1.0]))
    tensor([0.1000, 0.1000])
    """

    def __init__(self, level: float) -> None:
        super().__init__()
        finite("Constant", level)
        self.level = float(level)

    def forward(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.level)

    @property
    def formula(self) -> str:
        return f"{self.level:g}"

    @property
    def last(self) -> float:
        return RAISED

    def extra_repr(self) -> str:
        return f"{self.level:g}"


@final
class Linear(Schedule):
    """start + t (end - start).

    >>> sf.schedules.Linear(1, 3)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1., 2., 3.])
    """

    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        finite("Linear", start, end)
        self.start, self.end = float(start), float(end)

    def forward(self, t: Tensor) -> Tensor:
        return self.start + t * (self.end - self.start)

    @property
    def formula(self) -> str:
        return (
            f"({self.start:g} + {self.end - self.start:g} t)" if self.start else f"{self.end:g} t"
        )

    @property
    def last(self) -> float:
        return RAISED

    def extra_repr(self) -> str:
        return f"{self.start:g}, {self.end:g}"


@final
class Geometric(Schedule):
    r"""start (end / start)^(t / until), then flat: equal ratios in equal times.

    The level of NCSN and VE (sigma), of IHDM and Soft Diffusion (blur width).

    Args:
        start: level at t = 0, positive.
        end: level from t = `until` on, positive.
        until: time after which the level stays at `end`, in (0, 1].
        zero_at_start: shift and rescale the path so that it starts at exactly 0 and still ends at
            `end`, for a blur of width 0 at t = 0.

    >>> sf.schedules.Geometric(0.01, 1.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0100, 0.1000, 1.0000])
    """

    def __init__(
        self, start: float, end: float, until: float = 1.0, zero_at_start: bool = False
    ) -> None:
        super().__init__()
        finite("Geometric", start, end, until)
        if not (start > 0 and end > 0):
            raise Refused(f"Geometric needs two positive levels; got {start:g} and {end:g}.")
        if not 0 < until <= 1:
            raise Refused(f"Geometric needs `until` in (0, 1]; got {until:g}.")
        if zero_at_start and start == end:
            raise Refused(f"Geometric from zero needs two different levels; got {start:g} twice.")
        self.start, self.end = float(start), float(end)
        self.until = float(until)
        self.zero_at_start = zero_at_start

    def forward(self, t: Tensor) -> Tensor:
        growth = (t / self.until).clamp(max=1.0) * math.log(self.end / self.start)
        if self.zero_at_start:
            return self.end * torch.expm1(growth) / (self.end / self.start - 1)
        return self.start * torch.exp(growth)

    @property
    def formula(self) -> str:
        power = "t" if self.until == 1 else f"min(t / {self.until:g}, 1)"
        return f"{self.start:.3g} {self.end / self.start:.3g}^{power}"

    def extra_repr(self) -> str:
        return f"{self.start:g}, {self.end:g}, until={self.until:g}"


@final
class Sine(Schedule):
    """end sin^2(pi t / 2): the blur width of Blurring Diffusion.

    >>> sf.schedules.Sine(20.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ 0.0000, 10.0000, 20.0000])
    """

    def __init__(self, end: float) -> None:
        super().__init__()
        finite("Sine", end)
        self.end = float(end)

    def forward(self, t: Tensor) -> Tensor:
        return self.end * torch.sin(math.pi / 2 * t) ** 2

    def extra_repr(self) -> str:
        return f"{self.end:g}"


@final
class Sigmoid(Schedule):
    """From start to end along a logistic ramp of steepness `slope` that meets both.

    >>> sf.schedules.Sigmoid(0, 1)(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    tensor([0.0000, 0.1491, 0.5000, 1.0000])
    """

    def __init__(self, start: float, end: float, slope: float = 6.0) -> None:
        super().__init__()
        finite("Sigmoid", start, end, slope)
        if not slope > 0:
            raise Refused(f"Sigmoid needs a positive slope; got {slope:g}.")
        self.start, self.end = float(start), float(end)
        self.slope = float(slope)

    def forward(self, t: Tensor) -> Tensor:
        ramp = torch.tanh(self.slope * (t - 0.5) / 2) / (2 * math.tanh(self.slope / 4)) + 0.5
        return self.start + (self.end - self.start) * ramp

    def extra_repr(self) -> str:
        return f"{self.start:g}, {self.end:g}, slope={self.slope:g}"


class Table(Schedule):
    """Levels at increasing times, linear between them.

    Its slope jumps at each of its times, where a rate is that of the earlier, cleaner side. So do
    the flows of methods whose levels are a table, such as ddpm, ni-ddpm and ihdm.

    >>> sf.schedules.Table([0, 0.5, 1], [0, 1, 4])(torch.tensor(0.75))
    tensor(2.5000, dtype=torch.float64)
    """

    def __init__(self, times: Sequence[float] | Tensor, levels: Sequence[float] | Tensor) -> None:
        super().__init__()
        times = torch.as_tensor(times, dtype=torch.float64)
        levels = torch.as_tensor(levels, dtype=torch.float64)
        if times.ndim != 1 or times.shape != levels.shape or len(times) < 2:
            raise Refused(
                "Table needs one level for each of two or more times; got shapes "
                f"{tuple(times.shape)} and {tuple(levels.shape)}."
            )
        if not bool((times.diff() > 0).all()) or times[0] != 0 or times[-1] != 1:
            raise Refused("Table needs times that rise from 0 to 1.")
        if not bool(levels.isfinite().all()):
            raise Refused("Table needs levels that are finite numbers.")
        self._times, self._levels = Placed(times), Placed(levels)

    def forward(self, t: Tensor) -> Tensor:
        times, levels = self._times.on(t.device), self._levels.on(t.device)
        right = torch.searchsorted(times, t.detach().contiguous()).clamp(1, len(times) - 1)
        # `take`, since indexing by a 0-d tensor reads its value.
        t0, t1 = times.take(right - 1), times.take(right)
        y0, y1 = levels.take(right - 1), levels.take(right)
        share = (t - t0) / (t1 - t0)
        return y0 + share * (y1 - y0)

    def extra_repr(self) -> str:
        levels = self._levels.value
        return f"{len(levels)} levels, {levels[0]:.3g} to {levels[-1]:.3g}"


@final
class CosineSNR(Schedule):
    r"""log abar_t for the log-SNR -2 log tan(A t + B), a cosine in amplitude.

    abar = cos^2(A t + B), with B and A set by the largest and smallest log-SNR.

    >>> sf.schedules.CosineSNR()(torch.tensor(0.5).double()).exp()
    tensor(0.5000, dtype=torch.float64)

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models (T. Salimans, J. Ho, 2022),
        https://arxiv.org/abs/2202.00512
    """

    def __init__(self, largest: float = 20.0, smallest: float = -20.0) -> None:
        super().__init__()
        finite("CosineSNR", largest, smallest)
        if not largest > smallest:
            raise Refused(f"CosineSNR needs largest > smallest; got {largest:g}, {smallest:g}.")
        self.largest, self.smallest = float(largest), float(smallest)
        self._offset = math.atan(math.exp(-largest / 2))
        self._slope = math.atan(math.exp(-smallest / 2)) - self._offset

    def forward(self, t: Tensor) -> Tensor:
        angle = self._slope * t + self._offset
        sine, cosine = torch.sin(angle), torch.cos(angle)
        # log cos^2 = log1p(-sin^2), which is exact where the sine is small.
        return torch.where(sine < cosine, torch.log1p(-(sine**2)), 2 * torch.log(cosine))

    def extra_repr(self) -> str:
        return f"{self.largest:g}, {self.smallest:g}"


@final
class LinearBeta(Schedule):
    r"""log abar_t = -(beta_1 - beta_0) t^2 / 2 - beta_0 t: that of the VP SDE.

    >>> sf.schedules.LinearBeta()(torch.tensor([0.0, 0.5, 1.0]))
    tensor([ -0.0000,  -2.5375, -10.0500])

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), https://arxiv.org/abs/2011.13456
    """

    def __init__(self, start: float = 0.1, end: float = 20.0) -> None:
        super().__init__()
        finite("LinearBeta", start, end)
        if not 0 <= start <= end or not end > 0:
            raise Refused(f"LinearBeta needs 0 <= start <= end; got {start:g} and {end:g}.")
        self.start, self.end = float(start), float(end)

    def forward(self, t: Tensor) -> Tensor:
        return -(self.end - self.start) * t**2 / 2 - self.start * t

    def extra_repr(self) -> str:
        return f"{self.start:g}, {self.end:g}"


@final
class Betas(Schedule):
    r"""log abar_t of a discrete chain: sum of log(1 - beta_k) up to k = t T.

    Linear between steps. At t = k / T this is DDPM's own abar_k; t = 0 is clean, abar_0 = 1.

    Args:
        betas: variances beta_1 .. beta_T of the chain's steps, in (0, 1).

    >>> sf.schedules.Betas([0.1, 0.2])(torch.tensor([0.5, 1.0])).exp()
    tensor([0.9000, 0.7200], dtype=torch.float64)

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
    """

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        super().__init__()
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise Refused("Betas needs a list of variances strictly between 0 and 1.")
        log_power = torch.cat([torch.zeros(1).double(), torch.log1p(-betas).cumsum(0)])
        self.table = Table(
            torch.arange(len(betas) + 1) / torch.tensor(len(betas)).double(), log_power
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.table(t)


@final
class Amplitude(Schedule):
    """sqrt(abar_t) from a schedule of log abar_t: the signal's scale of VP processes.

    >>> scale = sf.schedules.Amplitude(sf.schedules.LinearBeta())
    >>> scale(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1.0000, 0.2812, 0.0066])
    """

    def __init__(self, log_power: Schedule) -> None:
        super().__init__()
        self.log_power = log_power

    def forward(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_power(t) / 2)

    @property
    def formula(self) -> str:
        return "sqrt(abar_t)"


@final
class Complement(Schedule):
    """sqrt(1 - abar_t) from a schedule of log abar_t, by expm1 in place of 1 - c^2.

    >>> betas = sf.schedules.LinearBeta()
    >>> t = torch.tensor([0.0, 0.5, 1.0])
    >>> sf.schedules.Amplitude(betas)(t) ** 2 + sf.schedules.Complement(betas)(t) ** 2
    tensor([1.0000, 1.0000, 1.0000])
    """

    def __init__(self, log_power: Schedule) -> None:
        super().__init__()
        self.log_power = log_power

    def forward(self, t: Tensor) -> Tensor:
        return torch.exp(log_of(-torch.expm1(self.log_power(t))) / 2)

    @property
    def formula(self) -> str:
        return "sqrt(1 - abar_t)"


def linear_betas(first: float = 1e-4, last: float = 0.02, steps: int = 1000) -> Betas:
    """DDPM's linear schedule; at lengths other than 1000 variances are scaled by 1000 / steps.

    >>> sf.schedules.linear_betas()(torch.tensor([0.0, 0.5])).exp()
    tensor([1.0000, 0.0786], dtype=torch.float64)
    """
    _check_length("linear", steps, math.floor(1000 * last) + 1)  # they reach last * 1000 / steps
    return Betas(torch.linspace(first, last, steps, dtype=torch.float64) * (1000 / steps))


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Betas:
    r"""abar(t) = cos^2(((t + .008) / 1.008) pi / 2) with beta capped at .999.

    >>> sf.schedules.cosine_betas()(torch.tensor([0.0, 0.5])).exp()
    tensor([1.0000, 0.4938], dtype=torch.float64)

    References:
        Improved Denoising Diffusion Probabilistic Models (A. Nichol, P. Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672
    """
    _check_length("cosine", steps, 1)
    angle = (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + offset) / (1 + offset)
    power = torch.cos(angle * math.pi / 2) ** 2
    return Betas((1 - power[1:] / power[:-1]).clamp(max=largest))


def _check_length(name: str, steps: int, least: int) -> None:
    whole(f"the length of a {name} chain", steps, least, STEPS)
