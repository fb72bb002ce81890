r"""A colour is the symmetric root S of a noise covariance S S^T of unit mean power.

    x -> S eps,    trace(S S^T) = n

White is the identity; others are diagonal in a basis of frequencies, or a user-defined matrix.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sfumato import arrays
from sfumato.algebra.basis import hartley
from sfumato.algebra.operators import Dense, Diagonal, Operator, identity
from sfumato.corruption.statistics import DataStatistics, space
from sfumato.errors import Refused, reason

FLOOR = 1e-3
"""Smallest power of a coefficient under `measured`, as a share of the mean power."""


def power_law(shape: tuple[int, ...], exponent: float = 1.0, dc: float = 1.0) -> Diagonal:
    r"""Gains |k|^-exponent on the frequencies of the image, periodic, diagonal in `hartley`.

    exponent 1 on two axes is the Gaussian free field of non-isotropic DDPM; pixels have unit
    variance. k is in cycles per pixel, so that a colour is isotropic; the paper's is in cycles per
    image, which is the same on squares and otherwise differs by the ratio of sides.

    Args:
        shape: of one signal, (C, *space) or (n,).
        exponent: of the gain (the power falls as |k|^-2 exponent).
        dc: gain at frequency 0, where |k|^-exponent has none, in units of that at the lowest other
            frequency. It must not be 0: constant images would not be corrupted.

    Raises:
        ValueError: `dc` is not positive.

    >>> colour = sf.colours.power_law((1, 16, 16))
    >>> colour.gain.amax() / colour.gain.amin()  # of the lowest and the highest frequency
    tensor(11.3137, dtype=torch.float64)
    >>> round(float((colour.gain**2).mean()), 6)
    1.0

    References:
        Score-based Denoising Diffusion with Non-Isotropic Gaussian Noise Models (V. Voleti, C. Pal,
        A. Oberman, 2022), https://arxiv.org/abs/2210.12254
    """
    if not dc > 0:
        raise Refused(f"the noise needs a gain above 0 at frequency 0; got dc={dc:g}.")
    basis = hartley(*space(shape))
    squared = basis.laplacian
    steady = squared == 0
    lowest = squared[~steady].min() if squared.numel() > 1 else torch.ones(()).double()
    log_gain = -exponent / 2 * torch.where(steady, lowest, squared).log()
    log_gain = torch.where(steady, log_gain + torch.tensor(dc).double().log(), log_gain)
    return Diagonal(_unit(log_gain), None, basis)


def measured(stats: DataStatistics) -> Diagonal:
    """Noise with the data's spectrum, averaged over channels; diagonal in the DCT basis.

    Powers below FLOOR of their mean are raised to it, so that all coefficients are corrupted.

    >>> stats = sf.load("digits").stats()
    >>> colour = sf.colours.measured(stats)
    >>> colour.basis, round(float((colour.gain**2).mean()), 6)
    (dct(8, 8), 1.0)
    """
    power = stats.spectrum.mean(0) if stats.spectrum.ndim > 1 else stats.spectrum
    return Diagonal(
        _unit(power.clamp(min=FLOOR * float(power.mean())).log() / 2), None, stats.basis
    )


def covariance(path: str | Path, shape: tuple[int, ...]) -> Dense:
    """The root of a covariance in a `.npy` file, (n, n), scaled to unit mean power.

    n is the number of pixels of a channel, or of the whole signal.

    Raises:
        ValueError: the file cannot be read, or holds no covariance of this size.

    >>> import numpy as np
    >>> np.save("cov.npy", np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> root = sf.colours.covariance("cov.npy", (2,))
    >>> (root @ root).matrix((2,))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]], dtype=torch.float64)
    """
    try:
        found = arrays.read(path)
        if isinstance(found, arrays.Packed):
            raise Refused("it is a .npz")
        values = torch.from_numpy(found).to(torch.float64)
    except (ValueError, TypeError) as error:
        raise Refused(f"{path} holds no covariance: {reason(error)}.") from error
    sizes = {torch.Size(axes).numel(): axes for axes in (shape, space(shape))}
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) not in sizes:
        wanted = " or ".join(f"({n}, {n})" for n in sorted(sizes))
        raise Refused(f"{path} must be {wanted}; got {tuple(values.shape)}.")
    return Dense(values / values.diagonal().mean(), sizes[len(values)]).sqrt()


def colour(
    name: str, shape: tuple[int, ...], stats: DataStatistics, exponent: float = 1.0, dc: float = 1.0
) -> Operator:
    """The colour named `name` on the command line.

    Args:
        name: white, power (see `power_law`), data (see `measured`), or the path of a covariance.

    Raises:
        ValueError: there is no colour of this name.

    >>> stats = sf.statistics.default_statistics((1, 8, 8))
    >>> sf.colours.colour("power", (1, 8, 8), stats)
    Diagonal(hartley(8, 8), log_gain (8, 8))
    >>> sf.colours.colour("pink", (1, 8, 8), stats)
    Traceback (most recent call last):
    ...
    sfumato.errors.Refused: no noise 'pink'; choose white, power, data, ...
    """
    if name == "white":
        return identity()
    if name == "power":
        return power_law(shape, exponent, dc)
    if name == "data":
        return measured(stats)
    if name.endswith(".npy"):
        return covariance(name, shape)
    raise Refused(f"no noise '{name}'; choose white, power, data, or a covariance's .npy file.")


def _unit(log_gain: Tensor) -> Tensor:
    """The same gains, with a mean square of 1."""
    return log_gain - log_gain.mul(2).exp().mean().log() / 2
