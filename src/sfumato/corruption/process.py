r"""A process is two operator families:

    q(x_t | x_0) = N(C_t x_0, S_t S_t^T),    C_t = signal.at(t),  S_t = noise.at(t).

Time runs from 0 (clean) to 1; data are in [-1, 1] for every process. S_t is symmetric, as `ddim`,
`score` and the probability flow require.

C_t here is C_t of Soft Diffusion, F(t) of IHDM, A_t or alpha_t of Blurring Diffusion, sqrt(abar_t)
of DDPM; S_t is sigma_t of all of them, sqrt(1 - abar_t) L of non-isotropic DDPM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato import notebook
from sfumato.algebra.basis import Basis
from sfumato.algebra.combine import apply
from sfumato.algebra.operators import Dense, Diagonal, NotPositive, Operator
from sfumato.algebra.place import home, seen
from sfumato.corruption.boundary import Time, alike, expect, time
from sfumato.corruption.families import Family
from sfumato.errors import Refused


@final
class Gains(NamedTuple):
    """C_t and S_t that are diagonal in `basis`; None where they are multiples of the identity."""

    signal: Diagonal
    noise: Diagonal
    basis: Basis | None


@final
class Process(nn.Module):
    """q(x_t | x_0) = N(C_t x_0, S_t S_t^T).

    Args:
        signal: the family C_t.
        noise: the family S_t, symmetric.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> x0 = torch.zeros(1, 1, 8, 8)
    >>> process.corrupt(x0, 0.5, torch.randn_like(x0)).shape
    torch.Size([1, 1, 8, 8])
    >>> [round(float(process.log_snr(t)), 1) for t in (0.1, 0.5, 0.9)]
    [2.2, -2.5, -8.2]
    """

    def __init__(self, signal: Family, noise: Family) -> None:
        super().__init__()
        for name, family in (("signal", signal), ("noise", noise)):
            expect(
                family,
                Family,
                f"a process needs a family for its {name}, such as sf.families.Scale(schedule), or "
                "sf.families.Fixed(operator) for one operator at all times",
            )
        self.signal, self.noise = signal, noise

    _repr_html_ = notebook.process

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Process:
        """Implements `to`, `cuda` and the like: the process changes devices, not its float64."""

        def kept(value: Tensor) -> Tensor:
            # The device is read from a float32 tensor, since MPS has no float64.
            device = fn(value.new_empty(0, dtype=torch.float32)).device
            return value.to(home(device))

        return super()._apply(kept, recurse)

    @property
    def last(self) -> float:
        """The largest time of the process: 1, or more where both families are linear in t."""
        return min(self.signal.last, self.noise.last)

    def _time(self, t: Time, x: Tensor | None = None) -> Tensor:
        return time(t, x, self.last)

    def corrupt(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = C_t x_0 + S_t eps.

        Args:
            x0: (B, *shape) in [-1, 1].
            t: () or (B, 1, ..., 1) in [0, 1].
            eps: standard normal, like `x0`.

        Raises:
            TypeError, ValueError: a time, a shape or a dtype other than these.
        """
        alike(x0=x0, eps=eps)
        t = self._time(t, x0)
        return apply((self.signal.at(t), x0), (self.noise.at(t), eps))

    def cov(self, t: Time) -> Operator:
        """V_t = S_t S_t^T."""
        noise = self.noise.at(self._time(t))
        return noise @ noise.T

    def score(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """The gradient of log q(x_t | x_0) in x_t: V_t^-1 (C_t x_0 - x_t).

        Raises:
            ValueError: V_t is singular.
        """
        alike(x=x, x0=x0)
        t = self._time(t, x)
        self._logdet(t, x.shape[1:])
        return self.cov(t).inv()(self.signal.at(t)(x0) - x)

    def log_prob(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """log q(x_t | x_0) in nats, (B,).

        Raises:
            ValueError: V_t is singular.
        """
        alike(x=x, x0=x0)
        t = self._time(t, x)
        shape = x.shape[1:]
        logdet = self._logdet(t, shape)
        noise = self.noise.at(t)
        white = noise.inv()(x - self.signal.at(t)(x0)).flatten(1)
        constant = 0.5 * math.prod(shape) * math.log(2 * math.pi)
        return -0.5 * white.square().sum(1) - logdet.to(x) - constant

    def propagator(self, s: Time, t: Time) -> Operator:
        """C_{t|s} = C_t C_s^-1, which takes the signal at s to that at t."""
        return self.signal.at(self._time(t)) @ self.signal.at(self._time(s)).inv()

    def transition(self, s: Time, t: Time) -> tuple[Operator, Operator]:
        """(C_{t|s}, V_{t|s}) of the Markov kernel q(x_t | x_s) = N(C_{t|s} x_s, V_{t|s}), s < t.

        Composition: C_{t|r} = C_{t|s} C_{s|r}, V_{t|r} = V_{t|s} + C_{t|s} V_{s|r} C_{t|s}^T.

        Raises:
            ValueError: the signal-to-noise ratio of some coefficient rises from s to t.
        """
        s, t = self._time(s), self._time(t)
        self.check_markov(s, t, "transition")
        forward = self.propagator(s, t)
        return forward, self.cov(t) - forward @ self.cov(s) @ forward.T

    def gains(self, t: Time) -> Gains | None:
        """C_t and S_t if both are diagonal in one basis; else None."""
        t = self._time(t)
        signal, noise = self.signal.at(t), self.noise.at(t)
        if not (isinstance(signal, Diagonal) and isinstance(noise, Diagonal)):
            return None
        shared = signal.basis is None or noise.basis is None or signal.basis == noise.basis
        return Gains(signal, noise, signal.basis or noise.basis) if shared else None

    def log_snr(self, t: Time) -> Tensor | None:
        """2 log|C_t| - log V_t for each coefficient, +inf without noise.

        None where C_t and S_t share no basis.
        """
        if (gains := self.gains(t)) is None:
            return None
        signal, noise = gains.signal.log_gain, gains.noise.log_gain
        return torch.where(torch.isneginf(signal), -torch.inf, 2 * signal - 2 * noise)

    def check_markov(self, s: Tensor, t: Tensor, who: str) -> None:
        """Raise ValueError if a signal-to-noise ratio rises from s to t; reads the CPU only."""
        early, late = self.log_snr(s), self.log_snr(t)
        if early is None or late is None:
            return self._check_loewner(s, t, who)
        early, late = torch.broadcast_tensors(early, late)
        rises = late > early + 1e-12 * (1 + early.abs().nan_to_num(posinf=0.0))
        if seen(rises):
            at = tuple(int(i) for i in rises.nonzero()[0])
            times = [float(x.broadcast_to(rises.shape)[at]) for x in (s, t)]
            joint = self.signal.at(t) @ self.cov(t)
            which = joint.coefficient(at) if isinstance(joint, Diagonal) else "one"
            raise Refused(
                f"{who} needs the signal-to-noise ratio of every coefficient to fall with time; "
                f"{which} rises from {float(early[at].exp()):.3g} to "
                f"{float(late[at].exp()):.3g} between t={times[0]:.2f} and t={times[1]:.2f}. "
                "Use ddim or bridge."
            )

    def _check_loewner(self, s: Tensor, t: Tensor, who: str) -> None:
        """`check_markov` for matrices: C_t^T V_t^-1 C_t <= C_s^T V_s^-1 C_s, or V_{t|s} >= 0."""
        if not (isinstance(self.signal.at(t), Dense) or isinstance(self.cov(t), Dense)):
            return
        forward = self.propagator(s, t)
        try:
            (self.cov(t) - forward @ self.cov(s) @ forward.T).sqrt()
        except NotPositive as error:
            times = [float(x.flatten()[error.sample % x.numel()]) for x in (s, t)]
            raise Refused(
                f"{who} needs the signal-to-noise ratio of every direction to fall with time; "
                f"between t={times[0]:.2f} and t={times[1]:.2f} the forward variance has a "
                f"negative {error.found}. Use ddim or bridge."
            ) from error

    def _logdet(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        """log |S_t|; ValueError where it is -inf."""
        logdet = self.noise.at(t).logdet(shape)
        if seen(torch.isneginf(logdet)):
            raise Refused(
                "the density of x_t needs noise on every coefficient; Sigma_t is singular at a "
                "time given. Start the times above 0, or give the noise a floor."
            )
        return logdet
