"""Distillation: models that need one step or a few, from a trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

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
from sfumato.sampling.kernels import reverse
from sfumato.sampling.sample import noise_drawn
from sfumato.sampling.samplers import Sampler, spelled
from sfumato.store import from_pretrained
from sfumato.training.data import Data
from sfumato.training.options import TrainOptions
from sfumato.training.trackers import Tracker
from sfumato.training.train import build, train

By = Literal["progressive", "consistency", "shortcut"]
TEACHER_STEPS = 16


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
    teacher_steps: int = TEACHER_STEPS,
    to: int = 1,
    sampler: Sampler | str | None = None,
    guidance: tuple[float, float] | None = None,
    trackers: Callable[[Path], Iterable[Tracker]] = lambda out: (),
    device: str | None = None,
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
        teacher_steps: of the teacher. progressive: halved until `to`; consistency: levels between
            which it steps; shortcut: the shortest steps, a power of 2.
        to: steps that the last student, or the model by default, is sampled in.
        sampler: of the teacher, any that draws no noise; its own by default, or ddim where that
            draws noise. A `Sampler` may have a grid too.
        guidance: least and largest weight, for a teacher of classes trained with `drop_classes`:
            the student receives the weight, and needs one call for what takes its teacher two.
        trackers: from a stage's folder to what receives its figures.
        device: as in `train`.

    Returns:
        the stages, in turn.

    Raises:
        ValueError: a sampler that draws noise, numbers of steps that do not halve to `to`, a
            teacher without classes for `guidance`, or what `build` and `train` refuse.
    """
    expect(data, Data, "distill needs Data after the teacher, such as sf.load('digits')")
    choose("way to distil", by, WAYS)
    teacher = from_pretrained(source)
    chosen = _checked(teacher, sampler, teacher_steps, guidance)
    times = teacher.times(chosen)
    name = spelled(chosen.kernel)
    how = data, options, trackers, device
    if by != "progressive":
        taught = name if by == "consistency" else None
        flow = FlowMap(by, _floats(times), min(to, teacher_steps), taught, guidance)
        return [_stage(source, teacher, Path(out), flow, *how)]
    stages: list[Stage] = []
    for steps in halved(teacher_steps, to):
        flow = FlowMap(by, _floats(times), steps, name, guidance)
        stages.append(_stage(source, teacher, Path(out, f"{steps}"), flow, *how))
        source, teacher = stages[-1]
        times, name = times[::2], spelled(reverse(ddim()))
    return stages


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
            f"{16 if to < 1 else 2 * to}, or another --to."
        )
    return found[1 : found.index(to) + 1]


def learned(
    config: Config, stats: DataStatistics, by: By, levels: int, method: Method | None = None
) -> FlowMap:
    """A flow map of a model that has no teacher, on `levels` of its method's own times.

    Args:
        config, stats, method: of the model, as `Model` takes them.
        by: consistency or shortcut.
        levels: of a consistency model; of a shortcut model, the shortest steps, a power of 2.

    Raises:
        ValueError: progressive distillation, which needs a teacher, or levels that do not fit.
    """
    if by == "progressive":
        raise Refused("progressive distillation needs a teacher: sfumato distill RUN.")
    model = Model(config, stats, torch.nn.Identity(), method)
    times = model.times(Sampler(reverse(ddim()), levels, "own"))
    return FlowMap(by, _floats(times), 1)


def _stage(
    source: str | Path,
    teacher: Model,
    out: Path,
    flow: FlowMap,
    data: Data,
    options: TrainOptions,
    trackers: Callable[[Path], Iterable[Tracker]],
    device: str | None,
) -> Stage:
    drop = 0.0 if flow.guidance else teacher.config.drop_classes
    config = replace(
        teacher.config, record=data.record, flow_map=flow, sampler=Sampler(), drop_classes=drop
    )
    own = {"method": teacher.method} if config.own else {}
    model = build(config, data, options, source, **own)
    return Stage(out, train(model, data, options, out, trackers(out), device, teacher))


def _checked(
    teacher: Model,
    sampler: Sampler | str | None,
    steps: int,
    guidance: tuple[float, float] | None,
) -> Sampler:
    """The teacher's sampler; ValueError where its paths cannot be learned."""
    config = teacher.config
    if config.classifier:
        raise Refused("this is a classifier of x_t, which makes no images to distil.")
    if (known := config.flow_map) is not None:
        if known.guidance != (None if guidance is None else tuple(guidance)):
            told = "no weight" if known.guidance is None else "{:g},{:g}".format(*known.guidance)
            raise Refused(f"this teacher was distilled with {told} of --guidance: give the same.")
    elif guidance is not None and not config.drop_classes:
        raise Refused(
            "guidance can be distilled from a teacher that has learned images with and without "
            "classes. Train it with --conditional --drop-classes 0.1."
        )
    chosen = teacher.chosen(sampler).stepping(steps)
    named = sampler is not None and not (isinstance(sampler, Sampler) and sampler.kernel is None)
    drawn = _draws(teacher, chosen)
    if drawn and not named:
        chosen = replace(chosen, kernel=reverse(ddim()))
    elif drawn:
        raise Refused(
            f"{chosen.name} draws noise, so that x_t has no one path to learn. Use ddim, heun, "
            "multistep or unipc."
        )
    if spelled(chosen.kernel) is None:
        raise Refused("a teacher's sampler needs a name of sf.KERNELS, which a file can hold.")
    return chosen


def _draws(teacher: Model, chosen: Sampler) -> bool:
    recipe = teacher.recipe

    def make(backbone: torch.nn.Module) -> NetworkDenoiser:
        return NetworkDenoiser(recipe.process, recipe.parametrization, backbone)

    return noise_drawn(chosen.whole[0], make, teacher.shape, teacher.times(chosen))


def _floats(times: Tensor) -> tuple[float, ...]:
    return tuple(times.tolist())
