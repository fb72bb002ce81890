r"""A spacing places a sampler's steps on the levels of a chain, at which its network is trained.

A chain of T levels has its level k at t = k / T. For N steps, with i = 0, ..., N - 1:

    leading      k_i = 1 + (N - 1 - i) floor(T / N)            DDIM's "uniform skip"
    trailing     k_i = round(T - i T / N)
    linspace     k_i = 1 + round((T - 1) (1 - i / (N - 1)))

The last step returns the estimate of x_0 at k_{N-1}: level 1, except for trailing, which stops
about T / N above it. The names are those of diffusers.

References:
    Denoising Diffusion Implicit Models (Jiaming Song, Chenlin Meng, Stefano Ermon, 2020),
    https://arxiv.org/abs/2010.02502
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Shanchuan Lin, Bingchen Liu,
    Jiashi Li, Xiao Yang, 2023), https://arxiv.org/abs/2305.08891 (the three, and where they start)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.errors import Refused
from sfumato.estimation.loss import level_times
from sfumato.methods.recipe import Recipe
from sfumato.sampling.samplers import Sampler

Spacing = Callable[[int, int], Tensor]
"""(count, steps) -> the levels visited, falling, (steps,) of float64."""


def leading(count: int, steps: int) -> Tensor:
    """Level 1 and every floor(count / steps)-th above it.

    >>> sf.grids.leading(1000, 4)
    tensor([751., 501., 251.,   1.], dtype=torch.float64)
    """
    return 1.0 + count // steps * torch.arange(steps - 1, -1, -1, dtype=torch.float64)


def trailing(count: int, steps: int) -> Tensor:
    """The noisiest level and every (count / steps)-th below it.

    >>> sf.grids.trailing(1000, 4)
    tensor([1000.,  750.,  500.,  250.], dtype=torch.float64)
    """
    return (count - count / steps * torch.arange(steps, dtype=torch.float64)).round()


def linspace(count: int, steps: int) -> Tensor:
    """Evenly from the noisiest level to level 1, both included; the noisiest alone for one step.

    >>> sf.grids.linspace(1000, 4)
    tensor([1000.,  667.,  334.,    1.], dtype=torch.float64)
    """
    return 1 + torch.linspace(count - 1, 0, steps, dtype=torch.float64).round()


SPACINGS: dict[str, Spacing] = {"leading": leading, "trailing": trailing, "linspace": linspace}


def spaced(count: int, spacing: Spacing) -> Callable[[int], Tensor]:
    """The grid of a chain: number of steps -> falling times, k / count and at last 0.

    Raises:
        ValueError: (on use) more steps than there are levels.
    """

    def grid(steps: int) -> Tensor:
        if not 1 <= steps <= count:
            raise Refused(
                f"a chain of {count} levels is sampled in 1 to {count} steps; got {steps}."
            )
        asked = spacing(count, steps) / count
        return torch.cat([asked, torch.zeros(1, dtype=torch.float64)])

    return grid


def discrete(recipe: Recipe, count: int, spacing: Spacing = trailing) -> Recipe:
    """The recipe on a chain: trained on `count` levels alone, and sampled on some of them.

    By default in at most one step a level.
    """
    kernel, steps = recipe.sampler.whole
    sampler = Sampler(kernel, min(steps, count), spaced(count, spacing))
    return replace(recipe, times=level_times(count), sampler=sampler, levels=count)


def every(count: int) -> Callable[[int], Tensor]:
    """The grid of a method whose sampler visits each of its levels: k / count, then 0.

    Raises:
        ValueError: (on use) another number of steps.
    """
    whole = spaced(count, linspace)

    def grid(steps: int) -> Tensor:
        if steps != count:
            raise Refused(
                f"this model was trained on {count} levels and takes no other number of steps; "
                f"got {steps}. Use --steps {count}."
            )
        return whole(steps)

    return grid
