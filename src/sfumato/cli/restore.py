"""`sfumato restore RUN INPUT`: images from blurred, masked or small ones, by a trained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfumato.cli import kinds
from sfumato.cli.common import RUN, load, seed_option, which_model
from sfumato.cli.parser import OWN, Namespace, Parser, resolved, settings
from sfumato.cli.sample import labels, sampler, sampler_options
from sfumato.errors import Refused
from sfumato.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.algebra.linear import Operator
    from sfumato.evaluation.restorations import Arrays, Shelf
    from sfumato.model import Model
    from sfumato.progress import Advance
    from sfumato.sampling.samplers import Sampler
    from sfumato.training.inputs import Input

ABOUT = (
    "Restore images from measurements y = A x + noise: draw samples of p(x | y) with an "
    "unconditional model. A folder that was cut off goes on with the same command."
)


class Task(NamedTuple):
    """What is restored, and how.

    Attributes:
        operator: A; or the time at which the model's own process corrupts so.
        names, y, truth: of each image; truth is None unless it is known.
        request: all that restorations depend on beside y, as JSON holds it.
    """

    model: Model
    operator: Operator | float
    chosen: Sampler
    names: list[str]
    y: list[Tensor]
    truth: list[Tensor] | None
    request: dict[str, Any]


def run(argv: Sequence[str]) -> None:
    """Restore as the command line says."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    _check(values)
    if values.dry_run:
        print(resolved(parser, values))
        return

    from sfumato import pictures

    pictures.check_writable(values.out)
    task = _task(values)
    shelf, last = _shelf(values.out, task)
    restorations = _restored(task, shelf, values)
    if last is not None:
        last(restorations)
    if not values.quiet:
        _show(task, restorations, values)


def _check(values: Namespace) -> None:
    """Raise ValueError for what can be refused before anything is read."""
    if values.run is None or values.input is None:
        raise Refused(
            "restore needs a model and an image, as in "
            "sfumato restore fashion-soft blurred.png --operator blur:sigma=2."
        )
    if values.operator is None:
        raise Refused("restore needs --operator, such as blur:sigma=2 or box:10,10,18,18.")
    if values.lpips and not values.simulate:
        raise Refused("--lpips compares with the truth: give --simulate and a clean INPUT.")
    if not 0 <= values.noise < float("inf"):
        raise Refused(f"--noise is a standard deviation of 0 or more; got {values.noise:g}.")


def _task(values: Namespace) -> Task:
    from sfumato.evaluation import fidelity
    from sfumato.evaluation.samples import fingerprint
    from sfumato.training import inputs

    model = load(values.run, values)
    model.codec.check_pixels("a restoration")
    record = model.config.record
    record.check_pictures("restore")
    if model.recipe.context is not None:
        raise Refused(
            f"{values.run} draws its corruption for each image; restore needs another model."
        )
    chosen = model.chosen(sampler(values, values.steps))
    operator, noise, sha256 = _operator(values, model)
    found = inputs.read(values.input, values.key)
    _check_drawable(model, values.out)
    truth = None
    if values.simulate:
        fidelity.scores(*model.shape[-2:], perceptual=values.lpips)
        truth = inputs.fitting(found, model.shape, f"images of {values.run}")
    y = _measurements(found, operator, noise, model, values)
    told = ("noise", "rule", "scale", "samples", "seed", "dtype")
    if (at := _time(values.operator)) is not None:
        chosen, told = _conditional(values, model, chosen), ("samples", "seed", "dtype")
    else:
        _check_restored(model, operator, y[0][None], values)
    model.network_calls(chosen)
    request = {
        "model": fingerprint(model),
        "operator": values.operator,
        **({"sha256": sha256} if sha256 else {}),
        **{name: values[name] for name in told},
        "simulate": values.simulate,
        "sampler": chosen.name,
        "grid": [round(float(t), 12) for t in model.times(chosen)],
        "classes": labels(model, values.classes, range(len(found))),
    }
    names = [one.name for one in found]
    return Task(model, operator if at is None else at, chosen, names, y, truth, request)


def _check_restored(model: Model, operator: Operator, y: Tensor, values: Namespace) -> None:
    from sfumato.estimation.restored import Restored

    Restored(model.denoiser, operator, y, values.noise, values.rule, values.scale)


def _conditional(values: Namespace, model: Model, chosen: Sampler) -> Sampler:
    """The sampler that starts at the images themselves."""
    from sfumato.restoration import MARKOV
    from sfumato.sampling.sample import check_conditional

    chosen = chosen if values.sampler else MARKOV.over(chosen)
    if values.grid:
        raise Refused("from the model's own corruption sampling has equal steps: leave out --grid.")
    check_conditional(chosen.whole[0])
    return chosen


