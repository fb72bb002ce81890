"""A note informs the user and stops nothing: a warning, or a line in a terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Note(UserWarning):
    """One sentence, issued by `warnings.warn`."""


@contextmanager
def printed(quiet: bool = False) -> Iterator[None]:
    """Within, every note is a line on standard error, or nothing if `quiet`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always", Note)
        plain = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, Note):
                sentence = " ".join(str(message).split())  # a name in it may hold line feeds
                sys.stderr.write(f"sfumato: note: {sentence}\n")
            else:
                plain(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
