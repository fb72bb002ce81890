"""`sfumato train METHOD`: train, or resume an interrupted run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import pick
from sfumato.cli.parser import (
    Parser,
    described,
    first,
    refuse_code,
    resolved,
    said,
    settings,
    typed,
)
from sfumato.cli.signatures import SOURCE, Parameter, Signature
from sfumato.errors import Refused
from sfumato.names import reworded
from sfumato.training.services import SERVICES, service

if TYPE_CHECKING:
    from sfumato.networks.backbones import UNetOptions
    from sfumato.training.options import TrainOptions
    from sfumato.training.trackers import Tracker

ABOUT = (
    "Train a method on images. The same command again resumes an interrupted run, and gives the "
    "same weights bit for bit."
)
WITHOUT = "train needs a method first, as in sfumato train soft; there are {}."


def run(argv: Sequence[str]) -> int:
    """Train as the command line says; the exit code."""
    found = settings(argv)
    if source := said(argv, "--from") or found.get("from"):
        found = _inherited(source, argv) | found
    names = signatures.methods()
    name, rest = first(argv, found, "method", WITHOUT.format(", ".join(names)))
    training = signatures.read(SOURCE / "training" / "options.py", "TrainOptions").parameters
    network = signatures.read(SOURCE / "networks" / "backbones.py", "UNetOptions").parameters
    if name is None:
        _general(training, network).print_help()
        return 0
    method = signatures.method(name)
    parser = Parser(f"train {name}", f"{method.summary} {ABOUT}")
    _add_options(parser, name, method, training, network)
    values = parser.read(rest, found)

    from sfumato.networks.backbones import UNetOptions
    from sfumato.training.options import TrainOptions

    options = TrainOptions(**pick(values, training))
    size = UNetOptions(**pick(values, network))
    if values.dry_run:
        print(resolved(parser, values, method=name))
        return 0
    chosen = pick(values, [row for row in method.parameters if _changed(values, row)])
    return _train(name, chosen, options, size, values)


def _inherited(source: str, argv: Sequence[str]) -> dict[str, Any]:
    """The options of the model at `source`; of another method, those of the network alone."""
    from sfumato.store import newest, read_config

    config = newest(source, read_config)
    if not argv[0].startswith("-") and argv[0] != config.method:
        config = replace(config, method=argv[0], parameters={}, time_warp=None)
    found = described(config.to_dict())
    refuse_code(found, typed(argv), f"--from {source}")
    return found


def _train(
    name: str,
    parameters: dict[str, Any],
    options: TrainOptions,
    size: UNetOptions,
    values: Namespace,
) -> int:
    from sfumato import files
    from sfumato.config import Config
    from sfumato.methods import lookup
    from sfumato.training.data import load
    from sfumato.training.train import build, train

    place = common.device(values.device)
    files.check_writable(Path(values.out) / "run.json")
    trackers = _trackers(values)
    make, sha256 = lookup.method(name)
    data = load(values.data, values.split, **common.asked(values))
    if values.flip:
        data = data.mirrored()
    if values.conditional and data.record.classes is None:
        raise Refused(f"{values.data} has no classes; train without --conditional.")
    config = Config(name, data.record, parameters, size, values.conditional, sha256)
    if values.time_warp is not None:
        config = replace(config, time_warp=time_warp(values.time_warp))
    model = build(config, data, options, values["from"], method=make if sha256 else None)
    try:
        train(model, data, options, values.out, trackers, place)
    except KeyboardInterrupt:
        print(f"sfumato: stopped; the same command resumes {values.out}.", file=sys.stderr)
        return 130
    if not values.quiet:
        own = f" --method {name}" if sha256 else ""
        print(f"{values.out}: checkpoints/, previews/, log.jsonl, run.json")
        print(f"Sample it: sfumato sample {values.out}{own} --out samples.png")
    return 0


def _trackers(values: Namespace) -> list[Tracker]:
    from sfumato.training.trackers import ProgressBar

    bars: list[Tracker] = [] if values.quiet else [ProgressBar()]
    return bars + [service(name, values.out) for name in dict.fromkeys(values.tracker)]


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
        found = reworded("config", json.loads(Path(text).read_text(encoding="utf-8")))["time_warp"]
        return tuple(float(value) for value in found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"--time-warp {text} holds no time warp that select wrote: {error}."
        ) from None


def _general(training: Sequence[Parameter], network: Sequence[Parameter]) -> Parser:
    """The parser for help without a method."""
    rows = [(name, signatures.method(name).summary) for name in signatures.methods()]
    rows.append(("FILE.py:NAME", "your own method"))
    lines = [f"  {name:<14}{summary}" for name, summary in rows]
    more = "sfumato train METHOD --help shows the method's own parameters too."
    parser = Parser("train METHOD", ABOUT, "\n".join(["methods:", *lines, "", more]))
    _add_options(parser, "METHOD", None, training, network)
    return parser


def _add_options(
    parser: Parser,
    name: str,
    method: Signature | None,
    training: Sequence[Parameter],
    network: Sequence[Parameter],
) -> None:
    common.data_options(parser)
    parser.option("flip", kinds.YES, False, "train on each image and on its mirror image")
    parser.option("out", kinds.PATH, f"runs/{name.rpartition(':')[2]}", "the run's folder")
    start = "run or model whose weights training starts from, and whose network is the default"
    parser.option("from", kinds.optional(kinds.TEXT), None, start)
    common.device_option(parser, "where to train")
    told = "program that receives figures and pictures, beside the run's log; may be repeated"
    known = kinds.several(kinds.choice(*SERVICES), empty=True)
    parser.option("tracker", known, (), told, repeated=True)
    text = "levels that `sfumato select` chose: its FILE.json, or times 0,...,1 of the method's own"
    parser.option("time_warp", kinds.optional(kinds.TEXT), None, text)
    parser.option("conditional", kinds.YES, False, "condition the network on the images' classes")
    if method is not None:
        parser.options(method.parameters, f"the method {name}")
    parser.options(training, "training", also={"precision": "dtype"})
    parser.options(network, "network")
    parser.about_the_call()


def _changed(values: Namespace, parameter: Parameter) -> bool:
    return parameter.required or values[parameter.name] != parameter.default
