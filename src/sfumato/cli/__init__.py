"""The command line: one small module per verb, which imports heavy packages when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sfumato import notes
from sfumato.errors import ProcessLost, Refused, TrainingDiverged, of_memory
from sfumato.names import choose

VERBS = {
    "methods": "list the methods and the kernels that can sample them",
    "show": "draw a strip: how a method corrupts images, or how a trained model makes them",
    "select": "choose the levels of a method's corruption from data",
    "tune": "rank methods and samplers for data by their predicted error on Gaussian data",
    "train": "train a method on images, or resume a run",
    "train-classifier": "train a classifier of x_t, which guides samples to a class",
    "train-autoencoder": "train an autoencoder, whose latents are small images, or resume a run",
    "distill": "distil a model into one that samples in one step or a few",
    "average": "average the weights of a run over another length than it did, after training",
    "sample": "draw images from a trained model",
    "restore": "restore blurred, masked or small images by a trained model",
    "demo": "serve a page on this machine: corrupt, sample and restore images, step by step",
    "edit": "encode images and decode them: round trip, interpolation, change of class",
    "evaluate": "compare a model's samples with real images, or verify such a record",
    "likelihood": "bits per dimension of real images, by the flow and by the bound",
    "push": "upload a trained model to the Hub, with a card",
    "check": "compare the files of a run or a model with the hashes written with them",
    "cite": "print the references of a method",
    "env": "print versions, machine and devices, for a report of a bug",
    "completion": "print what completes these words in a shell",
}
USAGE = f"""usage: sfumato VERB ...

Diffusion models under any linear corruption and any Gaussian noise colour.

verbs:
{chr(10).join(f"  {verb:<16} {line}" for verb, line in VERBS.items())}

  sfumato VERB --help explains a verb; sfumato train METHOD --help also a method's own parameters.
  sfumato --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    0; 1 for training that diverged or lost a process, or a record that is not reproduced; 2 for a
    wrong call; 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--quiet" in words:  # read when huggingface_hub is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with notes.printed(quiet="--quiet" in words):
            return _run(words)
    except SystemExit as end:  # the parser printed help
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _complain("stopped.", 130)
    except Refused as error:
        return _complain(str(error), 2)
    except (TrainingDiverged, ProcessLost) as error:
        return _complain(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not of_memory(error):
            raise
        return _complain("out of memory. Ask for less at once: a smaller --batch or --width.", 2)
    except OSError as error:  # of the user's files or disk, from any library
        where = "" if error.filename is None else f"{error.filename}: "
        return _complain(f"{where}{error.strerror or error}.", 2)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if any("\0" in word for word in words):
        raise Refused("an argument holds a NUL, which no name or number has.")
    verb, *rest = words
    if verb == "--version":
        print(f"sfumato {import_module('sfumato').__version__}")
        return 0
    choose("verb", verb, VERBS)
    return import_module(f"sfumato.cli.{verb.replace('-', '_')}").run(rest) or 0


def _complain(sentence: str, code: int) -> int:
    # A name that is not UTF-8 is printed with its bytes escaped.
    line = " ".join(sentence.split()).encode(errors="backslashreplace").decode()
    print(f"sfumato: {line}", file=sys.stderr)
    return code
