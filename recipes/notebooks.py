"""Three scripts of the gallery as notebooks, without outputs.

python recipes/notebooks.py        # writes docs/notebooks/*.ipynb
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
SCRIPTS = ("plot_01_first_samples", "plot_03_coloured_noise", "plot_06_guidance")
MARK = "# %%\n"


def notebook(script: str) -> dict[str, Any]:
    """A script in sphinx-gallery's format as a notebook of nbformat 4.5."""
    found = re.match(r'"""\n(?P<title>[^\n]+)\n=+\n\n(?P<text>.*?)\n"""\n', script, re.DOTALL)
    if found is None:
        raise SystemExit('a script of the gallery begins with """, a title, === and a text.')
    parts: list[tuple[str, str]] = [("markdown", f"# {found['title']}\n\n{found['text']}")]
    for part in script[found.end() :].split(MARK):
        lines = part.splitlines()
        count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:count])
        parts += [("markdown", text), ("code", "\n".join(lines[count:]).strip("\n"))]
    cells = [_cell(k, kind, text) for k, (kind, text) in enumerate(filter(lambda p: p[1], parts))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    """A cell; text is Markdown where it was reStructuredText: code and links."""
    if kind == "markdown":
        text = re.sub(r"`([^`<]+) <([^>]+)>`_", r"[\1](\2)", text).replace("``", "`")
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    cell["source"] = text.splitlines(keepends=True)
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def main() -> None:
    """Write the notebooks."""
    (DOCS / "notebooks").mkdir(exist_ok=True)
    for name in SCRIPTS:
        script = (DOCS / "gallery" / f"{name}.py").read_text(encoding="utf-8")
        out = DOCS / "notebooks" / f"{name.partition('_')[2].partition('_')[2]}.ipynb"
        out.write_text(json.dumps(notebook(script), indent=1) + "\n", encoding="utf-8")
        print(out)


if __name__ == "__main__":
    main()
