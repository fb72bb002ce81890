"""Options that several verbs share, about data, models and the machine, and their meaning.

Data: which, and how they are read. A model: of which run, which weights, on which device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import kinds
from sfumato.cli.kinds import Kind
from sfumato.cli.parser import Namespace, Parser
from sfumato.cli.signatures import Parameter
from sfumato.errors import Refused
from sfumato.processes import here

if TYPE_CHECKING:
    from sfumato.codec import Codec
    from sfumato.model import Model
    from sfumato.record import Record
    from sfumato.training.data import Data
    from sfumato.training.trackers import Tracker

DATA = (
    "digits, fashion-mnist, photos, mnist, cifar10, cifar100, or the path of a folder of images or "
    ".tar shards, a .npz or a .npy; or hf:PATH, a data set of Hugging Face's library"
)
SPLIT = "of the data: train, or a slice of it such as train[:55000]"
REAL = "real images (default: what the model was trained on)"
HELD_OUT = "of the data: test, train, or a slice: train[55000:] (default: test, if it has one)"
RANGE = Kind(kinds.several(kinds.NUMBER, 2).read, "LOW,HIGH")
OPTIONS = ("range", "key", "kind", "resize", "crop")
"""How data are read: parameters of `sfumato.load`."""
OWN = ("method", "backbone")
"""Parts of a model that may be code in the user's file, each with an option of its name."""
RUN = "folder of a run or model, the name of a bundled model, or on the Hub user/name[@revision]"


def run_argument(parser: Parser, text: str = RUN) -> None:
    """Add which run or model a verb works on."""
    parser.add_argument("run", metavar="RUN", nargs="?", type=kinds.TEXT.read, help=text)


def seed_option(parser: Parser, text: str) -> None:
    """Add the seed of what `text` says."""
    parser.option("seed", kinds.NATURAL, 0, text)


def threads_option(parser: Parser, default: str) -> None:
    """Add the number of torch's threads; `default` describes the default."""
    text = f"of the processor (default: {default})"
    parser.option("threads", kinds.optional(kinds.POSITIVE), None, text)


def device_option(parser: Parser, text: str) -> None:
    """Add the device that torch computes on."""
    parser.option("device", kinds.choice("auto", "cpu", "cuda", "mps"), "auto", text)


def pick(values: Namespace, parameters: Iterable[Parameter]) -> dict[str, Any]:
    """The values of some parameters, by name."""
    return {parameter.name: values[parameter.name] for parameter in parameters}


def check_new(path: Path | str) -> Path:
    """The path, or ValueError where it exists: no result is overwritten."""
    if Path(path).exists():
        raise Refused(f"{path} exists. Choose another --out.")
    return Path(path)


def data_options(parser: Parser) -> None:
    """Add which data are trained on or shown."""
    parser.option("data", kinds.TEXT, "digits", DATA)
    parser.option("split", kinds.TEXT, "train", SPLIT)
    reading_options(parser)


def real_options(parser: Parser) -> None:
    """Add which data a trained model is compared with."""
    parser.option("data", kinds.optional(kinds.TEXT), None, REAL)
    parser.option("split", kinds.optional(kinds.TEXT), None, HELD_OUT)
    reading_options(parser)


def reading_options(parser: Parser) -> None:
    """Add how data are read."""
    text = "raw values that become -1 and 1 (default: inferred from the values)"
    parser.option("range", kinds.optional(RANGE), None, text)
    text = "the array in a .npz (default: images, or signals); columns of hf: data, IMAGE:CLASS"
    parser.option("key", kinds.optional(kinds.TEXT), None, text)
    text = "images, or signals that are no pictures (default: by the array's name)"
    parser.option("kind", kinds.optional(kinds.choice("images", "signals")), None, text)
    text = "shorter side to resize images to, by Lanczos' filter (default: as they are)"
    parser.option("resize", kinds.optional(kinds.POSITIVE), None, text)
    text = "center or none: of images resized; or N: their middle N pixels first (default: center)"
    parser.option("crop", kinds.optional(kinds.TEXT), None, text)


def latent_option(parser: Parser, purpose: str) -> None:
    """Add an autoencoder whose latents of the data are taken for `purpose`."""
    text = f"run of train-autoencoder, or model of latents: {purpose} its latents of the images"
    parser.option("latent", kinds.optional(kinds.TEXT), None, text)


def latents(data: Data, values: Namespace, place: str | None = None) -> tuple[Data, Codec | None]:
    """`data`, or with --latent their latents, kept in the folder --out, and the codec of them."""
    if values.latent is None:
        return data, None

    from sfumato.progress import bar
    from sfumato.store import read_source
    from sfumato.training.latents import encoded

    source = read_source(values.latent, data.record.shape)
    with bar("images encoded", len(data), values.quiet) as advance:
        return encoded(data, source, values.out, values.latent, mine(place), advance)


