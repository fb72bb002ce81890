"""Situations from public bug reports, one a line: what was fed, and what must happen.

A case is (report, situation, feed, outcome). `feed(folder)` does what the user did, in a process
that has imported everything and with `folder` empty and current; what it returns, or the error that
it raises, is handed to `outcome`. New ones go into the table of their kind.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.cli import main


class Case(NamedTuple):
    """One situation.

    Attributes:
        report: where it was reported, as OWNER/NAME#NUMBER.
        situation: what was fed, in a few words.
        feed: (folder) -> what came of it.
        outcome: asserts on what `feed` returned or raised.
    """

    report: str
    situation: str
    feed: Callable[[Path], Any]
    outcome: Callable[[Any], None]


def refuses(sentence: str, kind: type[Exception] = ValueError) -> Callable[[Any], None]:
    """The outcome: an error of `kind`, of one sentence that the pattern `sentence` finds."""

    def outcome(found: object) -> None:
        assert isinstance(found, kind), f"wanted {kind.__name__}, got {found!r}"
        assert re.search(sentence, str(found)), f"no {sentence!r} in: {found}"

    return outcome


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def command(*words: object) -> Callable[[Path], Ended]:
    """The feed: one command line."""
    return lambda folder: run(*words)


def run(*words: object) -> Ended:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Ended(code, out.getvalue(), err.getvalue())


def exits(code: int, said: str = "") -> Callable[[Any], None]:
    """The outcome: this exit code, and the pattern `said` in what was printed."""

    def outcome(found: object) -> None:
        assert isinstance(found, Ended), f"got {found!r}"
        assert found.code == code, found.err
        assert re.search(said, found.out + found.err), f"no {said!r} in: {found.out}{found.err}"

    return outcome


def is_true(found: object) -> None:
    """The outcome: `feed` found what it looked for."""
    assert found is True, f"got {found!r}"


# A stranger's files.
FILES: list[Case] = []

# Training that goes wrong, is cut, or goes on.
TRAINING: list[Case] = []

# Images, folders and arrays as people have them.
DATA: list[Case] = []

# Samplers, grids and levels.
SAMPLING: list[Case] = []

# Scores and likelihoods.
EVALUATION: list[Case] = []

# Calls from Python.
PYTHON: list[Case] = []

CASES = [*FILES, *TRAINING, *DATA, *SAMPLING, *EVALUATION, *PYTHON]
