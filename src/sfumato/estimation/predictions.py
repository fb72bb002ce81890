r"""A prediction defines what a network's output means: x_0, the noise, the score, the velocity.

    of_t x_0^ = skip_t x_t + out_t F(in_t x_t, label_t)

A parametrization is these three operators, the label that the backbone receives in place of t, and
the operator `of` that defines *what* the sum estimates: `of @ x_0`. With `of` in log-gains, a noise
prediction (of = C_t) can be used where C_t underflows: C_s x_0 is computed through C_s C_t^-1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, Operator, identity, scaled, zero
from sfumato.algebra.place import seen
from sfumato.corruption.boundary import time
from sfumato.corruption.families import Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Schedule
from sfumato.errors import Refused


@final
class Precondition(NamedTuple):
    """A parametrization at one time.

    Attributes:
        skip, out, inp: the operators of the module's formula.
        label: what the backbone receives in place of t; () or one value per sample.
        of: what the sum estimates: `of @ x_0`.

    >>> process = sf.METHODS["edm"]((1, 8, 8)).process
    >>> t = torch.tensor(0.5).double()
    >>> skip, out, inp, label, of = sf.predictions.residual(process, t)
    >>> skip(torch.tensor([2.0])), out(torch.tensor([2.0]))  # x_0^ = x_t + F
    (tensor([2.]), tensor([2.]))
    """

    skip: Operator
    out: Operator
    inp: Operator
    label: Tensor
    of: Operator


Parametrization = Callable[[Process, Tensor], Precondition]
"""(process, t) -> Precondition.

