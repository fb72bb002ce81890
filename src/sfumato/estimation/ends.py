r"""The ends of the likelihood bound: what x_1 tells of x_0, and what x_0 costs given x at t = 0.

    -log p(x_0) <= KL(q(x_1 | x_0) || N(0, I)) + E[-log p(x_0 | z)] + diffusion,  z ~ q(x_t=0 | x_0)

The diffusion term is the loss with weight `rate`, halved; see methods.md 1.8.

References:
    Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
    https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, Operator
from sfumato.corruption.process import Process


def prior_term(process: Process, x0: Tensor) -> Tensor:
    r"""KL(N(C_1 x_0, V_1) || N(0, I)) = (|C_1 x_0|^2 + tr V_1 - n - log det V_1) / 2 in nats, (B,).

    Args:
        process: with noise on every coefficient at t = 1, diagonal in some basis.
        x0: (B, *shape) in [-1, 1].
    """
    one = torch.ones((), dtype=torch.float64)
    shape, cov = x0.shape[1:], process.cov(one)
    left = process.signal.at(one)(x0).flatten(1).square().sum(1)
    rest = _trace(cov, shape) - math.prod(shape) - cov.logdet(shape)
    return (left + rest.to(left)) / 2


def reconstruction(process: Process, x0: Tensor, eps: Tensor, bins: int) -> Tensor:
    r"""-log p(x_0 | z) in nats, (B,), for z = C_0 x_0 + S_0 eps and values on a grid of `bins`.

    Each pixel by itself: a softmax over the grid -1, ..., 1 of -(C_0^-1 z - value)^2 / 2 s^2, with
    s^2 the mean variance of C_0^-1 S_0 eps.

    Args:
        process: with signal and noise on every coefficient at t = 0, diagonal in some basis.
        x0: (B, *shape), values -1 + 2 k / (bins - 1).
        eps: standard normal, like `x0`.
        bins: number of values, 2 or more.

    Raises:
        ValueError: `x0` has other values than these.
    """
    zero, shape = torch.zeros((), dtype=torch.float64), x0.shape[1:]
    place = (x0 + 1) / 2 * (bins - 1)
    found = place.round().clamp(0, bins - 1)
    if x0.device.type == "cpu" and bool((place - found).abs().max() > 0.05):
        value = float(x0.flatten()[(place - found).abs().argmax()])
        raise ValueError(
            f"the bound needs data of {bins} evenly spaced values from -1 to 1; found {value:.4g}. "
            "Say how many there are: --bins 17 for the digits."
        )
    relative = process.signal.at(zero).inv() @ process.noise.at(zero)
    variance = (_trace(relative @ relative.T, shape) / math.prod(shape)).to(x0)
    values = torch.linspace(-1, 1, bins, dtype=x0.dtype, device=x0.device)
    seen = x0 + relative(eps)
    logits = -(seen.unsqueeze(-1) - values).square() / (2 * variance)
    chosen = found.long().unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, chosen).flatten(1).sum(1)


def _trace(cov: Operator, shape: torch.Size) -> Tensor:
    if not isinstance(cov, Diagonal):
        raise ValueError("the bound's ends need a process that is diagonal in one basis.")
    return cov.gain.expand(shape).sum()
