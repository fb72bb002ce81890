r"""Soft Diffusion by downsampling: bands of frequencies fade, the finest first, with little noise.

q(x_t | x_0) = N(C_t x_0, sigma_t^2 S S^T) with C_t = exp(-(|frequency| w_t)^p) in the Haar or the
DCT basis: block averages of growing blocks, or a low-pass of falling width. Soft score matching and
momentum sampler as in soft. The paper names blur and masks; this path is ours.

References:
    Soft Diffusion: Score Matching for General Corruptions (Giannis Daras, Mauricio Delbracio,
    Hossein Talebi, Alexandros G. Dimakis, Peyman Milanfar, 2022), https://arxiv.org/abs/2209.05442
"""

from __future__ import annotations

from typing import Literal

from sfumato.algebra.basis import dct, haar
from sfumato.corruption.colours import colour
from sfumato.corruption.coupling import momentum
from sfumato.corruption.facts import Facts, space, typical
from sfumato.corruption.families import Damp, Fixed, Scale
from sfumato.corruption.prior import CorruptedData
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.estimation.denoise import residual
from sfumato.estimation.loss import simple
from sfumato.methods.recipe import Recipe, rising
from sfumato.names import nearest
from sfumato.sampling.kernels import reverse

BANDS = {"haar": haar, "dct": dct}


def soft_down(
    shape: tuple[int, ...],
    facts: Facts | None = None,
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
        facts: what is known of the data; a 1/f^2 spectrum where nothing is.
        bands: of Haar (block averages) or of the DCT (low-pass).
        scale: smallest and largest scale as a fraction of the longest side, geometric between them
            and none at t = 0: a frequency f fades as exp(-(f scale)^sharpness).
        sharpness: 1 or more; 2 is a blur, larger ones fade one band after another.
        sigma: smallest and largest noise for data in [0, 1], the paper's units; more than a blur's,
            since a whole band has to come out of it at once.
        knee: time from which the noise stays at its largest.
        noise: white, power (a free field), data, or a covariance's .npy file.
        steps: steps of the sampler.
    """
    if bands not in BANDS:
        raise ValueError(nearest("bands", bands, BANDS))
    rising("scale", scale)
    facts, longest = facts or typical(shape), max(space(shape))
    basis = BANDS[bands](*space(shape))
    path = Geometric(scale[0] * longest, scale[1] * longest, zero_at_start=True)
    low, high = rising("sigma", sigma, 2.0)  # data span [-1, 1] here, [0, 1] in the paper
    signal = Damp(path, basis.laplacian.sqrt(), basis, sharpness)
    grow = Scale(Geometric(low, high, until=knee))
    grow = grow if noise == "white" else grow @ Fixed(colour(noise, shape, facts))
    process = Process(signal, grow)
    kernel, prior = reverse(momentum), CorruptedData(facts, process)
    about = __doc__ or ""
    return Recipe(process, residual, simple, kernel, prior, about, steps=steps, own_noise=True)
