"""`sfumato sample RUN`: images from a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.cli import kinds
from sfumato.cli.common import load, run_argument, which_model
from sfumato.cli.parser import Namespace, Parser, resolved, settings
from sfumato.errors import Refused
from sfumato.names import nearest
from sfumato.processes import here
from sfumato.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.guidance import Fitted, Guidance
    from sfumato.model import Model
    from sfumato.record import Record
    from sfumato.sampling.samplers import Sampler

ABOUT = "Draw images from a trained model, one for each seed: the same one in any batch."


def run(argv: Sequence[str]) -> None:
    """Sample as the command line says."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.run is None:
        raise Refused("sample needs a run or a model's name, as in sfumato sample runs/soft.")
    seeds = kinds.expand(values.seeds)

    from sfumato import pictures

    chosen = sampler(values, values.steps)
    if values.dry_run:
        print(resolved(parser, values))
        return
    pictures.check_writable(values.out)
    model = load(values.run, values)
    guided = guidance(values)
    check_out(model, values.out, seeds)
    if here().first:
        _sweep(values.out, seeds)
    classes = labels(guided.classifier or model, values.classes, seeds)
    chosen = model.chosen(chosen)
    _, steps = chosen.whole
    clock = time.perf_counter()
    values.quiet = values.quiet or not here().first
    _draw(model, chosen, seeds, classes, guided, values)
    spent = time.perf_counter() - clock
    if not values.quiet:
        noun = "image" if model.config.pixels.pictures else "signal"
        plural = "" if len(seeds) == 1 else "s"
        weights = "EMA" if values.weights == "ema" else "raw"
        weight = f"guidance {values.guidance:g}, " if values.guidance else ""
        print(
            f"{values.out}: {len(seeds)} {noun}{plural}, {steps} steps of {chosen.name}, {weight}"
            f"{weights} weights, {spent:.1f} s"
        )


