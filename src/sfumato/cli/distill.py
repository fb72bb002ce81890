"""`sfumato distill RUN`: models that need one step or a few, from a trained one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import pick, run_argument
from sfumato.cli.parser import Namespace, Parser, resolved, settings
from sfumato.cli.signatures import SOURCE
from sfumato.errors import Refused
from sfumato.processes import here
from sfumato.progress import bar
from sfumato.training.services import SERVICES

if TYPE_CHECKING:
    from sfumato.evaluation.protocol import Judge
    from sfumato.model import Model
    from sfumato.record import Record
    from sfumato.sampling.samplers import Sampler
    from sfumato.training.data import Data
    from sfumato.training.distill import Stage
    from sfumato.training.options import TrainOptions

ABOUT = (
    "Distil a model into one that needs a step or a few, under the same corruption. The same "
    "command again resumes an interrupted run, between stages or within one, and gives the same "
    "weights bit for bit."
)
WAYS = ("progressive", "consistency", "shortcut")
DEFAULTS = {"images": 30_000, "learning_rate": 5e-4, "preview_every": 0}
"""Options of training whose defaults differ from those of `train`."""
CALLS = (1, 2, 4, 8, 16)
SCORES = "scores.json"


def run(argv: Sequence[str]) -> int:
    """Distil as the command line says; the exit code."""
    training = signatures.read(SOURCE / "training" / "options.py", "TrainOptions").parameters
    training = tuple(row._replace(default=DEFAULTS.get(row.name, row.default)) for row in training)
    parser = _parser(training)
    values = parser.read(argv, settings(argv))
    if values.run is None:
        raise Refused("distill needs a teacher, as in sfumato distill runs/soft.")

    from sfumato.training.options import TrainOptions

    options = TrainOptions(**pick(values, training))
    if values.dry_run:
        print(resolved(parser, values))
        return 0
    return _distill(values, options)


def _distill(values: Namespace, options: TrainOptions) -> int:
    from sfumato import files
    from sfumato.sampling.samplers import Sampler
    from sfumato.training.distill import distill, paths_of

    out = Path(values.out or f"runs/{Path(values.run).name}-{values.by}")
    files.check_writable(out / SCORES)
    files.sweep(out / SCORES)
    teacher = _teacher(values)
    how = {
        "teacher_steps": values.teacher_steps,
        "to": values.to,
        "sampler": Sampler(values.sampler, None, values.grid),
        "guidance": values.guidance,
    }
    chosen = paths_of(teacher, values.by, *how.values()).sampler
    data = _data(values, teacher.config.pixels)
    judge = _judge(values, teacher)
    if not values.quiet:
        calls = teacher.network_calls(chosen)
        steps = f"{chosen.whole[1]} steps of {chosen.name}, {calls} network calls"
        print(f"the teacher, {values.run}: {steps}", file=sys.stderr)
    try:
        done = distill(
            values.run,
            data,
            options,
            out,
            values.by,
            **how,
            trackers=lambda folder: common.trackers(values, folder),
            device=common.device(values.device),
            **_own(values),
        )
        if judge is not None:
            rows = _rows(judge, done, teacher, chosen, values)
            record = judge.record({"run": values.run, "by": values.by}, rows)
            files.write(out / SCORES, json.dumps(record, indent=2) + "\n")
            if not values.quiet:
                _show(record, out)
    except KeyboardInterrupt:
        print(f"sfumato: stopped; the same command resumes {out}.", file=sys.stderr)
        return 130
    if not values.quiet and here().first:
        own = "".join(f" --{what} {values[what]}" for what in common.OWN if values[what])
        for stage in done:
            count = stage.model.sampler.whole[1]
            print(f"{stage.out}: samples in {'one step' if count == 1 else f'{count} steps'}")
        print(f"Sample it: sfumato sample {done[-1].out}{own} --out samples.png")
    return 0


def _own(values: Namespace) -> dict[str, Any]:
    """The user's own parts of the teacher."""
    from sfumato.methods import lookup

    return {what: lookup.own(what, values[what])[0] for what in common.OWN if values[what]}


def _teacher(values: Namespace) -> Model:
    """The teacher, where it is trained on."""
    from sfumato.cli.common import load

    return load(values.run, Namespace(**values.as_dict(), weights="ema", dtype="float32"))


def _data(values: Namespace, record: Record) -> Data:
    """The training data: the teacher's, as it had them, unless others are asked for."""
    from sfumato.training.data import load

    source = values.data or record.name
    same = source == record.name
    split = values.split or (record.split if same else "train")
    data = load(source, split, **common.beside(record, source, values))
    return data.mirrored() if values.flip or (same and record.flip) else data


