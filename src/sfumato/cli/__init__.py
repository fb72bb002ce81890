"""The command line: one small file per verb, which imports what is heavy when it works."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sfumato import notes
from sfumato.names import nearest

VERBS = {
    "methods": "list the methods and the kernels that can sample them",
    "show": "draw a strip: how a method corrupts images, or how a trained model makes them",
    "select": "choose the levels of a method's corruption from data",
    "tune": "rank methods and kernels for data by what they would do to Gaussian data",
    "train": "train a method on images, or go on with a run",
    "sample": "draw images from a trained model",
    "evaluate": "compare a model's samples with real images, or verify such a record",
    "likelihood": "bits per dimension of real images, by the flow and by the bound",
    "cite": "print where a method comes from",
}
USAGE = f"""usage: sfumato VERB ...

Diffusion models under any linear corruption and any Gaussian noise colour.

verbs:
{chr(10).join(f"  {verb:<10} {line}" for verb, line in VERBS.items())}

  sfumato VERB --help explains a verb; sfumato train METHOD --help also a method's own parameters.
  sfumato --version prints the version.
"""
PACKAGE = str(Path(__file__).parents[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    0; 1 for training that diverged or a record that does not hold; 2 for what was asked wrongly;
    130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with notes.printed(quiet="--quiet" in words):
            return _run(words)
    except SystemExit as end:  # the parser printed help
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _complain("stopped.", 130)
    except (ValueError, TypeError, NotImplementedError, OSError, FloatingPointError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            return _complain(f"{error.filename}: {error.strerror}.")
        if not _meant(error):
            raise
        return _complain(str(error), 1 if isinstance(error, FloatingPointError) else 2)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, *rest = words
    if verb == "--version":
        print(f"sfumato {import_module('sfumato').__version__}")
        return 0
    if verb not in VERBS:
        raise ValueError(nearest("verb", verb, VERBS))
    return import_module(f"sfumato.cli.{verb}").run(rest) or 0


def _complain(sentence: str, code: int = 2) -> int:
    print(f"sfumato: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _meant(error: Exception) -> bool:
    """Whether the error is a sentence for the user: a `raise` of this package, not a slip."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise")
