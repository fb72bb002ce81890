"""`sfumato env`: versions, machine and devices, for a report of a bug."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.cli.parser import Parser

ABOUT = "Print versions, system, threads and devices, to paste into a report of a bug. No paths."


def run(argv: Sequence[str]) -> None:
    """Print what `machine.described` finds."""
    Parser("env", ABOUT).read(argv, {})

    from sfumato import machine

    for title, text in machine.described().items():
        print(f"{title}: {text}")
