r"""An objective is a weight operator: loss = || W_t (x_0^ - x_0) ||^2, averaged over coordinates.

Which network output space it is trained in is the parametrization's business, not the loss's: the
same W_t gives the same loss for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.algebra.operators import Dense, Diagonal, Operator, identity, zero
from sfumato.corruption.boundary import Time, alike, expect, near, time
from sfumato.corruption.coupling import Coupling
from sfumato.corruption.families import Mapping
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, Parametrization
from sfumato.names import called

Weighting = Callable[[Process, Tensor, Tensor], Operator]
"""(process, t, s) -> W, for s <= t; most look at t alone."""

Times = Callable[[Tensor], Tensor]
"""Uniform numbers in [0, 1) -> training times in [0, 1]."""


def flat(process: Process, t: Tensor, s: Tensor) -> Operator:
    """W = I: the error of x_0 itself (Cold Diffusion's loss, squared)."""
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
    r"""W = L^-1 (C_s - K C_t): || W (x_0^ - x_0) ||^2 is twice the KL divergence of a reverse step.

    For `ancestral` W^T W = SNR_s - SNR_t. Couplings that do not keep the marginals are refused:
    their "bound" can beat the data's entropy (docs/mathematics.md, "Objectives and the bound"). So
    is a step that draws nothing where its mean depends on x_0, such as `ddim(0)`: its divergence is
    infinite.

    Raises:
        ValueError: the coupling is one of those, or s is not before t.

    References:
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        t, s = time(t), time(s)
        if bool((s >= t).any()):
            raise ValueError(
                "bound compares two times, s before t, and vanishes at s = t, where `loss` asks. "
                "Wrap it: lambda process, t, s: bound(coupling)(process, t, t - 1 / steps)."
            )
        carry, fresh = coupling(process, t, s)
        name = called(coupling)
        cov_s, clean_s = process.cov(s), process.signal.at(s)
        if _exceeds(cov_s - carry @ process.cov(t) @ carry.T - fresh @ fresh.T, cov_s):
            raise ValueError(
                "bound needs a coupling that keeps the marginals, V_s = K V_t K^T + L L^T; "
                f"{name} does not. Use ancestral, bridge or ddim with eta > 0."
            )
        pull = clean_s - carry @ process.signal.at(t)
        silent = fresh.vanishes and not pull.vanishes
        if silent or _exceeds(_where_dead(fresh) @ pull, clean_s):
            raise ValueError(
                "bound needs fresh noise wherever a step depends on x_0, else the divergence is "
                f"infinite; {name} draws none. Use ancestral, bridge or ddim with eta > 0, and end "
                "above a time without noise."
            )
        return fresh.inv() @ pull

    return weighting


def rate(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W^T W = -dSNR/dt: the bound in continuous time, and the SDEs' likelihood weight.

    || W (x_0^ - x_0) ||^2 / 2 is the limit of `bound(ancestral)` for short steps; g^2 || error of
    the score ||^2 is the same (docs/mathematics.md, "Objectives and the bound").

    Raises:
        ValueError: C_t and S_t share no basis, or the ratio rises somewhere.

    References:
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """
    _check_supported(process, t, "rate")

    def ratio(t: Tensor) -> Operator:
        signal = process.signal.at(t)
        return signal @ signal @ process.cov(t).inv()

    snr = ratio(t)
    slope = Mapping(ratio).rate(t) if isinstance(snr, Diagonal) else None
    if not (isinstance(snr, Diagonal) and isinstance(slope, Diagonal)):
        raise ValueError("rate needs a process that is diagonal in one basis. Use simple.")
    rises = slope.gain > 0
    steep = slope.log_gain - snr.log_gain > (1e-9 * (1 + snr.log_gain.abs())).log()
    if bool((rises & steep).any()):
        raise ValueError("rate needs signal-to-noise ratios that fall with time. Use simple.")
    return Diagonal(torch.where(rises, -math.inf, slope.log_gain) / 2, None, slope.basis)


def unit(parametrization: Parametrization) -> Weighting:
    r"""W = out_t^-1 of: the error of the network's own output, for each time of equal weight.

    With `wiener` its target has unit variance (EDM's loss), with `angular` this is the v-loss.
    """

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        pre = parametrization(process, t)
        return pre.out.inv() @ pre.of

    return weighting


def loss(denoiser: Denoiser, weighting: Weighting, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
    """|| W_t (x_0^ - x_0) ||^2 / n for each sample, with x_t = C_t x_0 + S_t eps; (B,).

    The weighting is asked at s = t: one that compares two times chooses its s itself.

    Args:
        x0: (B, *shape) in [-1, 1], n values a sample.
        t: (B, 1, ..., 1) in [0, 1].
        eps: standard normal, like `x0`.

    Raises:
        TypeError: arguments of other kinds.
        ValueError: shapes that do not fit, times outside [0, 1], or data on the CPU that were
            plainly not scaled to [-1, 1].
    """
    expect(denoiser, Denoiser, "loss needs a Denoiser first")
    alike(x0=x0, eps=eps)
    near("x0", x0)
    process, t = denoiser.process, time(t, x0)
    weight = weighting(process, t, t)
    estimate = denoiser(process.corrupt(x0, t, eps), t)
    error = estimate.through(weight) - weight(x0)
    return error.square().flatten(1).mean(1)


def uniform(u: Tensor) -> Tensor:
    """Times uniform on (0, 1]: never the clean end, where a process may have no noise."""
    return 1 - u


def levels(count: int) -> Times:
    """Times uniform on {1, ..., count} / count: DDPM's discrete chain."""

    def times(u: Tensor) -> Tensor:
        return (torch.floor(u * count) + 1) / count

    return times


def stratified(u: Tensor) -> Tensor:
    r"""VDM's low-discrepancy numbers: (u_0 + i / B) mod 1 for sample i of B, in [0, 1)."""
    spread = torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)
    return (u[:1] + spread) % 1.0


def _check_supported(process: Process, t: Tensor, who: str) -> None:
    cov = process.cov(t)
    if isinstance(cov, Diagonal) and bool(torch.isneginf(cov.log_gain).any()):
        raise ValueError(
            f"{who} needs Sigma_t to reach every coefficient at every training time; it is "
            "singular. Give the noise a floor, or use the `flat` weighting."
        )


def _exceeds(excess: Operator, scale: Operator) -> bool:
    """Whether `excess` is more than rounding beside `scale`, as far as their structure shows."""
    if isinstance(excess, Diagonal) and isinstance(scale, Diagonal):
        return bool((excess.log_gain > scale.log_gain - 20).any())
    if isinstance(excess, Dense):
        found, size = (op.matrix(excess.shape).abs().amax((-2, -1)) for op in (excess, scale))
        return bool((found > 1e-8 * size).any())
    return False


def _where_dead(operator: Operator) -> Operator:
    """The projection on the coefficients that a diagonal operator takes to 0; else 0."""
    if not isinstance(operator, Diagonal):
        return zero()
    dead = torch.isneginf(operator.log_gain)
    return Diagonal(torch.where(dead, 0.0, -math.inf).to(operator.log_gain), None, operator.basis)