def _time(spec: str) -> float | None:
    """The time in `corruption:0.5`; None for other operators."""
    name, _, text = spec.partition(":")
    if name != "corruption":
        return None
    try:
        at = float(text.removeprefix("t="))
    except ValueError:
        at = 0.0
    if not 0 < at <= 1:
        raise Refused(f"operator corruption needs a time above 0, up to 1; got '{text}'.")
    return at


def _operator(values: Namespace, model: Model) -> tuple[Operator, float | Operator, str | None]:
    """A, the root of the noise's covariance, and the SHA-256 of A's file where it has one."""
    from sfumato.algebra.linear import Operator
    from sfumato.corruption.boundary import time
    from sfumato.corruption.measurement import check_transpose, measurement
    from sfumato.methods import lookup

    spec, shape = values.operator, model.shape
    if (at := _time(spec)) is not None:
        process, t = model.recipe.process, time(at)
        return process.signal.at(t), process.noise.at(t), None
    if OWN not in spec:
        return measurement(spec, shape), values.noise, None
    found, sha256 = lookup.own("operator", spec)
    operator = found if isinstance(found, Operator) else found(shape)
    if not isinstance(operator, Operator):
        raise Refused(
            f"{spec} must be an Operator, or return one for the shape of an image, such as "
            f"sf.operators.MatrixFree(apply, transpose); got {type(operator).__name__}."
        )
    check_transpose(operator, shape)
    return operator, values.noise, sha256


def _measurements(
    found: list[Input],
    operator: Operator,
    noise: float | Operator,
    model: Model,
    values: Namespace,
) -> list[Tensor]:
    """y of each input: as read, or simulated."""
    from sfumato.corruption.measurement import measured
    from sfumato.restoration import simulated
    from sfumato.training import inputs

    expected = measured(operator, model.shape)
    if not values.simulate:
        return inputs.fitting(found, expected, f"measurements by {values.operator}")
    return [
        simulated(one.value[None], operator, noise, values.seed + i)[0]
        for i, one in enumerate(found)
    ]


def _check_drawable(model: Model, out: str) -> None:
    from sfumato import pictures

    if not (out.endswith(".npz") or pictures.drawable(model.shape)):
        raise Refused(f"images of shape {model.shape} are no pictures; use --out NAME.npz.")


def _shelf(out: str, task: Task) -> tuple[Shelf, Any]:
    """Where finished restorations are kept, and what writes the result where that is one file."""
    import hashlib
    import json

    from sfumato import files, pictures
    from sfumato.evaluation import blocks
    from sfumato.evaluation.restorations import Shelf, stacked, strip

    path = Path(out)
    if path.is_dir() or not path.suffix:
        shelf = Shelf(path, task.request)
        shelf.check()
        return shelf, None
    key = hashlib.sha256(json.dumps(task.request, sort_keys=True).encode()).hexdigest()[:16]
    home = blocks.beside(path).home / key

    def last(restorations: list[Arrays]) -> None:
        if path.suffix.lower() == ".npz":
            files.write_arrays(stacked(restorations), path)
        else:
            pictures.save(strip(restorations), path)
        blocks.forget(home)

    return Shelf(home), last


