r"""Soft Diffusion by fading masks: a hole grows over the image, with little noise.

q(x_t | x_0) = N(C_t x_0, sigma_t^2 S S^T), C_t = exp(-rate_p a_t) for pixel p: the rate is 1 at the
hole's centre and falls to `edge` far from it. The centre is the image's, or drawn for each image
and told to the network. Soft score matching and momentum sampler as in soft. The paper's masks were
not found; these never reach zero before noise hides them, so that nothing is repainted from a
weight of zero.

References:
    Soft Diffusion: Score Matching for General Corruptions (Giannis Daras, Mauricio Delbracio,
    Hossein Talebi, Alexandros G. Dimakis, Peyman Milanfar, 2022), https://arxiv.org/abs/2209.05442
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.algebra.basis import pixel
from sfumato.corruption.colours import colour
from sfumato.corruption.coupling import momentum
from sfumato.corruption.facts import Facts, space, typical
from sfumato.corruption.families import Damp, Fixed, Scale
from sfumato.corruption.prior import RandnLike, fitted
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.estimation.denoise import residual
from sfumato.estimation.loss import simple
from sfumato.methods.recipe import Context, Recipe, rising
from sfumato.sampling.kernels import reverse

DEPTH = 7.0
"""Depth to which the slowest pixel has faded at t = 1: e^-7, a thousandth."""


def soft_mask(
    shape: tuple[int, ...],
    facts: Facts | None = None,
    *,
    radius: float = 0.25,
    edge: float = 0.1,
    sigma: tuple[float, float] = (0.01, 0.1),
    knee: float = 0.25,
    wander: bool = False,
    noise: str = "white",
    steps: int = 100,
) -> Recipe:
    """Soft Diffusion by fading masks: a hole grows over the image, with little noise.

    Args:
        shape: of one signal, (C, *space) or (n,).
        facts: what is known of the data; a 1/f^2 spectrum where nothing is.
        radius: deviation of the hole's rates as a fraction of the longest side.
        edge: rate far from the hole, in (0, 1); 1 / edge is how much faster the centre fades.
        sigma: smallest and largest noise for data in [0, 1], the paper's units.
        knee: time from which the noise stays at its largest.
        wander: draw the hole's centre anew for each image, and tell the network where it is.
        noise: white, power (a free field), data (its spectrum), or a covariance's .npy file.
        steps: steps of the sampler.
    """
    if not radius > 0 or not 0 < edge < 1:
        raise ValueError(
            f"the mask needs a positive radius and an edge in (0, 1); got {radius:g}, {edge:g}."
        )
    low, high = rising("sigma", sigma, 2.0)  # data span [-1, 1] here, [0, 1] in the paper
    facts, sides = facts or typical(shape), space(shape)
    basis = pixel(*sides)
    depth = DEPTH / edge
    fade = Geometric(0.01, depth, zero_at_start=True)
    grow = Scale(Geometric(low, high, until=knee))
    grow = grow if noise == "white" else grow @ Fixed(colour(noise, shape, facts))

    def rates(centre: Tensor) -> Tensor:
        """(B, axes) in [0, 1] -> (B, 1, *space)."""
        axes = [torch.arange(n, dtype=torch.float64) + 0.5 for n in sides]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        scaled = centre.double() * torch.tensor(sides, dtype=torch.float64)
        away = grid - scaled.reshape(*scaled.shape, *(1,) * len(sides))
        near = torch.exp(-away.square().sum(1, keepdim=True) / (2 * (radius * max(sides)) ** 2))
        return edge + (1 - edge) * near

    def process(context: Tensor) -> Process:
        return Process(Damp(fade, context.cpu().double(), basis), grow)

    def draw(like: Tensor, randn_like: RandnLike) -> Tensor:
        drawn = randn_like(like.flatten(1)[:, : len(sides)]).cpu()
        return rates(torch.special.ndtr(drawn)).to(like.dtype).to(like.device)

    middle = Process(Damp(fade, rates(torch.full((1, len(sides)), 0.5))[0, 0], basis), grow)
    return Recipe(
        middle,
        residual,
        simple,
        reverse(momentum),
        fitted(facts, middle),
        __doc__ or "",
        steps=steps,
        context=Context(1, draw, process) if wander else None,
        own_noise=True,
    )