def asked(values: Namespace) -> dict[str, Any]:
    """The arguments of `sfumato.load` that the options give."""
    return {name: values[name] for name in OPTIONS if values[name] is not None}


def trained_on(record: Record) -> str:
    """The name of the data of a model; ValueError for a pipeline, which does not say it."""
    from sfumato.bridge.read import is_pipeline

    if is_pipeline(Path(record.name)):
        raise Refused(
            f"{record.name} is a pipeline of diffusers, which does not say what it was trained "
            "on. Name real images: --data."
        )
    return record.name


def beside(record: Record, source: str, values: Namespace) -> dict[str, Any]:
    """The arguments of `sfumato.load` that read `source` as the input of a model with this record.

    The options take precedence over the record. It gives all arguments for the data that the model
    was trained on; for other data their kind and size, and for signals the range.
    """
    same = source == record.name
    known: dict[str, Any] = {"kind": record.kind, "resize": record.resize}
    if same or not record.pictures:
        known["range"] = record.low, record.high
    if same:
        known["key"] = record.key
    known |= asked(values)
    if known["resize"] is not None or record.crop.isdecimal():
        known = {"crop": record.crop} | known
    return known


def apart(source: str, values: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of `sfumato.load` for real images, and for finished ones to compare with them.

    With data known by name, which need no arguments, the options are those of the finished images;
    else of the real ones, and a range of both.
    """
    from sfumato.training.sources import NAMED

    told = asked(values)
    if source in NAMED:
        return {}, told
    return told, {name: told[name] for name in ("range",) if name in told}


def which_model(parser: Parser) -> None:
    """Add which of a run's weights, whose method, and where and how precisely to compute."""
    parser.option("weights", kinds.choice("ema", "raw"), "ema", "averaged weights, or the last")
    own = "the model's method FILE.py:NAME, where it is your own; the file is run"
    parser.option("method", kinds.optional(kinds.TEXT), None, own)
    own = "the model's backbone FILE.py:NAME, where it is your own; the file is run"
    parser.option("backbone", kinds.optional(kinds.TEXT), None, own)
    device_option(parser, "where to compute")
    dtype = kinds.choice("float32", "bfloat16", "float16")
    parser.option("dtype", dtype, "float32", "precision of the network")


def load(run: str, values: Namespace) -> Model:
    """The model that the options name, on their device and in their precision."""
    import torch

    from sfumato.methods import lookup
    from sfumato.store import from_pretrained, newest, read_config

    place = torch.device(mine(device(values.device)))
    given: dict[str, Any] = {}
    for what in OWN:
        if values[what] is None:
            continue
        named = values[what]
        made, sha256 = lookup.method(named) if what == "method" else lookup.own(what, named)
        config = newest(run, read_config)
        backbone = config.backbone
        spec = config if what == "method" else backbone
        if spec is None or not spec.own:
            network = "the U-Net" if backbone is None else backbone.name
            known = config.method if what == "method" else network
            raise Refused(f"{run} was trained by {known}; leave --{what} out.")
        given[what] = made
        if spec.sha256 != sha256:
            note = f"{named} is not the file that {run} was trained with."
            print(f"sfumato: note: {note}", file=sys.stderr)
    model = from_pretrained(run, weights=values.weights, **given).to(place)
    if values.dtype != "float32":
        backbone = model.denoiser.backbone
        cast = torch.autocast(place.type, getattr(torch, values.dtype))(backbone.forward)
        backbone.forward = lambda *args, **given: cast(*args, **given).float()
    return model


def trackers(values: Namespace, folder: Path | str) -> list[Tracker]:
    """The bar, and the programs that the options name, for a run in `folder`."""
    from sfumato.training.services import service
    from sfumato.training.trackers import ProgressBar

    bars: list[Tracker] = [] if values.quiet else [ProgressBar()]
    return bars + [service(name, folder) for name in dict.fromkeys(values.tracker)]


def device(name: str) -> str | None:
    """`name` if there is such a device here, None for auto; ValueError where there is none."""
    import torch

    if name == "auto":
        return None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _mps()}
    if not there[name]:
        raise Refused(f"there is no device {name} here; use --device {best()}.")
    return name


def best() -> str:
    """The fastest device there is."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if _mps() else "cpu"


def mine(name: str | None) -> str:
    """The device of this process: as asked, or the fastest; of several GPUs, its own."""
    import torch

    name = name or best()
    # A launcher may show each process its own GPU alone, which is the first one then.
    return f"cuda:{here().local % torch.cuda.device_count()}" if name == "cuda" else name


def _mps() -> bool:
    import torch

    return torch.backends.mps.is_available()
