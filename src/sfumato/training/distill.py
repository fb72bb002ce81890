"""Distillation: models that need one step or a few, from a trained one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato.algebra.operators import Diagonal
from sfumato.codec import Codec
from sfumato.config import Config
from sfumato.corruption.boundary import expect
from sfumato.corruption.coupling import ddim
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.methods.flow_maps import WAYS, FlowMap
from sfumato.methods.lookup import Method
from sfumato.model import Model
from sfumato.names import choose
from sfumato.networks.named import Builder
from sfumato.notes import Note
from sfumato.sampling.kernels import reverse
from sfumato.sampling.multistep import multistep
from sfumato.sampling.sample import noise_drawn
from sfumato.sampling.samplers import Sampler, spelled
from sfumato.store import from_pretrained
from sfumato.training.data import Data
from sfumato.training.latents import encoded
from sfumato.training.options import TrainOptions
from sfumato.training.trackers import Tracker
from sfumato.training.train import build, train

By = Literal["progressive", "consistency", "shortcut"]
STEPS = 16
FAINT = 0.1
"""Signal at t = 1 below which an x_0 recovered from an estimate of the noise is noted as bad."""


@final
class Stage(NamedTuple):
    """One training of a distillation.

    Attributes:
        out: its run folder.
        model: the result, with averaged weights.
    """

    out: Path
    model: Model


def distill(
    source: str | Path,
    data: Data,
    options: TrainOptions,
    out: str | Path,
    by: By = "progressive",
    *,
    teacher_steps: int | None = None,
    to: int = 1,
    sampler: Sampler | str | None = None,
    guidance: float | None = None,
    trackers: Callable[[Path], Iterable[Tracker]] = lambda out: (),
    device: str | None = None,
    method: Method | None = None,
    backbone: Builder | None = None,
) -> list[Stage]:
    """Train models that need few steps from the model at `source`; the same call resumes.

    progressive: students of half as many steps each time, in the folders `out`/8, `out`/4, ...;
    each is the next one's teacher. consistency, shortcut: one model for several numbers of steps,
    in `out`. Their weights start from the teacher's. What they learn, and the papers, are in
    `sfumato.estimation.flow_map`.

    Args:
        source: the teacher, as `from_pretrained` finds it.
        data: its training data, or others of the same shape.
        options: how each stage is trained.
        out: the folder.
        by: progressive, consistency or shortcut.
        teacher_steps: of the teacher, 16 by default. progressive: halved until `to`; consistency:
            levels between which it steps; shortcut: the shortest steps, a power of 2.
        to: steps that the last student, or the model by default, is sampled in.
        sampler: of the teacher, any that draws no noise; its own by default, or ddim where that
            draws noise. A `Sampler` may have a grid too.
        guidance: largest weight, for a teacher of classes trained with `drop_classes`: the student
            receives the weight, and needs one call for what takes its teacher two.
        trackers: from a stage's folder to what receives its figures.
        device: as in `train`.
        method: the teacher's method, where it is the user's own.
        backbone: the function that makes its backbone, where that is the user's own.

    Returns:
        the stages, in turn.

    Raises:
        ValueError: a sampler that draws noise, numbers of steps that do not halve to `to`, a
            teacher without classes for `guidance`, or what `build` and `train` refuse.

    >>> digits = sf.load("digits")
    >>> size = sf.UNetOptions(width=8, patch=1)
    >>> config = sf.Config("ddpm", digits.record, {"prediction": "velocity"}, size)
    >>> options = sf.TrainOptions(images=32, batch=32, preview_every=0)
    >>> teacher = sf.train(sf.build(config, digits, options), digits, options, "teacher")
    >>> stages = sf.distill("teacher", digits, options, "few", teacher_steps=4, to=2)
    >>> [str(stage.out) for stage in stages]
    ['few/2']
    """
    expect(data, Data, "distill needs Data after the teacher, such as sf.load('digits')")
    teacher = from_pretrained(source, method=method, backbone=backbone)
    paths = paths_of(teacher, by, teacher_steps, to, sampler, guidance)
    _note_noise(teacher)
    times = paths.times
    name = spelled(paths.sampler.kernel)
    first = Path(out)
    if by == "progressive":
        first = Path(out, f"{halved(len(times) - 1, to)[0]}")
    data, codec = _coded(teacher, data, first, device)
    how = data, codec, options, trackers, device, backbone
    if by != "progressive":
        taught = name if by == "consistency" else None
        flow = FlowMap(by, _floats(times), to, taught, guidance)
        return [_stage(source, teacher, Path(out), flow, *how)]
    stages: list[Stage] = []
    for steps in halved(len(times) - 1, to):
        flow = FlowMap(by, _floats(times), steps, name, guidance)
        stages.append(_stage(source, teacher, Path(out, f"{steps}"), flow, *how))
        source, teacher = stages[-1]
        times = times[::2]
        name = spelled(reverse(ddim()))
    return stages


@final
@dataclass(frozen=True)
class Paths:
    """Of the teacher: its sampler, complete, and its times, (steps + 1,)."""

    sampler: Sampler
    times: Tensor


def paths_of(
    teacher: Model,
    by: By,
    steps: int | None = None,
    to: int = 1,
    sampler: Sampler | str | None = None,
    guidance: float | None = None,
) -> Paths:
    """The paths of `teacher` that `distill` learns, with its arguments.

    Raises:
        ValueError: they cannot be learned, with the reason.
    """
    choose("way to distil", by, WAYS)
    _check_teacher(teacher, guidance)
    flow = teacher.config.flow_map
    steps = steps or (STEPS if flow is None else flow.steps)
    if by == "progressive":
        halved(steps, to)
    elif not 1 <= to <= steps:
        raise Refused(f"--to is the steps of a sampler, from 1 to {steps}; got {to}.")
    chosen = _sampler(teacher, by, sampler).stepping(steps)
    return Paths(chosen, teacher.times(chosen))


def halved(teacher_steps: int, to: int) -> list[int]:
    """Steps of the students, half as many each time, down to `to`.

    Raises:
        ValueError: they do not halve to `to`.
    """
    found = [teacher_steps]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    if to not in found[1:]:
        known = ", ".join(map(str, found[1:])) or "nothing, an odd number"
        raise Refused(
            f"{teacher_steps} steps of a teacher halve to {known}; got {to}. Use --teacher-steps "
            f"{STEPS if to < 1 else 2 * to}, or another --to."
        )
    return found[1 : found.index(to) + 1]


def without_teacher(
    config: Config, stats: DataStatistics, by: By, levels: int, **given: Any
) -> FlowMap:
    """A flow map of a model that has no teacher, on `levels` of its method's own times.

    Args:
        config, stats: of the model, as `Model` takes them.
        by: consistency or shortcut.
        levels: of a consistency model; of a shortcut model, the shortest steps, a power of 2.
        given: further arguments of `Model`; its backbone is not used.

    Raises:
        ValueError: progressive distillation, which needs a teacher, or levels that do not fit.
    """
    if by == "progressive":
        raise Refused("progressive distillation needs a teacher: sfumato distill RUN.")
    model = Model(config, stats, **{**given, "backbone": nn.Identity()})
    _check_levels(model)
    times = model.times(Sampler(reverse(ddim()), levels, "own"))
    return FlowMap(by, _floats(times), 1)


def _stage(
    source: str | Path,
    teacher: Model,
    out: Path,
    flow: FlowMap,
    data: Data,
    codec: Codec | None,
    options: TrainOptions,
    trackers: Callable[[Path], Iterable[Tracker]],
    device: str | None,
    backbone: Builder | None,
) -> Stage:
    config = replace(
        teacher.config,
        record=data.record,
        latent=codec and codec.about,
        flow_map=flow,
        sampler=Sampler(),
        drop_classes=0.0,
    )
    own = {"method": teacher.method, "codec": codec, "backbone": backbone}
    model = build(config, data, options, source, teacher.stats, **own)
    known = None if flow.sampler is None else teacher
    return Stage(out, train(model, data, options, out, trackers(out), device, known))


def _coded(teacher: Model, data: Data, out: Path, device: str | None) -> tuple[Data, Codec | None]:
    """What the teacher's process acts on: the data, or their latents, kept in `out`."""
    if teacher.config.latent is None:
        return data, None
    name = teacher.config.latent.name
    return encoded(data, teacher.codec, out, name, device)


