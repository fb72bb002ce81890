r"""Facts are what a method may know of the data: measured in one streamed pass before training.

They are a handful of tensors, travel with the model as `facts.safetensors`, and are all that a
prior or a preconditioner needs afterwards: a trained model samples without its training set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.algebra.basis import Basis, dct
from sfumato.algebra.operators import Diagonal
from sfumato.corruption.boundary import alike, near

CORNER = 8
MEMORY = 2048
WINDOW = 17
"""Coefficients of about the same frequency that few images are shrunk towards."""
FLOOR = 1e-6
"""Least share of the mean power that a coefficient is taken to have."""


class Facts(NamedTuple):
    """What was measured of data in [-1, 1] of shape `shape` = (C, *space), or (n,).

    Attributes:
        mean: DCT coefficients of the mean image, float64, `shape`.
        spectrum: variance of each DCT coefficient, float64, `shape`.
        low: DCT coefficients of some images on the `CORNER` lowest frequencies of each axis,
            float32, (n, C, k, ..., k) with n <= MEMORY.
        count: how many images were seen, int64 scalar.
        labels: classes of the images in `low`, int64, (n,); None where the data have none.
        values: how many values a pixel can have, int64 scalar; 0 where that is not known, None in
            facts from before it was counted.
    """

    mean: Tensor
    spectrum: Tensor
    low: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]: nobody counts in facts
    labels: Tensor | None = None
    values: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What was measured, by name: what a file of facts holds."""
        return {name: found for name, found in self._asdict().items() if found is not None}

    def remembering(self, count: int) -> Facts:
        """The same facts with the first `count` remembered images and their classes.

        Raises:
            ValueError: `count` is below 1.
        """
        if count < 1:
            raise ValueError(f"memory must be 1 or more; got {count}.")
        labels = None if self.labels is None else self.labels[:count]
        return self._replace(low=self.low[:count], labels=labels)

    @property
    def basis(self) -> Basis:
        """The DCT basis in which the facts stand."""
        return dct(*space(tuple(self.mean.shape)))

    def cov(self, basis: Basis | None = None) -> Diagonal:
        """The data's covariance where it is taken to be diagonal in `basis`; the DCT by default.

        Shrunk where the images are few, see `shrunk`. In another basis the variances are those that
        DCT coefficients without correlation have there; n^2 work for n values.
        """
        return self._in(self._shrunk(), basis)

    def power(self, basis: Basis | None = None) -> Diagonal:
        """E u^2 of each coefficient, as `cov`: what a linear filter about 0 takes for a variance.

        At least `FLOOR` of the mean, so that what never changes still has a scale.
        """
        total = self.mean.square() + self._shrunk()
        return self._in(total.clamp(min=FLOOR * float(total.mean())), basis)

    def _shrunk(self) -> Tensor:
        return shrunk(self.spectrum, self.basis.laplacian, int(self.count))

    def _in(self, variances: Tensor, basis: Basis | None) -> Diagonal:
        if basis is None or basis == self.basis:
            return Diagonal(variances.log(), None, self.basis)
        shape, total = basis.shape, torch.zeros_like(variances)
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

        Exact among the images remembered where an image is no larger than `CORNER`; beyond it
        stands the distance that two images have there on average.
        """
        rest = self.spectrum.clone()
        corner(rest, len(space(tuple(self.mean.shape))))[...] = 0
        rows = self.low.flatten(1).double()
        far = torch.cdist(rows, rows).max() if len(rows) else torch.zeros(()).double()
        return float((far**2 + 2 * rest.sum()).sqrt())


def shrunk(spectrum: Tensor, squared: Tensor, count: int) -> Tensor:
    r"""Variances of coefficients drawn towards their neighbours', as far as few images need it.

    In logarithms, where each is seen with variance 2 / (n - 1): towards the mean over the `WINDOW`
    coefficients of about the same frequency, by James and Stein's share, that variance over what is
    seen around the mean. Of thousands of images a spectrum stays what it is to about a part in a
    thousand; `count` 0, which was not measured, stays as it is.

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


