"""The public names of the library, with their docstrings: for the site, and for the tests.

A value, such as a dictionary or a tableau, has the string below its assignment for a docstring.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import sfumato

SOURCE = Path(sfumato.__file__).parent


def namespaces() -> list[str]:
    """The modules that the root offers, such as `schedules`."""
    return [name for name in sfumato.__all__ if isinstance(getattr(sfumato, name), ModuleType)]


def public() -> dict[str, str]:
    """Every public name, such as `Process` or `schedules.Linear`, and where it is defined."""
    stub = _imported((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    found = {name: home for name, home in stub.items() if name not in namespaces()}
    for space in namespaces():
        offered = _imported((SOURCE / f"{space}.py").read_text(encoding="utf-8"))
        found |= {f"{space}.{name}": home for name, home in offered.items()}
    return found


def docstring(home: str) -> str:
    """The docstring of what is defined as `home`, such as `sfumato.sampling.flow.HEUN`."""
    module, _, name = home.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return inspect.cleandoc(value.__doc__ or "")
    return below(module, name)


def below(module: str, name: str) -> str:
    """The string below the assignment of `name`; empty if there is none."""
    path = inspect.getsourcefile(importlib.import_module(module)) or ""
    body = ast.parse(Path(path).read_text(encoding="utf-8")).body
    for node, following in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return inspect.cleandoc(str(following.value.value))
    return ""


def _imported(text: str) -> dict[str, str]:
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = "sfumato." + node.module if node.level and node.module else node.module
            found |= {a.asname: f"{base}.{a.name}" for a in node.names if a.asname}
    return found
