r"""Statistics are what a method uses of the data: measured in one pass before training.

They are a few tensors, stored with the model as `facts.safetensors`, and all that a prior or a
preconditioner needs afterwards: a trained model samples without its training set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato.algebra.basis import Basis, dct
from sfumato.algebra.operators import Diagonal
from sfumato.corruption.boundary import FAR, alike, near
from sfumato.errors import Refused

CORNER = 8
"""Lowest frequencies of each axis that are stored of an image."""
MEMORY = 2048
"""Most images of which these are stored."""
WINDOW = 17
"""Number of coefficients of similar frequency towards whose mean `shrunk` shrinks each."""
FLOOR = 1e-6
"""Smallest power of a coefficient under `DataStatistics.power`, as a share of the mean power."""


class DataStatistics(NamedTuple):
    """What was measured of data in [-1, 1] of shape `shape` = (C, *space), or (n,).

    Attributes:
        mean: DCT coefficients of the mean image, float64, `shape`.
        spectrum: variance of each DCT coefficient, float64, `shape`.
        low: DCT coefficients of some images on the `CORNER` lowest frequencies of each axis,
            float32, (n, C, k, ..., k) with n <= MEMORY.
        count: how many images were seen, int64 scalar.
        labels: classes of the images in `low`, int64, (n,); None where the data have none.
        values: how many values a pixel can have, int64 scalar; 0 where unknown, None in older
            statistics without it.

    >>> stats = sf.load("digits").stats()
    >>> stats.mean.shape, int(stats.count), int(stats.values)
    (torch.Size([1, 8, 8]), 1500, 17)
    >>> round(stats.distance, 2)
    9.6
    """

    mean: Tensor
    spectrum: Tensor
    low: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]: hides tuple.count
    labels: Tensor | None = None
    values: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without those that are None: the content of a statistics file."""
        return {name: found for name, found in self._asdict().items() if found is not None}

    def remembering(self, count: int) -> DataStatistics:
        """The same statistics with the first `count` stored images and their classes.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise Refused(f"memory must be 1 or more; got {count}.")
        labels = None if self.labels is None else self.labels[:count]
        return self._replace(low=self.low[:count], labels=labels)

    @property
    def basis(self) -> Basis:
        """The DCT basis of the statistics."""
        return dct(*space(tuple(self.mean.shape)))

    def cov(self, basis: Basis | None = None) -> Diagonal:
        """The data's covariance, assumed diagonal in `basis`, the DCT by default.

        Shrunk where the images are few, see `shrunk`. In another basis the variances are those of
        uncorrelated DCT coefficients; O(n^2) operations for n values.
        """
        return self._in(self._shrunk(), basis)

    def power(self, basis: Basis | None = None) -> Diagonal:
        """E u^2 of each coefficient, as `cov`: the variance to use in a linear filter about 0.

        At least `FLOOR` of the mean, so that constant coefficients have a scale.
        """
        total = self.mean.square() + self._shrunk()
        return self._in(total.clamp(min=FLOOR * float(total.mean())), basis)

    def _shrunk(self) -> Tensor:
        return shrunk(self.spectrum, self.basis.laplacian, int(self.count))

    def _in(self, variances: Tensor, basis: Basis | None) -> Diagonal:
        if basis is None or basis == self.basis:
            return Diagonal(variances.log(), None, self.basis)
        shape = basis.shape
        total = torch.zeros_like(variances)
        n = math.prod(shape)
        flat = variances.reshape(*variances.shape[: -len(shape)], n)
        for some in torch.arange(n).split(1024):
            units = torch.zeros(len(some), n, dtype=torch.float64)
            units[torch.arange(len(some)), some] = 1
            seen = basis.analyze(self.basis.synthesize(units.reshape(-1, *shape)))
            total += (flat[..., some] @ seen.square().flatten(1)).reshape(total.shape)
        return Diagonal(total.log(), None, basis)

    @property
    def distance(self) -> float:
        """About the largest distance between two images: NCSNv2's first noise level.

        Exact for the stored images where an image is no larger than `CORNER`; for frequencies
        above, the average distance between two images is used.
        """
        rest = self.spectrum.clone()
        corner(rest, len(space(tuple(self.mean.shape))))[...] = 0
        rows = self.low.flatten(1).double()
        far = torch.cdist(rows, rows).max() if len(rows) else torch.zeros(()).double()
        return float((far**2 + 2 * rest.sum()).sqrt())


def radial(frequency: Tensor, value: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """The mean of a value in equal bands of frequency, over all leading axes.

    Args:
        frequency: of each coefficient, `space`.
        value: (*lead, *space).
        bands: from 0 to the largest frequency.

    Returns:
        Middle and mean of each band that has coefficients, float64.
    """
    flat = frequency.flatten().double()
    mean = value.reshape(-1, len(flat)).double().mean(0)
    edges = torch.linspace(0, float(flat.max()), bands + 1, dtype=torch.float64)
    which = torch.bucketize(flat, edges[1:-1])
    counts = torch.bincount(which, minlength=bands)
    totals = torch.bincount(which, weights=mean, minlength=bands)
    kept = counts > 0
    return ((edges[1:] + edges[:-1]) / 2)[kept], totals[kept] / counts[kept]


def shrunk(spectrum: Tensor, squared: Tensor, count: int) -> Tensor:
    r"""Variances of coefficients shrunk towards their neighbours', the more the fewer the images.

    In logarithms, of which each is measured with variance 2 / (n - 1): towards the mean over the
    `WINDOW` coefficients of similar frequency, by James and Stein's share, that variance over the
    one observed around the mean. With thousands of images a spectrum changes by about a part in a
    thousand; with `count` 0, for a spectrum that was not measured, not at all.

    Args:
        spectrum: variances, (*channels, *space).
        squared: squared frequencies of the coefficients, `space`.
        count: of the images.

    References:
        Estimation with Quadratic Loss (W. James, C. Stein, 1961),
        https://projecteuclid.org/euclid.bsmsp/1200512173
    """
    alive = spectrum > 0
    if count < 2 or squared.numel() < 2 * WINDOW or not bool(alive.any()):
        return spectrum
    floor = float(spectrum[alive].min())
    order = squared.flatten().argsort(stable=True)
    rows = spectrum.clamp(min=floor).log().reshape(-1, squared.numel())[:, order]
    side = WINDOW // 2
    padded = nn.functional.pad(rows.unsqueeze(1), (side, side), mode="reflect")
    smooth = nn.functional.avg_pool1d(padded, WINDOW, 1).squeeze(1)
    seen = (rows - smooth).square().mean() * WINDOW / (WINDOW - 1)
    share = (2 / (count - 1) / seen).clamp(max=1.0)
    drawn = torch.empty_like(rows)
    drawn[:, order] = (rows + share * (smooth - rows)).exp()
    return torch.where(alive, drawn.reshape(spectrum.shape), spectrum)


def space(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a signal that are space: all but the first (channels), or the only one."""
    return shape[1:] if len(shape) > 1 else shape


