r"""A prior is the law of x_1, where sampling starts.

It is N(0, V_1) where the signal has vanished. Blur never removes the mean of an image, so there x_1
is blurred data plus noise: a Gaussian fitted in the process's basis, or the low frequencies of
training images kept in `DataStatistics`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeGuard, final

import torch
from torch import Tensor

from sfumato.algebra.basis import Basis
from sfumato.algebra.operators import Diagonal, Operator
from sfumato.algebra.place import Placed, sent
from sfumato.corruption.boundary import shaped
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import DataStatistics, corner, space
from sfumato.errors import Refused

RandnLike = Callable[[Tensor], Tensor]
"""x -> standard normal like x in shape, dtype and device; each row may have its own stream."""


class Prior(ABC):
    """The law of x_1 (abstract: `sample`, `log_prob`).

    >>> prior = sf.METHODS["ddpm"]((1, 8, 8)).prior
    >>> x1 = prior.sample(torch.empty(4, 1, 8, 8), torch.randn_like)
    >>> x1.shape, prior.log_prob(x1).shape
    (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    shape: tuple[int, ...]

    @abstractmethod
    def sample(self, like: Tensor, randn_like: RandnLike, classes: Tensor | None = None) -> Tensor:
        """n draws like `like` in dtype and device, a tensor (n, *shape) whose values are not read.

        `classes` (n,) are the classes of the draws, for a law that differs from class to class.
        """

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x_1) in nats; (n, *shape) -> (n,)."""


@final
class GaussianPrior(Prior):
    """N(mean, cov).

    Args:
        mean: (*shape).
        cov: a positive definite operator with a root, such as `Process.cov(1)`.

    >>> prior = sf.priors.GaussianPrior(torch.zeros(1), sf.operators.scaled(4.0))
    >>> prior.log_prob(torch.zeros(1, 1))  # -log(2 sqrt(2 pi))
    tensor([-1.6121])
    """

    def __init__(self, mean: Tensor, cov: Operator) -> None:
        self.shape = tuple(mean.shape)
        self.mean = mean.to(torch.float64)
        self.cov = cov
        self._root = cov.sqrt()
        self._mean = Placed(self.mean)

    def sample(self, like: Tensor, randn_like: RandnLike, classes: Tensor | None = None) -> Tensor:
        shaped("like", like, self.shape)
        return self._mean.like(like) + self._root(randn_like(like))

    def log_prob(self, x: Tensor) -> Tensor:
        shaped("x", x, self.shape)
        logdet = self.cov.logdet(self.shape)
        _check_density(bool(torch.isneginf(logdet).any()))
        white = self._root.inv()(x - self._mean.like(x)).flatten(1)
        constant = 0.5 * math.prod(self.shape) * math.log(2 * math.pi)
        return -0.5 * white.square().sum(1) - 0.5 * logdet.to(x) - constant

    def __repr__(self) -> str:
        return f"GaussianPrior(shape={self.shape})"


@final
class CorruptedData(Prior):
    r"""C_1 x_0 + S_1 eps with x_0 a stored training image.

    On the low frequencies in `stats.low`, x_0 is one of the stored images, drawn uniformly; on the
    others it is Gaussian with the data's mean and spectrum. Where C_1 removes the frequencies that
    are not stored, as heat blur does, this is the law of corrupted training images.

    Where classes are given and `stats.labels` is not None, the image is one of the class; a class
    without stored images is Gaussian on all frequencies.

    Args:
        stats: what was measured of the data.
        process: any; `log_prob` needs one that is diagonal in `stats.basis` at t = 1, or a multiple
            of the identity.

    >>> stats = sf.load("digits").stats()
    >>> prior = sf.priors.CorruptedData(stats, sf.METHODS["soft"]((1, 8, 8), stats).process)
    >>> prior
    CorruptedData(1500 images, shape=(1, 8, 8))
    >>> prior.sample(torch.empty(4, 1, 8, 8), torch.randn_like).shape
    torch.Size([4, 1, 8, 8])
    """

    def __init__(self, stats: DataStatistics, process: Process) -> None:
        one = torch.ones((), dtype=torch.float64)
        signal, noise = process.signal.at(one), process.noise.at(one)
        self.shape = tuple(stats.mean.shape)
        self._stats = stats
        self._basis = stats.basis
        self._rank = len(space(self.shape))
        self._signal, self._noise = signal, noise
        self._mean, self._spread = Placed(stats.mean), Placed(stats.spectrum.sqrt())

    def sample(self, like: Tensor, randn_like: RandnLike, classes: Tensor | None = None) -> Tensor:
        shaped("like", like, self.shape)
        eps, rest = randn_like(like), randn_like(like)
        u = self._mean.like(like) + self._spread.like(like) * rest
        low = self._stats.low
        # The normal distribution function of a normal draw is uniform, so that normal streams
        # suffice.
        uniform = torch.special.ndtr(randn_like(like[:, :1].flatten(1)[:, :1]).cpu().double())
        found, chosen = self._chosen(uniform.flatten(), classes)
        corner(u, self._rank)[found] = sent(low[chosen], like)
        return self._signal(self._basis.synthesize(u)) + self._noise(eps)

    def _chosen(self, uniform: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which rows start from a stored image, and the image of each of these."""
        labels = self._stats.labels
        count = len(self._stats.low)
        fits = torch.ones(len(uniform), count, dtype=torch.bool)
        if labels is not None and classes is not None:
            fits = classes.cpu().unsqueeze(1) == labels
        fitting = fits.sum(1)
        place = (uniform * fitting).long().minimum(fitting - 1)
        chosen = (fits.cumsum(1) > place.unsqueeze(1)).int().argmax(1)
        return fitting > 0, chosen[fitting > 0]

    def log_prob(self, x: Tensor) -> Tensor:
        shaped("x", x, self.shape)
        if not (_diagonal_in(self._signal, self._basis) and _diagonal_in(self._noise, self._basis)):
            raise Refused(
                "the density of x_1 needs a process that is diagonal in the DCT basis at t = 1. "
                "Use GaussianPrior."
            )
        u = self._basis.analyze(x.cpu().to(torch.float64))
        full = torch.ones(self.shape, dtype=torch.float64)
        gain, noise = full * self._signal.like(full), full * self._noise.like(full)
        variance = noise.square() + gain.square() * self._stats.spectrum
        _check_density(not bool(corner(noise, self._rank).all() and variance.all()))
        alone = _normal(u, gain * self._stats.mean, variance)
        corner(alone, self._rank)[...] = 0
        centres = corner(gain, self._rank) * self._stats.low
        distance = corner(u, self._rank).unsqueeze(1)
        nearby = _normal(distance, centres, corner(noise, self._rank).square()).flatten(2).sum(2)
        mixture = torch.logsumexp(nearby, 1) - math.log(len(self._stats.low))
        return (alone.flatten(1).sum(1) + mixture).to(x)

    def __repr__(self) -> str:
        return f"CorruptedData({len(self._stats.low)} images, shape={self.shape})"


