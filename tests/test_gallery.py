"""The gallery: every script compiles and has its form; two of them and three notebooks run."""

from __future__ import annotations

import json
import os
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import nbclient
import nbformat
import pytest
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
SCRIPTS = sorted(GALLERY.glob("plot_*.py"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
FAST = ("plot_03_coloured_noise", "plot_04_spectrum_from_data")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_the_form_of_the_gallery(path):
    """A title, text, cells, and a picture or two; it writes no file and needs no argument."""
    text = path.read_text(encoding="utf-8")
    compile(text, str(path), "exec")
    assert re.match(r'"""\n[^\n]+\n=+\n\n.+?\n"""\n\n', text, re.DOTALL)
    assert 2 <= text.count("# %%\n# ") <= 6 and 1 <= text.count("plt.subplots(") <= 3
    assert "savefig" not in text and "argv" not in text and len(text.splitlines()) <= 130


def test_the_gallery_is_whole():
    assert len(SCRIPTS) >= 12 and len({path.stem[5:7] for path in SCRIPTS}) == len(SCRIPTS)


@pytest.mark.parametrize("name", FAST)
def test_a_script_draws(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("Agg")
    plt.close("all")
    path = GALLERY / f"{name}.py"
    runpy.run_path(str(path))
    assert len(plt.get_fignums()) == path.read_text(encoding="utf-8").count("plt.subplots(")
    assert not list(tmp_path.iterdir())
    plt.close("all")


def test_notebooks_are_the_scripts_without_outputs():
    recipe = runpy.run_path(str(ROOT / "recipes" / "notebooks.py"))
    expected = {
        name[8:]: recipe["notebook"]((GALLERY / f"{name}.py").read_text(encoding="utf-8"))
        for name in recipe["SCRIPTS"]
    }
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}
    assert found == expected and len(found) == 3


@pytest.mark.slow
def test_notebooks_run(tmp_path):
    """In one kernel, one after another: pictures, and a model that shows what it is."""
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(tmp_path / "kernel"))
    inline = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    manager.start_kernel(cwd=str(tmp_path), env=inline)
    pages = {path.stem: nbformat.read(path, 4) for path in NOTEBOOKS}
    try:
        for page in pages.values():
            nbformat.validate(page)
            nbclient.NotebookClient(page, km=manager, timeout=600).execute()
    finally:
        manager.shutdown_kernel(now=True)
    for page in pages.values():
        shown = outputs(page)
        asked = sum(cell.source.count("plt.subplots(") for cell in page.cells)
        assert asked == sum("image/png" in one for one in shown) >= 2
    said = [one.get("text/html", "") for one in outputs(pages["first_samples"])]
    assert any("fashion-mnist" in page and "data:image/png" in page for page in said)


def outputs(page):
    """What the cells of an executed notebook display, by type."""
    found = (output for cell in page.cells for output in cell.get("outputs", ()))
    return [output.data for output in found if "data" in output]
