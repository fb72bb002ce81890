"""`sfumato likelihood RUN`: bits per dimension of real images, by the flow and by the bound."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli import common, kinds
from sfumato.cli.common import load, which_model
from sfumato.cli.parser import Namespace, Parser, resolved, settings
from sfumato.errors import Refused
from sfumato.processes import here
from sfumato.progress import bar

if TYPE_CHECKING:
    from sfumato.evaluation.blocks import Blocks

ABOUT = (
    "Bits per dimension of real images under a trained model: by the probability flow, its density "
    "with uniform noise that fills the cells of the values or with the bound's decoder at its end, "
    "and by the variational bound, term by term. Means with their standard errors."
)
NAMES = {
    "uniform": "flow, uniform noise",
    "flow": "flow, decoder",
    "bound": "bound",
    "prior": "  prior",
    "steps": "  sum of steps",
    "decoder": "  decoder",
    "gap": "bound above flow",
}


def run(argv: Sequence[str]) -> int:
    """Measure as the command line says; the exit code."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.run is None:
        raise Refused("likelihood needs a run, as in sfumato likelihood fashion-ddpm.")
    if values.dry_run:
        print(resolved(parser, values))
        return 0
    mine = here()
    if values.out and Path(values.out).exists() and not mine.first:
        return 0  # the first process has written it, or refuses to
    out = values.out and common.check_new(values.out)

    from sfumato import files
    from sfumato.evaluation import blocks

    if out is not None:
        files.check_writable(out)
        if mine.first:
            files.sweep(out)
    if out is None and mine.count > 1:
        raise Refused(f"{mine.count} processes share a measurement by files: give --out FILE.json.")
    values.quiet = values.quiet or not mine.first
    keep = out and blocks.beside(out)
    record = {"run": values.run, **_measured(values, keep)}
    if not mine.first:
        return 0
    if out is not None and keep is not None:
        files.write(out, json.dumps(record, indent=2) + "\n")
        keep.forget()
    if not values.quiet:
        _show(record)
    return 0


def _measured(values: Namespace, keep: Blocks | None) -> dict[str, Any]:
    """The record of one measurement; `keep` is where finished blocks are."""
    from sfumato.evaluation.likelihood import ALL, Measurement, measure
    from sfumato.threads import half, threads
    from sfumato.training.data import load as load_data
    from sfumato.training.sources import held_out

    model = load(values.run, values)
    model.codec.check_pixels("a likelihood")
    source = values.data or common.trained_on(model.config.record)
    how = common.beside(model.config.record, source, values)
    data = load_data(source, values.split or held_out(source), **how)
    data.record.check_shape(model.shape, values.run)
    which = tuple(name for name in ALL if name in values.by)
    each = len(which) * values.n
    wanted = Measurement(
        n=values.n,
        which=which,
        steps=values.steps,
        draws=values.draws or None,
        tolerance=values.tolerance,
        probes=values.probes,
        bins=values.bins,
        seed=values.seed,
    )
    with threads(values.threads or half()), bar("measures", each, values.quiet) as advance:
        return measure(model, data, wanted, values.batch, keep, advance, values.dtype)


def _show(record: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    data = record["data"]
    title = f"{record['run']} on {record['n']} images of {data['name']} ({data['split']})"
    table = Table("", "bits/dim", "standard error", title=title, title_justify="left")
    for name, label in NAMES.items():
        if row := record["bits_per_dim"].get(name):
            table.add_row(label, f"{row['mean']:.4f}", f"{row['standard_error']:.4f}")
    Console().print(table)


def _parser() -> Parser:
    parser = Parser("likelihood", ABOUT)
    common.run_argument(parser)
    out = "record of the numbers and all that they depend on, FILE.json"
    parser.option("out", kinds.optional(kinds.PATH), None, out)
    common.real_options(parser)
    parser.option("n", kinds.POSITIVE, 64, "images")
    by = "what is measured, some of uniform, flow and bound: the flow costs the most"
    known = kinds.several(kinds.choice("uniform", "flow", "bound"))
    parser.option("by", known, ("uniform", "flow", "bound"), by)
    steps = "of the chain that is bounded (default: 1,000, or the only number the method takes)"
    parser.option("steps", kinds.optional(kinds.POSITIVE), None, steps)
    draws = "steps of the chain evaluated for each image; 0 for all"
    parser.option("draws", kinds.NATURAL, 100, draws)
    parser.option("tolerance", kinds.NUMBER, 1e-4, "of the flow's solver")
    probes = "of the flow's divergence; 0 for the exact trace"
    parser.option("probes", kinds.NATURAL, 1, probes)
    bins = "values that a pixel can have (default: the whole numbers in the data's range)"
    parser.option("bins", kinds.optional(kinds.POSITIVE), None, bins)
    common.seed_option(parser, "of the images, the noise and the probes")
    parser.option("batch", kinds.POSITIVE, 16, "images in memory at once")
    common.threads_option(parser, "half of them")
    which_model(parser)
    parser.about_the_call()
    return parser
