r"""A step computes random draws, mean loss and gradients of one global batch.

The draws depend on (seed, step) and the place in the *global* batch alone: times and dropped
classes for the whole batch, noise in parts of `PART` rows with a stream each; a process draws the
parts that its rows are in. Times and noise are drawn on the device. So a resumed run equals an
uninterrupted one, and several processes draw what one would.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, cast, final

import torch
from torch import Tensor, nn

from sfumato.algebra.place import CPU, home, upload
from sfumato.corruption.learned import interior
from sfumato.estimation.classify import class_loss
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.loss import loss, stratified
from sfumato.model import Model
from sfumato.training.data import Data
from sfumato.training.lessons import Batch, Lessons, Told
from sfumato.training.options import TrainOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

PART = 32
"""Rows of the global batch whose noise comes from one stream."""


@final
class Drawn(NamedTuple):
    """What one step draws, for the rows of the global batch that one process has."""

    rows: Tensor
    """Of the data, (B,), on the CPU."""
    t: Tensor
    """Times, (B, 1, ..., 1)."""
    eps: Tensor
    """Noise, (B, *shape)."""
    context: Tensor | None
    """Context of each image, for methods that draw one."""
    classes: Tensor | None
    """Of each image, (B,) int64, on the CPU, for conditional models; their number means none."""
    places: Tensor | None = None
    """Of the segments of a flow map, (B,) int64, on the CPU."""
    weight: Tensor | None = None
    """Of the guidance that a flow map receives, (B,), on the CPU."""


def draw(
    step: int,
    data: Data,
    options: TrainOptions,
    model: Model,
    device: torch.device = CPU,
    process: int = 0,
    processes: int = 1,
) -> Drawn:
    """The draws of `step` on `device` for one of `processes`: the same rows for any number of them.

    They depend on the seed, the number of the step and the place in the global batch alone.
    """
    share = options.batch // processes
    mine = range(process * share, (process + 1) * share)
    place = home(device)
    stream = _stream(place, options.seed, "times", step)
    u = torch.rand(options.batch, generator=stream, dtype=torch.float64, device=place)
    u = stratified(u)
    t, places = _times(step, u, options, model)
    t = t[mine.start : mine.stop]
    parts = range(mine.start // PART, -(-mine.stop // PART))
    drawn = [_part(step, k, options, model, device) for k in parts]
    cut = slice(mine.start - parts.start * PART, mine.stop - parts.start * PART)
    eps = torch.cat([eps for eps, _ in drawn])[cut]
    contexts = [context for _, context in drawn if context is not None]
    context = torch.cat(contexts)[cut] if contexts else None
    rows = _rows(step, data, options)[mine.start : mine.stop]
    classes = _classes(step, data, options, model, rows, mine)
    if places is not None:
        places = places[mine.start : mine.stop].cpu()
    weight = _weights(step, options, model, mine)
    t = t.reshape(-1, *(1,) * len(model.shape))
    return Drawn(rows, t, eps, context, classes, places, weight)


def _times(
    step: int, u: Tensor, options: TrainOptions, model: Model
) -> tuple[Tensor, Tensor | None]:
    """Times of the global batch from stratified numbers, and places of the segments of a map."""
    flow = model.recipe.flow_map
    if flow is None:
        return model.recipe.times(u), None
    size = torch.rand((), generator=_stream(CPU, options.seed, "sizes", step), dtype=torch.float64)
    places = flow.drawn(u, float(size))
    plain = model.recipe.times((2 * u) % 1.0)
    return torch.where(places < 0, plain, flow.starts(places)), places


def _weights(step: int, options: TrainOptions, model: Model, mine: range) -> Tensor | None:
    """Weights of guidance, uniform, for a flow map that receives them."""
    flow = model.recipe.flow_map
    if flow is None or flow.guidance is None:
        return None
    low, high = flow.guidance
    u = torch.rand(options.batch, generator=_stream(CPU, options.seed, "weights", step))
    return (low + (high - low) * u)[mine.start : mine.stop]


def _part(
    step: int, part: int, options: TrainOptions, model: Model, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Noise and context of the rows of one part of the global batch."""
    stream = _stream(device, options.seed, "noise", step, part)

    def normal(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=stream, dtype=torch.float32, device=device)

    count = min(PART, options.batch - part * PART)
    eps = normal(torch.empty(count, *model.shape, device=device))
    context = model.recipe.context
    return eps, None if context is None else context.draw(eps, normal)


def _rows(step: int, data: Data, options: TrainOptions) -> Tensor:
    """Rows of the data that the global batch of `step` has: each once an epoch."""
    positions = torch.arange(step * options.batch, (step + 1) * options.batch)
    epochs, places = positions // len(data), positions % len(data)
    rows = torch.empty_like(places)
    for epoch in epochs.unique().tolist():
        order = _stream(CPU, options.seed, "order", epoch)
        mine = epochs == epoch
        rows[mine] = torch.randperm(len(data), generator=order)[places[mine]]
    return rows


