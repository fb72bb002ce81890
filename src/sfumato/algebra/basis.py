r"""A basis is an isometry between signals and coefficients.

    u = V^T x   (`analyze`),    x = V u   (`synthesize`),    V^T V = V V^T = I

A basis acts on the trailing axes of a tensor of shape (*batch, *basis.shape). Transforms run in
float32 or better, with matrices built in float64 and cast once per dtype and device.

Each basis also gives the squared frequency of its coefficients, `laplacian`, in radians^2 per
sample^2: the decay rates of the heat equation, and the argument of a noise spectrum.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.algebra.place import seen
from sfumato.algebra.transforms import Axes, check, grid_sum, wide
from sfumato.errors import Refused


class Basis(ABC):
    """An orthonormal change of coordinates on trailing axes (abstract: `analyze`, `synthesize`).

    >>> basis = sf.bases.dct(8, 8)
    >>> x = torch.randn(2, 3, 8, 8)
    >>> torch.allclose(basis.synthesize(basis.analyze(x)), x, atol=1e-5)
    True
    """

    name: str  # what `repr` and error sentences print, such as dct(32, 32)
    shape: tuple[int, ...]  # the trailing axes it acts on

    @abstractmethod
    def analyze(self, x: Tensor) -> Tensor:
        """Coefficients V^T x; (*batch, *shape) -> same shape."""

    @abstractmethod
    def synthesize(self, u: Tensor) -> Tensor:
        """Signal V u; (*batch, *shape) -> same shape."""

    @property
    @abstractmethod
    def laplacian(self) -> Tensor:
        """Squared frequency of each coefficient, float64 of shape `shape`; else ValueError."""

    @property
    def key(self) -> object:
        """Identifies the map: two bases are equal if their keys are."""
        return self.name

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless `x` ends in this basis's axes."""
        check(self.name, self.shape, x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.name


@final
class Pixel(Basis):
    """The identity: for masks, and for noise that differs from pixel to pixel."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.name = _call("pixel", self.shape)

    def analyze(self, x: Tensor) -> Tensor:
        self.check(x)
        return x

    def synthesize(self, u: Tensor) -> Tensor:
        self.check(u)
        return u

    @property
    def laplacian(self) -> Tensor:
        raise Refused(f"{self.name} has no frequencies. Use dct, hartley or haar.")


@final
class Separable(Basis):
    """One orthonormal matrix for each trailing axis; rows are basis vectors.

    A matrix per axis is faster than FFT-based transforms up to about 256 samples a side.
    """

    def __init__(self, name: str, factors: Sequence[Tensor], squared: Sequence[Tensor]) -> None:
        self.name = name
        self._squared = tuple(squared)
        self._to, self._back = Axes(name, factors), Axes(name, [q.mT for q in factors])
        self.shape = self._to.shape

    def analyze(self, x: Tensor) -> Tensor:
        return self._to(x)

    def synthesize(self, u: Tensor) -> Tensor:
        return self._back(u)

    def fuse(self, log_gain: Tensor) -> Axes | None:
        """V diag(gain) V^T as a matrix per axis if `log_gain` is a sum of one term per axis."""
        if not seen(log_gain.isfinite().all()):  # also on other devices, whose values are not read
            return None
        first = log_gain[(0,) * log_gain.ndim]
        parts = []
        for axis in range(log_gain.ndim):
            at = tuple(slice(None) if a == axis else 0 for a in range(log_gain.ndim))
            parts.append(log_gain[at] - (first if axis else 0.0))
        rounding = 1e-13 * (1 + log_gain.abs())
        if seen((log_gain - grid_sum(parts)).abs() > rounding):
            return None
        pairs = zip(self._to.matrices, parts, strict=True)
        return Axes(self.name, [q.mT @ (part.exp()[:, None] * q) for q, part in pairs])

    @property
    def laplacian(self) -> Tensor:
        return grid_sum(self._squared)


@final
class Hartley(Basis):
    """The Hartley transform Re F - Im F, F the orthonormal Fourier transform of all axes.

    Real, symmetric and its own inverse; diagonalises every periodic convolution whose kernel is
    even, k(-r) = k(r).

    References:
        A more symmetrical Fourier analysis applied to transmission problems (R. Hartley, 1942),
        https://doi.org/10.1109/JRPROC.1942.234333
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.name = _call("hartley", self.shape)

    def analyze(self, x: Tensor) -> Tensor:
        self.check(x)
        if not x.numel():  # some FFT libraries refuse empty signals
            return x
        spectrum = torch.fft.fftn(wide(x), dim=tuple(range(-len(self.shape), 0)), norm="ortho")
        return (spectrum.real - spectrum.imag).to(x.dtype)

    def synthesize(self, u: Tensor) -> Tensor:
        return self.analyze(u)

    @property
    def laplacian(self) -> Tensor:
        return grid_sum(
            [(2 * math.pi * torch.fft.fftfreq(n, dtype=torch.float64)) ** 2 for n in self.shape]
        )


@final
class Flat(Basis):
    """One dense orthonormal matrix over all trailing axes flattened together.

    The eigenbasis of any symmetric operator (PCA, a graph). Memory is n^2 for n samples.
    """

    def __init__(self, q: Tensor, shape: Sequence[int], squared: Tensor | None = None) -> None:
        self.shape = tuple(shape)
        n = math.prod(self.shape)
        if q.shape != (n, n):
            raise Refused(
                f"a dense basis of shape {self.shape} needs a {n} x {n} matrix; "
                f"got {tuple(q.shape)}."
            )
        q = q.to(torch.float64)
        off = float((q @ q.mT - torch.eye(n, dtype=q.dtype, device=q.device)).abs().max())
        if not off < 1e-6:
            raise Refused(
                f"a dense basis needs orthonormal rows; Q Q^T differs from I by {off:.2g}. "
                "Use torch.linalg.qr or eigh."
            )
        self.name = _call("dense", self.shape)
        self._axis = Separable(self.name, [q], [])
        self._digest = hashlib.sha256(q.cpu().numpy().tobytes()).hexdigest()
        self._squared = squared

    @property
    def key(self) -> object:
        return (self.name, self._digest)

    def analyze(self, x: Tensor) -> Tensor:
        self.check(x)
        return self._axis.analyze(x.flatten(x.ndim - len(self.shape))).reshape(x.shape)

    def synthesize(self, u: Tensor) -> Tensor:
        self.check(u)
        return self._axis.synthesize(u.flatten(u.ndim - len(self.shape))).reshape(u.shape)

    @property
    def laplacian(self) -> Tensor:
        if self._squared is None:
            raise Refused(f"{self.name} was given no frequencies. Pass `squared` to dense.")
        return self._squared.to(torch.float64).reshape(self.shape)


def pixel(*shape: int) -> Pixel:
    """The identity on trailing axes `shape`.

    >>> sf.bases.pixel(2).analyze(torch.tensor([3.0, 4.0]))
    tensor([3., 4.])
    """
    return Pixel(_positive("pixel", shape))


def dct(*shape: int) -> Separable:
    r"""Orthonormal DCT-II on trailing axes `shape`: the eigenbasis of blur with reflected edges.

    D_kj = sqrt(2/N) cos(pi k (j + 1/2) / N), row 0 divided by sqrt(2), which diagonalises
    convolutions whose edges are half-sample symmetric, a b c | c b a. laplacian = sum over axes of
    (pi k / N)^2, the frequencies of IHDM and Blurring Diffusion.

    >>> sf.bases.dct(4).analyze(torch.ones(4))  # a constant is the first coefficient alone
    tensor([2., 0., 0., 0.])
    >>> sf.bases.dct(4).laplacian
    tensor([0.0000, 0.6169, 2.4674, 5.5517], dtype=torch.float64)

    References:
        Discrete cosine transform (N. Ahmed, T. Natarajan, K. R. Rao, 1974), https://doi.org/10.1109/T-C.1974.223784
    """
    shape = _positive("dct", shape)
    return Separable(
        _call("dct", shape), [_dct_matrix(n) for n in shape], [_ramp(n) ** 2 for n in shape]
    )


def hartley(*shape: int) -> Hartley:
    """Hartley basis on trailing axes `shape`: for noise of any spectrum, and for periodic blur.

    >>> sf.bases.hartley(4).laplacian  # of the frequencies 0, 1, -2 and -1
    tensor([0.0000, 2.4674, 9.8696, 2.4674], dtype=torch.float64)
    """
    return Hartley(_positive("hartley", shape))


def haar(*shape: int) -> Separable:
    r"""Orthonormal Haar basis on trailing axes `shape`, of any lengths: differences of halves.

    Dropping the details finer than a level leaves block averages, so a fading band is a
    downsampling. An interval of odd length splits into unequal halves, whose difference vector is
    weighted to stay orthogonal to constants. Squared frequency of a detail over an interval of m
    samples is (pi / m)^2, that of the mean 0.

    >>> sf.bases.haar(4).analyze(torch.tensor([1.0, 1.0, 3.0, 5.0]))
    tensor([ 5.0000, -3.0000,  0.0000, -1.4142])

    References:
        Zur Theorie der orthogonalen Funktionensysteme (A. Haar, 1910), https://doi.org/10.1007/BF01456326
    """
    shape = _positive("haar", shape)
    matrices, squared = zip(*(_haar_matrix(n) for n in shape), strict=True)
    return Separable(_call("haar", shape), matrices, squared)


def dense(q: Tensor, *shape: int, squared: Tensor | None = None) -> Flat:
    """A basis from an orthonormal matrix whose rows are the basis vectors.

    Args:
        q: (n, n), over trailing axes `shape` flattened (one axis by default).
        squared: n squared frequencies, for `laplacian`.

    Raises:
        ValueError: `q` has the wrong shape, or rows that are not orthonormal to 1e-6.

    >>> q = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    >>> sf.bases.dense(q).analyze(torch.tensor([3.0, 4.0]))
    tensor([5., 0.])
    """
    return Flat(q, shape or (len(q),), squared)


def _call(name: str, shape: Sequence[int]) -> str:
    return f"{name}({', '.join(map(str, shape))})"


def _positive(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if not shape or any(n < 1 for n in shape):
        raise Refused(f"{name} needs one positive length for each axis; got {tuple(shape)}.")
    return tuple(shape)


def _ramp(n: int) -> Tensor:
    return math.pi * torch.arange(n, dtype=torch.float64) / n


def _dct_matrix(n: int) -> Tensor:
    q = math.sqrt(2 / n) * torch.cos(
        _ramp(n)[:, None] * (torch.arange(n, dtype=torch.float64) + 0.5)
    )
    q[0] /= math.sqrt(2)
    return q


def _haar_matrix(n: int) -> tuple[Tensor, Tensor]:
    rows = [torch.full((n,), n**-0.5, dtype=torch.float64)]
    squared = [0.0]
    intervals = [(0, n)]
    while intervals:
        start, stop = intervals.pop(0)
        m = stop - start
        if m < 2:
            continue
        middle = start + (m + 1) // 2
        left, right = middle - start, stop - middle
        row = torch.zeros(n, dtype=torch.float64)
        row[start:middle] = math.sqrt(right / (left * m))
        row[middle:stop] = -math.sqrt(left / (right * m))
        rows.append(row)
        squared.append((math.pi / m) ** 2)
        intervals += [(start, middle), (middle, stop)]
    return torch.stack(rows), torch.tensor(squared, dtype=torch.float64)
