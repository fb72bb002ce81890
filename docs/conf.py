"""The site: `make docs`; with `-t gallery` (`make gallery`) also the executed gallery.

Everything is local: no page loads a font, a script or a style from elsewhere.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import public_names  # noqa: E402 - found by the line above
from sphinx.util import logging  # noqa: E402

import sfumato  # noqa: E402

project = "Sfumato"
author = copyright = "The Sfumato contributors"
version = release = ".".join(sfumato.__version__.split(".")[:3])
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["gallery", "records", "zoo"]
if tags.has("gallery"):  # type: ignore[name-defined]  # noqa: F821 - Sphinx defines it
    extensions += ["sphinx_gallery.gen_gallery"]
    sphinx_gallery_conf = {
        "examples_dirs": "gallery",
        "gallery_dirs": "built_gallery",
        "download_all_examples": False,
        "abort_on_example_error": True,
        "within_subsection_order": "FileNameSortKey",
        "show_signature": False,
        "write_computation_times": False,  # its page loads a script from elsewhere
    }
else:
    exclude_patterns += ["built_gallery"]

html_theme = "furo"
html_title = "Sfumato"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
default_role = "py:obj"  # a link where the name is one of ours, else code
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["References"]

PLACES = {
    "](docs/": "](",
    "](CONTRIBUTING.md": "](contributing.md",
    "](CHANGELOG.md": "](changelog.md",
    "](examples/": "](../examples/",
    "](benchmarks/": "](../benchmarks/",
    "](recipes/": "](../recipes/",
}
"""Links of a page at the root of the repository, and what they are in docs/."""

REMOTE = re.compile(
    r'<(script|img|iframe|source)\b[^>]*\bsrc="(https?:)?//[^"]*"'
    r'|<link\b[^>]*\brel="(stylesheet|preload|preconnect|icon)"[^>]*\bhref="(https?:)?//[^"]*"'
)
SOURCE = re.compile(r"(?<=\s)(https://(?:arxiv|doi)\.org/[^\s,]*\w)")
"""Addresses of papers in the text, which Markdown does not make links by itself."""
SECTION = re.compile(r"(Args|Attributes|Examples?|Raises|References|Returns|Warns|Yields):$")
LITERAL = re.compile(r"(`+)(.+?)\1")
SPECIAL = re.compile(r"(?<=\w)_(?!\w)|[*|\\]")


def included(app: Any, name: str, source: list[str]) -> None:  # noqa: ANN401 - of Sphinx
    """Put a file of the root in place of `<!-- include FILE -->`, and pages in two other marks."""

    def whole(mark: re.Match[str]) -> str:
        text = (HERE.parent / mark[1]).read_text(encoding="utf-8")
        for there, here in PLACES.items():
            text = text.replace(there, here)
        return text

    text = re.sub(r"<!-- include (\S+) -->", whole, source[0])
    text = re.sub(r"\[([^]]+)\]\(records/?\)", r"\1 (`docs/records`)", text)
    text = SOURCE.sub(r"<\1>", text)
    if "<!-- rest -->" in text:
        rest = [page.stem for page in sorted(HERE.glob("*.md")) if page.stem != name]
        left = [page for page in rest if not re.search(rf"^{page}$", text, re.MULTILINE)]
        text = text.replace("<!-- rest -->", toctree("More", left))
    built = ["built_gallery/index"] if app.tags.has("gallery") else []
    source[0] = text.replace("<!-- gallery -->", toctree("Gallery", built))


def toctree(caption: str, pages: list[str]) -> str:
    """A table of contents in Markdown; nothing for no pages."""
    lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
    return "\n".join(lines) if pages else ""


def reference(app: Any) -> None:  # noqa: ANN401 - of Sphinx
    """Write a page for each namespace and one for the root into docs/api."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    names = public_names.public()
    spaces = {"": [name for name in names if "." not in name]}
    spaces |= {s: [n for n in names if n.startswith(f"{s}.")] for s in public_names.namespaces()}
    for space, members in spaces.items():
        title = f"sfumato.{space}".rstrip(".")
        lines = [title, "=" * len(title), "", f".. module:: {title}", ""]
        if space:
            lines += [escaped(getattr(sfumato, space).__doc__.split("\n")[0]), ""]
        else:
            lines += ["The root: ``import sfumato as sf``.", ""]
        for name in sorted(members, key=lambda n: n.lower()):
            first = next(other for other in names if names[other] == names[name])
            lines += entry(name, names[name]) if name == first else same(name, first)
        write(folder / f"{title}.rst", lines)
    pages = [f"sfumato.{space}".rstrip(".") for space in spaces]
    head = ["API reference", "=============", "", *INTRODUCTION.splitlines(), ""]
    write(folder / "index.rst", [*head, ".. toctree::", "", *(f"   {page}" for page in pages)])


