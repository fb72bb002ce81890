r"""An objective is a weight operator: loss = || W_t (x_0^ - x_0) ||^2, averaged over coordinates.

The parametrization, and not the loss, sets what the network's output means: the same W_t gives the
same loss for all parametrizations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.algebra.combine import Spectra, apply, energy
from sfumato.algebra.operators import Dense, Diagonal, Operator, identity, zero
from sfumato.algebra.place import seen
from sfumato.corruption.boundary import FAR, Time, alike, expect, near, time
from sfumato.corruption.coupling import Coupling
from sfumato.corruption.families import Mapping
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, Estimate
from sfumato.estimation.predictions import Parametrization
from sfumato.names import called

Weighting = Callable[[Process, Tensor, Tensor], Operator]
"""(process, t, s) -> W, for s <= t; most depend on t alone.

>>> def capped(process, t, s):  # the eps-loss, for an SNR above 5 as at 5
...     snr = process.log_snr(t).exp()
...     return sf.operators.scaled(snr.clamp(max=5.0).sqrt())
>>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
>>> [round(float(capped(process, torch.tensor(t).double(), 0).gain), 3) for t in (0.01, 0.5)]
[2.236, 0.292]
"""

Times = Callable[[Tensor], Tensor]
"""Uniform numbers in [0, 1) -> training times in [0, 1].