def _restored(task: Task, shelf: Shelf, values: Namespace) -> list[Arrays]:
    """All restorations: those that are kept, and the others, a batch at a time."""
    done = [shelf.kept(name, y) for name, y in zip(task.names, task.y, strict=True)]
    left = [i for i, one in enumerate(done) if one is None]
    many = max(1, values.batch // values.samples)
    began = len(done) - len(left)
    if began and not values.quiet:
        print(f"sfumato: note: {began} of {len(done)} are restored already.", file=sys.stderr)
    with bar("images", len(done), values.quiet, began) as advance:
        for first in range(0, len(left), many):
            some = left[first : first + many]
            made = _drawn(task, some, values, advance)
            for i, one in zip(some, made, strict=True):
                shelf.keep(task.names[i], one)
                done[i] = one
    return [one for one in done if one is not None]


def _drawn(task: Task, some: list[int], values: Namespace, advance: Advance) -> list[Arrays]:
    import torch

    from sfumato.algebra.linear import Operator
    from sfumato.evaluation.restorations import arrays
    from sfumato.restoration import restore, uncorrupt

    classes = task.request["classes"]
    calls = values.samples * (len(task.request["grid"]) - 1)
    y = torch.stack([task.y[i] for i in some])
    drawn = (
        range(values.seed, values.seed + values.samples),
        task.chosen,
        None if classes is None else [classes[i] for i in some],
        values.batch,
        lambda done, x: advance(len(x) / calls),
    )
    if isinstance(task.operator, Operator):
        how = {"rule": values.rule, "scale": values.scale}
        samples = restore(task.model, y, task.operator, values.noise, *drawn, **how)
    else:
        samples = uncorrupt(task.model, y, task.operator, *drawn)
    truth = [None if task.truth is None else task.truth[i] for i in some]
    pairs = zip(some, samples, truth, strict=True)
    return [arrays(task.y[i], drawn, known) for i, drawn, known in pairs]


def _show(task: Task, restorations: list[Arrays], values: Namespace) -> None:
    count = len(restorations)
    images = f"{count} image{'' if count == 1 else 's'}"
    steps = len(task.request["grid"]) - 1
    print(f"{values.out}: {images}, {values.samples} samples each, {steps} steps of "
          f"{task.chosen.name}")  # fmt: skip
    if task.truth is not None:
        _compare(restorations, values.lpips)


def _compare(restorations: list[Arrays], perceptual: bool) -> None:
    """Print how near measurement, samples and mean are to the truth, means over all images."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from sfumato.evaluation import fidelity

    def signals(name: str) -> Tensor:
        return torch.stack([torch.from_numpy(one[name]).movedim(-1, -3) for one in restorations])

    truth = signals("truth")
    samples = signals("samples")
    told = {"measurement": signals("measurement"), "mean": signals("mean")}
    told = {name: (x, truth) for name, x in told.items() if x.shape == truth.shape}
    repeated = truth[:, None].expand_as(samples).flatten(0, 1)
    told["one sample"] = samples.flatten(0, 1), repeated
    scores = fidelity.scores(*truth.shape[-2:], perceptual=perceptual)
    table = Table("", *scores)
    for name, pair in told.items():
        table.add_row(name, *(f"{float(score(*pair).mean()):.4g}" for score in scores.values()))
    Console().print(table)


def _parser() -> Parser:
    parser = Parser("restore", ABOUT)
    parser.add_argument("run", metavar="RUN", nargs="?", help=RUN)
    text = "the measurement: an image, a folder of images, a .npz or a .npy"
    parser.add_argument("input", metavar="INPUT", nargs="?", help=text)
    text = (
        "A: blur:sigma=2, box:x0,y0,x1,y1 and random-mask:0.5 (pixels hidden), down:4 (means of "
        "4 x 4 pixels), motion:length=9,angle=45, identity, corruption:0.5 (the model's own, noise "
        "included, at time 0.5), or FILE.py:NAME, which is run"
    )
    parser.option("operator", kinds.optional(kinds.TEXT), None, text)
    parser.option("noise", kinds.NUMBER, 0.05, "standard deviation of the noise, in [-1, 1] units")
    text = "INPUT is a clean image: measure it first, and compare the result with it"
    parser.option("simulate", kinds.YES, False, text)
    text = "with --simulate: LPIPS too, by the package lpips, which downloads its network"
    parser.option("lpips", kinds.YES, False, text)
    out = (
        "x.png: a row for each image: measurement, mean, spread, samples (and truth); x.npz: "
        "arrays mean, samples, measurement (and truth); else a folder of both for each image"
    )
    parser.option("out", kinds.PATH, "restored.png", out)
    parser.option("samples", kinds.POSITIVE, 8, "for each image")
    seed_option(parser, "of the first sample; each next has the next seed")
    text = "how the estimate follows the measurement"
    rules = kinds.choice("spectrum", "pigdm", "dps", "replacement")
    parser.option("rule", rules, "spectrum", text)
    parser.option("scale", kinds.NUMBER, 1.0, "of the push of pigdm and dps")
    steps = "steps of the sampler (default: the method's)"
    parser.option("steps", kinds.optional(kinds.POSITIVE), None, steps)
    sampler_options(parser, clip=False)
    classes = "for a conditional model: names or numbers, taken in turn (default: all)"
    parser.option("classes", kinds.optional(kinds.several(kinds.TEXT)), None, classes)
    text = "the array in a .npz (default: images, or signals)"
    parser.option("key", kinds.optional(kinds.TEXT), None, text)
    parser.option("batch", kinds.POSITIVE, 64, "samples in memory at once")
    which_model(parser)
    parser.about_the_call()
    return parser
