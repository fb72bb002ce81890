r"""An objective is a weight operator: loss = || W_t (x_0^ - x_0) ||^2, averaged over coordinates.

Which network output space it is trained in is the parametrization's business, not the loss's: the
same W_t gives the same loss for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, Operator, identity
from sfumato.corruption.coupling import Coupling
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser

Weighting = Callable[[Process, Tensor, Tensor], Operator]
"""(process, t, s) -> W, for s <= t; most look at t alone."""

Times = Callable[[Tensor], Tensor]
"""Uniform numbers in [0, 1) -> training times in [0, 1]."""


def flat(process: Process, t: Tensor, s: Tensor) -> Operator:
    """W = I: the error of x_0 itself (Cold Diffusion's loss, squared). Named `clean` on the command line."""
    return identity()


def soft(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W = C_t: soft score matching with w_t = 1; what the corruption removed is not asked for.

    References:
        Soft Diffusion: Score Matching for General Corruptions (Daras et al., 2022), section 3,
        https://arxiv.org/abs/2209.05442
    """
    _check_supported(process, t, "soft")
    return process.signal.at(t)


def simple(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W = S_t^-1 C_t: the eps-loss of DDPM, and soft score matching with w_t = 1 / sigma_t^2."""
    _check_supported(process, t, "simple")
    return process.noise.at(t).inv() @ process.signal.at(t)


def score(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W = V_t^-1 C_t: the error of the score itself (denoising score matching with weight 1)."""
    _check_supported(process, t, "score")
    return process.cov(t).inv() @ process.signal.at(t)


def bound(coupling: Coupling) -> Weighting:
    r"""W = L^-1 (C_s - K C_t): twice the KL divergence of one reverse step, of a marginal-consistent coupling.

    For `ancestral` W^T W = SNR_s - SNR_t. Inconsistent couplings are refused: their "bound" can beat
    the data's entropy (methods.md 1.8).

    References:
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        carry, fresh = coupling(process, t, s)
        cov_s = process.cov(s)
        kept = carry @ process.cov(t) @ carry.T + fresh @ fresh.T
        excess = cov_s - kept
        if isinstance(excess, Diagonal) and isinstance(cov_s, Diagonal):
            if bool((excess.log_gain > cov_s.log_gain - 20).any()):
                raise ValueError(
                    "bound needs a coupling that keeps the marginals, V_s = K V_t K^T + L L^T; "
                    f"{getattr(coupling, '__name__', 'this one')} does not. Use ancestral, bridge or ddim."
                )
        return fresh.inv() @ (process.signal.at(s) - carry @ process.signal.at(t))

    return weighting


def unit(denoiser: Denoiser) -> Weighting:
    r"""W = out_t^-1: every time asks a unit-variance target of the network (EDM), up to the factor `of`."""

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        pre = denoiser.precondition(t)
        return pre.out.inv() @ pre.of

    return weighting


def loss(denoiser: Denoiser, weighting: Weighting, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """|| W_t (x_0^ - x_0) ||^2 / n for each sample, with x_t = C_t x_0 + S_t eps; (B,).

    Args:
        x0: (B, *shape) in [-1, 1], n values a sample.
        t: (B, 1, ..., 1) in [0, 1].
        eps: standard normal, like `x0`.
    """
    process = denoiser.process
    weight = weighting(process, t, t)
    estimate = denoiser(process.corrupt(x0, t, eps), t)
    error = estimate.through(weight) - weight(x0)
    return error.square().flatten(1).mean(1)


def uniform(u: Tensor) -> Tensor:
    """Times uniform on [0, 1)."""
    return u


def levels(count: int) -> Times:
    """Times uniform on {1, ..., count} / count: DDPM's discrete chain."""

    def times(u: Tensor) -> Tensor:
        return (torch.floor(u * count) + 1) / count

    return times


def stratified(u: Tensor) -> Tensor:
    r"""One number in [0, 1) for each of B samples, evenly spread: (u_0 + i / B) mod 1, VDM's low-discrepancy times."""
    spread = torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)
    return (u[:1] + spread) % 1.0


def _check_supported(process: Process, t: Tensor, who: str) -> None:
    cov = process.cov(t)
    if isinstance(cov, Diagonal) and bool(torch.isneginf(cov.log_gain).any()):
        raise ValueError(
            f"{who} needs Sigma_t to reach every coefficient at every training time; it is singular. "
            "Give the noise a floor, or use the `flat` weighting."
        )