class Running:
    """Mean and variances of coefficients in a basis, batch by batch (final).

    Memory does not grow with the number of signals; stable for any number of batches.

    Args:
        basis: of the trailing axes.
        shape: of one signal.

    References:
        Algorithms for Computing the Sample Variance (T. Chan, G. Golub, R. LeVeque, 1983),
        https://doi.org/10.1080/00031305.1983.10483115
    """

    def __init__(self, basis: Basis, shape: tuple[int, ...]) -> None:
        self.basis, self.shape, self.count = basis, shape, 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self._scatter = torch.zeros(shape, dtype=torch.float64)

    def update(self, x: Tensor) -> Tensor:
        """Take in signals (B, *shape); their coefficients, float64.

        Raises:
            ValueError: signals of another shape, or with values that are not finite.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"images of shape {self.shape} were promised; got {tuple(x.shape[1:])}."
            )
        u = self.basis.analyze(x.detach().cpu().to(torch.float64))
        if len(u):
            if not bool(u.isfinite().all()):
                raise ValueError("some images have values that are not finite numbers.")
            step, total = u.mean(0) - self.mean, self.count + len(u)
            self._scatter += (u - u.mean(0)).square().sum(0)
            self._scatter += step.square() * (self.count * len(u) / total)
            self.mean += step * (len(u) / total)
            self.count = total
        return u

    @property
    def variance(self) -> Tensor:
        """Of each coefficient; ValueError for fewer than two signals."""
        if self.count < 2:
            raise ValueError(f"a spectrum needs two images or more; got {self.count}.")
        return self._scatter / self.count


def measure(
    batches: Iterable[Tensor],
    shape: tuple[int, ...],
    labels: Tensor | None = None,
    values: int = 0,
) -> Facts:
    """Facts of the images in `batches`, each (B, *shape) in [-1, 1].

    Memory does not grow with their number. The images remembered in `low` are a uniform sample,
    drawn with a fixed seed (reservoir sampling), so the same data give the same facts.

    Args:
        batches: of the images.
        shape: of one image.
        labels: classes of all images in turn, int64, where they have some.
        values: how many values a pixel can have, where the data are whole numbers.

    Raises:
        TypeError: images that are not of floating-point numbers.
        ValueError: images of another shape, with values that are not finite or plainly not scaled
            to [-1, 1], fewer than two, which have no spectrum, or labels
            of another number.
    """
    rank, running = len(space(shape)), Running(dct(*space(shape)), shape)
    generator = torch.Generator().manual_seed(0)
    low: list[Tensor] = []
    kept: list[int] = []
    count = 0
    for batch in batches:
        alike(images=batch)
        near("images", batch)
        for row in corner(running.update(batch), rank).float():
            count += 1
            if len(low) < MEMORY:
                low.append(row.clone())
                kept.append(count - 1)
            elif (slot := int(torch.randint(count, (), generator=generator))) < MEMORY:
                low[slot], kept[slot] = row.clone(), count - 1
    if labels is not None and len(labels) != count:
        raise ValueError(f"there are {len(labels)} labels for {count} images.")
    return Facts(
        running.mean,
        running.variance,
        torch.stack(low),
        torch.tensor(count),
        None if labels is None else labels[kept],
        torch.tensor(values),
    )


def typical(shape: tuple[int, ...]) -> Facts:
    """Facts to stand in before data are seen: mean 0, a spectrum 1/f^2 of pixel variance 1/4."""
    basis, rank = dct(*space(shape)), len(space(shape))
    squared = basis.laplacian
    power = 1 / (squared + squared[squared > 0].min()) if squared.numel() > 1 else squared + 1
    spectrum = (power / power.mean() / 4).expand(shape).clone()
    generator = torch.Generator().manual_seed(0)
    deviation = corner(spectrum, rank).sqrt()
    draws = torch.randn(256, *deviation.shape, generator=generator, dtype=torch.float64)
    low = (draws * deviation).float()
    none = torch.tensor(0)
    return Facts(torch.zeros(shape, dtype=torch.float64), spectrum, low, none, values=none)
