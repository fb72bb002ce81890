"""`sfumato sample RUN`: images from a trained model."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from sfumato.cli import kinds
from sfumato.cli.parser import Parser, resolved, settings
from sfumato.cli.progress import bar
from sfumato.names import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.model import Model
    from sfumato.record import Record

ABOUT = "Draw images from a trained model, one for each seed: the same one in any batch."


def run(argv: Sequence[str]) -> None:
    """Sample as the command line says."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.run is None:
        raise ValueError("sample needs a run or a model's name, as in sfumato sample runs/soft.")
    seeds = kinds.expand(values.seeds)

    from sfumato import pictures
    from sfumato.methods import lookup

    if values.kernel is not None:
        lookup.kernel(values.kernel)
    if values.dry_run:
        print(resolved(parser, values))
        return
    pictures.check_writable(values.out)
    model = load(values.run, values)
    check_out(model, values.out, seeds)
    classes = labels(model, values.classes, seeds)
    steps = values.steps or model.steps
    clock = time.perf_counter()
    with bar("steps", -(-len(seeds) // values.batch) * steps, values.quiet) as advance:
        images = model.sample(
            seeds,
            steps,
            values.kernel,
            classes,
            values.batch,
            callback=lambda *_: advance(1),
            start=seeds[0] if values.fix_start else None,
            grid=values.grid,
            clip=values.clip,
        )
    spent = time.perf_counter() - clock
    keep(images, values.out, seeds, model.config.record)
    if not values.quiet:
        sampler = f"kernel {values.kernel}" if values.kernel else model.kernel_name
        noun = "image" if model.config.record.pictures else "signal"
        plural = "" if len(seeds) == 1 else "s"
        weights = "EMA" if values.weights == "ema" else "raw"
        print(
            f"{values.out}: {len(seeds)} {noun}{plural}, {steps} steps of {sampler}, {weights} "
            f"weights, {spent:.1f} s"
        )


def check_out(model: Model, out: str, seeds: Sequence[int]) -> None:
    """Raise ValueError if `out` is no place for what the model makes: before it is made."""
    from sfumato import pictures

    if out.endswith(".npz"):
        return
    if not (model.config.record.pictures and pictures.drawable(model.shape)):
        raise ValueError(
            f"signals of shape {model.shape} are no pictures; write them to --out NAME.npz."
        )
    pictures.check_alone(out, _names(out, seeds), len(seeds))


def keep(images: Tensor, out: str, seeds: Sequence[int], record: Record) -> None:
    """Write images as the path tells; signals as float32 `signals`, in the data's raw values."""
    from sfumato import files, pictures

    if not record.pictures:
        return files.write_arrays({"signals": record.raw(images).numpy()}, Path(out))
    pictures.save(images, out, _names(out, seeds))


def _names(out: str, seeds: Sequence[int]) -> list[str] | None:
    """The names of a folder's pictures, by their seeds where these differ."""
    folder = Path(out).is_dir() or not Path(out).suffix
    return [f"{seed:06d}" for seed in seeds] if folder and len({*seeds}) == len(seeds) else None


def model_options(parser: Parser, seeds: str) -> None:
    """Add what says which model, on what, makes which images; shared with `show`."""
    parser.option("seeds", kinds.SEEDS, seeds, "one image for each, such as 0-3,8")
    steps = "steps of the sampler (default: the method's)"
    parser.option("steps", kinds.optional(kinds.POSITIVE), None, steps)
    kernel = "sampler: NAME or NAME:key=value, see sfumato methods (default: the method's)"
    parser.option("kernel", kinds.optional(kinds.TEXT), None, kernel)
    way_options(parser)
    classes = "for a conditional model: names or numbers, taken in turn (default: all)"
    parser.option("classes", kinds.optional(kinds.several(kinds.TEXT)), None, classes)
    which_model(parser)


def way_options(parser: Parser) -> None:
    """Add how the sampler's times are chosen, and whether its estimates are clipped."""
    text = (
        "times of the sampler: own, uniform, quadratic, karras, auto (the least error predicted of "
        "Gaussian data), or on a chain's levels leading, trailing, linspace (default: own)"
    )
    parser.option("grid", kinds.optional(kinds.TEXT), None, text)
    text = "clip every estimate of x_0 to [-1, 1], as official code of DDPM does"
    parser.option("clip", kinds.YES, False, text)


def which_model(parser: Parser) -> None:
    """Add which of a run's weights, whose method, and where and how precisely to compute."""
    parser.option("weights", kinds.choice("ema", "raw"), "ema", "averaged weights, or the last")
    own = "the model's method FILE.py:NAME, where it is your own; the file is run"
    parser.option("method", kinds.optional(kinds.TEXT), None, own)
    parser.option("device", kinds.choice("auto", "cpu", "cuda", "mps"), "auto", "where to compute")
    dtype = kinds.choice("float32", "bfloat16", "float16")
    parser.option("dtype", dtype, "float32", "precision of the network")


def load(run: str, values: Namespace) -> Model:
    """The model that the options name, on the device and as precise as they say."""
    import torch

    from sfumato.methods import lookup
    from sfumato.store import from_pretrained, newest, read_config

    place = torch.device(device(values.device) or best())
    build = None
    if values.method is not None:
        build, sha256 = lookup.method(values.method)
        config = newest(run, read_config)
        if not config.own:
            raise ValueError(f"{run} was trained by {config.method}; leave --method out.")
        if config.sha256 != sha256:
            note = f"{values.method} is not the file that {run} was trained with."
            print(f"sfumato: note: {note}", file=sys.stderr)
    model = from_pretrained(run, weights=values.weights, build=build).to(place)
    if values.dtype != "float32":
        backbone = model.denoiser.backbone
        cast = torch.autocast(place.type, getattr(torch, values.dtype))(backbone.forward)
        backbone.forward = lambda *args, **given: cast(*args, **given).float()
    return model


def device(name: str) -> str | None:
    """`name` if there is such a device here, None for auto; ValueError where there is none."""
    import torch

    if name == "auto":
        return None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _mps()}
    if not there[name]:
        raise ValueError(f"there is no device {name} here; use --device {best()}.")
    return name


def best() -> str:
    """The fastest device there is."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if _mps() else "cpu"


def _mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def labels(model: Model, chosen: Sequence[str] | None, seeds: Sequence[int]) -> list[int] | None:
    """A class for each seed: those chosen in turn; else seed i has class i, counted around."""
    names = model.config.record.classes or ()
    if chosen is None:
        return [seed % len(names) for seed in seeds] if model.config.conditional else None
    numbers = _numbers(chosen, names) if names else [0]
    return [numbers[i % len(numbers)] for i in range(len(seeds))]


def _numbers(chosen: Sequence[str], names: Sequence[str]) -> list[int]:
    """The classes that `chosen` names or numbers: in a list cut at commas, the longest name first.

    So that the class "tench, Tinca" is found in "tench, Tinca, goldfish".
    """
    known = {(str(i),): i for i in range(len(names))}
    known |= {tuple(_parts(name)): i for i, name in reversed([*enumerate(names)])}
    words, found = [word for text in chosen for word in _parts(text)], []
    while words:
        fits = [n for n in range(len(words), 0, -1) if tuple(words[:n]) in known]
        if not fits:
            raise ValueError(nearest("class", words[0], names))
        found.append(known[tuple(words[: fits[0]])])
        words = words[fits[0] :]
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _parser() -> Parser:
    parser = Parser("sample", ABOUT)
    run = "folder of a run or model, or the name of a model that comes along"
    parser.add_argument("run", metavar="RUN", nargs="?", help=run)
    out = (
        "x.png: a grid; x.npz: array `images` of uint8, (n, H, W, C), or `signals` of float32 in "
        "the data's own values; else a folder of .png"
    )
    parser.option("out", kinds.PATH, "samples.png", out)
    model_options(parser, "0-63")
    fix = "start all images where that of the first seed starts: branches of one x_1"
    parser.option("fix_start", kinds.YES, False, fix)
    parser.option("batch", kinds.POSITIVE, 64, "images in memory at once")
    parser.about_the_call()
    return parser
