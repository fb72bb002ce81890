"""Names into things: methods and kernels as the command line spells them."""

from __future__ import annotations

import hashlib
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato.methods import KERNELS, METHODS
from sfumato.methods.recipe import Recipe
from sfumato.names import nearest
from sfumato.sampling.kernels import Kernel

Method = Callable[..., Recipe]
"""(shape, facts=None, *, parameters) -> Recipe."""


def method(spec: str) -> tuple[Method, str | None]:
    """The method named `spec`, and the SHA-256 of its file where it is the user's own.

    One's own is spelled `file.py:function`, and its file is run. `spec` is therefore what a person
    typed for this call, and never what a file says: that goes to `known`.

    Raises:
        ValueError: no such method, file or function.
    """
    return own("method", spec) if names_code(spec) else (known(spec), None)


def known(name: str) -> Method:
    """The method of the library called `name`; no file is run, whatever the name is.

    Raises:
        ValueError: no such method.
    """
    if name not in METHODS:
        raise ValueError(nearest("method", name, METHODS))
    return METHODS[name]


def names_code(spec: object) -> bool:
    """Whether `spec` is of the form `file.py:function`, for which a file would be run."""
    return isinstance(spec, str) and ":" in spec


def own(what: str, spec: str) -> tuple[Callable[..., Any], str]:
    """A function in the user's file, `file.py:function`, and the file's SHA-256; the file is run.

    Args:
        what: the function is to be, such as "method", for error sentences.
        spec: where it is.

    Raises:
        ValueError: no such file or function.
    """
    path, _, name = spec.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no file '{path}' for the {what} {spec}.")
    scope = runpy.run_path(str(file))
    if not callable(scope.get(name)):
        raise ValueError(f"{path} defines no function '{name}'.")
    return scope[name], hashlib.sha256(file.read_bytes()).hexdigest()


def kernel(spec: str) -> Kernel:
    """A kernel from `name` or `name:key=value,key=value`, such as ``ddim:eta=0.5``.

    Raises:
        ValueError: no such kernel, no such parameter, or a value that is not a number.
    """
    name, _, rest = spec.partition(":")
    if name not in KERNELS:
        raise ValueError(nearest("kernel", name, KERNELS))
    build = KERNELS[name]
    known = inspect.signature(build).parameters
    values: dict[str, float | int] = {}
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameter"
            raise ValueError(f"kernel {name} {takes}; got '{part}'.")
        try:
            values[key] = int(text) if known[key].annotation == "int" else float(text)
        except ValueError:
            raise ValueError(f"kernel {name} needs a number for {key}; got '{text}'.") from None
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in values:
            raise ValueError(f"kernel {name} needs {key}, as in {name}:{key}=0.1.")
    return build(**values)
