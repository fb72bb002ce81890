"""The shape of the package: rooms that import only downward, small modules, one public list."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

# A room imports the rooms before it and itself; rooms in one row know nothing of each other.
ORDER = (
    ("algebra",),
    ("corruption",),
    ("estimation",),
    ("sampling",),
    ("methods",),
    ("config", "autoencoding"),
    ("codec", "scores", "cards"),
    ("publishing",),
    ("guidance", "bridge"),
    ("model",),
    ("store", "checks", "editing", "restoration", "deepinv"),
    ("trajectory",),
    ("training", "evaluation"),
    ("cli", "demo"),
)
# Rooms that import nothing of the package but each other, and who may import them.
LEAVES = {
    "errors": {
        *(name for row in ORDER for name in row),
        *("names", "record", "networks", "config", "files", "pictures", "charts", "viewing", "hub"),
        *("limits", "fields", "documents", "arrays", "paths", "processes"),
    },
    "limits": {
        *(name for row in ORDER for name in row),
        *("fields", "documents", "arrays", "record", "networks", "pictures"),
    },
    "fields": {*("record", "networks", "config", "autoencoding", "methods", "cli")},
    "paths": {"documents", "training", "cli"},
    "documents": {
        *("autoencoding", "scores", "cards", "bridge", "store", "training", "evaluation", "cli"),
        *("demo", "hub", "files"),
    },
    "arrays": {"corruption", "training", "evaluation"},
    "networks": {
        *("config", "autoencoding", "bridge", "codec", "model", "store"),
        *("training", "evaluation", "cli", "demo"),
    },
    "pretrained": {"store", "evaluation", "cli", "demo"},
    "names": {
        "corruption",
        "config",
        "record",
        "scores",
        "estimation",
        "sampling",
        "methods",
        "model",
        "store",
        "training",
        "evaluation",
        "cli",
        "demo",
    },
    "record": {
        *("checks", "config", "cards", "autoencoding", "bridge", "codec", "model", "store"),
        *("training", "evaluation", "cli", "demo"),
    },
    "notes": {"charts", "sampling", "training", "evaluation", "cli", "demo"},
    "hub": {"publishing", "store", "cli", "demo"},
    "files": {
        *("charts", "pictures", "viewing", "autoencoding", "bridge", "codec", "scores"),
        *("model", "store"),
        *("training", "evaluation", "cli", "demo"),
    },
    "pictures": {"notebook", "viewing", "model", "store", "training", "evaluation", "cli", "demo"},
    "charts": {"cli"},
    "notebook": {"corruption", "sampling", "methods", "model"},
    "viewing": {"demo"},
    "threads": {"sampling", "cli"},
    "machine": {"evaluation", "cli"},
    "processes": {"training", "evaluation", "cli"},
    "progress": {"training", "cli"},
}
# Every import that the two tables above forbid and that is meant: (module, imported) and why.
EXCEPTIONS = {
    ("sfumato.cli", "sfumato.demo"): "the verb `demo` serves the page",
}
EXEMPT = ("sfumato", "sfumato.__main__")  # they tie all rooms together
LONGEST = 400  # lines of one module
# The command line tells refusals from slips in the code by their type.
BUILT_IN = {"ValueError", "TypeError", "NotImplementedError", "FileNotFoundError", "OSError"}
PICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "sfumato"
PATHS = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in PATHS}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in PATHS}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    return ((path, node) for path, tree in TREES.items() for node in ast.walk(tree))


def imported(path: Path, node: ast.AST) -> list[str]:
    """Absolute names of what one statement imports; modules where the name is a module's."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")
        package = package if path.name == "__init__.py" else package[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, base] if base else package)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in MODULES or base == "sfumato" else base for name in names]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def stub() -> ast.Module:
    """`__init__.pyi`, the one list of the public names, which `__init__.py` reads too."""
    return ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))


