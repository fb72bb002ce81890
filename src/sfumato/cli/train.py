"""`sfumato train METHOD`: train, or resume an interrupted run; also `train-classifier`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import documents
from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import pick
from sfumato.cli.parser import (
    Namespace,
    Parser,
    described,
    first,
    refuse_code,
    resolved,
    said,
    settings,
    typed,
)
from sfumato.cli.signatures import SOURCE, UNET, Parameter, Signature
from sfumato.errors import WRONG, Refused, reason
from sfumato.names import reworded
from sfumato.processes import here
from sfumato.training.services import SERVICES

if TYPE_CHECKING:
    from sfumato.config import Backbone
    from sfumato.networks.named import Builder
    from sfumato.training.options import TrainOptions

RESUMES = (
    "The same command again resumes an interrupted run, and gives the same weights bit for bit."
)
WITHOUT = "{verb} needs a method first, as in sfumato {verb} soft; there are {names}."
DENOISING, NO_TEACHER = "denoising", ("consistency", "shortcut")
TRAIN = "train"
CLASSIFIER = "train-classifier"
ABOUT = {
    TRAIN: f"Train a method on images. {RESUMES}",
    CLASSIFIER: f"Train a classifier of images that the method has corrupted. {RESUMES}",
}


def run(argv: Sequence[str], verb: str = TRAIN) -> int:
    """Train as the command line says; the exit code. `verb` is TRAIN or CLASSIFIER."""
    found = settings(argv)
    if source := said(argv, "--from") or found.get("from"):
        found = _inherited(source, argv) | found
    names = signatures.methods()
    name, rest = first(argv, found, "method", WITHOUT.format(verb=verb, names=", ".join(names)))
    training = signatures.read(SOURCE / "training" / "options.py", "TrainOptions").parameters
    backbone = UNET
    if verb == TRAIN:
        backbone = str(said(argv, "--backbone") or found.get("backbone") or UNET)
    network = signatures.backbone(backbone).parameters
    if name is None:
        _general(verb, training, network).print_help()
        return 0
    method = signatures.method(name)
    parser = Parser(f"{verb} {name}", f"{method.summary} {ABOUT[verb]}")
    _add_options(parser, verb, name, method, training, network)
    values = parser.read(rest, found)

    from sfumato.networks.backbones import UNetOptions
    from sfumato.training.options import TrainOptions

    options = TrainOptions(**pick(values, training))
    size = UNetOptions(**pick(values, network)) if backbone == UNET else None
    if values.dry_run:
        print(resolved(parser, values, method=name))
        return 0
    told: dict[str, Any] = {"parameters": _changed(values, method), "network": size}
    given: dict[str, Any] = {}
    if size is None:
        told["backbone"], given["backbone"] = _backbone(backbone, values)
    return _train(verb, name, told, given, options, values)


def _backbone(spec: str, values: Namespace) -> tuple[Backbone, Builder | None]:
    """The backbone that the options describe, and its function where it is the user's own."""
    from sfumato.config import Backbone
    from sfumato.methods import lookup

    options = _changed(values, signatures.backbone(spec))
    if not lookup.names_code(spec):
        return Backbone(spec, options), None
    build, sha256 = lookup.own("backbone", spec)
    return Backbone(spec, options, sha256), build


def _inherited(source: str, argv: Sequence[str]) -> dict[str, Any]:
    """The options of the model at `source`; of another method, those of the network alone."""
    from sfumato.store import newest, read_config

    config = newest(source, read_config)
    if not argv[0].startswith("-") and argv[0] != config.method:
        config = replace(config, method=argv[0], parameters={}, time_warp=None)
    found = described(config.to_dict())
    if config.latent is not None:
        found["latent"] = source  # its codec, with the statistics that the weights expect
    refuse_code(found, typed(argv), f"--from {source}")
    return found