def corner(coefficients: Tensor, rank: int) -> Tensor:
    """The `CORNER` lowest frequencies along each of the last `rank` axes."""
    return coefficients[(..., *(slice(CORNER),) * rank)]


@final
class RunningMoments:
    """Mean and variances of coefficients in a basis, batch by batch.

    Memory does not grow with the number of signals; stable for any number of batches.

    Args:
        basis: of the trailing axes.
        shape: of one signal.

    >>> running = sf.statistics.RunningMoments(sf.bases.pixel(2), (2,))
    >>> for batch in torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[5.0, 0.0], [7.0, 1.0]]]):
    ...     coefficients = running.update(batch)
    >>> running.mean
    tensor([4.0000, 0.2500], dtype=torch.float64)
    >>> running.variance
    tensor([5.0000, 0.1875], dtype=torch.float64)

    References:
        Algorithms for Computing the Sample Variance (T. Chan, G. Golub, R. LeVeque, 1983),
        https://doi.org/10.1080/00031305.1983.10483115
    """

    def __init__(self, basis: Basis, shape: tuple[int, ...]) -> None:
        self.basis = basis
        self.shape = shape
        self.count = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self._scatter = torch.zeros(shape, dtype=torch.float64)

    def update(self, x: Tensor) -> Tensor:
        """Add signals (B, *shape); returns their coefficients, float64.

        Raises:
            ValueError: signals of another shape, or with values that are not finite.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise Refused(f"images must have shape {self.shape}; got {tuple(x.shape[1:])}.")
        u = self.basis.analyze(x.detach().cpu().to(torch.float64))
        if len(u):
            if not bool(u.isfinite().all()):
                raise Refused("some images have values that are not finite numbers.")
            step = u.mean(0) - self.mean
            total = self.count + len(u)
            self._scatter += (u - u.mean(0)).square().sum(0)
            self._scatter += step.square() * (self.count * len(u) / total)
            self.mean += step * (len(u) / total)
            self.count = total
        return u

    @property
    def variance(self) -> Tensor:
        """Of each coefficient; ValueError for fewer than two signals."""
        if self.count < 2:
            raise Refused(f"a spectrum needs two images or more; got {self.count}.")
        return self._scatter / self.count


def measure(
    batches: Iterable[Tensor],
    shape: tuple[int, ...],
    labels: Tensor | None = None,
    values: int = 0,
    far: float = FAR,
) -> DataStatistics:
    """Statistics of the images in `batches`, each (B, *shape) in [-1, 1].

    Memory does not grow with their number. The images stored in `low` are a uniform sample, drawn
    with a fixed seed (reservoir sampling), so the same data give the same statistics.

    Args:
        batches: of the images.
        shape: of one image.
        labels: classes of all images in their order, int64, if they have any.
        values: how many values a pixel can have, where the data are whole numbers; else 0.
        far: the largest value that data are believed to have; infinite for latents.

    Raises:
        TypeError: images that are not of floating-point numbers.
        ValueError: images of another shape, with values that are not finite or clearly not scaled
            to [-1, 1]; fewer than two images; or not one label for each.

    >>> images = torch.rand(100, 1, 8, 8) * 2 - 1
    >>> stats = sf.measure([images[:50], images[50:]], (1, 8, 8))
    >>> stats.spectrum.mean()  # 1/3 is the variance of numbers uniform in [-1, 1]
    tensor(0.3257, dtype=torch.float64)
    """
    rank = len(space(shape))
    running = RunningMoments(dct(*space(shape)), shape)
    generator = torch.Generator().manual_seed(0)
    low: list[Tensor] = []
    kept: list[int] = []
    count = 0
    for batch in batches:
        alike(images=batch)
        near("images", batch, far)
        for row in corner(running.update(batch), rank).float():
            count += 1
            if len(low) < MEMORY:
                low.append(row.clone())
                kept.append(count - 1)
            elif (slot := int(torch.randint(count, (), generator=generator))) < MEMORY:
                low[slot] = row.clone()
                kept[slot] = count - 1
    if labels is not None and len(labels) != count:
        raise Refused(f"there are {len(labels)} labels for {count} images.")
    return DataStatistics(
        running.mean,
        running.variance,
        torch.stack(low),
        torch.tensor(count),
        None if labels is None else labels[kept],
        torch.tensor(values),
    )


def default_statistics(shape: tuple[int, ...]) -> DataStatistics:
    """Statistics to use without data: mean 0, a spectrum 1/f^2 of pixel variance 1/4.

    >>> stats = sf.statistics.default_statistics((1, 8, 8))
    >>> stats.spectrum[0, 0] / stats.spectrum[0, 0, 0]  # falls as 1/f^2
    tensor([1.0000, 0.5000, 0.2000, 0.1000, 0.0588, 0.0385, 0.0270, 0.0200],
           dtype=torch.float64)
    """
    basis = dct(*space(shape))
    rank = len(space(shape))
    squared = basis.laplacian
    power = 1 / (squared + squared[squared > 0].min()) if squared.numel() > 1 else squared + 1
    spectrum = (power / power.mean() / 4).expand(shape).clone()
    generator = torch.Generator().manual_seed(0)
    deviation = corner(spectrum, rank).sqrt()
    draws = torch.randn(256, *deviation.shape, generator=generator, dtype=torch.float64)
    low = (draws * deviation).float()
    none = torch.tensor(0)
    return DataStatistics(torch.zeros(shape, dtype=torch.float64), spectrum, low, none, values=none)
