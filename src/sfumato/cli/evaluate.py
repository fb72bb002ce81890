"""`sfumato evaluate RUN`: how near a model's samples are to real images, as one record."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato import hub, pretrained
from sfumato.cli import common, kinds
from sfumato.cli.common import load, which_model
from sfumato.cli.parser import Namespace, Parser, refuse_code, resolved, settings
from sfumato.cli.sample import guidance, guidance_options, sampler, sampler_options
from sfumato.errors import Refused, refusing
from sfumato.names import nearest
from sfumato.processes import here
from sfumato.progress import bar

if TYPE_CHECKING:
    from sfumato.evaluation.blocks import Blocks
    from sfumato.evaluation.protocol import Judge
    from sfumato.evaluation.samples import Images
    from sfumato.guidance import Guidance
    from sfumato.model import Model
    from sfumato.training.data import Data

ABOUT = (
    "Compare samples with real images: FID, KID, precision, recall, density, coverage, with the "
    "score of real images beside them. Writes one JSON with all that the numbers depend on."
)
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage")
SOME = ("accuracy", "copies")
"""Scores that not every evaluation has."""
PLAN = (
    "run",
    "data",
    "split",
    "n",
    "steps",
    "sampler",
    "grid",
    "extractor",
    "weights",
    "method",
    "batch",
    "dtype",
    *common.OPTIONS,
)
GUIDED = ("guidance", "guidance_interval", "guide", "guide_weights", "classifier")
"""Parts of a record's subject where samples were guided."""


