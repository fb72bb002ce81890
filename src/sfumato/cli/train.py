"""`sfumato train METHOD`: train, or go on with a run that was cut."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from sfumato.cli import kinds, reading, signatures
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

if TYPE_CHECKING:
    from sfumato.networks.backbones import UNetOptions
    from sfumato.training.options import TrainOptions

ABOUT = (
    "Train a method on images. The same command again goes on where the run was cut, and gives the "
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

    options, size = TrainOptions(**pick(values, training)), UNetOptions(**pick(values, network))
    if values.dry_run:
        print(resolved(parser, values, method=name))
        return 0
    chosen = pick(values, [row for row in method.parameters if _changed(values, row)])
    return _train(name, chosen, options, size, values)


def _inherited(source: str, argv: Sequence[str]) -> dict[str, Any]:
    """The options that weights from `source` come with: of another method, those of the network."""
    from sfumato.store import newest, read_config

    config = newest(source, read_config)
    if not argv[0].startswith("-") and argv[0] != config.method:
        config = replace(config, method=argv[0], parameters={}, clock=None)
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
    from sfumato.cli.sample import device
    from sfumato.config import Config
    from sfumato.methods import lookup
    from sfumato.training import watch
    from sfumato.training.data import load
    from sfumato.training.train import build, train

    place = device(values.device)
    files.check_writable(Path(values.out) / "run.json")
    make, sha256 = lookup.method(name)
    data = load(values.data, values.split, **reading.asked(values))
    if values.flip:
        data = data.mirrored()
    if values.conditional and data.record.classes is None:
        raise ValueError(f"{values.data} has no classes; train without --conditional.")
    config = Config(name, data.record, parameters, size, values.conditional, sha256)
    if values.clock is not None:
        config = replace(config, clock=clock(values.clock))
    model = build(config, data, options, values["from"], build=make if sha256 else None)
    try:
        train(model, data, options, values.out, watch.terminal(values.quiet), place)
    except KeyboardInterrupt:
        print(f"sfumato: stopped; the same command goes on from {values.out}.", file=sys.stderr)
        return 130
    if not values.quiet:
        own = f" --method {name}" if sha256 else ""
        print(f"{values.out}: checkpoints/, previews/, log.jsonl, run.json")
        print(f"Sample it: sfumato sample {values.out}{own} --out samples.png")
    return 0


def clock(text: str) -> tuple[float, ...]:
    """The times of a clock: those in a file that `select` wrote, or numbers with commas."""
    if not text.endswith(".json"):
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"--clock needs FILE.json or numbers 0,...,1; got '{text}'.") from None
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))["clock"]
        return tuple(float(value) for value in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--clock {text} holds no clock that select wrote: {error}.") from None


def _general(training: Sequence[Parameter], network: Sequence[Parameter]) -> Parser:
    """The parser that helps before a method is named."""
    rows = [(name, signatures.method(name).summary) for name in signatures.methods()]
    rows.append(("FILE.py:NAME", "one of your own"))
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
    reading.data_options(parser)
    parser.option("flip", kinds.YES, False, "train on each image and on its mirror image")
    parser.option("out", kinds.PATH, f"runs/{name.rpartition(':')[2]}", "the run's folder")
    start = "run or model whose weights training starts from, and whose network is the default"
    parser.option("from", kinds.optional(kinds.TEXT), None, start)
    parser.option("device", kinds.choice("auto", "cpu", "cuda", "mps"), "auto", "where to train")
    text = "levels that `sfumato select` chose: its FILE.json, or times 0,...,1 of the method's own"
    parser.option("clock", kinds.optional(kinds.TEXT), None, text)
    parser.option("conditional", kinds.YES, False, "tell the network the images' classes")
    if method is not None:
        parser.options(method.parameters, f"the method {name}")
    parser.options(training, "training", also={"precision": "dtype"})
    parser.options(network, "network")
    parser.about_the_call()


def pick(values: Namespace, parameters: Sequence[Parameter]) -> dict[str, Any]:
    return {parameter.name: values[parameter.name] for parameter in parameters}


def _changed(values: Namespace, parameter: Parameter) -> bool:
    return parameter.required or values[parameter.name] != parameter.default