>>> def halved(process, t):  # F estimates 2 x_0
...     return sf.predictions.x0(process, t)._replace(out=sf.operators.scaled(0.5))
>>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
>>> halved(process, torch.tensor(0.5).double()).out.gain
tensor(0.5000, dtype=torch.float64)
"""


def x0(process: Process, t: Tensor) -> Precondition:
    """F estimates x_0 (Cold Diffusion, and "x-prediction").

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> skip, out, *_ = sf.predictions.x0(process, torch.tensor(0.5).double())
    >>> skip.is_zero, out.gain
    (True, tensor(1., dtype=torch.float64))
    """
    return Precondition(zero(), identity(), identity(), time(t, last=process.last), identity())


def residual(process: Process, t: Tensor) -> Precondition:
    r"""F estimates x_0 - x_t: Soft Diffusion's phi, h_theta = phi_theta + x_t.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> skip, out, *_ = sf.predictions.residual(process, torch.tensor(0.5).double())
    >>> skip.gain, out.gain  # x_0^ = x_t + F
    (tensor(1., dtype=torch.float64), tensor(1., dtype=torch.float64))

    References:
        Soft Diffusion: Score Matching for General Corruptions (Daras et al., 2022), Eq. 16,
        https://arxiv.org/abs/2209.05442
    """
    return Precondition(identity(), identity(), identity(), time(t, last=process.last), identity())


def noise(process: Process, t: Tensor) -> Precondition:
    r"""F estimates eps: x_t - S_t F estimates C_t x_0 (DDPM, VDM, Blurring Diffusion).

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> skip, out, _, _, of = sf.predictions.noise(process, torch.tensor(0.5).double())
    >>> out.gain, of.gain  # C_t x_0^ = x_t - S_t F
    (tensor(-0.9599, dtype=torch.float64), tensor(0.2803, dtype=torch.float64))

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
    """
    out = scaled(-1.0) @ process.noise.at(t)
    return Precondition(identity(), out, identity(), t, process.signal.at(t))


def coloured_noise(level: Schedule) -> Parametrization:
    r"""F estimates the coloured noise n = S_t eps / level_t: x_t - level_t F estimates C_t x_0.

    For S_t = level_t L this is non-isotropic DDPM's second parametrization, n = L eps, which needs
    no operator of the noise anywhere.

    >>> level = sf.schedules.Complement(sf.schedules.linear_betas())
    >>> process = sf.METHODS["ni-ddpm"]((1, 8, 8)).process
    >>> sf.predictions.coloured_noise(level)(process, torch.tensor(0.5).double()).out.gain
    tensor(-0.9599, dtype=torch.float64)

    References:
        Score-based Denoising Diffusion with Non-Isotropic Gaussian Noise Models (V. Voleti, C. Pal,
        A. Oberman, 2022), https://arxiv.org/abs/2210.12254
    """

    def parametrization(process: Process, t: Tensor) -> Precondition:
        out = scaled(-1.0) @ Scale(level).at(t)
        return Precondition(identity(), out, identity(), t, process.signal.at(t))

    return parametrization


def score(process: Process, t: Tensor) -> Precondition:
    r"""F estimates the score grad log q_t: x_t + V_t F estimates C_t x_0 (Tweedie).

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> sf.predictions.score(process, torch.tensor(0.5).double()).out.gain  # V_t
    tensor(0.2269, dtype=torch.float64)
    """
    return Precondition(identity(), process.cov(t), identity(), t, process.signal.at(t))


def previous(levels: int) -> Parametrization:
    r"""F estimates C_s x_0 - x_t at s = t - 1 / levels: IHDM's next less blurred image.

    Only on the grid k / levels: elsewhere a step would divide by the small gains of the blur.

    Raises:
        ValueError: (on use) a time between two levels.

    >>> process = sf.METHODS["ihdm"]((1, 8, 8)).process
    >>> of = sf.predictions.previous(levels=100)(process, torch.tensor(0.5).double()).of
    >>> torch.allclose(of.gain, process.signal.at(torch.tensor(0.49).double()).gain)
    True

    References:
        Generative Modelling with Inverse Heat Dissipation (S. Rissanen, M. Heinonen, A. Solin,
        2022), https://arxiv.org/abs/2206.13397
    """

    def parametrization(process: Process, t: Tensor) -> Precondition:
        place = t.to(torch.float64) * levels
        if seen((place - place.round()).abs() > 1e-6):
            raise Refused(
                f"this model estimates the next of its {levels} levels and is not defined between "
                f"them. Use --steps {levels}."
            )
        before = (place.round() - 1).clamp(min=0.0) / levels
        return Precondition(identity(), identity(), identity(), t, process.signal.at(before))

    return parametrization


def unit_input(parametrization: Parametrization) -> Parametrization:
    r"""The same estimate by a network whose input is scaled: in = (C_t C_t^T + V_t)^-1/2.

    The input has about unit variance for data of about unit variance. A variance-exploding process
    needs it, whose x_t grows with its noise: scaled, x_t is that of a variance-preserving process.

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> scaled = sf.predictions.unit_input(sf.predictions.noise)
    >>> pre = scaled(process, torch.tensor(1.0).double())
    >>> pre.inp.gain * process.noise.at(torch.tensor(1.0).double()).gain  # about 1
    tensor(0.9961, dtype=torch.float64)

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


def velocity(process: Process, t: Tensor) -> Precondition:
    r"""F estimates the velocity v = C_t eps - S_t x_0: x_0^ = C_t x_t - S_t v.

    Correct only for a variance-preserving process, C_t^2 + V_t = I; ValueError for any other.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> skip, out, *_ = sf.predictions.velocity(process, torch.tensor(0.5).double())
    >>> skip.gain**2 + out.gain**2
    tensor(1., dtype=torch.float64)

    References:
        Progressive Distillation for Fast Sampling of Diffusion Models (T. Salimans, J. Ho, 2022),
        https://arxiv.org/abs/2202.00512
    """
    signal, noise_ = process.signal.at(t), process.noise.at(t)
    total = signal @ signal.T + process.cov(t)
    if not isinstance(total, Diagonal) or seen(total.log_gain.abs() > 1e-9):
        raise Refused(
            "the velocity parametrization needs C_t^2 + V_t = I, a variance-preserving process. "
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

    >>> process = sf.METHODS["edm"]((1, 8, 8)).process
    >>> prior = sf.operators.scaled(0.25)  # variance of the data
    >>> pre = sf.predictions.wiener(prior)(process, torch.tensor(0.01).double())
    >>> pre.skip.gain, 0.25 / (0.25 + 0.8**2)  # EDM's c_skip at sigma = 0.8
    (tensor(0.2809, dtype=torch.float64), 0.28089887640449435)

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
