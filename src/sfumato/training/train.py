r"""The only training loop: any objective, one process or many, resumed by the same command.

The inputs of each step depend on (seed, step) alone, so a resumed run equals an uninterrupted one:
bit by bit for equal threads, torch build and number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from sfumato import files, store
from sfumato.codec import identity
from sfumato.config import Config, Origin
from sfumato.corruption.boundary import expect
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused, TrainingDiverged, reason
from sfumato.model import Model
from sfumato.networks.ranks import widened
from sfumato.processes import here
from sfumato.sampling.sample import finite
from sfumato.training import denoising, draws, loader, sharding, speed, stop, together
from sfumato.training.averages import Average, power, ramped
from sfumato.training.checkpoint import Checkpoints, State
from sfumato.training.data import Data
from sfumato.training.objective import Objective
from sfumato.training.options import TrainOptions as TrainOptions
from sfumato.training.report import Report
from sfumato.training.step import gradients
from sfumato.training.trackers import JsonLines, Pictures, Tracker, checked

PATIENCE = 10
"""Steps in a row that are not finite before training is given up."""


def build(
    config: Config,
    data: Data,
    options: TrainOptions,
    start: str | Path | None = None,
    stats: DataStatistics | None = None,
    **given: Any,
) -> Model:
    """A model before training: statistics measured from `data`, initial weights from the seed.

    Args:
        config: what the model is.
        data: what it will be trained on.
        options: how; their seed is used.
        start: a run or a model, as `from_pretrained` finds it, whose averaged weights are the
            initial ones instead; `config.origin` records which.
        stats: statistics of the data; by default measured from `data`.
        given: further arguments of `Model`: `backbone`, `method`, `codec`.

    Raises:
        ValueError: the weights at `start` are of another network or of signals of another shape,
            or of latents of another codec, or not finite.

    >>> digits = sf.load("digits")
    >>> config = sf.Config("soft", digits.record, {}, sf.UNetOptions(width=8, patch=1))
    >>> model = sf.build(config, digits, sf.TrainOptions())
    >>> model.shape, int(model.stats.count)
    ((1, 8, 8), 1500)
    """
    expect(config, Config, "build needs a Config first")
    expect(data, Data, "build needs Data after the config, such as sf.load('digits')")
    expect(options, TrainOptions, "build needs TrainOptions after the data")
    with draws.seeded(options.seed):
        return _built(config, data, start, stats, given)


def _built(
    config: Config,
    data: Data,
    start: str | Path | None,
    stats: DataStatistics | None,
    given: dict[str, Any],
) -> Model:
    stats = data.stats() if stats is None else stats
    if start is None:
        return Model(config, stats, **given)
    stored = store.read(start)
    if (there := stored.config.record.shape) != data.record.shape:
        raise Refused(
            f"{start} has weights for signals of shape {there}; those of {data.record.name} have "
            f"{data.record.shape}."
        )
    origin = Origin(str(start), files.digest(dict(sorted(stored.weights.items()))))
    model = Model(replace(config, origin=origin), stats, **given)
    model.codec.check_identity(identity(stored.codec), str(start))
    channels = 0 if config.flow_map is None else config.flow_map.channels
    weights = widened(stored.weights, model.denoiser.backbone, channels)
    files.load_weights(model.trainable, stored.path, weights)
    if not finite(model.trainable):
        raise Refused(f"the weights in {stored.path} are not finite. Start from others.")
    store.verify(stored)
    return model


def train(
    model: Model,
    data: Data,
    options: TrainOptions,
    out: Path | str,
    trackers: Iterable[Tracker] = (),
    device: str | None = None,
    teacher: Model | None = None,
) -> Model:
    """Train `model` on `data` into the run folder `out`; the same call again resumes the run.

    A run also continues where `options` ask for more images than before, if the learning rates of
    all steps made so far are those of the longer run: the result then equals, bit by bit, a run
    that asked for all images from the start. This holds with `decay` "none" and a `warmup` of as
    many steps.

    A step whose loss or gradient is not finite is skipped: weights, average and moments stay as
    they are, and the next step uses the next batch.

    Args:
        model: as `build` made it; its backbone is trained in place.
        data: the training images.
        options: how to train.
        out: the run's folder: `run.json`, `log.jsonl`, `checkpoints/`, `previews/`, and with
            `averages` `snapshots/`.
        trackers: receivers of figures and pictures, such as `ProgressBar()`, beside
            `JsonLines(out)` and `Pictures(out)`, which are part of every run.
        device: "cpu", "cuda", "mps"; by default the best available.
        teacher: the model that a flow map is distilled from; `model` was built with it as `start`.

    Returns:
        The model with averaged weights, also the last of `out`/checkpoints.

    Raises:
        ValueError: `out` holds another run, or another process trains in it, or it cannot be
            written.
        TrainingDiverged: training diverged: PATIENCE steps in a row were skipped, or the last
            weights are not finite. The checkpoints in `out` are finite.
        ProcessLost: of several processes, another one has ended or does not answer.

    >>> digits = sf.load("digits")
    >>> config = sf.Config("soft", digits.record, {}, sf.UNetOptions(width=8, patch=1))
    >>> options = sf.TrainOptions(images=64, batch=32, preview_every=0)
    >>> model = sf.train(sf.build(config, digits, options), digits, options, "runs/small")
    >>> sf.from_pretrained("runs/small").sample(range(2), sf.Sampler(steps=2)).shape
    torch.Size([2, 1, 8, 8])
    """
    expect(model, Model, "train needs a Model first, as sf.build makes it")
    expect(data, Data, "train needs Data after the model, such as sf.load('digits')")
    expect(options, TrainOptions, "train needs TrainOptions after the data")
    fit(denoising.objective(model, teacher), data, options, out, trackers, device)
    model.denoiser.eval()
    return model


def fit(
    objective: Objective,
    data: Data,
    options: TrainOptions,
    out: Path | str,
    trackers: Iterable[Tracker] = (),
    device: str | None = None,
) -> None:
    """Train any objective, as `train` does, and leave the averaged weights in its subject."""
    own = (JsonLines(out), Pictures(out))
    told = (*own, *(tracker for tracker in checked(trackers) if tracker not in own))
    with together.reported(options), draws.seeded(options.seed):
        _fit(objective, data, options, out, told, device)


def _fit(
    objective: Objective,
    data: Data,
    options: TrainOptions,
    out: Path | str,
    told: tuple[Tracker, ...],
    device: str | None,
) -> None:
    _check(objective, data, options, here().count)  # before any waits for the others
    accelerator = _accelerator(options, device)
    shards = sharding.asked()
    with ExitStack() as stack:
        network = objective.network
        if shards:
            sharding.check(objective, options)
            network = sharding.sharded(objective, accelerator.device)
        else:
            objective.subject.to(accelerator.device)
        network = stack.enter_context(speed.running(network, options, accelerator.device))
        state = _state(network if shards else objective.subject.trainable, options)
        checkpoints = Checkpoints(Path(out), objective.subject, options)
        together.check_same(accelerator, checkpoints.identity, data, checkpoints.out)
        main = accelerator.is_main_process
        with accelerator.main_process_first():
            if main:
                stack.enter_context(checkpoints.claimed())
            # Files first, by one process: a damaged checkpoint is set aside once.
            start = checkpoints.resume(None if shards else state) if main or not shards else 0
            if main:
                checkpoints.tidy()
        if shards:
            start = checkpoints.resume(state)  # by all at once: each has a part of the weights
        prepared = network if shards else accelerator.prepare(network)
        # Else a later training would take the network for prepared, and not distribute it.
        stack.callback(objective.network.__dict__.pop, "_is_accelerate_prepared", None)
        report = Report(told if main else (), objective, data, options)
        stack.enter_context(report.running(start))
        stopping = stack.enter_context(stop.asked())
        steps = _steps(start, accelerator, objective.through(prepared), state, data, options)
        # With several, the others would wait for this one's share of the checkpoint.
        alone = accelerator.num_processes == 1
        kept = partial(checkpoints.save, state) if alone else None
        for step, value in _kept(steps, kept):
            if main:
                rate = state.optimizer.param_groups[0]["lr"]
                report.step(step, value, state.skipped, rate)
            if main or shards:
                _keep(step, checkpoints, state, options, report, main)
            _check_finite(step, state, checkpoints, options)
            if _agreed(accelerator, stopping()):
                if main or shards:
                    checkpoints.save(state, step, main)
                raise KeyboardInterrupt
    accelerator.wait_for_everyone()
    if shards:
        objective.network.load_state_dict(sharding.whole(state.weights()))
    else:
        state.use_average()


def _steps(
    step: int,
    accelerator: Accelerator,
    objective: Objective,
    state: State,
    data: Data,
    options: TrainOptions,
) -> Iterator[tuple[int, Tensor]]:
    """Do the steps after `step`; yields the number done and the mean loss of the last."""
    place = accelerator.device, accelerator.process_index, accelerator.num_processes
    drawn = objective.draw(step, data, options, *place)
    for raw in loader.read(data, options, step, *place):
        value, good = gradients(step, drawn, accelerator, objective, data, options, raw)
        drawn = objective.draw(step + 1, data, options, *place)
        # bool(good) is the only value of a step that the host waits for. On a GPU the next batch is
        # drawn meanwhile; the wait costs the time to queue the optimizer's kernels.
        state.step(options.learning_rate * options.pace(step), bool(good))
        step += 1
        yield step, value


def _kept(
    steps: Iterator[tuple[int, Tensor]], save: Callable[[int], None] | None
) -> Iterator[tuple[int, Tensor]]:
    """The steps; where the data of one cannot be read, what was trained before is saved."""
    done = 0
    try:
        for done, value in steps:
            yield done, value
    except (ValueError, OSError):
        if save is not None and done:
            save(done)
        raise


def _accelerator(options: TrainOptions, device: str | None) -> Accelerator:
    # Accelerate keeps its settings for the life of the interpreter; a second training may differ.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    try:
        accelerator = Accelerator(
            # Else several processes on a machine without a GPU would each train alone.
            cpu=device == "cpu" or (device is None and not torch.accelerator.is_available()),
            mixed_precision="no",  # `speed.running` sets the network's, compiled or not
            kwargs_handlers=[together.patience(options)],
        )
    except ValueError as error:  # of accelerate and torch
        raise Refused(
            f"process {here().index} of {here().count} cannot join the others: {reason(error)}. "
            "Start them by torchrun, or set MASTER_ADDR and MASTER_PORT as it does."
        ) from error
    if accelerator.num_processes != here().count:
        raise Refused(
            f"{here().count} processes were started, and on {accelerator.device} each would train "
            "alone. Use --device cpu, or start one; with GPUs, set LOCAL_RANK as torchrun does."
        )
    # The loop accumulates by itself, whatever accelerate's own variable says.
    accelerator.gradient_accumulation_steps = 1
    if device is not None:
        _check_device(torch.device(device), accelerator.device)
    return accelerator


def _check_device(asked: torch.device, found: torch.device) -> None:
    """Raise ValueError where training would run on another device than asked for."""
    if asked.type != found.type:
        raise Refused(f"there is no device {asked} here; training would run on the {found}.")
    if asked.type == "cuda" and asked.index not in (None, found.index):
        raise Refused(
            f"training would run on {found}, not on {asked}. Ask for cuda, and choose the GPU by "
            f"CUDA_VISIBLE_DEVICES={asked.index}."
        )


def _check(objective: Objective, data: Data, options: TrainOptions, processes: int) -> None:
    """Raise ValueError for what cannot be trained, before anything is written."""
    record = objective.subject.config.record
    if data.record != record:
        raise Refused(
            f"this model was built for {record.name}, other data than {data.record.name} as given. "
            "Build it with the record of what it is trained on."
        )
    objective.check(data)
    if options.batch % (processes * options.accumulate):
        raise Refused(
            f"batch {options.batch} does not split into {processes} processes of "
            f"{options.accumulate} parts each. Use a multiple of {processes * options.accumulate}."
        )


def _state(trainable: nn.Module, options: TrainOptions) -> State:
    optimizer = speed.optimizer(trainable, options)
    powers = {s: Average(trainable.parameters(), power(s)) for s in options.averages}
    return State(trainable, optimizer, Average(trainable.parameters(), ramped(options.ema)), powers)


def _keep(
    step: int,
    checkpoints: Checkpoints,
    state: State,
    options: TrainOptions,
    report: Report,
    main: bool,
) -> None:
    """After a step: the pictures and the checkpoint that are due."""
    done = step == options.steps
    # Pictures first: a run interrupted between the two draws them again.
    if options.preview_every and (done or _crosses(step, options.batch, options.preview_every)):
        with state.averaged():
            report.preview(step)
    # Snapshots before the checkpoint: a run resumed from it has all that came before.
    checkpoints.keep_averages(state, step)
    if done or _crosses(step, options.batch, options.checkpoint_every):
        checkpoints.save(state, step, main)


def _check_finite(step: int, state: State, checkpoints: Checkpoints, options: TrainOptions) -> None:
    """Raise TrainingDiverged where training has diverged: in every process at the same step."""
    if state.skipped >= PATIENCE:
        what = f"the loss or its gradient was not finite in {state.skipped} steps in a row"
    elif step == options.steps and not finite(state.trainable):
        what = "the weights are not finite after the last step"
    else:
        return
    last = checkpoints.latest()
    kept = f"The last checkpoint is {last}" if last else "There is no checkpoint yet"
    raise TrainingDiverged(
        f"training diverged: {what}, up to step {step}. {kept}. Train in another --out with a "
        f"--learning-rate below {options.learning_rate:g}."
    )


def _agreed(accelerator: Accelerator, stopping: bool) -> bool:
    """Whether any process was asked to stop: all of them stop at the same step."""
    if accelerator.num_processes == 1:
        return stopping
    if stopping:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def _crosses(step: int, batch: int, every: int) -> bool:
    return (step * batch) // every > ((step - 1) * batch) // every
