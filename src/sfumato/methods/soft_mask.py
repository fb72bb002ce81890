r"""Soft Diffusion by fading masks: a hole grows over the image, with little noise.

q(x_t | x_0) = N(C_t x_0, sigma_t^2 S S^T), C_t = exp(-rate_p a_t) for pixel p: the rate is 1 at the
hole's centre and falls to `edge` far from it. The centre is the image's, or drawn for each image
and given to the network. Soft score matching and momentum sampler as in soft. The paper's masks
could not be found; the gains of these stay above zero until noise dominates, so that no pixel has
to be restored from a gain of zero.

References:
    Soft Diffusion: Score Matching for General Corruptions (Giannis Daras, Mauricio Delbracio,
    Hossein Talebi, Alexandros G. Dimakis, Peyman Milanfar, 2022), https://arxiv.org/abs/2209.05442
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.algebra.basis import pixel
from sfumato.algebra.place import Placed, double, sent
from sfumato.corruption.coupling import momentum
from sfumato.corruption.families import Damp
from sfumato.corruption.prior import RandnLike, fitted
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Geometric
from sfumato.corruption.statistics import DataStatistics, default_statistics, space
from sfumato.errors import Refused
from sfumato.estimation.loss import simple
from sfumato.estimation.predictions import residual
from sfumato.methods.recipe import Context, Recipe
from sfumato.methods.soft import little_noise
from sfumato.sampling.kernels import reverse
from sfumato.sampling.samplers import Sampler

DEPTH = 7.0
"""-log of the gain of the slowest pixel at t = 1: e^-7 is a thousandth."""


def soft_mask(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
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
        stats: statistics of the data; by default a 1/f^2 spectrum.
        radius: standard deviation of the hole's Gaussian, as a fraction of the longest side.
        edge: rate far from the hole, in (0, 1); 1 / edge is how much faster the centre fades.
        sigma: smallest and largest noise for data in [0, 1], the paper's units.
        knee: time from which the noise is constant at its largest.
        wander: draw the hole's centre for each image, and give it to the network.
        noise: white, power (a free field), data (its spectrum), or a covariance's .npy file.
        steps: steps of the sampler.
    """
    if not radius > 0 or not 0 < edge < 1:
        raise Refused(
            f"the mask needs a positive radius and an edge in (0, 1); got {radius:g}, {edge:g}."
        )
    stats = stats or default_statistics(shape)
    sides = space(shape)
    basis = pixel(*sides)
    depth = DEPTH / edge
    fade = Geometric(0.01, depth, zero_at_start=True)
    grow = little_noise(shape, stats, sigma, knee, noise)

    axes = [torch.arange(n, dtype=torch.float64) + 0.5 for n in sides]
    places = Placed(torch.stack(torch.meshgrid(*axes, indexing="ij")))
    lengths = Placed(torch.tensor(sides, dtype=torch.float64))

    def rates(centre: Tensor) -> Tensor:
        """(B, axes) in [0, 1] -> (B, 1, *space)."""
        scaled = double(centre) * lengths.on(centre.device)
        away = places.on(centre.device) - scaled.reshape(*scaled.shape, *(1,) * len(sides))
        near = torch.exp(-away.square().sum(1, keepdim=True) / (2 * (radius * max(sides)) ** 2))
        return edge + (1 - edge) * near

    def process(context: Tensor) -> Process:
        return Process(Damp(fade, context, basis), grow)

    def draw(like: Tensor, randn_like: RandnLike) -> Tensor:
        drawn = randn_like(like.flatten(1)[:, : len(sides)])
        return sent(rates(torch.special.ndtr(drawn)), like)

    middle = Process(Damp(fade, rates(torch.full((1, len(sides)), 0.5))[0, 0], basis), grow)
    return Recipe(
        middle,
        residual,
        simple,
        Sampler(reverse(momentum), steps),
        fitted(stats, middle),
        __doc__ or "",
        context=Context(1, draw, process) if wander else None,
        own_noise=True,
    )
