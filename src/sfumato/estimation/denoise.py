r"""A denoiser turns x_t into an estimate of x_0: a process, a parametrization and a backbone.

    estimate = skip_t x_t + out_t F(in_t x_t, label_t)

A parametrization is three operators, the label that the backbone is told instead of t, and the
operator `of` that says *what* the sum estimates: `of @ x_0`. Keeping `of` in log-gains is what lets
a noise prediction (of = C_t) be used where C_t underflows: C_s x_0 is reached through C_s C_t^-1.

    x_0^ = sum_j M_j v_j        `maps` M_j, known before the network is called, and `values` v_j
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.algebra.combine import Spectra, apply
from sfumato.algebra.operators import Diagonal, Operator, identity, scaled, zero
from sfumato.corruption.boundary import Time, alike, expect, time
from sfumato.corruption.facts import Facts
from sfumato.corruption.families import Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Schedule


class Estimate(NamedTuple):
    """An estimate of x_0 as a sum of shares (final).

    Attributes:
        values: one signal for each share.
        maps: the operator that takes each value to its share of x_0.
    """

    values: tuple[Tensor, ...]
    maps: tuple[Operator, ...]

    def through(self, op: Operator) -> Tensor:
        """op x_0^ = sum of (op M) value, exact in log-gains even where M overflows."""
        pairs = zip(self.maps, self.values, strict=True)
        return apply(*((op @ share, value) for share, value in pairs))

    @property
    def mean(self) -> Tensor:
        """x_0^ itself."""
        return self.through(identity())


class Precondition(NamedTuple):
    """What a parametrization is at one time (final).

    Attributes:
        skip, out, inp: the operators of the module's formula.
        label: what the backbone is told instead of t; () or one value per sample.
        of: what the sum estimates: `of @ x_0`.
    """

    skip: Operator
    out: Operator
    inp: Operator
    label: Tensor
    of: Operator


Parametrization = Callable[[Process, Tensor], Precondition]
"""(process, t) -> Precondition."""


def clean(process: Process, t: Tensor) -> Precondition:
    """F estimates x_0 (Cold Diffusion, and "x-prediction")."""
    return Precondition(zero(), identity(), identity(), time(t, last=process.last), identity())


def residual(process: Process, t: Tensor) -> Precondition:
    r"""F estimates x_0 - x_t: Soft Diffusion's phi, h_theta = phi_theta + x_t.

    References:
        Soft Diffusion: Score Matching for General Corruptions (Daras et al., 2022), Eq. 16,
        https://arxiv.org/abs/2209.05442
    """
    return Precondition(identity(), identity(), identity(), time(t, last=process.last), identity())


def noise(process: Process, t: Tensor) -> Precondition:
    r"""F estimates eps: x_t - S_t F estimates C_t x_0 (DDPM, VDM, Blurring Diffusion).

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
    """
    out = scaled(-1.0) @ process.noise.at(t)
    return Precondition(identity(), out, identity(), t, process.signal.at(t))


def coloured(level: Schedule) -> Parametrization:
    r"""F estimates the coloured noise n = S_t eps / level_t: x_t - level_t F estimates C_t x_0.

    For S_t = level_t L this is non-isotropic DDPM's second parametrization, n = L eps, which needs
    no operator of the noise anywhere.

    References:
        Score-based Denoising Diffusion with Non-Isotropic Gaussian Noise Models (V. Voleti, C. Pal,
        A. Oberman, 2022), https://arxiv.org/abs/2210.12254
    """

    def parametrization(process: Process, t: Tensor) -> Precondition:
        out = scaled(-1.0) @ Scale(level).at(t)
        return Precondition(identity(), out, identity(), t, process.signal.at(t))

    return parametrization


def gradient(process: Process, t: Tensor) -> Precondition:
    r"""F estimates the score grad log q_t: x_t + V_t F estimates C_t x_0 (Tweedie)."""
    return Precondition(identity(), process.cov(t), identity(), t, process.signal.at(t))


def previous(levels: int) -> Parametrization:
    r"""F estimates C_s x_0 - x_t at s = t - 1 / levels: IHDM's next less blurred image.

    Only on the grid k / levels: elsewhere a step would have to divide by what blur has left.

    Raises:
        ValueError: (on use) a time between two levels.

    References:
        Generative Modelling with Inverse Heat Dissipation (S. Rissanen, M. Heinonen, A. Solin,
        2022), https://arxiv.org/abs/2206.13397
    """

    def parametrization(process: Process, t: Tensor) -> Precondition:
        place = t.to(torch.float64) * levels
        if bool(((place - place.round()).abs() > 1e-6).any()):
            raise ValueError(
                f"this model estimates the next of its {levels} levels and knows no time between "
                f"them. Use --steps {levels}."
            )
        before = (place.round() - 1).clamp(min=0.0) / levels
        return Precondition(identity(), identity(), identity(), t, process.signal.at(before))

    return parametrization


def unit_input(parametrization: Parametrization) -> Parametrization:
    r"""The same estimate by a network whose input is scaled: in = (C_t C_t^T + V_t)^-1/2.

    Of about unit variance for data of about unit variance. A variance-exploding process needs it,
    whose x_t grows with its noise: so scaled, x_t is that of a variance-preserving process.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (T. Karras, M. Aittala,
        T. Aila, S. Laine, 2022), section 5 (c_in), https://arxiv.org/abs/2206.00364
    """

    @functools.wraps(parametrization)
    def scaled_(process: Process, t: Tensor) -> Precondition:
        signal = process.signal.at(t)
        total = signal @ signal.T + process.cov(t)
        return parametrization(process, t)._replace(inp=total.inv().sqrt())

    return scaled_


def angular(process: Process, t: Tensor) -> Precondition:
    r"""F estimates the velocity v = C_t eps - S_t x_0: x_0^ = C_t x_t - S_t v.

    Only right where C_t^2 + V_t = I, for a variance-preserving process; refused elsewhere.

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models (T. Salimans, J. Ho, 2022),
        https://arxiv.org/abs/2202.00512
    """
    signal, noise_ = process.signal.at(t), process.noise.at(t)
    total = signal @ signal.T + process.cov(t)
    if not isinstance(total, Diagonal) or bool((total.log_gain.abs() > 1e-9).any()):
        raise ValueError(
            "the angular parametrization needs C_t^2 + V_t = I, a variance-preserving process. "
            "Use residual, noise or wiener."
        )
    return Precondition(signal, scaled(-1.0) @ noise_, identity(), t, identity())


def wiener(cov: Operator) -> Parametrization:
    r"""Posterior mean and deviation under N(0, cov): F has unit-variance input and target.

    in = M^-1/2, skip = S C M^-1, out = (S V M^-1)^1/2 with S = cov, M = C S C^T + V, for each
    coefficient. For C = I and white noise these are EDM's c_in, c_skip, c_out. Where the process
    removed a coefficient entirely, the target is its prior deviation. For Gaussian data the best F
    is 0.

    Args:
        cov: covariance assumed of the data, sharing a basis with the process.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models (T. Karras, M. Aittala,
        T. Aila, S. Laine, 2022), https://arxiv.org/abs/2206.00364
    """

    def parametrization(process: Process, t: Tensor) -> Precondition:
        signal, noise_cov = process.signal.at(t), process.cov(t)
        inverse = (signal @ cov @ signal.T + noise_cov).inv()
        skip = cov @ signal.T @ inverse
        # S V M^-1, in the form that is symmetric where S, C and V do not commute.
        left = cov @ noise_cov @ inverse
        out = (left if isinstance(left, Diagonal) else cov - skip @ signal @ cov).sqrt()
        return Precondition(skip, out, inverse.sqrt(), t, identity())

    return parametrization


class Denoiser(nn.Module):
    """Process, parametrization and backbone (final).

    Args:
        process: what corrupted the data.
        parametrization: how the backbone's output becomes an estimate.
        backbone: any module f(x, label, **cond) -> like x, with label (B,).
        cond: conditions handed to the backbone on every call, such as classes.
        facts: what was measured of the data, for kernels that make use of it.
        limit: what is made of an estimate of x_0 itself (of = I): see `limit`.
    """

    def __init__(
        self,
        process: Process,
        parametrization: Parametrization,
        backbone: nn.Module,
        cond: dict[str, Any] | None = None,
        facts: Facts | None = None,
        limit: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        expect(process, Process, "a denoiser needs a Process first")
        expect(backbone, nn.Module, "a denoiser needs a torch module as its backbone")
        self.process, self.parametrization, self.backbone = process, parametrization, backbone
        self.cond, self.facts, self.limit = cond or {}, facts, limit

    def given(self, **cond: Any) -> Denoiser:
        """The same denoiser with conditions bound; parameters are shared."""
        return self.under(self.process, **cond)

    def under(self, process: Process, **cond: Any) -> Denoiser:
        """The same denoiser of another process, with conditions bound; parameters are shared."""
        both = {**self.cond, **cond}
        return Denoiser(process, self.parametrization, self.backbone, both, self.facts, self.limit)

    def precondition(self, t: Tensor) -> Precondition:
        """The parametrization at times `t`; what a sampler computes once before its loop."""
        return self.parametrization(self.process, t)

    def maps(self, pre: Precondition) -> tuple[Operator, ...]:
        """M_j of the estimate's shares, the first that of x itself.

        Gains go straight into what a sampler does with x and with F, of^-1 skip and of^-1 out, so
        that a step transforms each once. Other operators are applied once instead, to their sum.
        """
        back = pre.of.inv()
        if self._apart(pre):
            return back @ pre.skip, back @ pre.out
        return zero(), back

    def values(
        self, x: Tensor, pre: Precondition, spectra: Spectra | None = None
    ) -> tuple[Tensor, ...]:
        """The network's word on x_t (B, *shape): one value for each of `maps` but the first."""
        label = pre.label
        if label.dtype != x.dtype or label.device != x.device:
            label = label.to(x.dtype).to(x.device)
        if label.shape != x.shape[:1]:
            label = label.reshape(-1).expand(len(x))
        out = self.backbone(apply((pre.inp, x), spectra=spectra), label, **self.cond)
        if not self._apart(pre):
            out = apply((pre.skip, x), (pre.out, out), spectra=spectra)
        return (out if self.limit is None else self.limit(out),)

    def target(self, x: Tensor, pre: Precondition) -> Tensor:
        """`pre.of` x_0^, which the parametrization estimates, from x_t (B, *shape)."""
        spectra: Spectra = {}
        (value,) = self.values(x, pre, spectra)
        return (
            apply((pre.skip, x), (pre.out, value), spectra=spectra) if self._apart(pre) else value
        )

    def forward(self, x: Tensor, t: Time) -> Estimate:
        """The estimate of x_0 from x_t: (B, *shape) and t of shape () or (B, 1, ..., 1).

        TypeError or ValueError where `x` is no signals, or `t` no time of them.
        """
        alike(x=x)
        pre = self.precondition(time(t, x))
        return Estimate((x, *self.values(x, pre)), self.maps(pre))

    def _apart(self, pre: Precondition) -> bool:
        """Whether x and F are shares of their own: gains, of an estimate without a limit."""
        parts = (pre.skip, pre.out, pre.of)
        return self.limit is None and all(isinstance(part, Diagonal) for part in parts)


