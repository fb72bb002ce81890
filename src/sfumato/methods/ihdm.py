r"""IHDM: heat blur with a trace of noise, estimates of the next less blurred image.

q(x_k | x_0) = N(F_k x_0, sigma^2 I), F_k = exp(-Laplacian b_k^2 / 2) in the DCT basis, k = 1 .. K;
the network predicts F_{k-1} x_0 - x_k, loss || F_{k-1} x_0 - (x_k + f) ||^2; the sampler sets
x_{k-1} = x_k + f + delta z, and returns its last mean. It is defined at its own levels alone.

References:
    Generative Modelling with Inverse Heat Dissipation (Severi Rissanen, Markus Heinonen, Arno
    Solin, 2022), https://arxiv.org/abs/2206.13397
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.algebra.basis import dct
from sfumato.algebra.operators import Operator
from sfumato.corruption import coupling
from sfumato.corruption.families import Heat, Scale
from sfumato.corruption.prior import CorruptedData
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Table
from sfumato.corruption.statistics import DataStatistics, default_statistics, space
from sfumato.errors import Refused
from sfumato.estimation.loss import level_times
from sfumato.estimation.predictions import previous
from sfumato.limits import STEPS, whole
from sfumato.methods.recipe import Recipe
from sfumato.methods.spacing import every
from sfumato.sampling.kernels import reverse
from sfumato.sampling.likelihood import Evidence
from sfumato.sampling.samplers import Sampler


def ihdm(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    count: int = 200,
    blur: tuple[float, float] = (0.5, 0.75),
    sigma: float = 0.01,
    delta: float = 0.0125,
    memory: int = 2048,
) -> Recipe:
    """IHDM: heat blur with a trace of noise, estimates of the next less blurred image.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: statistics of the data; by default a 1/f^2 spectrum.
        count: K, the number of levels of blur and of steps of the sampler, which takes no other.
        blur: width of the first level in pixels, and of the last as a fraction of the longest side
            (the paper's 24 px of 32 is 0.75); geometric between, and none at level 0.
        sigma: noise in training for data in [0, 1], the paper's units.
        delta: noise in sampling, likewise.
        memory: training images whose low frequencies start the sampler, 1 or more.
    """
    first, last = blur[0], blur[1] * max(space(shape))
    if count < 2 or not 0 < first < last:
        raise Refused(
            f"ihdm needs two levels or more, from a small to a large blur; got {count} levels, "
            f"{first:g} to {last:g} pixels."
        )
    stats = stats or default_statistics(shape)
    whole("count", count, 2, STEPS)
    widths = torch.logspace(0, 1, count, base=last / first, dtype=torch.float64) * first
    nodes = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    path = Table(nodes, torch.cat([torch.zeros(1), widths]))
    noise, fresh = 2 * sigma, 2 * delta  # data span [-1, 1] here, [0, 1] in the paper
    process = Process(signal=Heat(path, dct(*space(shape))), noise=Scale(Constant(noise)))
    estimated = previous(count)

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        """W = F_{k-1}: the error of the next image itself."""
        return estimated(process, t).of

    step = coupling.ihdm(fresh)
    return Recipe(
        process,
        estimated,
        weighting,
        Sampler(reverse(step), count, every(count)),
        CorruptedData(stats.remembering(memory), process),
        __doc__ or "",
        times=level_times(count),
        fixed=True,
        evidence=Evidence(coupling.naive, step),
    )