def run(argv: Sequence[str]) -> int:
    """Evaluate as the command line says, or verify a record; the exit code."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.run is None and values.verify is None:
        raise Refused("evaluate needs a run, as in sfumato evaluate runs/soft --out FILE.json.")
    if values.verify is not None and (values.run or values.out):
        raise Refused("--verify takes all from the record: leave out RUN and --out.")
    if values.attest and values.verify is None:
        raise Refused("--attest adds to a record: name it, as in --verify FILE.json --attest.")
    if values.dry_run:
        print(resolved(parser, values))
        return 0
    if values.verify is not None:
        return _verify(values)
    if values.out is None:
        raise Refused("evaluate needs --out FILE.json for its record.")
    out = Path(values.out)
    if out.exists() and not here().first:
        return 0  # the first process has written it, or refuses to
    if out.exists():
        raise Refused(
            f"{out} exists. Check it with --verify {out}, or choose another --out for a new record."
        )

    from sfumato import files
    from sfumato.evaluation import blocks, protocol

    files.check_writable(out)
    if here().first:
        files.sweep(out)
    values.quiet = values.quiet or not here().first
    keep = blocks.beside(out)
    record = _evaluate(values, keep)
    if record is None:
        return 0
    protocol.write(record, out)
    keep.forget()
    if not values.quiet:
        _show(record, out)
    return 0


def _evaluate(values: Namespace, keep: Blocks | None) -> dict[str, Any] | None:
    """The record of one evaluation; `keep` is where finished blocks are.

    None in all but the first of several processes, which draw their share of the blocks.
    """
    import torch

    from sfumato.evaluation.extractor import choose
    from sfumato.evaluation.protocol import Judge, divergences
    from sfumato.evaluation.samples import Images

    if values.threads:
        torch.set_num_threads(values.threads)
    model = load(values.run, values) if _is_model(values.run) else None
    guided = guidance(values)
    if model is not None and guided.weight:
        guided.check(model)
    source = values.data or (model and common.trained_on(model.config.pixels))
    if source is None:
        raise Refused("finished images need --data, the real images to compare them with.")
    if model is not None:
        how = common.beside(model.config.pixels, source, values)
        made = model
        shape = model.config.pixels.shape
        count = values.n
    else:
        how, finished = common.apart(source, values)
        made = _finished(values.run, values.n, finished)
        shape = tuple(made.pixels.shape[1:])
        count = len(made.pixels)
    if not here().first:
        for _ in _drawn(model, guided, values, keep) if model is not None else ():
            pass
        return None
    real, other = _splits(source, values.split, how)
    real.record.check_shape(shape, values.run)
    judge = Judge(real, other, lambda *found: choose(values.extractor, *found), count)
    training = next((one for one in (real, other) if one and one.record.split == "train"), None)
    _note(judge.warnings(), values)
    subject = {name: values[name] for name in PLAN} | ({"clip": True} if values.clip else {})
    subject |= {"backbone": values.backbone} if values.backbone else {}
    subject |= {name: values[name] for name in GUIDED if values.guidance}
    subject |= {"data": source, "split": real.record.split, "threads": torch.get_num_threads()}
    if isinstance(made, Images):
        return judge.record(subject, [judge.result(made)])
    subject |= {"model": made.config.to_dict()}
    seen = training if made.codec.tokens else None
    results = _judged(judge, made, guided, values, keep, seen)
    _note(divergences(results), values)
    return judge.record(subject, results)


def _note(sentences: Sequence[str], values: Namespace) -> None:
    if not values.quiet:
        for sentence in sentences:
            print(f"sfumato: note: {sentence}", file=sys.stderr)


def _judged(
    judge: Judge,
    model: Model,
    guided: Guidance,
    values: Namespace,
    keep: Blocks | None,
    training: Data | None,
) -> list[dict[str, Any]]:
    """An entry for each number of steps, with the share of copies of `training`, if given."""
    from sfumato.evaluation.reconstructions import copies

    found = []
    for images in _drawn(model, guided, values, keep):
        again = {} if training is None else {"copies": copies(images.pixels, training)}
        found.append(judge.result(images) | again)
    return found


def _drawn(
    model: Model, guided: Guidance, values: Namespace, keep: Blocks | None
) -> Iterator[Images]:
    """The samples in each number of steps; of several processes the first has all of them."""
    from sfumato.evaluation.samples import Drawing

    for steps in values.steps or (None,):
        chosen = model.chosen(sampler(values, steps))
        with bar("images", values.n, values.quiet) as advance:
            how = {"clip": values.clip, "guidance": guided, "dtype": values.dtype}
            drawing = Drawing(model, values.n, chosen, values.batch, keep, advance, **how)
            yield drawing.images()


def _splits(source: str, split: str | None, how: Mapping[str, Any]) -> tuple[Any, Any]:
    """The real images to compare with, and those of the other split for the floor."""
    from sfumato.training.data import load as load_data
    from sfumato.training.sources import held_out, splits

    real = load_data(source, split or held_out(source), **how)
    opposite = "train" if real.record.split.startswith("test") else "test"
    return real, load_data(source, opposite, **how) if opposite in splits(source) else None


def _is_model(run: str) -> bool:
    from sfumato.bridge.read import is_pipeline

    path = Path(run)
    known = run in pretrained.models() or hub.asked(run) or is_pipeline(path)
    if known or (path / "config.json").is_file():
        return True
    if path.is_dir():
        return (path / "checkpoints").is_dir() or (path / "run.json").is_file()
    if path.suffix.lower() in (".npz", ".npy") and path.is_file():
        return False
    raise Refused(
        nearest("model", run, pretrained.models(), "give a run's folder, or finished images.")
    )


def _finished(path: str, n: int | None, how: Mapping[str, Any]) -> Images:
    """Finished images: a folder, or an array in a file."""
    import torch

    from sfumato.evaluation.samples import Images
    from sfumato.pictures import to_uint8
    from sfumato.training.data import load as load_data

    data = load_data(path, **how)
    data.record.check_pictures("evaluate")
    pixels = torch.from_numpy(to_uint8(data.batch(range(min(n or len(data), len(data))))))
    return Images(pixels.permute(0, 3, 1, 2).contiguous(), {"images": path})


def _verify(values: Namespace) -> int:
    """Reproduce a record and print where it differs; 0 where it is reproduced."""
    from sfumato.evaluation import blocks, protocol

    path = Path(values.verify)
    old = protocol.read(path)
    subject = {**old["subject"], "steps": old["subject"].get("steps") or None}
    refuse_code(subject, {values.extractor, values.method, values.backbone}, str(path))
    again = Namespace(**{**values.as_dict(), **_parser().fitted(subject, str(path))})
    keep = blocks.beside(path)
    new = _evaluate(again, keep)
    if new is None:
        return 0
    keep.forget()
    if values.attest and (added := protocol.attested(old, new)):
        protocol.write(added, path)
        print(f"{path}: reproduced on {new['processor']} too; its hashes of images were added")
        return 0
    with refusing(f"{path} is no whole record"):
        found = protocol.differences(old, new)
    for sentence in found:
        print(f"{path}: {sentence}")
    if not found:
        count = len(old["results"])
        print(f"{path}: reproduced: equal bytes of images and FID within 1e-3 in {count} results")
    elif old["versions"] != new["versions"] or old["machine"] != new["machine"]:
        print(f"{path}: made with {old['versions']} on {old['machine']}, unlike here")
    return 1 if found else 0


def _show(record: Mapping[str, Any], out: Path) -> None:
    """The scores as a table, the floor last."""
    from rich.console import Console
    from rich.table import Table

    data = record["data"]
    title = (
        f"{record['subject']['run']} against {data['count']} images of {data['name']} "
        f"({data['split']}), n = {record['n']}, {record['extractor']['name']}"
    )
    scores = [*SCORES, *(name for name in SOME if name in record["results"][0])]
    table = Table("steps", *scores, title=title, title_justify="left")
    for row in record["results"]:
        table.add_row(str(row.get("steps", "images")), *(f"{row[name]:.4g}" for name in scores))
    if floor := record["floor"]:
        label = f"real, n = {floor['n']}"
        table.add_row(label, *(f"{floor[name]:.4g}" for name in SCORES), style="dim")
    console = Console()
    console.print(table)
    console.print(f"{out}", highlight=False)


def _parser() -> Parser:
    parser = Parser("evaluate", ABOUT)
    common.run_argument(parser, f"{common.RUN}, or finished images")
    parser.option("out", kinds.optional(kinds.PATH), None, "the record, FILE.json")
    again = "reproduce the record FILE.json and report whether bytes and FID are the same"
    parser.option("verify", kinds.optional(kinds.PATH), None, again)
    added = "with --verify: where FID is reproduced on another processor, add its hashes of images"
    parser.option("attest", kinds.YES, False, added)
    common.real_options(parser)
    parser.option("n", kinds.POSITIVE, 10_000, "samples, of the seeds 0 to n - 1")
    steps = "steps of the sampler, one result for each (default: the model's)"
    parser.option("steps", kinds.optional(kinds.several(kinds.POSITIVE)), None, steps)
    sampler_options(parser)
    guidance_options(parser)
    extractor = "auto (the classifier for this data set), FILE.py:NAME, inception, or pca"
    parser.option("extractor", kinds.TEXT, "auto", extractor)
    parser.option("batch", kinds.POSITIVE, 100, "images in memory at once")
    common.threads_option(parser, "all; a record is reproduced with as many as it had")
    which_model(parser)
    parser.about_the_call()
    return parser
