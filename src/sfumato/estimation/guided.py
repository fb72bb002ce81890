r"""A guide moves the estimate of x_0 by one more share, in every place where x_0^ occurs.

    x_0^ <- x_0^ + B_t v(x_t)

By Tweedie's rule the estimate given y is x_0^ + C_t^-1 V_t grad log p(y | x_t), for every process
and coupling. B_t depends on the time alone and is made before a loop; v at each call.

Sources: Diffusion Models Beat GANs on Image Synthesis (P. Dhariwal, A. Nichol, 2021),
https://arxiv.org/abs/2105.05233, whose rules for the mean and for eps are this one to first order
in the step, and for `ddim`. Moving the score of Soft Diffusion's sampler alone, and not x_0^, draws
from another law (docs/mathematics.md, "Guidance").
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor

from sfumato.algebra.combine import Spectra, apply
from sfumato.algebra.operators import Diagonal, Operator
from sfumato.corruption.boundary import expect
from sfumato.corruption.process import Process
from sfumato.errors import RefusedType
from sfumato.estimation.denoise import Ask, Conditions, Denoiser, Estimator

FLOOR = -18.0
"""Log-SNR below which a gradient does not move a coefficient: C^-1 would amplify its errors.

With an exact gradient the moments of guided sampling of blurred data then differ by up to 5e-3, and
at -40 by less than 1e-9; in float32 the errors of a network's gradient at -40 are far larger.
"""

Needs = Literal["x", "estimate", "gradient"]
"""What a guide's value is computed from: x_t, x_0^, or x_0^ with its gradient in x_t."""


class Value(Protocol):
    """The type of `Push.value`: a function, or a callable NamedTuple of operators and labels."""

    def __call__(self, x: Tensor, x0: Tensor) -> Tensor:
        """v from x_t and x_0^, both (B, *shape); x_0^ is x_t where the guide needs x only."""
        ...


@final
class Push(NamedTuple):
    """What a guide adds to an estimate at one time.

    Attributes:
        share: B_t, which takes the value to its share of x_0.
        value: returns v.
        needs: what `value` is computed from; with "gradient" it is called with gradients enabled,
            `x` a leaf and `x0` a function of it.

    >>> push = sf.guides.Push(sf.operators.scaled(0.5), lambda x, x0: 1 - x0)
    >>> push.share(push.value(torch.zeros(1), torch.zeros(1)))  # half the way to 1
    tensor([0.5000])
    """

    share: Operator
    value: Value
    needs: Needs = "estimate"


class Guide(ABC):
    """What moves an estimate (abstract: `at`).

    >>> class Towards(sf.guides.Guide):  # moves estimates to 1, the more the noisier x_t
    ...     def at(self, process, t):
    ...         return sf.guides.Push(sf.operators.scaled(t), lambda x, x0: 1 - x0)
    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.dataset(process, torch.tensor([[0.0]]))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> sf.Guided(denoiser, Towards())(torch.zeros(1, 1), 0.25).mean
    tensor([[0.2500]])
    """

    @abstractmethod
    def at(self, process: Process, t: Tensor) -> Push:
        """The push at times `t`, () or (B, 1, ..., 1) float64: all that needs no x."""


class _Guided(NamedTuple):
    """The values of a guided estimate: those of its base, and the guide's."""

    ask: Ask
    maps: tuple[Operator, ...]
    value: Value
    needs: Needs

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        if self.needs == "x":
            return (*self.ask(x, cond, spectra), self.value(x, x))
        if self.needs == "estimate":
            values = self.ask(x, cond, spectra)
            x0 = apply(*zip(self.maps, (x, *values), strict=True), spectra=spectra)
            return (*values, self.value(x, x0))
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            values = self.ask(at, cond, {})
            moved = self.value(at, apply(*zip(self.maps, (at, *values), strict=True)))
        return tuple(part.detach() for part in (*values, moved))


@final
class Guided(Denoiser):
    """The denoiser whose estimate a guide moves; parameters are shared.

    With grad log p(y | x_t) exact, samples are those of p(x_0 | y) for every kernel and process:
    the law that tests/test_guidance.py checks.

    Raises:
        TypeError: `guide` is no Guide.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1), sf.operators.identity())
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> guide = sf.guides.classifier(lambda x, t: 3 * x.flatten(1).sum(1))
    >>> guided = sf.Guided(denoiser, guide)
    >>> x, t = torch.zeros(1, 1), 0.5
    >>> denoiser(x, t).mean, guided(x, t).mean
    (tensor([[0.]]), tensor([[9.8605]]))
    """

    def __init__(self, base: Denoiser, guide: Guide) -> None:
        super().__init__()
        expect(base, Denoiser, "a guided denoiser needs a Denoiser first")
        expect(guide, Guide, "a guided denoiser needs a Guide, such as sf.guides.classifier(log_p)")
        self.base = base
        self.guide = guide
        self.process, self.stats = base.process, base.stats

    def at(self, t: Tensor) -> Estimator:
        found = self.base.at(t)
        push = self.guide.at(self.process, t)
        ask = _Guided(found.ask, found.maps, push.value, push.needs)
        return Estimator(found.of, (*found.shares, found.of @ push.share), ask)


def tilt(process: Process, t: Tensor, floor: float = FLOOR) -> Operator:
    """C_t^-1 V_t, by which a gradient in x_t moves x_0^; 0 where the log-SNR is below `floor`."""
    gain = process.signal.at(t).inv() @ process.cov(t)
    snr = process.log_snr(t)
    if not isinstance(gain, Diagonal) or snr is None:
        return gain
    logs, snr = torch.broadcast_tensors(gain.log_gain, snr)
    return Diagonal(torch.where(snr < floor, -math.inf, logs), gain.sign, gain.basis)


LogProb = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, *shape), t (B,)) -> log p(y | x_t) up to a constant, (B,), differentiable in x_t."""


class _Gradient(NamedTuple):
    log_prob: LogProb
    weight: float
    time: Tensor

    def __call__(self, x: Tensor, x0: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            times = self.time.to(device=x.device, dtype=x.dtype).reshape(-1).expand(len(x))
            found = self.log_prob(at, times)
            if found.shape != x.shape[:1]:
                raise RefusedType(
                    f"log p(y | x_t) is one number for each signal, ({len(x)},); the classifier "
                    f"returned {tuple(found.shape)}."
                )
            (gradient,) = torch.autograd.grad(found.sum(), at)
        return self.weight * gradient


@final
class classifier(Guide):
    r"""Classifier guidance: x_0^ + w C_t^-1 V_t grad log p(y | x_t).

    Args:
        log_prob: (x_t, t (B,)) -> log p(y | x_t), (B,), such as one class of a classifier that was
            trained on x_t.
        weight: w; 1 is Bayes' rule.
        floor: log-SNR of a coefficient below which it is not moved.

    >>> guide = sf.guides.classifier(lambda x, t: -((x - 1) ** 2).flatten(1).sum(1), weight=2.0)
    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> push = guide.at(process, torch.tensor(0.5).double())
    >>> push.value(torch.zeros(1, 1), torch.zeros(1, 1))  # weight times the gradient at x = 0
    tensor([[4.]])
    """

    def __init__(self, log_prob: LogProb, weight: float = 1.0, floor: float = FLOOR) -> None:
        self.log_prob = log_prob
        self.weight = weight
        self.floor = floor

    def at(self, process: Process, t: Tensor) -> Push:
        value = _Gradient(self.log_prob, self.weight, t)
        return Push(tilt(process, t, self.floor), value, "x")
