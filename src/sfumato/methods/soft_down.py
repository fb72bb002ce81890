r"""Soft Diffusion by downsampling: bands of frequencies fade, the finest first, with little noise.

q(x_t | x_0) = N(C_t x_0, sigma_t^2 S S^T) with C_t = exp(-(|frequency| w_t)^p) in the Haar or the
DCT basis: block averages of growing blocks, or a low-pass of falling width. Soft score matching and
momentum sampler as in soft. The paper treats blur and masks; downsampling is not from the paper.

References:
    Soft Diffusion: Score Matching for General Corruptions (Giannis Daras, Mauricio Delbracio,
    Hossein Talebi, Alexandros G. Dimakis, Peyman Milanfar, 2022), https://arxiv.org/abs/2209.05442
"""

from __future__ import annotations

from typing import Literal

from sfumato.algebra.basis import dct, haar
from sfumato.corruption.coupling import momentum
from sfumato.corruption.families import Damp
from sfumato.corruption.prior import CorruptedData
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.corruption.statistics import DataStatistics, default_statistics, space
from sfumato.estimation.loss import simple
from sfumato.estimation.predictions import residual
from sfumato.methods.recipe import Recipe, rising
from sfumato.methods.soft import little_noise
from sfumato.names import choose
from sfumato.sampling.kernels import reverse
from sfumato.sampling.samplers import Sampler

BANDS = {"haar": haar, "dct": dct}


def soft_down(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    bands: Literal["haar", "dct"] = "haar",
    scale: tuple[float, float] = (0.005, 0.36),
    sharpness: float = 2.0,
    sigma: tuple[float, float] = (0.01, 0.3),
    knee: float = 0.25,
    noise: str = "white",
    steps: int = 100,
) -> Recipe:
    """Soft Diffusion by downsampling: bands of frequencies fade, the finest first.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: statistics of the data; by default a 1/f^2 spectrum.
        bands: of Haar (block averages) or of the DCT (low-pass).
        scale: smallest and largest scale as a fraction of the longest side, geometric between them
            and none at t = 0: a frequency f fades as exp(-(f scale)^sharpness).
        sharpness: 1 or more; 2 is a blur, larger ones fade one band after another.
        sigma: smallest and largest noise for data in [0, 1], the paper's units; more than a blur's,
            since a whole band is restored from it at once.
        knee: time from which the noise is constant at its largest.
        noise: white, power (a free field), data, or a covariance's .npy file.
        steps: steps of the sampler.
    """
    rising("scale", scale)
    stats = stats or default_statistics(shape)
    longest = max(space(shape))
    basis = choose("bands", bands, BANDS)(*space(shape))
    path = Geometric(scale[0] * longest, scale[1] * longest, zero_at_start=True)
    signal = Damp(path, basis.laplacian.sqrt(), basis, sharpness)
    process = Process(signal, little_noise(shape, stats, sigma, knee, noise))
    sampler = Sampler(reverse(momentum), steps)
    prior = CorruptedData(stats, process)
    return Recipe(process, residual, simple, sampler, prior, __doc__ or "", own_noise=True)
