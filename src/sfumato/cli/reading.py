"""Which data a verb works on and how they are read: its options, and what a model's record adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from sfumato.cli import kinds
from sfumato.cli.kinds import Kind
from sfumato.cli.parser import Parser

if TYPE_CHECKING:
    from sfumato.record import Record

DATA = "digits, fashion-mnist, photos, or the path of a folder of images, a .npz or a .npy"
SPLIT = "of the data: train, or a slice of it such as train[:55000]"
REAL = "real images (default: what the model was trained on)"
HELD_OUT = "of the data: test, train, or a slice: train[55000:] (default: test, if it has one)"
RANGE = Kind(kinds.several(kinds.NUMBER, 2).read, "LOW,HIGH")
OPTIONS = ("range", "key", "kind", "resize", "crop")
"""How data are read: parameters of `sfumato.load`."""


def data_options(parser: Parser) -> None:
    """Add which data are trained on or looked at."""
    parser.option("data", kinds.TEXT, "digits", DATA)
    parser.option("split", kinds.TEXT, "train", SPLIT)
    _reading_options(parser)


def real_options(parser: Parser) -> None:
    """Add which data a trained model is compared with."""
    parser.option("data", kinds.optional(kinds.TEXT), None, REAL)
    parser.option("split", kinds.optional(kinds.TEXT), None, HELD_OUT)
    _reading_options(parser)


def _reading_options(parser: Parser) -> None:
    text = "raw values that become -1 and 1 (default: what the numbers tell)"
    parser.option("range", kinds.optional(RANGE), None, text)
    text = "the array in a .npz (default: images, or signals)"
    parser.option("key", kinds.optional(kinds.TEXT), None, text)
    text = "images, or signals that are no pictures (default: by the array's name)"
    parser.option("kind", kinds.optional(kinds.choice("images", "signals")), None, text)
    text = "shorter side to resize images to, by Lanczos' filter (default: as they are)"
    parser.option("resize", kinds.optional(kinds.POSITIVE), None, text)
    text = "of images resized: the middle square, or nothing (default: center)"
    parser.option("crop", kinds.optional(kinds.choice("center", "none")), None, text)


def asked(values: Namespace) -> dict[str, Any]:
    """What the options tell `sfumato.load` of how to read."""
    return {name: values[name] for name in OPTIONS if values[name] is not None}


def beside(record: Record, source: str, values: Namespace) -> dict[str, Any]:
    """What `sfumato.load` is told to read `source` as a model with this record takes it.

    The options go before what the record says. Of the data that the model was trained on it says
    all; of others that they are of its kind and size, and signals in its units.
    """
    same = source == record.name
    known: dict[str, Any] = {"kind": record.kind, "resize": record.resize}
    if same or not record.pictures:
        known["range"] = record.low, record.high
    if same:
        known["key"] = record.key
    known |= asked(values)
    if known["resize"] is not None:
        known = {"crop": record.crop} | known
    return known


def apart(source: str, values: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `sfumato.load` is told of real images, and of finished ones that they are compared with.

    Beside data known by name, which say all themselves, the options are about the finished images;
    else about the real ones, and a range about both.
    """
    from sfumato.training.sources import NAMED

    told = asked(values)
    if source in NAMED:
        return {}, told
    return told, {name: told[name] for name in ("range",) if name in told}
