"""`sfumato train-classifier METHOD`: train a classifier of x_t, or resume an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.cli import train


def run(argv: Sequence[str]) -> int:
    """Train as the command line says; the exit code."""
    return train.run(argv, train.CLASSIFIER)
