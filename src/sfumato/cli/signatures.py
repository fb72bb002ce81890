"""A signature describes a function's parameters, read from its source, which is not run.

One reader, without torch, serves methods (bundled, or in a user's file), `TrainOptions` and
`UNetOptions`; it gives both the flags and their help.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, NamedTuple, final

from docstring_parser.google import parse

from sfumato.cli import kinds
from sfumato.cli.kinds import Kind
from sfumato.errors import Refused
from sfumato.names import choose

SOURCE = Path(__file__).parents[1]
UNET = "unet"
"""The backbone that is trained unless another is asked for."""
SCALARS = {"int": kinds.WHOLE, "float": kinds.NUMBER, "str": kinds.TEXT, "bool": kinds.YES}


@final
class Parameter(NamedTuple):
    """One keyword parameter or field that a flag can set."""

    name: str
    kind: Kind
    default: Any
    required: bool
    help: str


@final
class Signature(NamedTuple):
    """The signature of one function or dataclass."""

    module: str
    """Docstring of the whole file."""
    summary: str
    """First line of its own docstring."""
    parameters: tuple[Parameter, ...]


def methods() -> dict[str, tuple[Path, str]]:
    """File and function of each name in METHODS."""
    return _listed(SOURCE / "methods" / "__init__.py", "METHODS")


def backbones() -> dict[str, tuple[Path, str]]:
    """File and function or class of the backbones that can be trained, the U-Net first."""
    found = _listed(SOURCE / "networks" / "named.py", "BACKBONES")
    del found["diffusers-unet"]  # made by the config of a pipeline, which no flag can give
    return {UNET: (SOURCE / "networks" / "backbones.py", "UNetOptions"), **found}


def _listed(path: Path, table: str) -> dict[str, tuple[Path, str]]:
    """File and function of each entry of a table of imported functions."""
    tree = _tree(path)
    homes = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
    found = {}
    for name, value in _entries(tree, table).items():
        module, function = homes[ast.unparse(value)]
        found[name] = (SOURCE.parent / f"{module.replace('.', '/')}.py", function)
    return found


def method(spec: str) -> Signature:
    """Signature of a method by its name, or of a user-defined one by `FILE.py:NAME`.

    Raises:
        ValueError: no such method, file or function.
    """
    return _read_spec("method", spec, methods())


def backbone(spec: str) -> Signature:
    """Signature of a backbone by its name, or of a user-defined one by `FILE.py:NAME`.

    Raises:
        ValueError: no such backbone, file or function.
    """
    return _read_spec("backbone", spec, backbones())


def _read_spec(what: str, spec: str, known: dict[str, tuple[Path, str]]) -> Signature:
    path, colon, name = spec.rpartition(":")
    if not colon:
        return read(*choose(what, spec, known))
    if not Path(path).is_file():
        raise Refused(f"no file '{path}' for the {what} {spec}.")
    return read(Path(path), name)


def read(path: Path, name: str) -> Signature:
    """Signature of the function or dataclass `name` in the file at `path`."""
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            doc = parse(_doc(node))
            helps = {entry.arg_name: entry.description or "" for entry in doc.params}
            listed = _keywords(node) if isinstance(node, ast.FunctionDef) else _of_class(node)
            parameters = [_parameter(*row, helps.get(row[0], "")) for row in listed]
            return Signature(
                _doc(tree),
                doc.short_description or "",
                tuple(parameter for parameter in parameters if parameter is not None),
            )
    raise Refused(f"{path} defines no function '{name}'.")


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not Python: {error}.") from error


def _entries(tree: ast.Module, name: str) -> dict[str, ast.expr]:
    """Keys and values of the dictionary `name` of a module."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            table = node.value
            if isinstance(table, ast.Dict):
                keys = [ast.literal_eval(key) for key in table.keys if key is not None]
                return dict(zip(keys, table.values, strict=True))
    raise LookupError(f"{name} is not a dictionary written out.")


def _keywords(node: ast.FunctionDef) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [(argument.arg, argument.annotation, default) for argument, default in pairs]


def _of_class(node: ast.ClassDef) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
    """The keyword arguments of its own `__init__`, or the fields of a dataclass."""
    for found in node.body:
        if isinstance(found, ast.FunctionDef) and found.name == "__init__":
            return _keywords(found)
    return _fields(node)


def _fields(node: ast.ClassDef) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
    return [
        (ast.unparse(field.target), field.annotation, field.value)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]


def _parameter(
    name: str, annotation: ast.expr | None, default: ast.expr | None, text: str
) -> Parameter | None:
    """A parameter, or None where a flag cannot give its type or its default."""
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:
        return None
    kind = SCALARS.get(type(value).__name__) if annotation is None else _kind(annotation)
    if kind is None:
        return None
    return Parameter(name, kind, value, default is None, " ".join(text.split()).rstrip("."))


def _kind(node: ast.expr) -> Kind | None:
    """The kind of an annotation: a scalar, a Literal, a tuple of one scalar, or one `| None`."""
    match node:
        case ast.Name(id):
            return SCALARS.get(id)
        case ast.BinOp(left, ast.BitOr(), ast.Constant(None)):
            kind = _kind(left)
            return kind and kinds.optional(kind)
        case ast.Subscript(ast.Name("Literal"), names):
            values = ast.literal_eval(names)
            values = values if isinstance(values, tuple) else (values,)
            if all(isinstance(value, str) for value in values):
                return kinds.choice(*values)
        case ast.Subscript(ast.Name("tuple"), ast.Tuple([first, *rest])):
            kind = _kind(first)
            others = {ast.unparse(other) for other in rest}
            if kind is not None and others <= {ast.unparse(first), "..."}:
                return kinds.several(kind, None if "..." in others else 1 + len(rest), empty=True)
    return None


def _doc(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> str:
    return ast.get_docstring(node) or ""
