"""An error states what was asked, what was found and what to do, in one sentence.

The command line prints an error of these types as one line, and any other, which is a bug, with its
traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

WRONG = (
    *(TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError),
    *(RuntimeError, MemoryError),
)
"""What code raises that was given values of wrong types or sizes."""
MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class Refused(ValueError):
    """The request is impossible, or its result would be wrong.

    >>> try:
    ...     sf.Sampler("ddmi")
    ... except sf.Refused as error:
    ...     print(error)
    no sampler 'ddmi'; did you mean 'ddim'?
    >>> issubclass(sf.Refused, ValueError)
    True
    """


class RefusedType(Refused, TypeError):
    """An argument of the wrong type."""


class Unsupported(Refused, NotImplementedError):
    """An operation that this object does not have."""


class NotFound(Refused, FileNotFoundError):
    """A file or folder that does not exist."""


class TrainingDiverged(FloatingPointError):
    """Training whose loss, gradients or weights are not finite numbers."""


class ProcessLost(RuntimeError):
    """One of the processes that train together has ended, or does not answer."""


def of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a type of its own for GPUs alone."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(word in said for word in MEMORY)


def reason(error: BaseException) -> str:
    """What an error says, on one line that is not long, without its full stop."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    text = text if len(text) <= 240 else f"{text[:240]}..."
    return text or type(error).__name__


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Within, errors of wrong types or sizes are refusals: "`what`: the error".

    For what is built from a file of anyone's, whose values no caller has checked.
    """
    try:
        yield
    except Refused:
        raise
    except WRONG as error:
        raise Refused(f"{what}: {reason(error)}.") from error
