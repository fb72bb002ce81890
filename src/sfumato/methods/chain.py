r"""A chain of DDPM as diffusers describes it: its variances, its steps and its sampler.

q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) at t = k / T, where diffusers counts the steps
k - 1 from 0. The numbers abar_k are those of its schedulers, in single precision; a parameter has
the name that it has in a scheduler's config.

References:
    Denoising Diffusion Probabilistic Models (Jonathan Ho, Ajay Jain, Pieter Abbeel, 2020),
    https://arxiv.org/abs/2006.11239
    Denoising Diffusion Implicit Models (Jiaming Song, Chenlin Meng, Stefano Ermon, 2020),
    https://arxiv.org/abs/2010.02502
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Shanchuan Lin, Bingchen Liu,
    Jiashi Li, Xiao Yang, 2023), https://arxiv.org/abs/2305.08891 (the spacings)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from sfumato.algebra.operators import identity
from sfumato.corruption.coupling import Coupling, ancestral, ancestral_large, ddim
from sfumato.corruption.families import Scale
from sfumato.corruption.prior import GaussianPrior
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Betas, Complement
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser
from sfumato.estimation.loss import level_times, unit_target
from sfumato.estimation.predictions import noise, velocity, x0
from sfumato.methods.recipe import Recipe
from sfumato.methods.spacing import SPACINGS, spaced
from sfumato.names import choose, value
from sfumato.sampling.kernels import Kernel, Loop, Move, moved, reverse
from sfumato.sampling.likelihood import Evidence
from sfumato.sampling.samplers import GridOf, Sampler

PREDICTIONS = {"epsilon": noise, "v_prediction": velocity, "sample": x0}
VARIANCES: dict[str, Coupling] = {
    "none": ddim(),
    "fixed_small": ancestral,
    "fixed_large": ancestral_large,
}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def chain(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear",
    trained_betas: Sequence[float] = (),
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
    variance_type: Literal["none", "fixed_small", "fixed_large"] = "none",
    steps: int = 50,
) -> Recipe:
    """A chain of DDPM as diffusers describes it.

    Args:
        shape: of one signal, any.
        stats: not used.
        num_train_timesteps: T, the steps of the chain.
        beta_start: first variance, where the schedule has ends.
        beta_end: last variance.
        beta_schedule: how variances rise.
        trained_betas: the variances themselves, in place of a schedule.
        prediction_type: what the network returns: noise, velocity or x_0.
        timestep_spacing: which steps of the chain a sampler visits.
        steps_offset: added to the steps of the leading spacing.
        set_alpha_to_one: whether the last step returns x_0^; else x of the chain's first step.
        variance_type: of the ancestral step; none is DDIM.
        steps: steps of the sampler.
    """
    power = _log_power(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
    count = len(trained_betas) or num_train_timesteps
    process = Process(signal=Scale(Amplitude(power)), noise=Scale(Complement(power)))
    output = choose("prediction_type", prediction_type, PREDICTIONS)
    step = choose("variance_type", variance_type, VARIANCES)
    offset = steps_offset if timestep_spacing == "leading" else 0
    clean = set_alpha_to_one or variance_type != "none"
    kernel: Kernel = reverse(step)
    if variance_type == "none" and clean and timestep_spacing != "leading":
        kernel = strided(count, timestep_spacing)
    return Recipe(
        process,
        output,
        unit_target(output),
        Sampler(kernel, min(steps, count), _grid(count, timestep_spacing, offset, clean)),
        GaussianPrior(torch.zeros(shape, dtype=torch.float64), identity()),
        __doc__ or "",
        times=level_times(count),
        levels=count,
        evidence=Evidence() if variance_type == "none" else Evidence(backward=step),
    )


@final
@value
class strided(Kernel):
    r"""DDIM whose step is always floor(T / N) levels of a chain of T, as that of diffusers.

    x_t becomes x at t - floor(T / N) / T, and is then taken for x at the next time of the grid.
    The two differ for a linspace grid, and for a trailing one where N does not divide T;
    `reverse(ddim())` steps to the time that comes next.
    """

    length: int
    spacing: str

    @property
    def name(self) -> str:
        return f"ddim in strides of diffusers over {self.length} levels"

    def prepare(self, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Loop:
        stride = self.length // self._steps(grid) / self.length

        def rule(process: Process, t: Tensor, s: Tensor) -> Move:
            to = (t - stride).clamp(min=0.0)
            carry, fresh = ddim()(process, t, to)
            return Move(carry, process.signal.at(to) - carry @ process.signal.at(t), fresh)

        return moved(rule, denoiser, x, grid)

    def _steps(self, grid: Tensor) -> int:
        """N of this grid, whose last time may be one where the network is not called."""
        fewer = len(grid) - 1
        levels = SPACINGS[self.spacing](self.length, fewer) if fewer else grid[:0]
        return fewer if fewer and torch.allclose(levels / self.length, grid[:-1]) else len(grid)


def _grid(count: int, spacing: str, offset: int, clean: bool) -> GridOf:
    """The grid of diffusers: the levels of a spacing, and then where its last step leads.

    That is 0, unless its stride from the last level ends above, or it returns x of the first level.
    """
    levels = choose("timestep_spacing", spacing, SPACINGS)

    def shifted(of: int, steps: int) -> Tensor:
        found = levels(of, steps) + offset
        if float(found[0]) > of:
            raise Refused(
                f"{steps} steps from an offset of {offset} begin above the {of} levels of the "
                "chain. Use fewer steps."
            )
        return found

    whole = spaced(count, shifted)

    def grid(steps: int) -> Tensor:
        found = whole(steps)
        last = 0.0 if clean else 1.0
        if spacing != "leading":
            last = max(last, round(float(found[-2]) * count) - count // steps)
        found[-1] = last / count
        return found[: int((found > last / count).sum()) + 1]

    return grid


def _log_power(
    count: int, start: float, end: float, schedule: str, listed: Sequence[float]
) -> Betas:
    """log abar of the chain, of the numbers that diffusers has in single precision."""
    choose("beta_schedule", schedule, SCHEDULES)
    if listed:
        betas = torch.tensor(tuple(listed), dtype=torch.float32)
    elif schedule == "linear":
        betas = torch.linspace(start, end, count)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count) ** 2
    elif schedule == "sigmoid":
        betas = torch.linspace(-6, 6, count).sigmoid() * (end - start) + start
    else:
        power = [math.cos((k / count + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(count + 1)]
        betas = torch.tensor([min(1 - power[k + 1] / power[k], 0.999) for k in range(count)])
    power = (1.0 - betas).cumprod(0).double()
    before = torch.cat([torch.ones(1).double(), power[:-1]])
    return Betas(1 - power / before)
