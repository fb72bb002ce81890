"""`sfumato completion SHELL`: a script by which a shell completes verbs, options and names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from sfumato import pretrained
from sfumato.cli import signatures
from sfumato.cli.parser import Parser, gathered
from sfumato.errors import Refused

ABOUT = "Print a script by which a shell completes verbs, options, methods and samplers."
INSTALL = """For example:
  sfumato completion bash > ~/.local/share/bash-completion/completions/sfumato
  sfumato completion zsh > ~/.zfunc/_sfumato      (with fpath+=~/.zfunc before compinit)"""
SHELLS = ("bash", "zsh", "tcsh")
OF_METHODS = ("train", "train-classifier", "select", "show")
"""Verbs whose options are those of a method, which is the first word."""


def run(argv: Sequence[str]) -> None:
    """Print the script of a shell."""
    parser = Parser("completion", ABOUT, INSTALL)
    parser.add_argument("shell", metavar="SHELL", nargs="?", help=", ".join(SHELLS))
    shell = parser.read(argv, {}).shell
    if shell not in SHELLS:
        raise Refused(f"completion needs a shell, one of {', '.join(SHELLS)}; got {shell}.")
    try:
        import shtab  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Refused(
            f"completion needs its package ({error}). Install it: pip install "
            "'sfumato[completion]'."
        ) from error
    print(shtab.complete(_tree({"file": shtab.FILE, "folder": shtab.DIRECTORY}), shell))


def _tree(complete: Mapping[str, Any]) -> argparse.ArgumentParser:
    """All verbs with their options as one parser; `complete` has shtab's "file" and "folder"."""
    from sfumato.cli import VERBS

    known = _known()
    root = argparse.ArgumentParser("sfumato", description=ABOUT)
    root.add_argument("--version", action="store_true", help="print the version")
    verbs = root.add_subparsers()
    for verb, text in VERBS.items():
        made = verbs.add_parser(verb, help=text, add_help=False)
        for action in _actions(verb):
            told: dict[str, Any] = {"help": (action.help or "").replace("%%", "%")}
            names = known.get(action.dest) or _choices(action.metavar)
            if action.nargs == 0:
                made.add_argument(*action.option_strings, action="store_true", **told)
                continue
            told |= {"nargs": "?"} if not action.option_strings else {}
            flags = action.option_strings or [action.dest]
            copied = made.add_argument(*flags, choices=names, **told)
            if names:  # where none fits, bash completes paths
                continue
            if action.metavar == "PATH" or action.dest == "image":
                copied.complete = complete["file"]  # pyright: ignore[reportAttributeAccessIssue]
            elif action.dest in ("from", "guide", "classifier", "latent"):
                copied.complete = complete["folder"]  # pyright: ignore[reportAttributeAccessIssue]
    return root


def _known() -> dict[str, list[str]]:
    """The names that some arguments take, beside paths."""
    from sfumato.sampling.samplers import KERNELS
    from sfumato.training.sources import NAMED

    methods, models = [*signatures.methods()], [*pretrained.models()]
    return {
        "method": methods,
        "target": [*methods, *models],
        "run": models,
        "sampler": [*KERNELS],
        "data": [*NAMED],
        "shell": [*SHELLS],
    }


def _actions(verb: str) -> list[argparse.Action]:
    """The arguments of a verb, with those of every method where its options are a method's."""
    words = [[]]
    if verb in OF_METHODS:
        words += [[name] for name in signatures.methods()]
    if verb == "show":
        words += [[name] for name in pretrained.models()[:1]]
    run = import_module(f"sfumato.cli.{verb.replace('-', '_')}").run
    found: dict[str, argparse.Action] = {}
    if verb in OF_METHODS:
        first = "target" if verb == "show" else "method"
        found[first] = argparse.Action([], first, help="a method")
    for given in words:
        with gathered() as parsers:
            try:
                run([*given, "--help"])
            except SystemExit:
                pass
        for action in (action for parser in parsers for action in parser._actions):
            found.setdefault((action.option_strings or [action.dest])[0], action)
    return [*found.values()]


def _choices(metavar: object) -> list[str] | None:
    """The names in a form such as {a,b}."""
    text = str(metavar)
    return text[1:-1].split(",") if text.startswith("{") and text.endswith("}") else None
