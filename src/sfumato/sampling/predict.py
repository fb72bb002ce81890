r"""Exact moments of a sampler's output for Gaussian data, without a network or samples.

With data N(m, S) diagonal in the process's basis, the exact estimate is affine and so is every step
of a kernel: the law of the samples is Gaussian, and each coefficient's mean and variance follow
from the kernel's output for unit inputs. Their distance from the data's law,

    W2^2 = sum (mean_i - m_i)^2 + (sqrt P_i - sqrt S_i)^2,

ranks kernels, and chooses grids of few steps, for any process and kernel: docs/mathematics.md,
"Predictions for Gaussian data".
Real data are not Gaussian and networks are not exact: for them the result is a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.algebra.basis import Basis
from sfumato.algebra.operators import Diagonal, identity
from sfumato.corruption.prior import GaussianPrior, Prior
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import DataStatistics
from sfumato.corruption.tables import Cubic
from sfumato.errors import Refused
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.predictions import wiener
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import check_grid, sample
from sfumato.threads import threads

WARPS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Powers of even steps; a search for a grid starts from the best of them."""
KNOTS = 6
"""Number of pieces of the monotone cubic of a searched grid."""
NO_NOISE = (
    "a prediction needs noise on every coefficient at t = 1; without it the exact estimate is x_0 "
    "itself, whatever the kernel and the grid. Use a method with noise, such as soft."
)
NO_BASIS = "a prediction needs a process whose signal and noise share a basis; this one's do not."


@final
class Moments(NamedTuple):
    """Mean and variance of each coefficient, of samples and of data; float64, `shape` each."""

    mean: Tensor
    variance: Tensor
    data_mean: Tensor
    data_variance: Tensor

    @property
    def error(self) -> float:
        """W2 between the samples' law and the data's, as a share of the data's deviation."""
        off = (self.mean - self.data_mean).square()
        off = off + (self.variance.clamp(min=0).sqrt() - self.data_variance.sqrt()).square()
        return float((off.sum() / self.data_variance.sum()).sqrt())


