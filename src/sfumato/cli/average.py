"""`sfumato average RUN`: a model with the average of another length, from a run's snapshots."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.cli import common, kinds
from sfumato.cli.parser import Parser, resolved, settings
from sfumato.errors import Refused

ABOUT = (
    "Average the weights of a run over another length than it did while it trained, from its "
    "snapshots: train with --averages 0.05,0.1 to have some. Which length is best is found by "
    "`evaluate` of a few."
)


def run(argv: Sequence[str]) -> None:
    """Average as the command line says."""
    parser = Parser("average", ABOUT)
    common.run_argument(parser, "folder of a run that was trained with --averages")
    text = "share of the run that the average is spread over, such as 0.08"
    parser.option("length", kinds.NUMBER, 0.1, text)
    parser.option("out", kinds.PATH, "averaged", "folder of a model to write")
    parser.about_the_call()
    values = parser.read(argv, settings(argv))
    if values.run is None:
        raise Refused("average needs a run, as in sfumato average runs/soft --length 0.08.")
    if values.dry_run:
        print(resolved(parser, values))
        return

    from sfumato.training.snapshots import save_averaged

    common.check_new(values.out)
    found = save_averaged(values.run, values.length, values.out)
    if not values.quiet:
        told = f"{found.steps} steps, of {found.snapshots} snapshots"
        print(f"{values.out}: average of length {values.length:g} over {told}")
        print(f"Error of its profile: {found.error:.2%}.")
        print(f"Sample it: sfumato sample {values.out} --out samples.png")