def _train(
    verb: str,
    name: str,
    told: dict[str, Any],
    given: dict[str, Any],
    options: TrainOptions,
    values: Namespace,
) -> int:
    """Train a model whose config has `told`, with the user's own code `given`."""
    from sfumato import files
    from sfumato.config import Config
    from sfumato.methods import lookup
    from sfumato.training.data import load
    from sfumato.training.distill import without_teacher
    from sfumato.training.train import build, train

    place = common.device(values.device)
    files.check_writable(Path(values.out) / "run.json")
    trackers = common.trackers(values, values.out)
    make, sha256 = lookup.method(name)
    data = load(values.data, values.split, **common.asked(values))
    if values.flip:
        data = data.mirrored()
    if verb == TRAIN and values.conditional and data.record.classes is None:
        raise Refused(f"{values.data} has no classes; train without --conditional.")
    if verb == TRAIN:
        told |= {"conditional": values.conditional, "drop_classes": values.drop_classes}
    else:
        told |= {"conditional": True, "classifier": True}
    data, codec = common.latents(data, values, place)
    if codec is not None:
        told["latent"] = codec.about
    config = Config(name, data.record, sha256=sha256, **told)
    if values.time_warp is not None:
        config = replace(config, time_warp=time_warp(values.time_warp))
    own = {"method": make if sha256 else None, "codec": codec, **given}
    if verb == TRAIN and values.objective != DENOISING:
        by, levels = values.objective, values.flow_levels
        config = replace(config, flow_map=without_teacher(config, data.stats(), by, levels, **own))
    model = build(config, data, options, values["from"], **own)
    try:
        train(model, data, options, values.out, trackers, place)
    except KeyboardInterrupt:
        print(f"sfumato: stopped; the same command resumes {values.out}.", file=sys.stderr)
        return 130
    if not values.quiet and here().first:
        own = f" --method {name}" if sha256 else ""
        own += f" --backbone {values.backbone}" if given.get("backbone") else ""
        print(f"{values.out}: checkpoints/, previews/, log.jsonl, run.json")
        if verb == CLASSIFIER:
            print(f"Sample a model with it: sfumato sample RUN --classifier {values.out}")
        else:
            print(f"Sample it: sfumato sample {values.out}{own} --out samples.png")
    return 0


def time_warp(text: str) -> tuple[float, ...]:
    """The times of a time warp: those in a file that `select` wrote, or numbers with commas."""
    if not text.endswith(".json"):
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise Refused(
                f"--time-warp needs FILE.json or numbers 0,...,1; got '{text}'."
            ) from None
    try:
        found = reworded("config", documents.read_table(text))["time_warp"]
        return tuple(float(value) for value in found)
    except WRONG as error:
        raise Refused(
            f"--time-warp {text} holds no time warp that select wrote: {reason(error)}."
        ) from None


def _general(verb: str, training: Sequence[Parameter], network: Sequence[Parameter]) -> Parser:
    """The parser for help without a method."""
    rows = [(name, signatures.method(name).summary) for name in signatures.methods()]
    rows.append(("FILE.py:NAME", "your own method"))
    lines = [f"  {name:<14}{summary}" for name, summary in rows]
    more = f"sfumato {verb} METHOD --help shows the method's own parameters too."
    parser = Parser(f"{verb} METHOD", ABOUT[verb], "\n".join(["methods:", *lines, "", more]))
    _add_options(parser, verb, "METHOD", None, training, network)
    return parser


def _add_options(
    parser: Parser,
    verb: str,
    name: str,
    method: Signature | None,
    training: Sequence[Parameter],
    network: Sequence[Parameter],
) -> None:
    common.data_options(parser)
    parser.option("flip", kinds.YES, False, "train on each image and on its mirror image")
    kind = "" if verb == TRAIN else "classifier-"
    parser.option("out", kinds.PATH, f"runs/{kind}{name.rpartition(':')[2]}", "the run's folder")
    start = "run or model whose weights training starts from, and whose network is the default"
    parser.option("from", kinds.optional(kinds.TEXT), None, start)
    common.latent_option(parser, "train on")
    common.device_option(parser, "where to train")
    told = "program that receives figures and pictures, beside the run's log; may be repeated"
    known = kinds.several(kinds.choice(*SERVICES), empty=True)
    parser.option("tracker", known, (), told, repeated=True)
    text = "levels that `sfumato select` chose: its FILE.json, or times 0,...,1 of the method's own"
    parser.option("time_warp", kinds.optional(kinds.TEXT), None, text)
    if verb == TRAIN:
        text = "condition the network on the images' classes"
        parser.option("conditional", kinds.YES, False, text)
        text = "share of images trained without their class, as guidance needs: 0.1 is usual"
        parser.option("drop_classes", kinds.NUMBER, 0.0, text)
        text = (
            "what is learned: the mean of x_0; or, to need few steps without a teacher, a "
            "consistency or a shortcut model"
        )
        parser.option("objective", kinds.choice(DENOISING, *NO_TEACHER), DENOISING, text)
        text = "levels of a consistency model; of a shortcut model the shortest steps"
        parser.option("flow_levels", kinds.POSITIVE, 16, text)
        known = ", ".join(signatures.backbones())
        text = f"the network: {known}, or your own FILE.py:NAME; its options are below"
        parser.option("backbone", kinds.TEXT, UNET, text)
    if method is not None:
        parser.options(method.parameters, f"the method {name}")
    parser.options(training, "training", also={"precision": "dtype"})
    parser.options(network, "network")
    parser.about_the_call()


def _changed(values: Namespace, of: Signature) -> dict[str, Any]:
    """The values that differ from a function's own defaults."""
    rows = of.parameters
    return pick(values, [row for row in rows if row.required or values[row.name] != row.default])
