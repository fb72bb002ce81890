"""`sfumato show`: a strip of how a method corrupts images, or of how a trained model makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato import hub, pretrained
from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import load
from sfumato.cli.parser import Namespace, Parser, first, resolved, settings
from sfumato.cli.sample import labels, model_options, sampler
from sfumato.cli.signatures import Signature
from sfumato.errors import Refused
from sfumato.names import choose

if TYPE_CHECKING:
    from torch import Tensor

FORWARD = "From left to right, a method corrupts an image, or a few of a data set, from t = 0 to 1."
REVERSE = "From left to right, a trained model makes an image from noise, one row for each seed."
WITHOUT = "show needs a method or a run first, as in sfumato show soft IMAGE.png."


def run(argv: Sequence[str]) -> None:
    """Draw the strip that the command line asks for."""
    found = settings(argv)
    target, rest = first(argv, found, "target", WITHOUT)
    if target is None:
        return _explain()
    known = (*signatures.methods(), *pretrained.models())
    if ":" not in target and not Path(target).exists() and not hub.asked(target):
        choose("method or run", target, known)
    found_there = Path(target).is_dir() or hub.asked(target)
    trained = target in pretrained.models() or (found_there and target not in known)
    method = None if trained else signatures.method(target)
    parser = _made_parser(target) if method is None else _corrupted_parser(target, method)
    values = parser.read(rest, found)
    if not values.out.endswith(".png"):
        raise Refused(f"a strip is one picture, --out NAME.png; got {values.out}.")
    if values.dry_run:
        print(resolved(parser, values, target=target))
        return

    from sfumato import pictures

    pictures.check_writable(values.out)
    rows = _made(target, values) if method is None else _corrupted(target, method, values)
    pictures.save(pictures.strip(list(rows)), values.out)
    if not values.quiet:
        print(f"{values.out}: {len(rows)} rows of {values.frames} frames")


def _corrupted(target: str, method: Signature, values: Namespace) -> Tensor:
    from sfumato import pictures, trajectory
    from sfumato.methods import lookup
    from sfumato.training import data

    build, _ = lookup.method(target)
    stats = None
    if values.image:
        x0 = _reduced(pictures.read(values.image), values.size)
    else:
        images = data.load(values.data, values.split, **common.asked(values))
        images.record.check_pictures("show")
        x0 = images.batch(range(min(values.rows, len(images))))
        stats = images.stats()
    recipe = build(tuple(x0.shape[1:]), stats, **common.pick(values, method.parameters))
    return trajectory.forward(recipe.process, x0, values.frames, values.seed)


def _made(target: str, values: Namespace) -> Tensor:
    from sfumato import trajectory

    chosen = sampler(values, values.steps)
    model = load(target, values)
    seeds = kinds.expand(values.seeds)
    model.config.pixels.check_pictures("show")
    classes = labels(model, values.classes, seeds)
    return trajectory.reverse(model, seeds, values.frames, chosen, classes, values.clip)


def _reduced(image: Tensor, size: int) -> Tensor:
    """`image` (1, C, H, W) with its longest side at most `size`."""
    from torch.nn.functional import interpolate

    scale = size / max(image.shape[2:])
    if scale >= 1:
        return image
    sides = [max(1, round(side * scale)) for side in image.shape[2:]]
    return interpolate(image, sides, mode="bilinear", antialias=True)


def _explain() -> None:
    names = ", ".join(signatures.methods())
    epilog = (
        f"TARGET is a method ({names}, or FILE.py:NAME of your own), a run's folder, a model on\n"
        f"the Hub (user/name), or a bundled one ({', '.join(pretrained.models()) or 'none'}).\n"
        "sfumato show TARGET --help shows the options of each."
    )
    parser = Parser("show", f"{FORWARD} Or: {REVERSE}", epilog)
    parser.add_argument("target", metavar="TARGET")
    parser.print_help()


def _corrupted_parser(target: str, method: Signature) -> Parser:
    parser = Parser(f"show {target}", f"{method.summary} {FORWARD}")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="an image file (default: --data)")
    parser.option("out", kinds.PATH, "strip.png", "the picture")
    common.data_options(parser)
    parser.option("rows", kinds.POSITIVE, 6, "images of the data set")
    parser.option("frames", kinds.POSITIVE, 9, "times shown, 2 or more")
    common.seed_option(parser, "of the noise")
    parser.option("size", kinds.POSITIVE, 256, "a larger IMAGE is reduced to this longest side")
    parser.options(method.parameters, f"the method {target}")
    parser.about_the_call()
    return parser


def _made_parser(target: str) -> Parser:
    parser = Parser(f"show {target}", REVERSE)
    parser.option("out", kinds.PATH, "strip.png", "the picture")
    parser.option("frames", kinds.POSITIVE, 9, "moments shown, 2 or more")
    model_options(parser, "0-5")
    parser.about_the_call()
    return parser
