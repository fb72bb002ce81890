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
from sfumato.corruption.facts import Facts, space, typical
from sfumato.corruption.families import Fixed, Heat, Scale
from sfumato.corruption.prior import CorruptedData, fitted
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.estimation.denoise import residual, wiener
from sfumato.estimation.loss import simple, unit
from sfumato.methods.recipe import Recipe, rising
from sfumato.names import nearest
from sfumato.sampling.kernels import reverse

ASSUMED = {"wiener": lambda facts: scaled(0.25), "spectrum": Facts.power}
PREDICTIONS = ("residual", *ASSUMED)


def soft(
    shape: tuple[int, ...],
    facts: Facts | None = None,
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
        facts: what is known of the data; a 1/f^2 spectrum where nothing is.
        blur: smallest and largest width of the blur as a fraction of the longest side. The paper's
            23 px of 64 is 0.36. Geometric between them and none at t = 0.
        sigma: smallest and largest noise for data in [0, 1], the paper's units.
        knee: time from which the noise stays at its largest.
        noise: white, power (a free field), data (its spectrum), or a covariance's .npy file.
        prediction: of the network: the residual x_0 - x_t with the soft loss over sigma_t^2, as
            published; or what a Wiener filter leaves, for white data of deviation 1/2 (wiener) or
            for the data's measured spectrum, with targets and losses of unit size (EDM's
            preconditioning, for each frequency).
        memory: training images whose low frequencies start the sampler; 0 fits a Gaussian instead.
        steps: steps of the sampler.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(nearest("prediction", prediction, PREDICTIONS))
    if memory < 0:
        raise ValueError(f"memory must be 0 or more; got {memory}.")
    rising("blur", blur)
    facts = facts or typical(shape)
    longest = max(space(shape))
    low, high = rising("sigma", sigma, 2.0)  # data span [-1, 1] here, [0, 1] in the paper
    width = Geometric(blur[0] * longest, blur[1] * longest, zero_at_start=True)
    grow = Scale(Geometric(low, high, until=knee))
    grow = grow if noise == "white" else grow @ Fixed(colour(noise, shape, facts))
    process = Process(signal=Heat(width, dct(*space(shape))), noise=grow)
    remembered = facts.remembering(memory) if memory else None
    prior = fitted(facts, process) if remembered is None else CorruptedData(remembered, process)
    output, weighting = residual, simple
    if prediction in ASSUMED:
        output = wiener(ASSUMED[prediction](facts))
        weighting = unit(output)
    about = __doc__ or ""
    kernel = reverse(momentum)
    return Recipe(process, output, weighting, kernel, prior, about, steps=steps, own_noise=True)
