r"""The ends of the likelihood bound: the prior term at t = 1 and the reconstruction at t = 0.

    -log p(x_0) <= KL(q(x_1 | x_0) || N(0, I)) + E[-log p(x_0 | z)] + diffusion,  z ~ q(x_t=0 | x_0)

The diffusion term is the loss with weight `rate`, halved; see
docs/mathematics.md, "Objectives and the bound".

References:
    Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
    https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, Operator, identity
from sfumato.algebra.place import seen
from sfumato.corruption.boundary import time
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser


def prior_term(
    process: Process, x0: Tensor, mean: Tensor | None = None, cov: Operator | None = None
) -> Tensor:
    r"""KL(N(C_1 x_0, V_1) || N(m, P)) in nats, (B,).

    (|P^-1/2 (C_1 x_0 - m)|^2 + tr P^-1 V_1 - n - log det P^-1 V_1) / 2.

    Args:
        process: with noise on every coefficient at t = 1, diagonal in some basis.
        x0: (B, *shape) in [-1, 1].
        mean: m, 0 by default.
        cov: P, the identity by default, diagonal in the same basis.
    """
    one = time(1.0, x0)
    shape = x0.shape[1:]
    at = process.signal.at(one)(x0)
    back = identity() if cov is None else cov.inv()
    relative = back @ process.cov(one)
    off = at if mean is None else at - mean.to(at)
    left = (off * back(off)).flatten(1).sum(1)
    rest = _trace(relative, shape) - math.prod(shape) - relative.logdet(shape)
    return (left + rest.to(left)) / 2


def discretised(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, deviation: Tensor, bins: int
) -> Tensor:
    r"""-log p(x_0 | x_t) in nats, (B,): N(x_0^, deviation^2) integrated over each value's cell.

    The first and last cells are open, as in DDPM.

    Args:
        denoiser: the estimate.
        x0: (B, *shape), values -1 + 2 k / (bins - 1).
        eps: standard normal, like `x0`: the noise of x_t.
        t: () in (0, 1].
        deviation: (), standard deviation of p.
        bins: number of values, 2 or more.

    Raises:
        ValueError: `x0` has other values than these.

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020), Eq. 13,
        https://arxiv.org/abs/2006.11239
    """
    k = _cells(x0, bins)
    mean = denoiser(denoiser.process.corrupt(x0, t, eps), t).mean.double()
    half = 1 / (bins - 1)
    off = x0.double() - mean
    scale = deviation.to(off.device)
    inf = torch.full_like(off, math.inf)
    above = torch.where(k == bins - 1, inf, (off + half) / scale)
    below = torch.where(k == 0, -inf, (off - half) / scale)
    # The tail where both ends are negative is the precise one.
    swap = below > 0
    above, below = torch.where(swap, -below, above), torch.where(swap, -above, below)
    top, low = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    return -(top + torch.log1p(-(low - top).exp())).flatten(1).sum(1)


def softmax(
    denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, deviation: Tensor, bins: int
) -> Tensor:
    """`reconstruction` as a decoder: VDM's, which does not use the network."""
    return reconstruction(denoiser.process, x0, eps, bins)


def reconstruction(process: Process, x0: Tensor, eps: Tensor, bins: int) -> Tensor:
    r"""-log p(x_0 | z) in nats, (B,), for z = C_0 x_0 + S_0 eps and values on a grid of `bins`.

    For each pixel a softmax over the grid -1, ..., 1 of -(C_0^-1 z - value)^2 / 2 s^2, with
    s^2 the mean variance of C_0^-1 S_0 eps.

    Args:
        process: with signal and noise on every coefficient at t = 0, diagonal in some basis.
        x0: (B, *shape), values -1 + 2 k / (bins - 1).
        eps: standard normal, like `x0`.
        bins: number of values, 2 or more.

    Raises:
        ValueError: `x0` has other values than these.
    """
    zero = time(0.0, x0)
    shape = x0.shape[1:]
    found = _cells(x0, bins)
    relative = process.signal.at(zero).inv() @ process.noise.at(zero)
    variance = (_trace(relative @ relative.T, shape) / math.prod(shape)).to(x0)
    values = torch.linspace(-1, 1, bins, dtype=x0.dtype, device=x0.device)
    seen = x0 + relative(eps)
    logits = -(seen.unsqueeze(-1) - values).square() / (2 * variance)
    chosen = found.long().unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, chosen).flatten(1).sum(1)


def _cells(x0: Tensor, bins: int) -> Tensor:
    """Which of the `bins` values each pixel has; ValueError for any other value."""
    place = (x0 + 1) / 2 * (bins - 1)
    found = place.round().clamp(0, bins - 1)
    if seen((place - found).abs() > 0.05):
        value = float(x0.flatten()[(place - found).abs().argmax()])
        raise Refused(
            f"the bound needs data of {bins} evenly spaced values from -1 to 1; found {value:.4g}. "
            "Give their number, such as --bins 17 for the digits."
        )
    return found


def _trace(cov: Operator, shape: torch.Size) -> Tensor:
    if not isinstance(cov, Diagonal):
        raise Refused("the bound's ends need a process that is diagonal in one basis.")
    return cov.gain.expand(shape).sum()
