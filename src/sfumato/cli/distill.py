"""`sfumato distill RUN`: models that need one step or a few, from a trained one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import pick, run_argument
from sfumato.cli.parser import Parser, resolved, settings
from sfumato.cli.signatures import SOURCE
from sfumato.errors import Refused
from sfumato.progress import bar
from sfumato.training.services import SERVICES

if TYPE_CHECKING:
    from sfumato.config import Config
    from sfumato.model import Model
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
    from sfumato.store import newest, read_config
    from sfumato.training.data import load
    from sfumato.training.distill import distill

    place = common.device(values.device)
    out = Path(values.out or f"runs/{Path(values.run).name}-{values.by}")
    files.check_writable(out / SCORES)
    config = newest(values.run, read_config)
    source = values.data or config.record.name
    data = load(source, values.split, **common.beside(config.record, source, values))
    try:
        done = distill(
            values.run,
            data,
            options,
            out,
            values.by,
            teacher_steps=values.teacher_steps,
            to=values.to,
            sampler=Sampler(values.sampler, None, values.grid),
            guidance=values.guidance,
            trackers=lambda folder: _trackers(values, folder),
            device=place,
        )
        if values.n:
            _scored(values, config, source, done, out)
    except KeyboardInterrupt:
        print(f"sfumato: stopped; the same command resumes {out}.", file=sys.stderr)
        return 130
    if not values.quiet:
        for stage in done:
            print(f"{stage.out}: {_taken(stage.model.config)}")
        print(f"Sample it: sfumato sample {done[-1].out} --out samples.png")
    return 0


def _taken(config: Config) -> str:
    flow = config.flow_map
    steps = flow.steps if flow else 1
    return "samples in one step" if steps == 1 else f"samples in {steps} steps"


def _trackers(values: Namespace, folder: Path) -> list[Any]:
    from sfumato.training.services import service
    from sfumato.training.trackers import ProgressBar

    bars: list[Any] = [] if values.quiet else [ProgressBar()]
    return bars + [service(name, folder) for name in dict.fromkeys(values.tracker)]


def _scored(
    values: Namespace, config: Config, source: str, stages: Sequence[Stage], out: Path
) -> None:
    """Write and show FID of each stage, beside that of the teacher at as many steps."""
    from sfumato import files
    from sfumato.evaluation.extractor import choose
    from sfumato.evaluation.protocol import Judge
    from sfumato.store import from_pretrained
    from sfumato.training.data import load
    from sfumato.training.sources import held_out

    if not config.record.pictures:
        return
    real: Data = load(source, held_out(source), **common.beside(config.record, source, values))
    judge = Judge(real, None, lambda *found: choose("auto", *found), values.n)
    teacher = from_pretrained(values.run)
    rows = []
    with bar("images", values.n * (2 * len(_columns(stages))), values.quiet) as advance:
        for steps, model in _columns(stages):
            student = _result(judge, model, steps, values, advance)
            whole = min(steps, teacher.recipe.levels or steps)
            rows.append({"steps": steps, **student})
            beside = _result(judge, teacher, whole, values, advance)
            rows[-1] |= {"teacher_fid": beside["fid"]}
    subject = {"run": values.run, "by": values.by, "teacher_sampler": values.sampler}
    record = judge.record(subject, rows)
    files.write(out / SCORES, json.dumps(record, indent=2) + "\n")
    if not values.quiet:
        _show(record, out)


def _columns(stages: Sequence[Stage]) -> list[tuple[int, Model]]:
    """(steps, model) to score."""
    found = []
    for stage in stages:
        flow = stage.model.config.flow_map
        if flow is None or flow.by == "progressive":
            found.append((stage.model.sampler.whole[1], stage.model))
        else:
            most = len(flow.times) - 1
            found += [(n, stage.model) for n in CALLS if n <= most and most % n == 0]
    return found


def _result(
    judge: Any,  # noqa: ANN401 - a Judge, imported where it is made
    model: Model,
    steps: int,
    values: Namespace,
    advance: Any,  # noqa: ANN401 - as of `bar`
) -> dict[str, Any]:
    from sfumato.evaluation.samples import UNGUIDED, Drawing
    from sfumato.guidance import Guidance

    weight = values.guidance[0] if values.guidance else 0.0
    guided = Guidance(weight) if weight else UNGUIDED
    chosen = model.sampler.stepping(steps)
    if model.config.flow_map is None:
        from sfumato.sampling.samplers import Sampler

        chosen = Sampler(values.sampler or "ddim", steps, values.grid).over(model.sampler)
    drawing = Drawing(model, values.n, chosen, tick=advance, guidance=guided)
    return judge.result(drawing.images())


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
        cells = (f"{row[name]:.4g}" for name in ("teacher_fid", "fid"))
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
    text = "steps of the teacher, halved until --to; levels of a consistency model; of a shortcut "
    parser.option("teacher_steps", kinds.POSITIVE, 16, f"{text}model the shortest steps")
    text = "steps of the last student; by default of a consistency or shortcut model"
    parser.option("to", kinds.POSITIVE, 1, text)
    text = "of the teacher, without noise, see sfumato methods (default: its own, or ddim)"
    parser.option("sampler", kinds.optional(kinds.TEXT), None, text)
    text = "times of the teacher's steps, as of sfumato sample (default: own)"
    parser.option("grid", kinds.optional(kinds.TEXT), None, text)
    text = "least and largest weight of guidance, for a model of classes that receives the weight"
    weights = kinds.optional(kinds.several(kinds.NUMBER, 2))
    parser.option("guidance", weights, None, text)
    parser.option(
        "data", kinds.optional(kinds.TEXT), None, "training data (default: the teacher's)"
    )
    parser.option("split", kinds.TEXT, "train", common.SPLIT)
    common.reading_options(parser)
    text = "folder of the stages' runs (default: runs/NAME-WAY)"
    parser.option("out", kinds.optional(kinds.PATH), None, text)
    common.device_option(parser, "where to train")
    told = "program that receives figures and pictures, beside each run's log; may be repeated"
    known = kinds.several(kinds.choice(*SERVICES), empty=True)
    parser.option("tracker", known, (), told, repeated=True)
    parser.option("n", kinds.NATURAL, 1000, "samples for the table of FID at the end; 0 for none")
    parser.options(training, "training of each stage", also={"precision": "dtype"})
    parser.about_the_call()
    return parser
