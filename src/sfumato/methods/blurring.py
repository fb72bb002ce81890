r"""Blurring Diffusion: a variance-preserving process whose signal also blurs, noise prediction.

q(x_t | x_0) = N(a_t D_t x_0, sigma_t^2 I) with a_t^2 + sigma_t^2 = 1 of cosine log-SNR and D_t =
(1 - floor) exp(-Laplacian b_t^2 / 2) + floor in the DCT basis, b_t = b_max sin^2(pi t / 2); loss
|| eps^ - eps ||^2, ancestral sampler. With no blur it is cosine DDPM in continuous time.

References:
    Blurring Diffusion Models (Emiel Hoogeboom, Tim Salimans, 2022),
    https://arxiv.org/abs/2209.05557
"""

from __future__ import annotations

from sfumato.algebra.basis import dct
from sfumato.corruption.coupling import ancestral
from sfumato.corruption.families import Heat, Scale
from sfumato.corruption.prior import standard
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement, CosineSNR, Sine
from sfumato.corruption.statistics import DataStatistics, space
from sfumato.errors import Refused
from sfumato.estimation.loss import simple
from sfumato.estimation.predictions import noise
from sfumato.methods.recipe import Recipe
from sfumato.sampling.kernels import reverse
from sfumato.sampling.samplers import Sampler


def blurring(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    blur: float = 0.625,
    floor: float = 0.001,
    logsnr: tuple[float, float] = (10.0, -10.0),
    steps: int = 1000,
) -> Recipe:
    """Blurring Diffusion: fading signal that also blurs, white noise, noise prediction.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: not used.
        blur: largest width as a fraction of the longest side; the paper's 20 px of 32 is 0.625.
        floor: smallest gain of a frequency under blur, the paper's d_min.
        logsnr: log-SNR of the unblurred signal at both ends of time.
        steps: steps of the ancestral sampler; the deterministic one is the kernel ddim.
    """
    if blur < 0:
        raise Refused(f"blur must be 0 or more; got {blur:g}.")
    power = CosineSNR(*logsnr)
    heat = Heat(Sine(blur * max(space(shape))), dct(*space(shape)), floor)
    process = Process(signal=heat @ Scale(Amplitude(power)), noise=Scale(Complement(power)))
    sampler = Sampler(reverse(ancestral), steps)
    prior = standard(process, shape)
    return Recipe(process, noise, simple, sampler, prior, __doc__ or "")
