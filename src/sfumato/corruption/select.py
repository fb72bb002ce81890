r"""Levels of corruption chosen from the data: steps of equal distance between marginals.

    D_ij = W2(q_i, q_j) for candidate times i, j;   an edge i -> j > i where D_ij <= epsilon;
    the path with the fewest edges, and by bisection the epsilon at which it has the requested
    number of levels

The times of that path, at equal times of a process, are a time warp: `TimeWarped` families.

References:
    Soft Diffusion: Score Matching for General Corruptions (Giannis Daras, Mauricio Delbracio,
    Hossein Talebi, Alexandros G. Dimakis, Peyman Milanfar, 2022), https://arxiv.org/abs/2209.05442
    (256 candidates, 32 levels, straight lines between them; which estimate of the distance it used
    was not found)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.corruption.families import Fixed, TimeWarped
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import DataStatistics
from sfumato.corruption.tables import Cubic
from sfumato.errors import Refused
from sfumato.limits import CANDIDATES, whole


def gaussian(process: Process, stats: DataStatistics, times: Tensor) -> Tensor:
    r"""W2 between the marginals of Gaussian data with the measured mean and spectrum, (T, T).

    W2^2 = sum (c_t - c_s)^2 m^2 + (sqrt M_t - sqrt M_s)^2 over coefficients: exact where data and
    process are diagonal in one basis.

    Args:
        process: diagonal in one basis.
        stats: of the data.
        times: (T,) in [0, 1].

    Raises:
        ValueError: a process without such a basis.

    >>> stats = sf.load("digits").stats()
    >>> process = sf.METHODS["soft"]((1, 8, 8), stats).process
    >>> times = torch.linspace(0, 1, 5).double()
    >>> sf.levels.gaussian(process, stats, times)[0]  # from the data to each level
    tensor([0.0000, 0.3495, 0.4864, 2.5972, 4.7829], dtype=torch.float64)
    """
    mean, spread, gain, noise = _parts(process, stats, times)
    return _apart(gain * mean, (gain.square() * spread + noise.square()).sqrt())


def coupled(process: Process, stats: DataStatistics, times: Tensor) -> Tensor:
    r"""The bound on W2 by the same image and the same noise at both times, (T, T).

    E || (C_t - C_s) x_0 ||^2 + || S_t - S_s ||^2, of any data with the measured second moments.

    >>> stats = sf.load("digits").stats()
    >>> process = sf.METHODS["soft"]((1, 8, 8), stats).process
    >>> times = torch.linspace(0, 1, 5).double()
    >>> bound = sf.levels.coupled(process, stats, times)
    >>> bool((bound >= sf.levels.gaussian(process, stats, times) - 1e-9).all())
    True
    """
    mean, spread, gain, noise = _parts(process, stats, times)
    return _apart(gain * (mean.square() + spread).sqrt(), noise)


def sliced(
    process: Process, x0: Tensor, times: Tensor, directions: int = 64, seed: int = 0
) -> Tensor:
    """Sliced W2 between the marginals of images x0 (n, *shape), the same noise at all times.

    >>> digits = sf.load("digits")
    >>> process = sf.METHODS["soft"]((1, 8, 8), digits.stats()).process
    >>> times = torch.linspace(0, 1, 5).double()
    >>> sf.levels.sliced(process, digits.batch(range(100)), times)[0]
    tensor([0.0000, 0.0718, 0.0784, 0.3007, 0.6357], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    flat = math.prod(x0.shape[1:])
    way = torch.randn(flat, directions, generator=generator, dtype=torch.float64)
    way = (way / way.norm(dim=0)).to(x0)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
    rows = [(process.corrupt(x0, t, eps).flatten(1) @ way).sort(0).values for t in times]
    return _apart(torch.stack(rows).double()) / math.sqrt(len(x0) * directions)


def bures(means: Tensor, covs: Tensor) -> Tensor:
    r"""W2 between Gaussians with full covariances, such as those of features, (T, T).

    |m_i - m_j|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2): the square root of a Frechet distance.

    Args:
        means: (T, d).
        covs: (T, d, d), positive semi-definite.
    """
    means, covs = means.double(), covs.double()
    values, vectors = torch.linalg.eigh(covs)
    roots = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT
    traces = covs.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = torch.cdist(means, means).square()
    for i in range(len(means)):
        inner = torch.linalg.eigvalsh(roots[i] @ covs[i + 1 :] @ roots[i])
        cross = inner.clamp(min=0).sqrt().sum(-1)
        square[i, i + 1 :] += traces[i] + traces[i + 1 :] - 2 * cross
        square[i + 1 :, i] = square[i, i + 1 :]
    return square.clamp(min=0).sqrt()


def shortest(distances: Tensor, epsilon: float) -> list[int]:
    """The path from the first candidate to the last with the fewest steps, none above `epsilon`.

    Of several, that with the least sum of squared distances.

    Args:
        distances: (T, T), between candidates in their order.
        epsilon: largest step.

    Raises:
        ValueError: no path has all its steps that short.

    >>> at = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    >>> sf.levels.shortest(torch.cdist(at, at), epsilon=2.0)
    [0, 2, 3]
    """
    hops, before = _fewest(check(distances), epsilon)
    if hops[-1] == math.inf:
        least = float(distances.diagonal(1).max())
        raise Refused(
            f"no path of levels has all its steps within epsilon = {epsilon:g}: neighbours among "
            f"the candidates are up to {least:.4g} apart. Use more candidates, or a larger epsilon."
        )
    return _back(before, len(before) - 1)


def select(distances: Tensor, levels: int) -> list[int]:
    """The path of `levels` candidates whose largest step is smallest: `shortest`, epsilon bisected.

    Raises:
        ValueError: fewer than two levels, more than there are candidates, or all distances 0.

    >>> at = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    >>> sf.levels.select(torch.cdist(at, at), levels=3)
    [0, 2, 3]
    """
    distances = check(distances)
    count = len(distances)
    if not 2 <= levels <= count:
        raise Refused(f"levels must be 2 to {count}, the number of candidates; got {levels}.")
    if not float(distances.max()) > 0:
        raise Refused("the candidates are all alike: the corruption changes nothing of the data.")
    found = distances.triu(1).flatten().unique()
    low, high = 0, len(found) - 1
    while low < high:
        middle = (low + high) // 2
        enough = _fewest(distances, float(found[middle]))[0][-1] <= levels - 1
        low, high = (low, middle) if enough else (middle + 1, high)
    return _exactly(distances, float(found[low]), levels)


def steady(distances: Tensor, levels: int) -> Tensor:
    """Places among the candidates, (levels,), at equal parts of their cumulative distance.

    The limit of the shortest path where distances add up along it; places may lie between
    candidates.

    Raises:
        ValueError: as `select`.

    >>> at = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    >>> sf.levels.steady(torch.cdist(at, at), levels=3)  # at distances 0, 2 and 4
    tensor([0., 2., 3.], dtype=torch.float64)
    """
    if levels < 2:
        raise Refused(f"levels must be 2 or more; got {levels}.")
    way = torch.cat([torch.zeros(1).double(), check(distances).diagonal(1).cumsum(0)])
    if not float(way[-1]) > 0:
        raise Refused("the candidates are all alike: the corruption changes nothing of the data.")
    goal = torch.linspace(0, 1, levels, dtype=torch.float64) * way[-1]
    right = torch.searchsorted(way, goal).clamp(1, len(way) - 1)
    span = (way[right] - way[right - 1]).clamp(min=1e-300)
    return right - 1 + ((goal - way[right - 1]) / span).clamp(0, 1)


def time_warped(
    process: Process, warp: Sequence[float] | Tensor, signal_only: bool = False
) -> Process:
    """`process` under a time warp: at time t it is `process` at time warp(t).

    Args:
        process: any.
        warp: times that rise from 0 to 1, at equal times; between them a monotone cubic, so that
            rates have no jumps.
        signal_only: whether the noise keeps its own time.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> warped = sf.families.time_warped(process, [0.0, 0.25, 1.0])
    >>> early, half = torch.tensor([0.25, 0.5]).double()
    >>> bool((warped.signal.at(half).gain == process.signal.at(early).gain).all())
    True
    """
    warp = torch.as_tensor(warp, dtype=torch.float64)
    read = Cubic(torch.linspace(0, 1, len(warp), dtype=torch.float64), warp)
    noise = process.noise if signal_only else TimeWarped(process.noise, read)
    return Process(TimeWarped(process.signal, read), noise)


def still(process: Process, t: float) -> Process:
    """`process` with the noise of time `t` at all times, so that only the signal changes."""
    at = torch.tensor(t, dtype=torch.float64)
    return Process(process.signal, Fixed(process.noise.at(at)))


def check(distances: Tensor) -> Tensor:
    """Distances in float64 if they are a square of finite numbers; else ValueError."""
    whole("candidates", len(distances), 1, CANDIDATES)
    distances = distances.double()
    if distances.ndim != 2 or len(distances) != distances.shape[-1] or len(distances) < 2:
        raise Refused(
            f"distances must be between two candidates or more; got {tuple(distances.shape)}."
        )
    if not bool(distances.isfinite().all()):
        raise Refused("some distances are not finite numbers: are there NaNs in the data?")
    return distances


def _parts(
    process: Process, stats: DataStatistics, times: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and variances of the data in the process's basis, and gains (T, *shape) at the times."""
    whole("candidates", len(times), 1, CANDIDATES)
    at = times.reshape(-1, *(1,) * stats.mean.ndim)
    if (gains := process.gains(at)) is None:
        raise Refused(
            "exact distances need signal and noise in one basis. Use sliced distances, of images."
        )
    basis = gains.basis or stats.basis
    mean = basis.analyze(stats.basis.synthesize(stats.mean))
    like = torch.zeros(len(times), *stats.mean.shape, dtype=torch.float64)
    return mean, stats.cov(basis).gain, like + gains.signal.gain, like + gains.noise.gain


def _apart(*coordinates: Tensor) -> Tensor:
    """Euclidean distances between rows of coordinates, (T, T)."""
    rows = torch.cat([part.flatten(1) for part in coordinates], 1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _fewest(distances: Tensor, epsilon: float) -> tuple[Tensor, list[int]]:
    """Steps from the first candidate to each, inf without a path, and each one's predecessor."""
    count = len(distances)
    hops = torch.full((count,), math.inf, dtype=torch.float64)
    spent = hops.clone()
    before = [-1] * count
    hops[0] = spent[0] = 0.0
    for j in range(1, count):
        open_ = distances[:j, j] <= epsilon
        reach = torch.where(open_, hops[:j], math.inf)
        best = reach.min()
        if best == math.inf:
            continue
        cost = torch.where(reach == best, spent[:j] + distances[:j, j].square(), math.inf)
        before[j] = int(cost.argmin())
        hops[j], spent[j] = best + 1, cost.min()
    return hops, before


def _exactly(distances: Tensor, epsilon: float, levels: int) -> list[int]:
    """The path of exactly `levels` candidates within epsilon, of the least sum of squares."""
    square = distances.square().triu(1) + torch.full_like(distances, math.inf).tril()
    square[distances > epsilon] = math.inf
    spent = square[0]
    tables = []
    for _ in range(levels - 2):
        best = (spent.unsqueeze(1) + square).min(0)
        tables.append(best.indices)
        spent = best.values
    if spent[-1] == math.inf:  # no path has that many levels: fewer suffice
        return shortest(distances, epsilon)
    path = [len(distances) - 1]
    for table in reversed(tables):
        path.append(int(table[path[-1]]))
    return [0, *reversed(path)]


def _back(before: list[int], last: int) -> list[int]:
    path = [last]
    while path[-1] != 0:
        path.append(before[path[-1]])
    return path[::-1]


def time_warp(times: Tensor, path: Sequence[int] | Tensor) -> list[float]:
    """The candidates' times at a path's places (whole or between two), as a warp from 0 to 1.

    >>> times = torch.tensor([0.0, 0.25, 0.5, 1.0])
    >>> sf.levels.time_warp(times, [0, 1, 3])
    [0.0, 0.25, 1.0]
    """
    place = torch.as_tensor(path, dtype=torch.float64)
    low = place.floor().long().clamp(max=len(times) - 2)
    found = times[low] + (place - low) * (times[low + 1] - times[low])
    return [float(t) for t in found]