def _classes(
    step: int, data: Data, options: TrainOptions, model: Model, rows: Tensor, mine: range
) -> Tensor | None:
    """Classes of `rows`, which are at places `mine` of the global batch, some of them dropped."""
    classes = data.classes(rows) if model.config.conditional else None
    if classes is None or not model.config.drop_classes:
        return classes
    stream = _stream(CPU, options.seed, "classes", step)
    u = torch.rand(options.batch, generator=stream, dtype=torch.float64)[mine.start : mine.stop]
    none = len(model.config.record.classes or ())
    return torch.where(u < model.config.drop_classes, none, classes)


@torch.no_grad()
def check_weighting(model: Model) -> None:
    """Raise ValueError where the objective has no weight at some training time.

    A step on another device than the CPU reads no values, and would not detect it.
    """
    u = torch.arange(64, dtype=torch.float64) / 64
    t = model.recipe.times(u).reshape(-1, *(1,) * len(model.shape))
    model.recipe.weighting(model.recipe.process, t, t)


def gradients(
    step: int,
    drawn: Drawn,
    accelerator: Accelerator,
    denoiser: NetworkDenoiser,
    model: Model,
    data: Data,
    options: TrainOptions,
    lessons: Lessons | None = None,
) -> tuple[Tensor, Tensor]:
    """Leave the clipped gradients of the global batch in the parameters; the same in each process.

    `lessons` give the targets of a flow map.

    Returns:
        The mean loss, (), and whether it and all gradients are finite, () of bool.
    """
    if not (denoiser.training and denoiser.backbone.training):  # `train` visits every module
        denoiser.train()
    torch.manual_seed(_number(options.seed, "module", step, accelerator.process_index))
    share = options.batch // accelerator.num_processes
    part = share // options.accumulate
    device = accelerator.device
    total = torch.zeros((), device=device)
    inner = interior(denoiser.process)
    slopes = []
    for i in range(options.accumulate):
        chosen = slice(i * part, (i + 1) * part)
        x0 = data.batch(drawn.rows[chosen], device)
        bound = denoiser
        cond = {}
        if drawn.classes is not None:
            cond["classes"] = upload(drawn.classes[chosen], device)
        if model.recipe.context is not None and drawn.context is not None:
            cond["context"] = drawn.context[chosen]
            bound = denoiser.with_process(model.recipe.context.process(cond["context"]))
        target = None
        if lessons is not None and drawn.places is not None:
            batch = _batch(drawn, drawn.places[chosen], chosen, x0, cond)
            target = lessons.target(bound, batch)
            cond = lessons.cond(batch.places, batch.told)
        last = i == options.accumulate - 1
        with _together(accelerator, denoiser.backbone, last):
            noise = drawn.eps[chosen]
            if model.config.classifier:
                each = class_loss(bound, x0, drawn.t[chosen], noise, cond["classes"])
            else:
                t = drawn.t[chosen]
                each = loss(bound, model.recipe.weighting, x0, t, noise, target=target, **cond)
            if inner:
                # They minimize the bound's mean square, since its mean does not depend on them.
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


def _batch(
    drawn: Drawn, places: Tensor, chosen: slice, x0: Tensor, cond: dict[str, Tensor]
) -> Batch:
    """Some samples of a step, for the targets of a flow map."""
    weight = None if drawn.weight is None else upload(drawn.weight[chosen], x0.device)
    told = Told(cond.get("classes"), cond.get("context"), weight)
    return Batch(x0, drawn.eps[chosen], places, told)


def _shared(
    total: Tensor, accelerator: Accelerator, denoiser: NetworkDenoiser, clip: float
) -> tuple[Tensor, Tensor]:
    """Average over processes what is not yet averaged, clip, and test whether all is finite."""
    moved = [p for p in denoiser.process.parameters() if p.grad is not None]
    for parameter in moved:
        parameter.grad = cast(Tensor, accelerator.reduce(parameter.grad, "mean"))
    total = cast(Tensor, accelerator.reduce(total, "mean"))
    norm = nn.utils.clip_grad_norm_(denoiser.backbone.parameters(), clip)
    sums = (cast(Tensor, parameter.grad).sum().to(total) for parameter in moved)
    return total, torch.stack([total, norm.to(total), *sums]).isfinite().all()


def _stream(device: torch.device, *parts: object) -> torch.Generator:
    """A stream of random numbers on `device`, from anything printable."""
    return torch.Generator(device).manual_seed(_number(*parts))


def _number(*parts: object) -> int:
    """A seed of 63 bits from anything printable, so that streams of other names are independent."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _together(accelerator: Accelerator, backbone: nn.Module, last: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last part of a step only."""
    return nullcontext() if last else accelerator.no_sync(backbone)