def _draw(
    model: Model,
    chosen: Sampler,
    seeds: list[int],
    classes: list[int] | None,
    guided: Guidance,
    values: Namespace,
) -> None:
    """Draw the images and write them: many in blocks, by all processes, few by the first."""
    from sfumato.cli import streamed
    from sfumato.evaluation.samples import Drawing

    start = seeds[0] if values.fix_start else None
    many, mine = streamed.suits(len(seeds), values.out), here()
    total = -(-len(seeds) // values.batch) * chosen.whole[1] / (mine.count if many else 1)
    with bar("steps", total, values.quiet) as advance:

        def draw(rows: slice) -> Tensor:
            told = None if classes is None else classes[rows]
            how = {"start": start, "clip": values.clip, "guidance": guided}
            each = {"callback": lambda *_: advance(1), **how}
            return model.sample(seeds[rows], chosen, told, values.batch, **each)

        record = model.config.pixels
        if many:
            how = {"clip": values.clip, "guidance": guided}
            drawing = Drawing(model, len(seeds), chosen, values.batch, dtype=values.dtype, **how)
            told = drawing.key() | {"seeds": seeds, "classes": classes, "start": start}
            names = _names(values.out, seeds)
            streamed.write(draw, told, names, len(seeds), values.out, record)
        elif mine.first:
            keep(draw(slice(None)), values.out, seeds, record)


def check_out(model: Model, out: str, seeds: Sequence[int]) -> None:
    """Raise ValueError if samples of the model cannot be written to `out`: before they are made."""
    from sfumato import pictures

    if out.endswith(".npz"):
        return
    record = model.config.pixels
    if not (record.pictures and pictures.drawable(record.shape)):
        raise Refused(
            f"signals of shape {record.shape} are no pictures; write them to --out NAME.npz."
        )
    pictures.check_alone(out, _names(out, seeds), len(seeds))


def _sweep(out: str, seeds: Sequence[int]) -> None:
    """Remove what the same command has left where it was cut off."""
    from sfumato import files

    names = _names(out, seeds) or [f"{i:06d}" for i in range(len(seeds))]
    files.sweep(Path(out))
    files.sweep(Path(out), {f"{name}.png" for name in names})


def keep(images: Tensor, out: str, seeds: Sequence[int], record: Record) -> None:
    """Write images in the path's format; signals as float32 `signals`, in the data's raw values."""
    from sfumato import files, pictures

    if not record.pictures:
        return files.write_arrays({"signals": record.raw(images).numpy()}, Path(out))
    pictures.save(images, out, _names(out, seeds))


def _names(out: str, seeds: Sequence[int]) -> list[str] | None:
    """The names of a folder's pictures, by their seeds where these differ."""
    folder = Path(out).is_dir() or not Path(out).suffix
    return [f"{seed:06d}" for seed in seeds] if folder and len({*seeds}) == len(seeds) else None


def model_options(parser: Parser, seeds: str) -> None:
    """Add the options of seeds, steps, model and classes; shared with `show`."""
    parser.option("seeds", kinds.SEEDS, seeds, "one image for each, such as 0-3,8")
    steps = "steps of the sampler (default: the method's)"
    parser.option("steps", kinds.optional(kinds.POSITIVE), None, steps)
    sampler_options(parser)
    classes = "for a conditional model: names or numbers, taken in turn (default: all)"
    parser.option("classes", kinds.optional(kinds.several(kinds.TEXT)), None, classes)
    which_model(parser)


def sampler(values: Namespace, steps: int | None) -> Sampler:
    """The sampler that the options name; what they leave unset is the model's."""
    from sfumato.sampling.samplers import Sampler

    return Sampler(values.sampler, steps, values.grid)


def sampler_options(parser: Parser, clip: bool = True) -> None:
    """Add the sampler, how its times are chosen, and, if `clip`, whether estimates are clipped."""
    name = "NAME or NAME:key=value, see sfumato methods (default: the model's)"
    parser.option("sampler", kinds.optional(kinds.TEXT), None, name)
    grid_option(parser)
    if clip:
        text = "clip every estimate of x_0 to [-1, 1], as DDPM's official code does"
        parser.option("clip", kinds.YES, False, text)


def grid_option(parser: Parser) -> None:
    """Add how the times of a sampler are chosen."""
    text = (
        "times of the sampler: own, uniform, quadratic, karras, auto (least error predicted for "
        "Gaussian data), or on a chain's levels leading, trailing, linspace (default: own)"
    )
    parser.option("grid", kinds.optional(kinds.TEXT), None, text)


def guidance_options(parser: Parser) -> None:
    """Add how far, when, and from what weaker model samples are guided away."""
    text = "weight of guidance away from no class, or from --guide; 0 is none"
    parser.option("guidance", kinds.NUMBER, 0.0, text)
    text = "first and last time of guidance, where 0 is clean"
    parser.option("guidance_interval", kinds.several(kinds.NUMBER, 2), (0.0, 1.0), text)
    text = "weaker run or model of the same method, or the folder of an earlier checkpoint"
    parser.option("guide", kinds.optional(kinds.TEXT), None, text)
    text = "run of train-classifier, of the same method, to be guided by instead"
    parser.option("classifier", kinds.optional(kinds.TEXT), None, text)
    text = "of the guide: averaged weights, or the last"
    parser.option("guide_weights", kinds.choice("ema", "raw"), "ema", text)


def guidance(values: Namespace) -> Guidance:
    """The guidance that the options ask for, its guide loaded as the model is."""
    from sfumato.guidance import Guidance

    found: dict[str, Model | None] = {"guide": None, "classifier": None}
    for name in found:
        if values[name] is None:
            continue
        if not values.guidance:
            raise Refused(f"--{name} needs a weight, such as --guidance 1.")
        weights = values.guide_weights if name == "guide" else "ema"
        found[name] = load(values[name], Namespace(**{**values.as_dict(), "weights": weights}))
    return Guidance(values.guidance, values.guidance_interval, **found)


def labels(model: Fitted, chosen: Sequence[str] | None, seeds: Sequence[int]) -> list[int] | None:
    """A class for each seed: those chosen in turn; else seed i has class i modulo their number."""
    names = model.config.record.classes or ()
    if chosen is None:
        return [seed % len(names) for seed in seeds] if model.config.conditional else None
    numbers = class_numbers(chosen, names) if names else [0]
    return [numbers[i % len(numbers)] for i in range(len(seeds))]


def class_numbers(chosen: Sequence[str], names: Sequence[str]) -> list[int]:
    """The classes that `chosen` names or numbers: lists are split at commas, longest names first.

    So that the class "tench, Tinca" is found in "tench, Tinca, goldfish".
    """
    known = {(str(i),): i for i in range(len(names))}
    known |= {tuple(_parts(name)): i for i, name in reversed([*enumerate(names)])}
    words = [word for text in chosen for word in _parts(text)]
    found = []
    while words:
        fits = [n for n in range(len(words), 0, -1) if tuple(words[:n]) in known]
        if not fits:
            raise Refused(nearest("class", words[0], names))
        found.append(known[tuple(words[: fits[0]])])
        words = words[fits[0] :]
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _parser() -> Parser:
    parser = Parser("sample", ABOUT)
    run_argument(parser)
    out = (
        "x.png: a grid, enlarged where images are small, or one image as it is; x.npz: array "
        "`images` of uint8, (n, H, W, C), or `signals` of float32 in "
        "the data's own values; else a folder of .png"
    )
    parser.option("out", kinds.PATH, "samples.png", out)
    model_options(parser, "0-63")
    guidance_options(parser)
    fix = "start all images from x_1 of the first seed: branches of one start"
    parser.option("fix_start", kinds.YES, False, fix)
    parser.option("batch", kinds.POSITIVE, 64, "images in memory at once")
    parser.about_the_call()
    return parser