def flow_operators(process: Process, t: Tensor) -> tuple[Operator, Operator]:
    r"""(D, G) of the probability flow dx/dt = D x_0^ + G x at times `t`.

    dx/dt = d/du [C_u x_0^ + S_u eps^] at u = t with eps^ = S_t^-1 (x - C_t x_0^), hence
    G = S' S^-1 and D = C' - G C: one flow for all methods (docs/mathematics.md, "The flow").

    Raises:
        ValueError: noise starts at `t`: S_t = 0 and S' is not, where the flow has no velocity.
    """
    noise_, rate = process.noise.at(t), process.noise.rate(t)
    if isinstance(noise_, Diagonal) and isinstance(rate, Diagonal):
        if bool((torch.isneginf(noise_.log_gain) & ~torch.isneginf(rate.log_gain)).any()):
            raise ValueError(
                "the probability flow has no velocity at a time without noise. Start and end above "
                "it; `sample` ends a grid at 0 with the estimate of x_0 instead."
            )
    grow = rate @ noise_.inv()
    return process.signal.rate(t) - grow @ process.signal.at(t), grow


def velocity(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """dx/dt of the probability flow at x_t = `x`; see `flow_operators`."""
    drift, grow = flow_operators(denoiser.process, t)
    return denoiser(x, t).through(drift) + grow(x)
