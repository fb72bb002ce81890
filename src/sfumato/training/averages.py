r"""An average of weights is a profile: how much of it each step's weights are.

    after n steps    average = sum_k p(k) theta_k,    p(k) = (1 - b_k) b_{k+1} ... b_n
    at step n        average <- b_n average + (1 - b_n) theta_n, in place

    ramped(d)        b_n = min(d, n / (n + 9)), and 0 at n = 1: exponential once it is long enough
    power(s)         b_n = (1 - 1/n)^(g + 1): p(k) is the integral over step k of the density
                     (g + 1) t^g / n^(g + 1), whose deviation is s n at every n

s is the *length*: the share of training that the average is spread over, whatever its duration. The
profiles of a few power averages, kept at several n, have the profile of any other length as a
weighted sum, by least squares: `mixed`.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (T. Karras et al., 2023),
    https://arxiv.org/abs/2312.02696: section 3, sigma_rel is the length
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sfumato.training.options import check_length

LISTS: Any = torch
"""Whose functions of lists of tensors have no public names: on a GPU one kernel for all."""

Decay = Callable[[int], float]
"""b_n of n = 1, 2, ..."""


def exponent(length: float) -> float:
    """g of the power average of this length, where length^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    Args:
        length: above 0 and at most 0.2886, nearly that of the plain mean of all steps.

    Raises:
        ValueError: another length.

    >>> round(sf.averages.exponent(0.05), 2), round(sf.averages.exponent(0.1), 2)
    (16.97, 6.94)
    """
    check_length(length)
    square = length**-2
    # The definition, multiplied out; of its roots the largest is the only one from 0 on.
    roots = np.roots([1.0, 7.0, 16.0 - square, 12.0 - square])
    return max(0.0, float(roots.real.max()))


def ramped(decay: float) -> Decay:
    """Exponential, of this decay once 1 / (1 - decay) steps are few beside those made."""
    return lambda n: min(decay, n / (n + 9)) if n > 1 else 0.0


def power(length: float) -> Decay:
    """A power function of this length."""
    g = exponent(length)
    return lambda n: (1 - 1 / n) ** (g + 1)


@final
class Average:
    """The average of some parameters, kept in place as they change.

    Args:
        parameters: which.
        decay: b_n.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: Decay) -> None:
        self.tensors = [parameter.detach().clone() for parameter in parameters]
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take in the parameters after one more step."""
        self.steps += 1
        fresh = 1 - self.decay(self.steps)
        mine, theirs = _parts(self.tensors), _parts(parameters)
        if fresh < 0.5:
            LISTS._foreach_lerp_(mine, theirs, fresh)
        else:
            # Here `lerp` counts from the other end and rounds otherwise; so did older versions.
            for old, new in zip(mine, theirs, strict=True):
                old.sub_(old - new, alpha=fresh)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the average into the parameters."""
        for parameter, mine in zip(parameters, self.tensors, strict=True):
            parameter.copy_(mine)

    @torch.no_grad()
    def copy_from(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the average to the parameters."""
        for mine, parameter in zip(self.tensors, parameters, strict=True):
            mine.copy_(parameter)


def _parts(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The part of each tensor that this process has, of those that are shared out; or all of it."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@final
class Power(NamedTuple):
    """The profile of a power average after some steps: (g + 1) t^g / n^(g + 1) for t up to n.

    >>> sf.averages.Power(length=0.1, steps=1000)
    Power(length=0.1, steps=1000)
    """

    length: float
    steps: int


@final
class Mixture(NamedTuple):
    """A profile as a weighted sum of others.

    Attributes:
        shares: of each of the others.
        error: norm of the difference of the densities, over the norm of the one asked for.

    >>> sf.averages.mixed([sf.averages.Power(0.1, 100)], sf.averages.Power(0.1, 100)).shares
    [1.0]
    """

    shares: list[float]
    error: float


def mixed(known: Sequence[Power], wanted: Power) -> Mixture:
    """The weighted sum of `known` profiles that is closest to the `wanted` one, in L2.

    Shares sum to 1, which the paper leaves out: equal weights are then their own average.

    Args:
        known: profiles of averages that were kept.
        wanted: of the same steps, or of fewer.

    >>> tenths = range(100, 1001, 100)
    >>> known = [sf.averages.Power(length, n) for n in tenths for length in (0.05, 0.1)]
    >>> sf.averages.mixed(known, sf.averages.Power(0.08, 1000)).error < 0.01
    True
    """
    gram = _products([*known, wanted])
    within, toward, square = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    scale = np.sqrt(np.diag(within))
    # Neighbours have nearly equal profiles; cutting small singular values keeps shares small.
    right = np.stack([toward, np.ones_like(toward)], 1) / scale[:, None]
    solved = np.linalg.lstsq(within / np.outer(scale, scale), right, rcond=1e-12)[0]
    found, ones = solved.T / scale
    found = found + ones * (1 - found.sum()) / ones.sum()
    left = square - 2 * found @ toward + found @ within @ found
    return Mixture(found.tolist(), float(np.sqrt(max(left, 0.0) / square)))


def _products(profiles: Sequence[Power]) -> np.ndarray:
    """Integrals of the products of densities, in units of 1 / the most steps."""
    g = np.array([exponent(profile.length) for profile in profiles])
    n = np.array([profile.steps for profile in profiles], dtype=np.float64)
    n = n / n.max()
    later = n[:, None] < n  # the density of the later one is a power of t where both are not 0
    latest = np.where(later, n, n[:, None])
    above = np.where(later, g, g[:, None])
    both = (g[:, None] + 1) * (g + 1) / (g[:, None] + g + 1)
    return both * (np.minimum(n[:, None], n) / latest) ** above / latest
