r"""Soft Diffusion: heat blur with little noise, soft score matching, momentum sampler.

q(x_t | x_0) = N(C_t x_0, sigma_t^2 I), C_t = exp(-Laplacian b_t^2 / 2) in the DCT basis; the loss
is || C_t (x_0^ - x_0) ||^2 / sigma_t^2 and the network predicts the residual x_0 - x_t.

References:
    Soft Diffusion: Score Matching for General Corruptions (Giannis Daras, Mauricio Delbracio,
    Hossein Talebi, Alexandros G. Dimakis, Peyman Milanfar, 2022), https://arxiv.org/abs/2209.05442
    Elucidating the Design Space of Diffusion-Based Generative Models (Tero Karras, Miika Aittala,
    Timo Aila, Samuli Laine, 2022), https://arxiv.org/abs/2206.00364 (preconditioning)
"""

from __future__ import annotations

from typing import Literal

from sfumato.algebra.basis import dct
from sfumato.algebra.operators import scaled
from sfumato.corruption.colours import colour
from sfumato.corruption.coupling import momentum
from sfumato.corruption.families import Family, Fixed, Heat, Scale
from sfumato.corruption.prior import CorruptedData, fitted
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.corruption.statistics import DataStatistics, default_statistics, space
from sfumato.errors import Refused
from sfumato.estimation.loss import simple, unit_target
from sfumato.estimation.predictions import residual, wiener
from sfumato.methods.recipe import Recipe, rising
from sfumato.names import choose
from sfumato.sampling.kernels import reverse
from sfumato.sampling.samplers import Sampler

ASSUMED = {"wiener": lambda stats: scaled(0.25), "spectrum": DataStatistics.power}
PREDICTIONS = ("residual", *ASSUMED)


def soft(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    blur: tuple[float, float] = (0.005, 0.36),
    sigma: tuple[float, float] = (0.01, 0.1),
    knee: float = 0.25,
    noise: str = "white",
    prediction: Literal["residual", "wiener", "spectrum"] = "residual",
    memory: int = 2048,
    steps: int = 100,
) -> Recipe:
    """Soft Diffusion: blur with little noise, soft score matching, momentum sampler.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: statistics of the data; by default a 1/f^2 spectrum.
        blur: smallest and largest width of the blur as a fraction of the longest side. The paper's
            23 px of 64 is 0.36. Geometric between them and none at t = 0.
        sigma: smallest and largest noise for data in [0, 1], the paper's units.
        knee: time from which the noise is constant at its largest.
        noise: white, power (a free field), data (its spectrum), or a covariance's .npy file.
        prediction: of the network: the residual x_0 - x_t with the soft loss over sigma_t^2, as
            published; or the scaled error of a Wiener filter, for white data of standard deviation
            1/2 (wiener) or for the data's measured spectrum (spectrum), with targets and losses of
            unit variance (EDM's preconditioning, for each frequency).
        memory: training images whose low frequencies start the sampler; 0 fits a Gaussian instead.
        steps: steps of the sampler.
    """
    choose("prediction", prediction, PREDICTIONS)
    if memory < 0:
        raise Refused(f"memory must be 0 or more; got {memory}.")
    rising("blur", blur)
    stats = stats or default_statistics(shape)
    longest = max(space(shape))
    width = Geometric(blur[0] * longest, blur[1] * longest, zero_at_start=True)
    heat = Heat(width, dct(*space(shape)))
    process = Process(signal=heat, noise=little_noise(shape, stats, sigma, knee, noise))
    remembered = stats.remembering(memory) if memory else None
    prior = fitted(stats, process) if remembered is None else CorruptedData(remembered, process)
    output = residual
    weighting = simple
    if prediction in ASSUMED:
        output = wiener(ASSUMED[prediction](stats))
        weighting = unit_target(output)
    about = __doc__ or ""
    sampler = Sampler(reverse(momentum), steps)
    return Recipe(process, output, weighting, sampler, prior, about, own_noise=True)


def little_noise(
    shape: tuple[int, ...],
    stats: DataStatistics,
    sigma: tuple[float, float],
    knee: float,
    noise: str,
) -> Family:
    """The noise of the soft methods: sigma_t geometric up to `knee`, times the root of a colour.

    `sigma` is for data in [0, 1], the paper's units.
    """
    low, high = rising("sigma", sigma, 2.0)  # data span [-1, 1] here, [0, 1] in the paper
    level = Scale(Geometric(low, high, until=knee))
    return level if noise == "white" else level @ Fixed(colour(noise, shape, stats))
