r"""A step looks at one global batch: what it draws, its mean loss, and the gradients.

All that is drawn comes from (seed, step) for the *global* batch and is then sliced by process, so
that a resumed run is the run, and several processes see what one would.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sfumato.corruption.learned import interior
from sfumato.estimation.denoise import Denoiser
from sfumato.estimation.loss import loss, stratified
from sfumato.model import Model
from sfumato.training.data import Data
from sfumato.training.options import TrainOptions


class Drawn(NamedTuple):
    """What one step draws, of the global batch (final)."""

    rows: Tensor
    """Of the data, (B,)."""
    t: Tensor
    """Times, (B, 1, ..., 1)."""
    eps: Tensor
    """Noise, (B, *shape)."""
    context: Tensor | None
    """How each image is corrupted, where the method draws that."""


def draw(step: int, data: Data, options: TrainOptions, model: Model) -> Drawn:
    """What `step` draws: from the seed and the number of the step alone."""
    positions = torch.arange(step * options.batch, (step + 1) * options.batch)
    epochs, places = positions // len(data), positions % len(data)
    rows = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        order = torch.Generator().manual_seed(_number(options.seed, "order", epoch))
        mine = epochs == epoch
        rows[mine] = torch.randperm(len(data), generator=order)[places[mine]]
    generator = torch.Generator().manual_seed(_number(options.seed, "noise", step))
    u = stratified(torch.rand(options.batch, generator=generator, dtype=torch.float64))
    t = model.recipe.times(u).reshape(-1, *(1,) * len(model.shape))

    def normal(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float32)

    eps = normal(torch.empty(options.batch, *model.shape))
    context = model.recipe.context
    if context is None:
        return Drawn(rows, t, eps, None)
    drawn = context.draw(eps, normal)
    return Drawn(rows, t, eps, drawn)


def gradients(
    step: int,
    drawn: Drawn,
    accelerator: Accelerator,
    denoiser: Denoiser,
    model: Model,
    data: Data,
    options: TrainOptions,
) -> tuple[Tensor, Tensor]:
    """Leave the clipped gradients of the global batch in the parameters; the same in each process.

    Returns:
        The mean loss, (), and whether it and all gradients are finite, () of bool.
    """
    denoiser.train()
    torch.manual_seed(_number(options.seed, "module", step, accelerator.process_index))
    share = options.batch // accelerator.num_processes
    part = share // options.accumulate
    total = torch.zeros((), device=accelerator.device)
    inner, slopes = interior(denoiser.process), []
    for i in range(options.accumulate):
        at = accelerator.process_index * share + i * part
        chosen = slice(at, at + part)
        x0 = data.batch(drawn.rows[chosen]).to(accelerator.device)
        bound = denoiser
        labels = data.classes(drawn.rows[chosen]) if model.config.conditional else None
        if labels is not None:
            bound = denoiser.given(classes=labels.to(accelerator.device))
        if model.recipe.context is not None and drawn.context is not None:
            bound = model.recipe.context.bind(bound, drawn.context[chosen].to(accelerator.device))
        last = i == options.accumulate - 1
        with _together(accelerator, denoiser.backbone, last):
            noise = drawn.eps[chosen].to(accelerator.device)
            each = loss(bound, model.recipe.weighting, x0, drawn.t[chosen], noise)
            if inner:
                # The gradient of the mean square: the bound's mean does not depend on these.
                spread = (2 * each.detach() * each).mean() / options.accumulate
                slopes.append(torch.autograd.grad(spread, inner, retain_graph=True))
            if model.recipe.ends is not None:
                each = each + model.recipe.ends(bound.process, x0, noise)
            value = each.mean()
            accelerator.backward(value / options.accumulate)
        total += value.detach() / options.accumulate
    for parameter, found in zip(inner, zip(*slopes, strict=True), strict=False):
        parameter.grad = torch.stack(found).sum(0)
    return _shared(total, accelerator, denoiser, options.clip)


def _shared(
    total: Tensor, accelerator: Accelerator, denoiser: Denoiser, clip: float
) -> tuple[Tensor, Tensor]:
    """Average over processes what is not yet, clip, and see whether all is finite."""
    moved = [p for p in denoiser.process.parameters() if p.grad is not None]
    for parameter in moved:
        parameter.grad = cast(Tensor, accelerator.reduce(parameter.grad, "mean"))
    total = cast(Tensor, accelerator.reduce(total, "mean"))
    norm = cast(Tensor, accelerator.clip_grad_norm_(denoiser.backbone.parameters(), clip))
    sums = (cast(Tensor, parameter.grad).sum().to(total) for parameter in moved)
    return total, torch.stack([total, norm.to(total), *sums]).isfinite().all()


def _number(*parts: object) -> int:
    """A seed of 63 bits from anything printable: streams of different names never meet."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _together(accelerator: Accelerator, backbone: nn.Module, last: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last part of a step only."""
    return nullcontext() if last else accelerator.no_sync(backbone)