def _judge(values: Namespace, teacher: Model) -> Judge | None:
    """What scores samples against held-out images; None where no table is asked for."""
    from sfumato import pretrained
    from sfumato.evaluation.extractor import choose
    from sfumato.evaluation.protocol import Judge
    from sfumato.training.data import load
    from sfumato.training.sources import held_out

    record = teacher.config.pixels
    source = values.data or record.name
    unknown = values.extractor == "auto" and source not in pretrained.features()
    if not values.n or not record.pictures or unknown:
        if values.n and not values.quiet:
            note = f"no table of FID: no classifier of {source} is bundled; see --extractor."
            print(f"sfumato: note: {note}", file=sys.stderr)
        return None
    real = load(source, held_out(source), **common.beside(record, source, values))
    return Judge(real, None, lambda *found: choose(values.extractor, *found), values.n)


def _rows(
    judge: Judge, stages: Sequence[Stage], teacher: Model, chosen: Sampler, values: Namespace
) -> list[dict[str, Any]]:
    """The scores of each stage, with FID of the teacher in as many steps, where it takes them."""
    from sfumato.evaluation.samples import Drawing

    jobs = [job for stage in stages for job in _jobs(stage.model)]
    rows = []
    with bar("images", values.n * 2 * len(jobs), values.quiet) as advance:
        for steps, model in jobs:
            drawing = Drawing(model, values.n, model.sampler.stepping(steps), tick=advance)
            rows.append(judge.result(drawing.images()))
            if teacher.config.flow_map is None:
                drawing = Drawing(teacher, values.n, chosen.stepping(steps), tick=advance)
                rows[-1]["teacher_fid"] = judge.result(drawing.images())["fid"]
    return rows


def _jobs(model: Model) -> list[tuple[int, Model]]:
    """Numbers of steps to score a model in."""
    flow = model.config.flow_map
    if flow is None or flow.by == "progressive":
        return [(model.sampler.whole[1], model)]
    most = len(flow.times) - 1
    return [(n, model) for n in CALLS if n <= most and most % n == 0]


def _show(record: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    data = record["data"]
    title = (
        f"FID against {data['count']} images of {data['name']} ({data['split']}), n = "
        f"{record['n']}, {record['extractor']['name']}"
    )
    table = Table("steps", "teacher", record["subject"]["by"], title=title, title_justify="left")
    for row in record["results"]:
        cells = (f"{row[name]:.4g}" if name in row else "" for name in ("teacher_fid", "fid"))
        table.add_row(str(row["steps"]), *cells)
    console = Console()
    console.print(table)
    console.print(f"{out / SCORES}", highlight=False)


def _parser(training: Sequence[signatures.Parameter]) -> Parser:
    parser = Parser("distill", ABOUT)
    run_argument(parser, "the teacher: a run or model, or the name of a bundled model")
    text = (
        "progressive: students of half as many steps each time; consistency: one model that jumps "
        "to the end from any level; shortcut: one model that receives the size of its step"
    )
    parser.option("by", kinds.choice(*WAYS), "progressive", text)
    text = (
        "steps of the teacher, halved until --to; of a consistency model the levels, of a shortcut "
        "model the shortest steps (default: 16, or those of a student that is distilled again)"
    )
    parser.option("teacher_steps", kinds.optional(kinds.POSITIVE), None, text)
    text = "steps of the last student; by default of a consistency or shortcut model"
    parser.option("to", kinds.POSITIVE, 1, text)
    text = "of the teacher, without noise, see sfumato methods (default: its own, or ddim)"
    parser.option("sampler", kinds.optional(kinds.TEXT), None, text)
    text = "times of the teacher's steps, as of sfumato sample (default: own)"
    parser.option("grid", kinds.optional(kinds.TEXT), None, text)
    text = "largest weight of guidance, for a model of classes that receives the weight, from 0"
    parser.option("guidance", kinds.optional(kinds.NUMBER), None, text)
    text = "training data (default: the teacher's)"
    parser.option("data", kinds.optional(kinds.TEXT), None, text)
    text = "of the data: train, or a slice of it (default: the teacher's)"
    parser.option("split", kinds.optional(kinds.TEXT), None, text)
    parser.option("flip", kinds.YES, False, "train on mirror images too (default: as the teacher)")
    common.reading_options(parser)
    text = "folder of the stages' runs (default: runs/NAME-WAY)"
    parser.option("out", kinds.optional(kinds.PATH), None, text)
    own = "the teacher's method FILE.py:NAME, where it is your own; the file is run"
    parser.option("method", kinds.optional(kinds.TEXT), None, own)
    own = "the teacher's backbone FILE.py:NAME, where it is your own; the file is run"
    parser.option("backbone", kinds.optional(kinds.TEXT), None, own)
    common.device_option(parser, "where to train")
    told = "program that receives figures and pictures, beside each run's log; may be repeated"
    known = kinds.several(kinds.choice(*SERVICES), empty=True)
    parser.option("tracker", known, (), told, repeated=True)
    parser.option("n", kinds.NATURAL, 1000, "samples for the table of FID at the end; 0 for none")
    extractor = (
        "of the table: auto (the classifier for this data set), FILE.py:NAME, inception, pca"
    )
    parser.option("extractor", kinds.TEXT, "auto", extractor)
    parser.options(training, "training of each stage", also={"precision": "dtype"})
    parser.about_the_call()
    return parser