>>> def late(u):  # more training times near 1
...     return u.sqrt()
>>> late(torch.tensor([0.25, 0.81]))
tensor([0.5000, 0.9000])
"""

Target = Callable[[Tensor], Tensor]
"""x_t -> what the estimate is compared with, both (B, *shape)."""


def unweighted(process: Process, t: Tensor, s: Tensor) -> Operator:
    """W = I: the error of x_0 itself (Cold Diffusion's loss, squared).

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t = torch.tensor(0.5).double()
    >>> sf.weightings.unweighted(process, t, t).gain
    tensor(1., dtype=torch.float64)
    """
    return identity()


def soft_score_matching(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W = C_t: soft score matching with w_t = 1; what the corruption removed has no weight.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> t = torch.tensor(1.0).double()
    >>> sf.weightings.soft_score_matching(process, t, t).gain[0, :3]
    tensor([1.0000, 0.5275, 0.0774], dtype=torch.float64)

    References:
        Soft Diffusion: Score Matching for General Corruptions (Daras et al., 2022), section 3,
        https://arxiv.org/abs/2209.05442
    """
    _check_supported(process, t, "soft_score_matching")
    return process.signal.at(t)


def simple(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W = S_t^-1 C_t: the eps-loss of DDPM, and soft score matching with w_t = 1 / sigma_t^2.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t = torch.tensor(0.5).double()
    >>> sf.weightings.simple(process, t, t).gain ** 2, process.log_snr(t).exp()
    (tensor(0.0853, dtype=torch.float64), tensor(0.0853, dtype=torch.float64))
    """
    _check_supported(process, t, "simple")
    return process.noise.at(t).inv() @ process.signal.at(t)


def score(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W = V_t^-1 C_t: the error of the score itself (denoising score matching with weight 1).

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> t = torch.tensor(0.5).double()
    >>> sf.weightings.score(process, t, t).gain * process.cov(t).gain
    tensor(1., dtype=torch.float64)
    """
    _check_supported(process, t, "score")
    return process.cov(t).inv() @ process.signal.at(t)


def variational_bound(coupling: Coupling) -> Weighting:
    r"""W = L^-1 (C_s - K C_t): || W (x_0^ - x_0) ||^2 is twice the KL divergence of a reverse step.

    For `ancestral` W^T W = SNR_s - SNR_t. Couplings that do not keep the marginals are refused:
    their "bound" can be below the data's entropy (docs/mathematics.md, "Objectives and the bound").
    So is a step that draws nothing where its mean depends on x_0, such as `ddim(0)`: its divergence
    is infinite.

    Raises:
        ValueError: the coupling is one of those, or s is not before t.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> bound = sf.weightings.variational_bound(sf.couplings.ancestral)
    >>> bound(process, t, s).gain ** 2, process.log_snr(s).exp() - process.log_snr(t).exp()
    (tensor(0.1572, dtype=torch.float64), tensor(0.1572, dtype=torch.float64))

    References:
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        t, s = time(t), time(s)
        if seen(s >= t):
            raise Refused(
                "variational_bound compares two times, s before t, and is 0 at s = t, where `loss` "
                "evaluates it. Wrap it: lambda process, t, s: variational_bound(coupling)(process, "
                "t, t - 1 / steps)."
            )
        carry, fresh = coupling(process, t, s)
        name = called(coupling)
        cov_s, clean_s = process.cov(s), process.signal.at(s)
        if _exceeds(cov_s - carry @ process.cov(t) @ carry.T - fresh @ fresh.T, cov_s):
            raise Refused(
                "variational_bound needs a coupling that keeps the marginals, V_s = K V_t K^T + "
                f"L L^T; {name} does not. Use ancestral, bridge or ddim with eta > 0."
            )
        pull = clean_s - carry @ process.signal.at(t)
        silent = fresh.is_zero and not pull.is_zero
        if silent or _exceeds(_where_dead(fresh) @ pull, clean_s):
            raise Refused(
                "variational_bound needs fresh noise wherever a step depends on x_0, else the "
                f"divergence is infinite; {name} draws none. Use ancestral, bridge or ddim with "
                "eta > 0, and end above a time without noise."
            )
        return fresh.inv() @ pull

    return weighting


def likelihood(process: Process, t: Tensor, s: Tensor) -> Operator:
    r"""W^T W = -dSNR/dt: the bound in continuous time, and the SDEs' likelihood weight.

    || W (x_0^ - x_0) ||^2 / 2 is the limit of `variational_bound(ancestral)` for short steps;
    g^2 || error of the score ||^2 is the same (docs/mathematics.md, "Objectives and the bound").

    Raises:
        ValueError: C_t and S_t share no basis, or the ratio rises somewhere.

    >>> process = sf.METHODS["vp"]((1, 8, 8)).process
    >>> t, step = torch.tensor(0.5).double(), 1e-4
    >>> sf.weightings.likelihood(process, t, t).gain ** 2
    tensor(0.9369, dtype=torch.float64)
    >>> (process.log_snr(t - step).exp() - process.log_snr(t + step).exp()) / (2 * step)
    tensor(0.9369, dtype=torch.float64)

    References:
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """
    _check_supported(process, t, "likelihood")

    def ratio(t: Tensor) -> Operator:
        signal = process.signal.at(t)
        return signal @ signal @ process.cov(t).inv()

    snr = ratio(t)
    slope = Mapping(ratio).rate(t) if isinstance(snr, Diagonal) else None
    if not (isinstance(snr, Diagonal) and isinstance(slope, Diagonal)):
        raise Refused("likelihood needs a process that is diagonal in one basis. Use simple.")
    rises = slope.gain > 0
    steep = slope.log_gain - snr.log_gain > (1e-9 * (1 + snr.log_gain.abs())).log()
    if seen(rises & steep):
        raise Refused("likelihood needs signal-to-noise ratios that fall with time. Use simple.")
    return Diagonal(torch.where(rises, -math.inf, slope.log_gain) / 2, None, slope.basis)


def unit_target(parametrization: Parametrization) -> Weighting:
    r"""W = out_t^-1 of: the error of the network's own output, for each time of equal weight.

    With `wiener` its target has unit variance (EDM's loss), with `velocity` this is the v-loss.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t = torch.tensor(0.5).double()
    >>> weight = sf.weightings.unit_target(sf.predictions.noise)
    >>> weight(process, t, t).gain.abs(), sf.weightings.simple(process, t, t).gain  # the same
    (tensor(0.2920, dtype=torch.float64), tensor(0.2920, dtype=torch.float64))
    """

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        pre = parametrization(process, t)
        return pre.out.inv() @ pre.of

    return weighting


def loss(
    denoiser: Denoiser,
    weighting: Weighting,
    x0: Tensor,
    t: Time,
    eps: Tensor,
    *,
    target: Target | None = None,
    far: float = FAR,
    **cond: Any,
) -> Tensor:
    """|| W_t (x_0^ - x_0) ||^2 / n for each sample, with x_t = C_t x_0 + S_t eps; (B,).

    The weighting is evaluated at s = t; one that compares two times chooses its own s.

    Args:
        x0: (B, *shape) in [-1, 1], n values a sample.
        t: (B, 1, ..., 1) in [0, 1].
        eps: standard normal, like `x0`.
        target: x_t -> what the estimate is compared with in place of `x0`, such as the x~ of
            `sfumato.estimation.flow_map`.
        far: the largest value that data are believed to have; infinite for latents.
        cond: what the network receives besides x and t, such as classes=(B,).

    Raises:
        TypeError: arguments of other kinds.
        ValueError: shapes that do not fit, times outside [0, 1], or data on the CPU that were
            clearly not scaled to [-1, 1].

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> zero = sf.oracles.dataset(process, torch.zeros(1, 1, 8, 8))  # knows that x_0 = 0
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, zero)
    >>> t, eps = torch.rand(2, 1, 1, 1), torch.randn(2, 1, 8, 8)
    >>> sf.loss(denoiser, sf.weightings.unweighted, torch.full((2, 1, 8, 8), 0.5), t, eps)
    tensor([0.2500, 0.2500])
    """
    expect(denoiser, Denoiser, "loss needs a Denoiser first")
    alike(x0=x0, eps=eps)
    near("x0", x0, far)
    process = denoiser.process
    t = time(t, x0)
    weight = weighting(process, t, t)
    spectra = Spectra()
    x = apply((process.signal.at(t), x0), (process.noise.at(t), eps), spectra=spectra)
    if target is not None:
        x0 = target(x)
    terms = off(denoiser(x, t, **cond), weight, x0)
    return energy(*terms, spectra=spectra) / x0[0].numel()


def off(estimate: Estimate, weight: Operator, x0: Tensor) -> list[tuple[Operator, Tensor]]:
    """W (x_0^ - x_0) as pairs of an operator and a signal, exact in log-gains as `through`.

    Where a share's map is the identity, x_0 is paired with the same W, which then acts once on
    their sum.
    """
    shares = [(m, v) for m, v in zip(estimate.maps, estimate.values, strict=True) if not m.is_zero]
    made = {id(share): weight @ share for share, _ in shares}
    terms = [(made[id(share)], value) for share, value in shares]
    alone = any(operator is weight for operator, _ in terms)
    return [*terms, (weight, -x0) if alone else (-weight, x0)]


def uniform_times(u: Tensor) -> Tensor:
    """Times uniform on (0, 1]: never the clean end, where a process may have no noise.

    >>> sf.weightings.uniform_times(torch.tensor([0.0, 0.75]))
    tensor([1.0000, 0.2500])
    """
    return 1 - u


def level_times(count: int) -> Times:
    """Times uniform on {1, ..., count} / count: DDPM's discrete chain.

    >>> sf.weightings.level_times(4)(torch.tensor([0.0, 0.3, 0.99]))
    tensor([0.2500, 0.5000, 1.0000])
    """

    def times(u: Tensor) -> Tensor:
        return (torch.floor(u * count) + 1) / count

    return times


def stratified(u: Tensor) -> Tensor:
    r"""VDM's low-discrepancy numbers: (u_0 + i / B) mod 1 for sample i of B, in [0, 1).

    >>> sf.weightings.stratified(torch.tensor([0.1, 0.6, 0.2, 0.9]))
    tensor([0.1000, 0.3500, 0.6000, 0.8500])
    """
    spread = torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)
    return (u[:1] + spread) % 1.0


def _check_supported(process: Process, t: Tensor, who: str) -> None:
    cov = process.cov(t)
    if isinstance(cov, Diagonal) and cov.singular:
        raise Refused(
            f"{who} needs Sigma_t to reach every coefficient at every training time; it is "
            "singular. Give the noise a floor, or use the `unweighted` weighting."
        )


def _exceeds(excess: Operator, scale: Operator) -> bool:
    """Whether `excess` is above rounding of `scale`; False for operators without known entries."""
    if isinstance(excess, Diagonal) and isinstance(scale, Diagonal):
        return seen(excess.log_gain > scale.log_gain - 20)
    if isinstance(excess, Dense):
        found, size = (op.matrix(excess.shape).abs().amax((-2, -1)) for op in (excess, scale))
        return seen(found > 1e-8 * size)
    return False


def _where_dead(operator: Operator) -> Operator:
    """The projection on the coefficients that a diagonal operator takes to 0; 0 for others."""
    if not isinstance(operator, Diagonal):
        return zero()
    dead = torch.isneginf(operator.log_gain)
    return Diagonal(torch.where(dead, 0.0, -math.inf).to(operator.log_gain), None, operator.basis)
