"""`sfumato edit RUN IMAGE [IMAGE]`: images along the deterministic flow of a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sfumato.cli import kinds
from sfumato.cli.common import RUN, load, which_model
from sfumato.cli.parser import Namespace, Parser, resolved, settings
from sfumato.cli.sample import class_numbers, grid_option, sampler
from sfumato.errors import Refused
from sfumato.progress import Advance, bar

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.model import Model
    from sfumato.sampling.samplers import Sampler

ABOUT = (
    "Encode an image along the probability flow to x_1, and decode it: the round trip of one "
    "image, an interpolation between two, or the image under other classes."
)
WITHOUT = (
    "edit needs a model and one image or two, as in sfumato edit fashion-soft a.png b.png --out "
    "between.png."
)


class Edit(NamedTuple):
    """What is asked for.

    Attributes:
        model: the model.
        chosen: the sampler.
        images: one or two, (n, *shape).
        label: the class that they are encoded under, for a conditional model.
        frames: images from the first to the second, where there are two.
        classes: of the decoded images of one image; None for each without class.
    """

    model: Model
    chosen: Sampler
    images: Tensor
    label: int | None
    frames: int
    classes: list[int | None]


class Edited(NamedTuple):
    """The result: x_1 of each image, and the decoded images, (n, *shape) both."""

    x1: Tensor
    decoded: Tensor


def run(argv: Sequence[str]) -> None:
    """Edit as the command line says."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.run is None or values.image is None:
        raise Refused(WITHOUT)
    if values.dry_run:
        print(resolved(parser, values))
        return

    from sfumato import pictures

    pictures.check_writable(values.out)
    edit = _edit(values)
    _check_out(edit, values.out)
    batches = -(-_count(edit) // values.batch)
    steps = edit.chosen.whole[1]
    clock = time.perf_counter()
    with bar("steps", steps * (1 + batches), values.quiet) as advance:
        edited = _edited(edit, values.batch, advance)
    spent = time.perf_counter() - clock
    _keep(edit, edited, values.out)
    if not values.quiet:
        print(f"{values.out}: {_told(edit)}; {steps} steps of {edit.chosen.name}, {spent:.1f} s")
        _show_error(edit, edited)


def _edit(values: Namespace) -> Edit:
    """The request, all of it checked before any work."""
    import torch

    from sfumato import editing
    from sfumato.training import inputs

    model = load(values.run, values)
    pixels = model.config.pixels
    pixels.check_pictures("edit")
    paths = [path for path in (values.image, values.second) if path is not None]
    found = [one for path in paths for one in inputs.read(path, values.key)]
    if len(found) > 2:
        raise Refused(f"edit takes one image or two; {' and '.join(paths)} hold {len(found)}.")
    images = torch.stack(inputs.fitting(found, pixels.shape, f"images of {values.run}"))
    chosen = editing.deterministic(model, sampler(values, values.steps))
    model.network_calls(chosen)
    label = _label(model, values.from_class)
    if len(found) == 2:
        if values.to_class is not None:
            raise Refused("--to-class changes one image; leave it out, or the second image.")
        editing.check_count(values.between)
        editing.Whitening(model)
    return Edit(model, chosen, images, label, values.between, _targets(model, values, label))


def _label(model: Model, name: str | None) -> int | None:
    """The class that images are encoded under."""
    names = model.config.record.classes or ()
    if not model.config.conditional:
        if name is not None:
            raise Refused("this model has no classes; leave --from-class out.")
        return None
    if name is None:
        raise Refused("this model was trained on classes; name the image's by --from-class.")
    found = class_numbers([name], names)
    if len(found) != 1:
        raise Refused(f"--from-class is one class; got {name}.")
    return found[0]


def _targets(model: Model, values: Namespace, label: int | None) -> list[int | None]:
    """The classes of decoded images: that of the image first, or all in order."""
    if values.to_class is None:
        return [label]
    if label is None:
        raise Refused("this model has no classes; leave --to-class out.")
    names = model.config.record.classes or ()
    if values.to_class == ("all",):
        return [*range(len(names))]
    return [*dict.fromkeys([label, *class_numbers(values.to_class, names)])]


def _count(edit: Edit) -> int:
    """The number of decoded images."""
    return len(edit.classes) if len(edit.images) == 1 else edit.frames


def _edited(edit: Edit, batch: int, advance: Advance) -> Edited:
    from sfumato import editing

    model, chosen = edit.model, edit.chosen
    count = _count(edit)

    def callback(done: int, x: Tensor) -> None:
        advance(1)

    told = None if edit.label is None else [edit.label] * len(edit.images)
    x1 = editing.encode(model, edit.images, told, chosen, batch, callback)
    if len(x1) == 1:
        starts = x1.expand(count, *model.shape)
        classes = [label for label in edit.classes if label is not None] or None
    else:
        starts = editing.Whitening(model).between(x1[0], x1[1], count)
        classes = None if edit.label is None else [edit.label] * count
    return Edited(x1, editing.decode(model, starts, classes, chosen, batch, callback))


def _cells(edit: Edit, edited: Edited) -> dict[str, Tensor]:
    """What a strip or a folder shows, by name: of one image itself and its x_1 too."""
    decoded = edited.decoded
    if len(edit.images) == 2:
        return {f"frame-{i:03d}": one for i, one in enumerate(decoded)}
    x1 = edit.model.codec.decode(edited.x1[0])
    shown = {"image": edit.images[0], "x1": x1 / max(1.0, float(x1.abs().max()))}
    if edit.classes == [None]:
        return shown | {"decoded": decoded[0]}
    return shown | {f"class-{i}": one for i, one in zip(edit.classes, decoded, strict=True)}


def _check_out(edit: Edit, out: str) -> None:
    """Raise ValueError if the result cannot be written to `out`."""
    from sfumato import pictures

    if out.endswith(".npz"):
        return
    shape = edit.model.config.pixels.shape
    if not pictures.drawable(shape):
        raise Refused(f"images of shape {shape} are no pictures; use --out NAME.npz.")
    zeros = edit.images[:1].expand(_count(edit), *shape)
    names = [*_cells(edit, Edited(edit.images.new_zeros(1, *edit.model.shape), zeros))]
    pictures.check_alone(out, None if out.endswith(".png") else names, len(names))


def _keep(edit: Edit, edited: Edited, out: str) -> None:
    """Write the result in the path's format."""
    import torch

    from sfumato import files, pictures

    if out.endswith(".npz"):
        found = {"image": edit.images, "x1": edited.x1, "decoded": edited.decoded}
        last = {name: x.movedim(1, -1).contiguous().numpy() for name, x in found.items()}
        return files.write_arrays(last, Path(out))
    cells = _cells(edit, edited)
    images = torch.stack([*cells.values()])
    if out.endswith(".png"):
        return pictures.save(pictures.strip([images]), out)
    pictures.save(images, out, [*cells])


def _told(edit: Edit) -> str:
    """What the result shows, from left to right."""
    if len(edit.images) == 2:
        return f"{edit.frames} images from one to the other"
    names = edit.model.config.record.classes or ()
    last = ["decoded" if i is None else f"as {names[i]}" for i in edit.classes]
    return ", ".join(["image", "x_1", *last])


def _show_error(edit: Edit, edited: Edited) -> None:
    """Print how far the round trip of each image is from it."""
    decoded = edited.decoded
    back = decoded[[0, -1]] if len(edit.images) == 2 else None
    if back is None and edit.label in edit.classes:
        at = edit.classes.index(edit.label)
        back = decoded[at : at + 1]
    if back is not None:
        off = back - edit.images
        rms = float(off.square().mean().sqrt())
        print(f"round trip, in [-1, 1]: largest error {float(off.abs().max()):.2g}, rms {rms:.2g}")


def _parser() -> Parser:
    parser = Parser("edit", ABOUT)
    parser.add_argument("run", metavar="RUN", nargs="?", help=RUN)
    text = "an image file, or a .npz or .npy of one image or two; floats are in [-1, 1]"
    parser.add_argument("image", metavar="IMAGE", nargs="?", help=text)
    text = "a second image, to interpolate from the first to it"
    parser.add_argument("second", metavar="IMAGE", nargs="?", help=text)
    out = (
        "x.png: a strip; x.npz: arrays image, x1, decoded of float32, (n, H, W, C); else a folder "
        "of .png"
    )
    parser.option("out", kinds.PATH, "edited.png", out)
    parser.option("between", kinds.POSITIVE, 8, "images from the first to the second, both counted")
    text = "for a conditional model: the class of the image, a name or number"
    parser.option("from_class", kinds.optional(kinds.TEXT), None, text)
    text = "for a conditional model: classes to decode one image under, names or numbers, or all"
    parser.option("to_class", kinds.optional(kinds.several(kinds.TEXT)), None, text)
    parser.option("steps", kinds.POSITIVE, 100, "steps of the sampler, each way")
    text = "a deterministic one: ddim, euler, heun, rk4 or dopri5"
    parser.option("sampler", kinds.TEXT, "heun", text)
    grid_option(parser)
    text = "the array in a .npz (default: images, or signals)"
    parser.option("key", kinds.optional(kinds.TEXT), None, text)
    parser.option("batch", kinds.POSITIVE, 64, "images in memory at once")
    which_model(parser)
    parser.about_the_call()
    return parser
