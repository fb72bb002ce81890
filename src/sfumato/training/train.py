r"""The only training loop: any method, one process or many, resumed by the same command.

Data order, times and noise come from (seed, step) for the *global* batch and are then sliced by
process, so a resumed run is the run, and several processes see what one would. Bit-identity holds
for equal threads, torch build and number of processes.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sfumato.config import Config
from sfumato.corruption.boundary import expect
from sfumato.corruption.learned import interior
from sfumato.estimation.denoise import Denoiser
from sfumato.estimation.loss import loss, stratified
from sfumato.model import Model
from sfumato.training import stop
from sfumato.training.checkpoint import Checkpoints, State
from sfumato.training.data import Data
from sfumato.training.options import TrainOptions as TrainOptions
from sfumato.training.watch import Watch

SHORT = 50
"""Steps of sampling that are tried without the network before training: refusals come first."""


def build(config: Config, data: Data, options: TrainOptions, **given: Any) -> Model:
    """A model before training: facts measured from `data`, initial weights from the seed.

    `given` are what `Model` takes beside config and facts: `backbone`, `build`.
    """
    expect(config, Config, "build needs a Config first")
    expect(data, Data, "build needs Data after the config, such as sf.load('digits')")
    expect(options, TrainOptions, "build needs TrainOptions after the data")
    torch.manual_seed(options.seed)
    return Model(config, data.facts(), **given)


def train(
    model: Model,
    data: Data,
    options: TrainOptions,
    out: Path | str,
    watch: Watch | None = None,
    device: str | None = None,
) -> Model:
    """Train `model` on `data` into the run folder `out`; called again alike, it goes on.

    Args:
        model: as `build` made it; its backbone is trained in place.
        data: the training images.
        options: how to train.
        out: the run's folder: `run.json`, `log.jsonl`, `checkpoints/`, `previews/`.
        watch: who shows the progress; silent by default.
        device: "cpu", "cuda", "mps"; by default the best there is.

    Returns:
        The model with averaged weights, also the last of `out`/checkpoints.

    Raises:
        ValueError: `out` holds another run, or cannot be written.
    """
    expect(model, Model, "train needs a Model first, as sf.build makes it")
    expect(data, Data, "train needs Data after the model, such as sf.load('digits')")
    expect(options, TrainOptions, "train needs TrainOptions after the data")
    # Accelerate keeps its settings for the life of the interpreter; a second training may differ.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision="bf16" if _bf16(options, device) else "no"
    )
    if device is not None and accelerator.device.type != torch.device(device).type:
        raise ValueError(
            f"there is no device {device} here; training would run on the {accelerator.device}."
        )
    if data.record != model.config.record:
        raise ValueError(
            f"this model was built for {model.config.record.name}, other data than "
            f"{data.record.name} as given. Build it with the record of what it is trained on."
        )
    model.network_calls(model.few(SHORT))
    world = accelerator.num_processes
    if options.batch % (world * options.accumulate):
        raise ValueError(
            f"batch {options.batch} does not split into {world} processes of "
            f"{options.accumulate} parts each."
        )
    watch = watch or Watch()
    backbone = model.denoiser.backbone.to(accelerator.device)
    learned = model.learned
    optimizer = torch.optim.AdamW(
        learned.parameters(),
        lr=options.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=options.weight_decay,
    )
    ema = EMAModel(learned.parameters(), decay=options.ema, foreach=True)
    state = State(learned, optimizer, ema)
    checkpoints = Checkpoints(Path(out), model, _identity(model, options), options.keep)
    with accelerator.main_process_first():
        step = checkpoints.open(state, write=accelerator.is_main_process)
    # A learned process stays where the algebra is, on the CPU.
    ema.shadow_params = [
        shadow.to(parameter.device)
        for shadow, parameter in zip(ema.shadow_params, learned.parameters(), strict=True)
    ]

    prepared = accelerator.prepare(_compiled(backbone, options))
    denoiser = Denoiser(model.recipe.process, model.recipe.parametrization, prepared)
    main = accelerator.is_main_process
    if main:
        watch.start(model, options, step)
        checkpoints.log({"event": "resumed" if step else "started", "step": step})
    try:
        with stop.asked() as stopping:
            while step < options.steps:
                value = _step(step, accelerator, denoiser, model, data, options, optimizer)
                ema.step(learned.parameters())
                step += 1
                if main:
                    watch.step(step, value)
                    _keep(step, checkpoints, state, options, watch, data)
                if _agreed(accelerator, stopping()):
                    if main:
                        checkpoints.save(state, step)
                    raise KeyboardInterrupt
    finally:
        if main:
            watch.stop()
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    state.use_average()
    model.denoiser.eval()
    return model


def _keep(
    step: int,
    checkpoints: Checkpoints,
    state: State,
    options: TrainOptions,
    watch: Watch,
    data: Data,
) -> None:
    """After a step: the line of the log, the checkpoint and the pictures that are due."""
    done, images = step == options.steps, step * options.batch
    if step % watch.every == 0 or done:
        rate = state.optimizer.param_groups[0]["lr"]
        checkpoints.log({"step": step, "images": images, **watch.figures(), "lr": rate})
    # Pictures first: a run cut between the two draws them again.
    if options.preview_every and (done or _crosses(step, options.batch, options.preview_every)):
        with state.averaged():
            watch.preview(checkpoints.model, data, checkpoints.out, images)
    if done or _crosses(step, options.batch, options.checkpoint_every):
        checkpoints.save(state, step)


def _step(
    step: int,
    accelerator: Accelerator,
    denoiser: Denoiser,
    model: Model,
    data: Data,
    options: TrainOptions,
    optimizer: torch.optim.Optimizer,
) -> Tensor:
    """One optimizer step on this process's share of the global batch; the mean loss."""
    denoiser.train()
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * _pace(step, options)
    torch.manual_seed(_number(options.seed, "module", step, accelerator.process_index))
    rows, t, eps, drawn = draw(step, data, options, model)
    share = options.batch // accelerator.num_processes
    part = share // options.accumulate
    total = torch.zeros((), device=accelerator.device)
    inner, slopes = interior(denoiser.process), []
    for i in range(options.accumulate):
        at = accelerator.process_index * share + i * part
        chosen = slice(at, at + part)
        x0 = data.batch(rows[chosen]).to(accelerator.device)
        bound = denoiser
        labels = data.classes(rows[chosen]) if model.config.conditional else None
        if labels is not None:
            bound = denoiser.given(classes=labels.to(accelerator.device))
        if model.recipe.context is not None and drawn is not None:
            bound = model.recipe.context.bind(bound, drawn[chosen].to(accelerator.device))
        last = i == options.accumulate - 1
        with _together(accelerator, denoiser.backbone, last):
            noise = eps[chosen].to(accelerator.device)
            each = loss(bound, model.recipe.weighting, x0, t[chosen], noise)
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
    for parameter in filter(lambda p: p.grad is not None, denoiser.process.parameters()):
        parameter.grad = cast(Tensor, accelerator.reduce(parameter.grad, "mean"))
    accelerator.clip_grad_norm_(denoiser.backbone.parameters(), options.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def draw(
    step: int, data: Data, options: TrainOptions, model: Model
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Rows of the data, times (B, 1, ..., 1), noise and context of the global batch.

    All from (seed, step).
    """
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
    return rows, t, eps, None if context is None else context.draw(eps, normal)


def _pace(step: int, options: TrainOptions) -> float:
    """Learning rate over its height: a linear rise, then half a cosine (or none)."""
    rise = max(1, round(options.warmup * options.steps))
    if step < rise:
        return (step + 1) / rise
    if options.decay == "none":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, options.steps - rise)))


def _number(*parts: object) -> int:
    """A seed of 63 bits from anything printable: streams of different names never meet."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _identity(model: Model, options: TrainOptions) -> dict[str, Any]:
    """What makes a run this run and no other."""
    return {"model": model.config.to_dict(), "options": asdict(options)}


def _bf16(options: TrainOptions, device: str | None) -> bool:
    if options.precision != "auto":
        return options.precision == "bfloat16"
    return device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _agreed(accelerator: Accelerator, stopping: bool) -> bool:
    """Whether any process was asked to stop: all of them leave at the same step."""
    if accelerator.num_processes == 1:
        return stopping
    if stopping:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def _compiled(backbone: nn.Module, options: TrainOptions) -> nn.Module:
    return torch.compile(backbone) if options.compile else backbone  # type: ignore[return-value]


def _together(accelerator: Accelerator, backbone: nn.Module, last: bool) -> AbstractContextManager:
    """Gradients are averaged over processes with the last part of a step only."""
    return nullcontext() if last else accelerator.no_sync(backbone)


def _crosses(step: int, batch: int, every: int) -> bool:
    return (step * batch) // every > ((step - 1) * batch) // every