INTRODUCTION = """\
Every public name. The examples assume ::

    import torch
    import sfumato as sf

and are run by the tests, each from ``torch.manual_seed(0)``."""


def entry(name: str, home: str) -> list[str]:
    """The directive of one public name."""
    value: Any = sfumato
    for part in name.split("."):
        value = getattr(value, part)
    if inspect.isclass(value):
        fields = ", ".join(getattr(value, "__dataclass_fields__", ()))
        left_out = [f"   :exclude-members: {fields}"] if fields else []
        return [f".. autoclass:: sfumato.{name}", "   :members:", *left_out, ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: sfumato.{name}", ""]
    said = public_names.docstring(home).splitlines()
    restructured(said)
    return [f".. py:data:: sfumato.{name}", "", *(f"   {line}".rstrip() for line in said), ""]


def same(name: str, first: str) -> list[str]:
    """The directive of a name that another one also has."""
    said = f"   The same as :py:obj:`sfumato.{first}`."
    return [f".. py:data:: sfumato.{name}", "", said, ""]


def write(path: Path, lines: list[str]) -> None:
    """Write a page if it changed, so that the next build reads only what is new."""
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def restructured(*given: Any) -> None:
    """Docstrings are plain text with code in backticks: say so to reStructuredText."""
    lines: list[str] = given[-1]
    found: list[str] = []
    section = code = False
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line and not line.startswith(" "):
            section, code = bool(SECTION.match(line)), False
        indented = line.startswith("    ") and not section
        if indented and not code and not before.strip():
            found += ["::", ""]
            code = True
        verbatim = code or line.lstrip().startswith(">>>") or _output(lines, number)
        found.append(line if verbatim or SECTION.match(line) else escaped(line))
    lines[:] = found


def _output(lines: list[str], number: int) -> bool:
    """Whether a line is in a block of examples."""
    while number and lines[number - 1].strip():
        number -= 1
        if lines[number].lstrip().startswith(">>>"):
            return True
    return False


def escaped(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside of backticks."""
    parts: list[str] = []
    end = 0
    for literal in LITERAL.finditer(line):
        parts += [SPECIAL.sub(r"\\\g<0>", line[end : literal.start()]), literal[0]]
        end = literal.end()
    return "".join([*parts, SPECIAL.sub(r"\\\g<0>", line[end:])])


def skipped(*given: Any) -> bool | None:
    """Leave out the fields of a tuple, which the class's own docstring describes."""
    said = getattr(given[3], "__doc__", None) or ""
    return True if said.startswith("Alias for field number") else None


def signed(*given: Any) -> tuple[str | None, str | None]:
    """Defaults that are functions, by their names; Python prints their addresses."""
    signature, returned = given[5], given[6]
    if signature:
        signature = re.sub(r"<function (\w+)[^>]*>", r"\1", signature)
        signature = re.sub(r"<built-in method (\w+)[^>]*>", r"torch.\1", signature)
    return signature, returned


def check_local(app: Any, error: Exception | None) -> None:  # noqa: ANN401 - of Sphinx
    """Warn of a page that loads something from elsewhere."""
    for page in [] if error else sorted(Path(app.outdir).rglob("*.html")):
        if found := REMOTE.search(page.read_text(encoding="utf-8")):
            logging.getLogger(__name__).warning("%s loads %s", page.name, found[0])


def setup(app: Any) -> None:  # noqa: ANN401 - of Sphinx
    """Connect the hooks; ours goes over docstrings before napoleon reads their sections."""
    app.connect("builder-inited", reference)
    app.connect("source-read", included)
    app.connect("autodoc-process-docstring", restructured, priority=400)
    app.connect("autodoc-process-signature", signed)
    app.connect("autodoc-skip-member", skipped)
    app.connect("build-finished", check_local)