def _check_teacher(teacher: Model, guidance: float | None) -> None:
    """Raise ValueError for a model whose paths cannot be learned."""
    config = teacher.config
    if config.classifier:
        raise Refused("this is a classifier of x_t, which makes no images to distil.")
    if (known := config.flow_map) is None:
        _check_levels(teacher)
        if guidance is not None and not config.drop_classes:
            raise Refused(
                "guidance can be distilled from a teacher that has learned images with and without "
                "classes. Train it with --conditional --drop-classes 0.1."
            )
        return
    if known.by != "progressive":
        raise Refused(
            f"this teacher is a {known.by} model, whose maps are no steps along a path. Distil the "
            "model it started from."
        )
    if known.guidance != guidance:
        told = "without" if known.guidance is None else f"with {known.guidance:g} as"
        raise Refused(f"this teacher was distilled {told} --guidance: give the same.")


def _check_levels(model: Model) -> None:
    recipe = model.recipe
    if recipe.fixed:
        raise Refused(
            f"{model.config.method} is sampled in its own {recipe.sampler.whole[1]} steps, which "
            "are no steps along the probability flow. Distil a model of another method."
        )


def _sampler(teacher: Model, by: By, sampler: Sampler | str | None) -> Sampler:
    """The teacher's sampler; ValueError where it has no one path from x_t."""
    chosen = teacher.chosen(sampler)
    named = sampler is not None and not (isinstance(sampler, Sampler) and sampler.kernel is None)
    drawn = _draws_noise(teacher, chosen)
    if (drawn or by == "shortcut") and not named:
        chosen = replace(chosen, kernel=reverse(ddim()))
    elif drawn:
        raise Refused(
            f"{chosen.name} draws noise, so that x_t has no one path to learn. Use ddim, heun, "
            "multistep or unipc."
        )
    kernel = chosen.kernel
    if by == "shortcut" and kernel != reverse(ddim()):
        raise Refused("shortcuts are made of steps of their own, by ddim: leave --sampler out.")
    if by == "consistency" and isinstance(kernel, multistep):
        raise Refused(
            f"a consistency model learns single steps, in which {chosen.name} is ddim. Use ddim, "
            "or heun."
        )
    if spelled(kernel) is None:
        raise Refused("a teacher's sampler needs a name of sf.KERNELS, which a file can hold.")
    return chosen


def _draws_noise(teacher: Model, chosen: Sampler) -> bool:
    recipe = teacher.recipe

    def make(backbone: nn.Module) -> NetworkDenoiser:
        return NetworkDenoiser(recipe.process, recipe.parametrization, backbone)

    return noise_drawn(chosen.whole[0], make, teacher.shape, teacher.times(chosen))


def _note_noise(teacher: Model) -> None:
    """Warn where x_0 is recovered from an estimate of something that fades."""
    first = teacher.times()[0]
    of = teacher.recipe.parametrization(teacher.recipe.process, first).of
    if isinstance(of, Diagonal) and bool((of.gain < FAINT).any()):
        warnings.warn(
            f"the teacher's network estimates {float(of.gain.min()):.2g} x_0 at its first time, "
            "from which a map in one step or two is learned badly. A teacher of another "
            "prediction, such as velocity, wiener or x0, is better.",
            Note,
            stacklevel=3,
        )


def _floats(times: Tensor) -> tuple[float, ...]:
    return tuple(torch.as_tensor(times).tolist())