@final
class CorruptedGaussian(Prior):
    r"""C_1 x_0 + S_1 eps with x_0 Gaussian of the data's mean and spectrum.

    For processes that share no basis with the data's spectrum, where the sum of the two covariances
    has no root: it has `sample`, and no `log_prob`.

    >>> stats = sf.load("digits").stats()
    >>> process = sf.METHODS["ni-ddpm"]((1, 8, 8), stats).process
    >>> prior = sf.priors.CorruptedGaussian(stats, process)
    >>> prior.sample(torch.empty(4, 1, 8, 8), torch.randn_like).shape
    torch.Size([4, 1, 8, 8])
    """

    def __init__(self, stats: DataStatistics, process: Process) -> None:
        one = torch.ones((), dtype=torch.float64)
        self.shape = tuple(stats.mean.shape)
        self._mean = Placed(stats.basis.synthesize(stats.mean))
        self._root = Diagonal(stats.spectrum.log() / 2, None, stats.basis)
        self._signal, self._noise = process.signal.at(one), process.noise.at(one)

    def sample(self, like: Tensor, randn_like: RandnLike, classes: Tensor | None = None) -> Tensor:
        shaped("like", like, self.shape)
        eps = randn_like(like)
        x0 = self._mean.like(like) + self._root(randn_like(like))
        return self._signal(x0) + self._noise(eps)

    def log_prob(self, x: Tensor) -> Tensor:
        raise Refused(
            "this law of x_1 has no density: the process and the data's spectrum share no basis."
        )

    def __repr__(self) -> str:
        return f"CorruptedGaussian(shape={self.shape})"


def standard(process: Process, shape: tuple[int, ...]) -> GaussianPrior:
    """N(0, V_1): the law of x_1 where the signal has vanished.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> sf.priors.standard(process, (1, 8, 8)).cov.gain
    tensor(1.0000, dtype=torch.float64)
    """
    one = torch.ones((), dtype=torch.float64)
    return GaussianPrior(torch.zeros(shape, dtype=torch.float64), process.cov(one))


def fitted(stats: DataStatistics, process: Process) -> GaussianPrior | CorruptedGaussian:
    """The Gaussian with the mean and spectrum of corrupted data: N(C_1 m, C_1 S C_1^T + V_1).

    >>> stats = sf.load("digits").stats()
    >>> prior = sf.priors.fitted(stats, sf.METHODS["soft"]((1, 8, 8), stats).process)
    >>> prior.mean.mean(), stats.basis.synthesize(stats.mean).mean()  # blur keeps the mean
    (tensor(-0.3898, dtype=torch.float64), tensor(-0.3898, dtype=torch.float64))
    """
    one = torch.ones((), dtype=torch.float64)
    signal = process.signal.at(one)
    spectrum = Diagonal(stats.spectrum.log(), None, stats.basis)
    mean = signal(stats.basis.synthesize(stats.mean))
    cov = signal @ spectrum @ signal.T + process.cov(one)
    if not isinstance(cov, Diagonal):
        return CorruptedGaussian(stats, process)
    return GaussianPrior(mean, cov)


def _diagonal_in(operator: Operator, basis: Basis) -> TypeGuard[Diagonal]:
    return isinstance(operator, Diagonal) and operator.basis in (None, basis)


def _check_density(singular: bool) -> None:
    if singular:
        raise Refused(
            "the density of x_1 needs noise on every coefficient; the covariance is singular. "
            "Give the noise a floor."
        )


def _normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())