@final
class Predictor:
    """The moments of a process's samples of Gaussian data, for any kernel and grid.

    Args:
        process: diagonal in one basis.
        stats: of the data: mean and spectrum.
        prior: the law of x_1 that sampling starts from; that of the data at t = 1 where it has no
            moments in the basis.

    Raises:
        ValueError: a process without such a basis, or without noise.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> predict = sf.Predictor(model.recipe.process, model.stats, model.recipe.prior)
    >>> kernel = sf.kernels.reverse(sf.couplings.ddim())
    >>> [round(predict(kernel, model.recipe.grid(n)).error, 2) for n in (5, 10, 20)]
    [0.43, 0.25, 0.14]
    """

    def __init__(self, process: Process, stats: DataStatistics, prior: Prior | None = None) -> None:
        one = torch.ones((), dtype=torch.float64)
        if (gains := process.gains(one)) is None:
            raise Refused(NO_BASIS)
        if bool(torch.isneginf(gains.noise.log_gain).any()):
            raise Refused(NO_NOISE)
        self.process = process
        self.stats = stats
        self.basis: Basis = gains.basis or stats.basis
        self.cov = stats.cov(self.basis)
        self.mean = self.basis.analyze(stats.basis.synthesize(stats.mean))
        self.shape = tuple(self.mean.shape)
        self._drift = _Mean(process, self.cov, self.basis.synthesize(self.mean))
        self.denoiser = NetworkDenoiser(process, wiener(self.cov), self._drift, stats=stats)
        self.start = self._start(prior, one)

    def __call__(self, kernel: Kernel, grid: Tensor) -> Moments:
        """The moments after `kernel` along `grid`.

        Raises:
            ValueError: a kernel whose steps are not affine, such as one that sizes them by x.
        """
        draws = self._draws(kernel, grid)
        probe = torch.zeros(3 + draws, *self.shape, dtype=torch.float64)
        probe[0] = 1.0
        probe[1] = 2.0
        noise = iter(range(draws))
        one = self.basis.synthesize(torch.ones(self.shape, dtype=torch.float64))

        def unit(x: Tensor) -> Tensor:
            eps = torch.zeros_like(x)
            eps[3 + next(noise)] = one
            return eps

        made = sample(kernel, self.denoiser, self.basis.synthesize(probe), grid, unit)
        rows = self.basis.analyze(made)
        shift, gain = rows[2], rows[0] - rows[2]
        bent = float((rows[1] - shift - 2 * gain).abs().max())
        if not bent <= 1e-6 * (1 + float(rows[:3].abs().max())):
            raise Refused(
                f"kernel {kernel.name} sizes its steps by x, so its moments cannot be predicted."
            )
        mean, variance = self.start
        fresh = (rows[3:] - shift).square().sum(0)
        return Moments(
            gain * mean + shift,
            gain.square() * variance + fresh,
            self.mean,
            self.cov.gain.expand(self.shape),
        )

    def calls(self, kernel: Kernel, grid: Tensor) -> int:
        """The number of network calls of `kernel` along `grid`."""
        before = self._drift.calls
        self._draws(kernel, grid)
        return self._drift.calls - before

    @threads(1)
    def best_grid(
        self,
        kernel: Kernel,
        start: Tensor,
        tick: Callable[[float], None] = lambda _: None,
        rounds: int = 15,
    ) -> Tensor:
        """The grid of as many steps as `start`, between its ends, with the least error predicted.

        A local search among grids that are a monotone cubic of few knots, so that neighbouring
        steps are of similar length. It starts from the best of `start` and of even steps to the
        powers `WARPS`, and its result is no worse than these.

        Args:
            kernel: the sampler's kernel.
            start: falling times.
            tick: called with the error after each round.
            rounds: the largest number of rounds of the search.
        """
        start = check_grid(start)
        first, last = float(start[0]), float(start[-1])
        count = len(start) - 1
        if count < 2:
            return start
        from scipy.optimize import minimize  # nothing else needs scipy

        even = torch.linspace(1, 0, count + 1, dtype=torch.float64)
        candidates = [start, *(last + (first - last) * even**power for power in WARPS)]
        best = min(candidates, key=lambda grid: self(kernel, grid).error)

        knots = torch.linspace(0, 1, min(count, KNOTS) + 1, dtype=torch.float64)
        places = torch.linspace(0, 1, count + 1, dtype=torch.float64)

        def grid_of(logits: np.ndarray) -> Tensor:
            parts = torch.softmax(torch.from_numpy(np.append(logits, 0.0)), 0)
            way = torch.cat([torch.zeros(1).double(), parts.cumsum(0)])
            inner = first + (last - first) * Cubic(knots, way)(places)
            return torch.cat([start[:1], inner[1:-1], start[-1:]])

        def cost(logits: np.ndarray) -> float:
            return math.log(max(self(kernel, grid_of(logits)).error, 1e-12))

        steps = -Cubic(places, best)(knots).diff().numpy()
        origin = np.log(steps / steps[-1])[:-1]
        found = minimize(
            cost,
            origin,
            method="L-BFGS-B",
            bounds=[(value - 6, value + 6) for value in origin],
            callback=lambda x: tick(cost(x)),
            options={"maxiter": rounds, "eps": 1e-3},
        )
        # Rounded, so that searches that differ in the last digits give the same images.
        chosen = torch.cat([start[:1], grid_of(found.x)[1:-1].round(decimals=6), start[-1:]])
        better = bool((chosen.diff() < 0).all()) and math.exp(found.fun) < self(kernel, best).error
        return chosen if better else best

    def _start(self, prior: Prior | None, one: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each coefficient of x_1."""
        like = torch.zeros(self.shape, dtype=torch.float64)
        if isinstance(prior, GaussianPrior) and isinstance(prior.cov, Diagonal):
            if prior.cov.basis in (None, self.basis):
                return self.basis.analyze(prior.mean + like), like + prior.cov.gain
        signal = self.process.signal.at(one)
        moved = self.basis.analyze(signal(self.basis.synthesize(self.mean)))
        total = signal @ self.cov @ signal.T + self.process.cov(one)
        if not isinstance(total, Diagonal):
            raise Refused(NO_BASIS)
        return moved, like + total.gain

    def _draws(self, kernel: Kernel, grid: Tensor) -> int:
        """How often the kernel draws noise along the grid."""
        count = 0

        def counted(x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return torch.zeros_like(x)

        sample(kernel, self.denoiser, torch.zeros(1, *self.shape).double(), grid, counted)
        return count


class _Mean(nn.Module):
    """The part of the mean that the filter for N(0, S) omits: F with out F = m - skip C_t m."""

    def __init__(self, process: Process, cov: Diagonal, mean: Tensor) -> None:
        super().__init__()
        self._filter = wiener(cov)
        self._process = process
        self._mean = mean
        self._known: dict[float, Tensor] = {}
        self.calls = 0

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        t = float(label[0])
        if t not in self._known:
            time = torch.tensor(t, dtype=torch.float64)
            pre = self._filter(self._process, time)
            rest = identity() - pre.skip @ self._process.signal.at(time)
            self._known[t] = (pre.out.inv() @ rest)(self._mean)
        return self._known[t].to(x).expand_as(x)
