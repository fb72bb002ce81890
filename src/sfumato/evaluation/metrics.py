r"""Metrics compare two sets of features: how near samples lie to real images, what they miss.

    FID = |m_r - m_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^1/2)              torchmetrics
    KID = unbiased MMD^2 with the kernel (x.y / d + 1)^3               torchmetrics, seeded subsets
    precision, recall      share of one set inside the balls of the other's k-th neighbours
    density, coverage      how many real balls hold a sample; share of real balls that hold one

Distances are made in blocks of rows, so that memory grows with n, not n^2.
"""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities.data import dim_zero_cat

from sfumato.errors import Refused

ROWS = 1024
"""Rows of a matrix of distances in memory at once."""
SUBSETS, SUBSET = 100, 1000
"""Of KID: their number, and their largest size."""
PRECISION_K, DENSITY_K = 3, 5
"""Neighbours, as in the papers of precision and recall, and of density and coverage."""


def frechet(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance of two sets of features, (n, d) each, in float64.

    Raises:
        ValueError: a set has fewer than two rows, or widths differ.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (M.
        Heusel, H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter, 2017),
        https://arxiv.org/abs/1706.08500
    """
    _check(real, fake)
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return float(metric.compute())


@final
class Kernel(NamedTuple):
    """KID over subsets: mean, and standard deviation over the subsets."""

    mean: float
    deviation: float


def kernel(
    real: Tensor, fake: Tensor, seed: int = 0, subsets: int = SUBSETS, size: int = SUBSET
) -> Kernel:
    """Kernel distance of two sets of features, over `subsets` of `size` drawn from `seed`.

    `size` is at most that of the smaller set. The state of the global generator is kept.

    Raises:
        ValueError: a set has fewer than two rows, or widths differ.

    References:
        Demystifying MMD GANs (M. Bińkowski, D. Sutherland, M. Arbel, A. Gretton, 2018),
        https://arxiv.org/abs/1801.01401
    """
    _check(real, fake)
    size = min(size, len(real), len(fake))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about all features in memory, as intended
        metric = KernelInceptionDistance(_Given(real.shape[1]), subsets, size)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws its subsets globally
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return Kernel(float(mean), float(deviation))


class Neighbours(Metric, ABC):
    """A metric of the balls around features that reach to their k-th neighbours (abstract).

    Args:
        k: neighbours.
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, k: int) -> None:
        super().__init__()
        if k < 1:
            raise Refused(f"neighbours need k of 1 or more; got {k}.")
        self.k = k
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (n, d) of real images or of samples."""
        (self.real if real else self.fake).append(features)

    def sets(self) -> tuple[Tensor, Tensor]:
        """All real and all sampled features, minus the real mean: distances round less.

        Raises:
            ValueError: a set has not more than k rows, or widths differ.
        """
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)
        _check(real, fake, self.k + 1)
        mean = real.mean(0)
        return real - mean, fake - mean


@final
class PrecisionRecall(Neighbours):
    """Improved precision and recall: {"precision", "recall"} in [0, 1].

    Precision is the share of samples inside the ball of some real image; recall is the same with
    the sets exchanged.

    Args:
        k: neighbours, 3 in the paper.

    References:
        Improved Precision and Recall Metric for Assessing Generative Models (T. Kynkäänniemi, T.
        Karras, S. Laine, J. Lehtinen, T. Aila, 2019), https://arxiv.org/abs/1904.06991
    """

    def __init__(self, k: int = PRECISION_K) -> None:
        super().__init__(k)

    def compute(self) -> dict[str, Tensor]:
        """Both shares."""
        real, fake = self.sets()
        precise = [rows.any(1) for rows in _inside(fake, real, radii(real, self.k))]
        recalled = [rows.any(1) for rows in _inside(real, fake, radii(fake, self.k))]
        return {"precision": _share(precise), "recall": _share(recalled)}


@final
class DensityCoverage(Neighbours):
    """Density and coverage: {"density" >= 0, "coverage" in [0, 1]}.

    Density is the mean number of real balls that a sample lies in, over k; coverage is the share of
    real balls that hold a sample.

    Args:
        k: neighbours, 5 in the paper.

    References:
        Reliable Fidelity and Diversity Metrics for Generative Models (M. Naeem, S. Oh, Y. Uh, Y.
        Choi, J. Yoo, 2020), https://arxiv.org/abs/2002.09797
    """

    def __init__(self, k: int = DENSITY_K) -> None:
        super().__init__(k)

    def compute(self) -> dict[str, Tensor]:
        """Both figures."""
        real, fake = self.sets()
        held = torch.zeros(len(real), dtype=torch.int64, device=real.device)
        for rows in _inside(fake, real, radii(real, self.k)):
            held += rows.sum(0)
        density = held.double().sum() / (self.k * len(fake))
        return {"density": density, "coverage": _share([held > 0])}


def radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row of `x` (n, d) to its k-th nearest other row; (n,)."""
    near = []
    for start in range(0, len(x), ROWS):
        squared = _squared(x[start : start + ROWS], x)
        row = torch.arange(len(squared), device=x.device)
        squared[row, start + row] = -1.0  # itself comes first despite rounding
        near.append(squared.topk(k + 1, dim=1, largest=False).values[:, -1])
    return torch.cat(near)


def _inside(points: Tensor, centres: Tensor, near: Tensor) -> Iterator[Tensor]:
    """For blocks of points, whether each lies in each centre's ball: (rows, n) of bool."""
    for some in points.split(ROWS):
        yield _squared(some, centres) <= near


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances, (len(a), len(b)), by one matrix product."""
    ends = a.square().sum(1, keepdim=True) + b.square().sum(1)
    return torch.addmm(ends, a, b.T, alpha=-2)


def _share(flags: list[Tensor]) -> Tensor:
    return torch.cat(flags).double().mean()


class _Given(nn.Module):
    """An identity as the extractor of torchmetrics, whose inputs here are features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check(real: Tensor, fake: Tensor, least: int = 2) -> None:
    for name, x in (("real images", real), ("samples", fake)):
        if x.ndim != 2 or len(x) < least:
            raise Refused(
                f"this metric needs the features (n, d) of {least} {name} or more; "
                f"got shape {tuple(x.shape)}."
            )
    if real.shape[1] != fake.shape[1]:
        raise Refused(
            f"real images have {real.shape[1]} features and samples {fake.shape[1]}; "
            "use one extractor for both."
        )
