r"""The only training loop: any method, one process or many, resumed by the same command.

What each step sees comes from (seed, step), so a resumed run is the run: bit by bit for equal
threads, torch build and number of processes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sfumato import files, store
from sfumato.config import Config, Origin
from sfumato.corruption.boundary import expect
from sfumato.estimation.denoise import Denoiser
from sfumato.model import Model
from sfumato.sampling.sample import finite
from sfumato.training import stop
from sfumato.training.checkpoint import Checkpoints, State
from sfumato.training.data import Data
from sfumato.training.options import TrainOptions as TrainOptions
from sfumato.training.step import draw, gradients
from sfumato.training.watch import Watch

SHORT = 50
"""Steps of sampling that are tried without the network before training: refusals come first."""

PATIENCE = 10
"""Steps in a row that are not finite before training is given up."""


def build(
    config: Config,
    data: Data,
    options: TrainOptions,
    start: str | Path | None = None,
    **given: Any,
) -> Model:
    """A model before training: facts measured from `data`, initial weights from the seed.

    Args:
        config: what the model is.
        data: what it will be trained on.
        options: how; their seed is used.
        start: a run or a model, as `from_pretrained` finds it, whose averaged weights are the
            initial ones instead; `config.origin` says which.
        given: what `Model` takes beside config and facts: `backbone`, `build`.

    Raises:
        ValueError: the weights at `start` are of another network or of signals of another shape, or
            not finite.
    """
    expect(config, Config, "build needs a Config first")
    expect(data, Data, "build needs Data after the config, such as sf.load('digits')")
    expect(options, TrainOptions, "build needs TrainOptions after the data")
    torch.manual_seed(options.seed)
    if start is None:
        return Model(config, data.facts(), **given)
    stored = store.read(start)
    if (there := stored.config.record.shape) != data.record.shape:
        raise ValueError(
            f"{start} has weights for signals of shape {there}; those of {data.record.name} have "
            f"{data.record.shape}."
        )
    origin = Origin(str(start), files.digest(dict(sorted(stored.weights.items()))))
    model = Model(replace(config, origin=origin), data.facts(), **given)
    files.load_weights(model.learned, stored.path, stored.weights)
    if not finite(model.learned):
        raise ValueError(f"the weights in {stored.path} are not finite. Start from others.")
    return model


def train(
    model: Model,
    data: Data,
    options: TrainOptions,
    out: Path | str,
    watch: Watch | None = None,
    device: str | None = None,
) -> Model:
    """Train `model` on `data` into the run folder `out`; called again alike, it goes on.

    It goes on too where `options` ask for more images than before, if all steps made so far had the
    learning rates that they would have had: then the longer run is the one that had asked for all
    from the start, bit by bit. That is so with `decay` "none", and a `warmup` of as many steps.

    A step whose loss or gradient is not finite is skipped: weights, average and moments stay as
    they are, and the next step looks at the next batch.

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
        ValueError: `out` holds another run, or another process trains in it, or it cannot be
            written.
        FloatingPointError: training diverged: PATIENCE steps in a row were skipped, or the last
            weights are not finite. The checkpoints in `out` are finite.
    """
    expect(model, Model, "train needs a Model first, as sf.build makes it")
    expect(data, Data, "train needs Data after the model, such as sf.load('digits')")
    expect(options, TrainOptions, "train needs TrainOptions after the data")
    accelerator = _accelerator(options, device)
    _check(model, data, options, accelerator.num_processes)
    backbone = model.denoiser.backbone.to(accelerator.device)
    state = _state(model.learned, options)
    checkpoints = Checkpoints(Path(out), model, options)
    main, watch = accelerator.is_main_process, watch or Watch()
    with ExitStack() as stack:
        with accelerator.main_process_first():
            if main:
                stack.enter_context(checkpoints.claimed())
            step = checkpoints.resume(state)
        prepared = accelerator.prepare(_compiled(backbone, options))
        denoiser = Denoiser(model.recipe.process, model.recipe.parametrization, prepared)
        if main:
            stack.callback(watch.stop)
            watch.start(model, options, step)
            checkpoints.log({"event": "resumed" if step else "started", "step": step})
        stopping = stack.enter_context(stop.asked())
        drawn = draw(step, data, options, model)
        while step < options.steps:
            value, good = gradients(step, drawn, accelerator, denoiser, model, data, options)
            drawn = draw(step + 1, data, options, model)
            # The one thing of a step that the host waits for: on a GPU it has drawn the next batch
            # meanwhile, and loses the time it takes to queue the optimizer's kernels.
            state.step(options.learning_rate * options.pace(step), bool(good))
            step += 1
            if main:
                watch.step(step, None if state.skipped else value)
                _keep(step, checkpoints, state, options, watch, data)
            _check_finite(step, state, checkpoints, options)
            if _agreed(accelerator, stopping()):
                if main:
                    checkpoints.save(state, step)
                raise KeyboardInterrupt
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    state.use_average()
    model.denoiser.eval()
    return model


def _accelerator(options: TrainOptions, device: str | None) -> Accelerator:
    # Accelerate keeps its settings for the life of the interpreter; a second training may differ.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision="bf16" if _bf16(options, device) else "no"
    )
    if device is not None and accelerator.device.type != torch.device(device).type:
        raise ValueError(
            f"there is no device {device} here; training would run on the {accelerator.device}."
        )
    return accelerator


def _check(model: Model, data: Data, options: TrainOptions, processes: int) -> None:
    """Raise ValueError for what cannot be trained, before anything is written."""
    if data.record != model.config.record:
        raise ValueError(
            f"this model was built for {model.config.record.name}, other data than "
            f"{data.record.name} as given. Build it with the record of what it is trained on."
        )
    model.network_calls(model.few(SHORT))
    _try_ends(model, data.batch(range(min(len(data), SHORT))))
    if options.batch % (processes * options.accumulate):
        raise ValueError(
            f"batch {options.batch} does not split into {processes} processes of "
            f"{options.accumulate} parts each."
        )


def _state(learned: nn.Module, options: TrainOptions) -> State:
    optimizer = torch.optim.AdamW(
        learned.parameters(),
        lr=options.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=options.weight_decay,
    )
    return State(learned, optimizer, EMAModel(learned.parameters(), options.ema, foreach=True))


@torch.no_grad()
def _try_ends(model: Model, x0: Tensor) -> None:
    """Compute the ends of a bound for some images, so that data they do not fit come first."""
    if model.recipe.ends is not None:
        model.recipe.ends(model.recipe.process, x0, torch.zeros_like(x0))


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
    if state.skipped:
        checkpoints.log({"event": "skipped", "step": step, "in_a_row": state.skipped})
    if step % watch.every == 0 or done:
        rate = state.optimizer.param_groups[0]["lr"]
        checkpoints.log({"step": step, "images": images, **watch.figures(), "lr": rate})
    # Pictures first: a run cut between the two draws them again.
    if options.preview_every and (done or _crosses(step, options.batch, options.preview_every)):
        with state.averaged():
            watch.preview(checkpoints.model, data, checkpoints.out, images)
    if done or _crosses(step, options.batch, options.checkpoint_every):
        checkpoints.save(state, step)


def _check_finite(step: int, state: State, checkpoints: Checkpoints, options: TrainOptions) -> None:
    """Raise FloatingPointError where training has diverged: in every process at the same step."""
    if state.skipped >= PATIENCE:
        what = f"the loss or its gradient was not finite in {state.skipped} steps in a row"
    elif step == options.steps and not finite(state.learned):
        what = "the weights are not finite after the last step"
    else:
        return
    last = checkpoints.latest()
    kept = f"The last checkpoint is {last}" if last else "There is no checkpoint yet"
    raise FloatingPointError(
        f"training diverged: {what}, up to step {step}. {kept}. Train in another --out with a "
        f"--learning-rate below {options.learning_rate:g}."
    )


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


def _crosses(step: int, batch: int, every: int) -> bool:
    return (step * batch) // every > ((step - 1) * batch) // every
