"""Methods by name, in the form that the command line takes."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.errors import Refused
from sfumato.methods import METHODS, READ
from sfumato.methods.recipe import Recipe
from sfumato.names import choose

Method = Callable[..., Recipe]
"""(shape, stats=None, *, parameters) -> Recipe."""


def method(spec: str) -> tuple[Method, str | None]:
    """The method named `spec`, and the SHA-256 of its file where it is the user's own.

    The user's own is written `file.py:function`, and its file is run. `spec` must therefore be
    typed by the user for this call; names read from files go to `known`.

    Raises:
        ValueError: no such method, file or function.
    """
    return own("method", spec) if names_code(spec) else (known(spec), None)


def known(name: str) -> Method:
    """The method of the library called `name`; no file is run, whatever the name is.

    Raises:
        ValueError: no such method.
    """
    return READ[name] if name in READ else choose("method", name, METHODS)


def listed(name: str, method: Method) -> bool:
    """Whether `method` is the library's own of this name, not one that the user has given."""
    return READ.get(name, METHODS.get(name)) is method


def names_code(spec: object) -> bool:
    """Whether `spec` is of the form `file.py:function`, for which a file would be run."""
    return isinstance(spec, str) and ":" in spec


def own(what: str, spec: str) -> tuple[Callable[..., Any], str]:
    """A function in the user's file, `file.py:function`, and the file's SHA-256; the file is run.

    Args:
        what: kind of the function, such as "method", for error sentences.
        spec: `file.py:function`.

    Raises:
        ValueError: no such file or function.
    """
    path, _, name = spec.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise Refused(f"no file '{path}' for the {what} {spec}.")
    scope = runpy.run_path(str(file))
    if not callable(scope.get(name)):
        raise Refused(f"{path} defines no function '{name}'.")
    return scope[name], hashlib.sha256(file.read_bytes()).hexdigest()
