r"""Cold Diffusion: blur without any noise, for contrast.

x_t = C_t x_0, loss || x_0^ - x_0 ||^2 (the paper's is the absolute error). Algorithm 2 corrects by
differences, x_s = x_t - C_t x_0^ + C_s x_0^; Algorithm 1 corrupts the estimate again. It is the
limit of Soft Diffusion without noise: a sample is a deterministic function of x_1.

References:
    Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Arpit Bansal, Eitan Borgnia,
    Hong-Min Chu, Jie S. Li, Hamid Kazemi, Furong Huang, Micah Goldblum, Jonas Geiping, Tom
    Goldstein, 2022), https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from typing import Literal

from sfumato.algebra.basis import dct
from sfumato.corruption import coupling
from sfumato.corruption.families import Heat, Scale
from sfumato.corruption.prior import CorruptedData
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Geometric
from sfumato.corruption.statistics import DataStatistics, default_statistics, space
from sfumato.estimation.loss import unweighted
from sfumato.estimation.predictions import x0
from sfumato.methods.recipe import Recipe, rising
from sfumato.names import choose
from sfumato.sampling.kernels import reverse
from sfumato.sampling.samplers import Sampler

ALGORITHMS = {"1": coupling.naive, "2": coupling.cold}


def cold(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    blur: tuple[float, float] = (0.005, 0.36),
    algorithm: Literal["1", "2"] = "2",
    memory: int = 2048,
    steps: int = 100,
) -> Recipe:
    """Cold Diffusion: blur without any noise, for contrast.

    Args:
        shape: of one signal, (C, *space) or (n,).
        stats: statistics of the data; by default a 1/f^2 spectrum.
        blur: smallest and largest width as a fraction of the longest side, geometric between them
            and none at t = 0, as in soft.
        algorithm: of the sampler: 2 corrects by differences, 1 corrupts the estimate again.
        memory: training images whose low frequencies start the sampler, 1 or more.
        steps: steps of the sampler.
    """
    step = choose("algorithm", algorithm, ALGORITHMS)
    rising("blur", blur)
    stats = stats or default_statistics(shape)
    longest = max(space(shape))
    width = Geometric(blur[0] * longest, blur[1] * longest, zero_at_start=True)
    process = Process(signal=Heat(width, dct(*space(shape))), noise=Scale(Constant(0.0)))
    prior = CorruptedData(stats.remembering(memory), process)
    sampler = Sampler(reverse(step), steps)
    return Recipe(process, x0, unweighted, sampler, prior, __doc__ or "")
