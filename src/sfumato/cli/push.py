"""`sfumato push RUN NAME`: a trained model to the Hub, with a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli import common, kinds
from sfumato.cli.parser import Parser, resolved, settings
from sfumato.errors import Refused

ABOUT = (
    "Upload a model to the Hub with a card: method, data, training, scores, how to sample. The "
    "account is that of `hf auth login`, or of HF_TOKEN."
)


def run(argv: Sequence[str]) -> None:
    """Upload as the command line says."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.run is None or values.name is None:
        raise Refused("push needs a run and a name, as in sfumato push runs/soft user/name.")
    if values.dry_run:
        print(resolved(parser, values))
        return
    model = common.load(values.run, values)
    # A model's own folder has no log; a checkpoint of a run that goes on is not all of the run.
    run = values.run if (Path(values.run) / "run.json").is_file() else None
    page = model.push_to_hub(values.name, run, values.records, values.licence, values.private)
    if not values.quiet:
        print(page)


def _parser() -> Parser:
    parser = Parser("push", ABOUT)
    common.run_argument(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="on the Hub, as user/name")
    text = "records of evaluate, FILE.json,..., for the card's scores; uploaded too"
    parser.option("records", kinds.several(kinds.PATH, empty=True), (), text, repeated=True)
    text = "of the weights, by the Hub's identifiers, such as apache-2.0 (default: none stated)"
    parser.option("licence", kinds.optional(kinds.TEXT), None, text)
    text = "where the name is new, whether only the account sees it (default: as the account says)"
    parser.option("private", kinds.YES, None, text)
    common.which_model(parser)
    parser.about_the_call()
    return parser