def listed(tree: ast.Module) -> dict[str, str]:
    """Names that a module imports to offer them, and where from."""
    return {
        alias.asname: f"{node.module or ''}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }


NAMESPACES = {name for name, home in listed(stub()).items() if home == f".{name}"}
"""Modules that only offer names: they import from everywhere, and nothing imports them."""


def allowed(module: str, target: str) -> bool:
    here, there = room(module), room(target)
    if here == there or here in NAMESPACES:
        return here == there or there not in NAMESPACES
    if any(within(module, a) and within(target, b) for a, b in EXCEPTIONS):
        return True
    if here in LEAVES or there in LEAVES:
        return here in LEAVES.get(there, set())
    rank = {name: level for level, row in enumerate(ORDER) for name in row}
    return here in rank and there in rank and rank[there] < rank[here]


def calls(node: ast.AST | None, names: Collection[str]) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def pickles(path: Path, node: ast.AST) -> bool:
    if any(name.split(".")[0] in PICKLING for name in imported(path, node)):
        return True
    if isinstance(node, ast.Attribute) and node.attr in {"save", "load"}:
        return isinstance(node.value, ast.Name) and node.value.id == "torch"
    if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
        return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return False


def test_every_room_has_a_place_in_the_order():
    known = {name for row in ORDER for name in row} | {*LEAVES, *NAMESPACES}
    rooms = {room(name) for name in MODULES if name not in EXEMPT}
    assert rooms <= known, f"give {sorted(rooms - known)} a place in ORDER or LEAVES"


def test_imports_go_downward():
    upward = [
        f"{place(path, node)}: {module_name(path)} must not import {target}"
        for path, node in nodes()
        if module_name(path) not in EXEMPT
        for target in imported(path, node)
        if within(target, "sfumato") and not allowed(module_name(path), target)
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(
    ("module", "target", "verdict"),
    [
        ("sfumato.corruption.process", "sfumato.algebra.basis", True),
        ("sfumato.algebra.basis", "sfumato.corruption.process", False),
        ("sfumato.model", "sfumato.training.data", False),
        ("sfumato.evaluation.protocol", "sfumato.training.data", False),
        ("sfumato.model", "sfumato.pictures", True),
        ("sfumato.sampling.flow", "sfumato.pictures", False),
        ("sfumato.networks.backbones", "sfumato.algebra.basis", False),
        ("sfumato.cli.demo", "sfumato.demo.page", True),
        ("sfumato.demo.page", "sfumato.cli.demo", False),
    ],
)
def test_the_order_forbids_what_it_should(module, target, verdict):
    assert allowed(module, target) is verdict


def test_relative_imports_are_resolved():
    inside = SOURCE / "corruption" / "process.py"
    statements = {
        "from ..algebra.basis import dct": ["sfumato.algebra.basis"],
        "from .. import algebra": ["sfumato.algebra"],
        "from . import nothing": ["sfumato.corruption"],
        "import sfumato.cli": ["sfumato.cli"],
        "import torch": ["torch"],
    }
    for statement, expected in statements.items():
        (node,) = ast.parse(statement).body
        assert imported(inside, node) == expected


def test_modules_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PATHS}
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > LONGEST]
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    ("offence", "found"),
    [
        ("assert; raise an error that says what to do", lambda p, n: isinstance(n, ast.Assert)),
        (
            "print outside the command line",
            lambda p, n: calls(n, {"print"}) and room(module_name(p)) != "cli",
        ),
        ("pickle; use safetensors or JSON", pickles),
        (
            "an error of Python's own kind; raise Refused, or one of its kinds in errors.py",
            lambda p, n: isinstance(n, ast.Raise) and calls(n.exc, BUILT_IN),
        ),
        ("bare except", lambda p, n: isinstance(n, ast.ExceptHandler) and n.type is None),
    ],
    ids=["assert", "print", "pickle", "raise", "except"],
)
def test_source_is_free_of(offence, found):
    places = [f"{place(path, node)}: {offence}" for path, node in nodes() if found(path, node)]
    assert not places, "\n".join(places)


def test_nothing_is_left_to_do():
    mark = re.compile("TO" + "DO|FIX" + "ME")
    left = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*PATHS, *sorted((ROOT / "tests").rglob("*.py"))]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if mark.search(line)
    ]
    assert not left, "\n".join(left)


def docstrings() -> Iterator[tuple[str, str]]:
    """(place, words) of every docstring of package and tests, also those under assignments."""
    for path in [*PATHS, *sorted((ROOT / "tests").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                if isinstance(said := node.value.value, str):
                    yield place(path, node), " ".join(said.split())


def test_docstrings_cite_what_is_there():
    """Every page or file that a docstring names is in the repository, and so is the section."""
    known, missing, found = {}, [], 0
    for page in (ROOT / "docs").glob("*.md"):
        lines = page.read_text(encoding="utf-8").splitlines()
        known[f"docs/{page.name}"] = {line.lstrip("# ") for line in lines if line.startswith("#")}
    for where, said in docstrings():
        for name in re.findall(
            r"[\w./-]*\w\.md\b|\b(?:docs|recipes|tests|benchmarks)/[\w./-]*\w", said
        ):
            found += 1
            if not (ROOT / name).is_file():
                missing.append(f"{where}: there is no {name}")
        for name, section in re.findall(r'(docs/\w+\.md), "([^"]+)"', said):
            if section not in known.get(name, ()):
                missing.append(f"{where}: {name} has no section '{section}'")
    assert found >= 10 and not missing, "\n".join(missing)


def test_public_names_are_those_of_the_stub():
    """The root offers what `__init__.pyi` lists, some forty nouns and verbs, and namespaces."""
    import sfumato

    listed_ = {*listed(stub())}
    assert {*sfumato.__all__} == listed_ and {*dir(sfumato)} >= listed_
    assert 25 <= len(listed_ - NAMESPACES) <= 50
    missing = [name for name in sfumato.__all__ if not hasattr(sfumato, name)]
    assert not missing, f"__init__.pyi promises {missing}"


@pytest.mark.parametrize("name", sorted(NAMESPACES))
def test_a_namespace_offers_names_alone(name):
    """A docstring and imports of one kind: what tab shows is what there is to choose from."""
    tree = TREES[SOURCE / f"{name}.py"]
    assert ast.get_docstring(tree)
    assert all(isinstance(node, ast.ImportFrom) for node in tree.body[1:])
    offered = {n for n in vars(importlib.import_module(f"sfumato.{name}")) if n[0] != "_"}
    assert offered == {*listed(tree)}


def test_import_is_light():
    script = "import json, sys, sfumato; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "diffusers", "accelerate", "sklearn", "PIL"} & {
        *json.loads(run.stdout)
    }
    assert not heavy, f"`import sfumato` imports {sorted(heavy)}"


@pytest.mark.parametrize("package", ["scipy", "matplotlib", "torchdiffeq", "sklearn"])
def test_what_few_need_is_imported_where_it_is_used(package):
    """In functions: `import` at the top of a module would load it for everyone."""
    at_the_top = [
        place(path, node)
        for path, tree in TREES.items()
        for node in tree.body
        if any(within(name, package) for name in imported(path, node))
    ]
    inside = [
        path for path, node in nodes() if any(within(n, package) for n in imported(path, node))
    ]
    assert inside and not at_the_top, "\n".join(at_the_top)
