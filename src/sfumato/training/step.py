r"""A step computes the mean loss of one global batch and its gradients, whatever the objective.

What it draws depends on (seed, step) and the place in the global batch alone: see `draws`. Dropout
alone depends on the process and the part of an accumulated batch too.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from sfumato.training import sharding
from sfumato.training.data import Data
from sfumato.training.draws import number
from sfumato.training.objective import Objective, Rows
from sfumato.training.options import TrainOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

D = TypeVar("D", bound=Rows)


def gradients(
    step: int,
    drawn: D,
    accelerator: Accelerator,
    objective: Objective[D],
    data: Data,
    options: TrainOptions,
    raw: Tensor,
) -> tuple[Tensor, Tensor]:
    """Leave the clipped gradients of the global batch in the parameters; the same in each process.

    `raw` holds the raw values of the rows that `drawn` names.

    Returns:
        The mean loss, (), and whether it and all gradients are finite, () of bool.
    """
    for module in (objective.subject.trainable, objective.network):
        if not module.training:  # `train` visits every module
            module.train()
    torch.manual_seed(number(options.seed, "module", step, accelerator.process_index))
    share = options.batch // accelerator.num_processes
    part = share // options.accumulate
    device = accelerator.device
    total = torch.zeros((), device=device)
    slopes = []
    for i in range(options.accumulate):
        chosen = slice(i * part, (i + 1) * part)
        x0 = data.scaled(raw[chosen], device)
        last = i == options.accumulate - 1
        with _together(accelerator, objective.network, last):
            each, bound = objective.losses(drawn, chosen, x0)
            if objective.inner and bound is not None:
                # They minimize the bound's mean square, since its mean does not depend on them.
                spread = (2 * bound.detach() * bound).mean() / options.accumulate
                slopes.append(torch.autograd.grad(spread, objective.inner, retain_graph=True))
            value = each.mean()
            accelerator.backward(value / options.accumulate)
        total += value.detach() / options.accumulate
    for parameter, found in zip(objective.inner, zip(*slopes, strict=True), strict=False):
        parameter.grad = torch.stack(found).sum(0)
    return _shared(total, accelerator, objective, options.clip)


def _shared(
    total: Tensor, accelerator: Accelerator, objective: Objective, clip: float
) -> tuple[Tensor, Tensor]:
    """Average over processes what is not yet averaged, clip, and test whether all is finite."""
    moved = [parameter for parameter in objective.beside if parameter.grad is not None]
    for parameter in moved:
        parameter.grad = cast(Tensor, accelerator.reduce(parameter.grad, "mean"))
    total = cast(Tensor, accelerator.reduce(total, "mean"))
    norm = nn.utils.clip_grad_norm_(objective.network.parameters(), clip or math.inf)
    norm = sharding.one(norm)
    sums = (cast(Tensor, parameter.grad).sum().to(total) for parameter in moved)
    return total, torch.stack([total, norm.to(total), *sums]).isfinite().all()


def _together(accelerator: Accelerator, network: nn.Module, last: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last part of a step only."""
    return nullcontext() if last else accelerator.no_sync(network)
