r"""Cold Diffusion: blur without any noise, for contrast.

x_t = C_t x_0, loss || x_0^ - x_0 ||^2 (the paper's is the absolute error). Algorithm 2 corrects by
differences, x_s = x_t - C_t x_0^ + C_s x_0^; Algorithm 1 corrupts the estimate anew. The limit of
Soft Diffusion without noise: x_1 decides everything, and nothing is drawn on the way.

References:
    Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (Arpit Bansal, Eitan Borgnia,
    Hong-Min Chu, Jie S. Li, Hamid Kazemi, Furong Huang, Micah Goldblum, Jonas Geiping, Tom
    Goldstein, 2022), https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from typing import Literal

from sfumato.algebra.basis import dct
from sfumato.corruption import coupling
from sfumato.corruption.facts import Facts, space, typical
from sfumato.corruption.families import Heat, Scale
from sfumato.corruption.prior import CorruptedData
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Geometric
from sfumato.estimation.denoise import clean
from sfumato.estimation.loss import flat
from sfumato.methods.recipe import Recipe, rising
from sfumato.names import nearest
from sfumato.sampling.kernels import reverse

ALGORITHMS = {"1": coupling.naive, "2": coupling.cold}


def cold(
    shape: tuple[int, ...],
    facts: Facts | None = None,
    *,
    blur: tuple[float, float] = (0.005, 0.36),
    algorithm: Literal["1", "2"] = "2",
    memory: int = 2048,
    steps: int = 100,
) -> Recipe:
    """Cold Diffusion: blur without any noise, for contrast.

    Args:
        shape: of one signal, (C, *space) or (n,).
        facts: what is known of the data; a 1/f^2 spectrum where nothing is.
        blur: smallest and largest width as a fraction of the longest side, geometric between them
            and none at t = 0, as in soft.
        algorithm: of the sampler: 2 corrects by differences, 1 corrupts the estimate anew.
        memory: training images whose low frequencies start the sampler, 1 or more.
        steps: steps of the sampler.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(nearest("algorithm", algorithm, ALGORITHMS))
    rising("blur", blur)
    facts, longest = facts or typical(shape), max(space(shape))
    width = Geometric(blur[0] * longest, blur[1] * longest, zero_at_start=True)
    process = Process(signal=Heat(width, dct(*space(shape))), noise=Scale(Constant(0.0)))
    prior = CorruptedData(facts.remembering(memory), process)
    kernel = reverse(ALGORITHMS[algorithm])
    return Recipe(process, clean, flat, kernel, prior, __doc__ or "", steps=steps)
