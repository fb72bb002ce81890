"""The code of README and of a page runs: Python in one namespace, commands in one folder, in order.

A block after the comment `<!-- slow -->` is only read: its Python is compiled, its commands run
with `--dry-run`.
"""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

import sfumato as sf
from faults import table as soak
from sfumato.cli import main
from sfumato.cli.tune import MODEL
from sfumato.methods import METHODS
from sfumato.sampling.samplers import KERNELS

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^ *```(\w+) *\n(.*?)^ *``` *$", re.DOTALL | re.MULTILINE)
SLOW = re.compile(r"<!-- *slow *-->\s*\Z")


class Block(NamedTuple):
    language: str
    line: int  # of the block's first line of code
    code: str
    slow: bool


def blocks(text: str) -> list[Block]:
    return [
        Block(
            language=fence[1],
            line=text.count("\n", 0, fence.start(2)) + 1,
            code=fence[2],
            slow=SLOW.search(text, 0, fence.start()) is not None,
        )
        for fence in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    lines = block.code.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("sfumato ")]
    return [[*arguments, "--dry-run"] for arguments in found] if block.slow else found


def test_blocks_are_found_with_their_lines_and_marks():
    text = (
        "# Title\n\n```python\nx = 1\n```\n<!-- slow -->\n\n```bash\nsfumato train soft \\\n"
        "  --seed 1  # once\nls\n```\n```bash\nsfumato list\n```\n```\nplain\n```\n"
    )
    python, slow, quick = blocks(text)
    assert python == Block("python", 4, "x = 1\n", False)
    assert (slow.line, slow.slow, quick.slow) == (9, True, False)
    assert commands(slow) == [["train", "soft", "--seed", "1", "--dry-run"]]
    assert commands(quick) == [["list"]]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/choosing.md",
        "docs/corruptions.md",
        "docs/dependencies.md",
        "docs/design.md",
        "docs/evaluation.md",
        "docs/hub.md",
        "docs/models.md",
        "docs/recipes.md",
        "docs/reliability.md",
        "docs/restoration.md",
        "docs/stability.md",
        "docs/tour.md",
        "docs/tracking.md",
        "docs/demo.md",
        "docs/training.md",
    ],
)
def test_links_lead_somewhere(page):
    text = (README.parent / page).read_text(encoding="utf-8")
    local = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    folder = (README.parent / page).parent
    assert local and not [link for link in local if not (folder / link.partition("#")[0]).exists()]


def test_the_mathematics_names_its_sources():
    """Every section ends with title, authors, year and address, or refers to sections above."""
    text = (README.parent / "docs" / "mathematics.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        _, found, sources = section.rpartition("\nSources: ")
        name = section.partition("\n")[0]
        assert found, f"{name} names no sources"
        entries = re.findall(r"\([^()]+, 20\d\d\), https://arxiv\.org/abs/\d{4}\.\d{5}", sources)
        assert entries or "above" in sources, name


def test_the_models_page_tells_what_the_records_say():
    """The table of scores is that of `recipes/scores.py`, line by line."""
    docs = README.parent / "docs"
    table = runpy.run_path(str(README.parent / "recipes" / "scores.py"))["table"]()
    assert "\n".join(table) in (docs / "models.md").read_text(encoding="utf-8")


def test_the_plot_of_readme_shows_the_records():
    """docs/calls.png carries the numbers that were drawn: those of the records, both peers too."""
    curves = runpy.run_path(str(README.parent / "recipes" / "calls.py"))["curves"]()
    with Image.open(README.parent / "docs" / "calls.png") as picture:
        assert json.loads(picture.info["Description"]) == json.loads(json.dumps(curves))
    peers = {name.partition(",")[0] for name in curves} - {"fashion-soft", "fashion-ddpm"}
    assert peers == {"diffusers", "denoising-diffusion-pytorch"}


def test_figures_of_advice_are_those_of_the_tables():
    """Every FID in docs/choosing.md is in a table of the pages that it names."""
    docs = README.parent / "docs"
    page = (docs / "choosing.md").read_text(encoding="utf-8")
    tables = [
        line.replace("|", " ").replace("*", " ").split()
        for name in ("kernels", "selection", "few-steps")
        for line in (docs / f"{name}.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    told = re.findall(r"\d\.\d\d", page)
    assert len(told) >= 10
    assert not [fid for fid in told if not any(fid in row for row in tables)]


def test_readme_is_one_screen():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert text.count("](docs/") - text.count("![") >= 12 and text.count("![") == 2


def test_the_site_has_every_page():
    """docs/index.md names each page once; Sphinx puts those that it does not name under 'More'."""
    docs = README.parent / "docs"
    listed = re.findall(r"^[\w-]+$", (docs / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len({*listed}) >= 20
    assert not [name for name in listed if not (docs / f"{name}.md").is_file()]


def test_the_zoo_tells_what_the_registry_and_its_record_say():
    """docs/zoo.md is what `recipes/zoo.py` writes of METHODS and of the committed record."""
    zoo = runpy.run_path(str(README.parent / "recipes" / "zoo.py"))
    docs = README.parent / "docs"
    found = json.loads((docs / "records" / "zoo-digits.json").read_text(encoding="utf-8"))
    assert {*found} == {*METHODS, zoo["GAUSSIAN"]}
    assert zoo["text"]([*METHODS], found) == (docs / "zoo.md").read_text(encoding="utf-8")


def test_the_kernels_page_tells_what_the_records_and_the_registry_say():
    """Its tables are those of the recipes; its list of kernels has every one of KERNELS."""
    docs, recipes = README.parent / "docs", README.parent / "recipes"
    page = (docs / "kernels.md").read_text(encoding="utf-8")
    assert "\n".join(runpy.run_path(str(recipes / "scores.py"))["kernels"]()) in page
    assert "\n".join(runpy.run_path(str(recipes / "scores.py"))["spacings"]()) in page
    found = json.loads((docs / "records" / "solvers.json").read_text(encoding="utf-8"))
    assert "\n".join(runpy.run_path(str(recipes / "solvers.py"))["tables"](found)) in page
    listed = {name.partition(":")[0] for name in re.findall(r"^\| `([\w:=-]+)` \|", page, re.M)}
    assert listed >= {*KERNELS}


def test_the_reliability_page_tells_what_the_record_of_the_soak_says():
    """Its table is that of the record of the soak, or a sentence before there is one."""
    docs = README.parent / "docs"
    page = (docs / "reliability.md").read_text(encoding="utf-8")
    assert soak.placed(page, soak.read(docs / "records" / "soak.json")) == page


def test_the_other_pages_tell_what_the_records_say():
    """docs/evaluation.md's bits; docs/selection.md's grids and predictions, and `tune`'s words."""
    docs, recipes = README.parent / "docs", README.parent / "recipes"
    scores = runpy.run_path(str(recipes / "scores.py"))
    assert "\n".join(scores["bits"]()) in (docs / "evaluation.md").read_text(encoding="utf-8")
    page = (docs / "selection.md").read_text(encoding="utf-8")
    assert "\n".join(scores["grids"]()) in page
    rows = runpy.run_path(str(recipes / "selection.py"))["table"]()
    assert "\n".join(rows) in page
    few = runpy.run_path(str(recipes / "few_steps.py"))
    page = (docs / "few-steps.md").read_text(encoding="utf-8")
    for table in ("scores_table", "ways_table"):
        assert "\n".join(few[table]()) in page
    latents = runpy.run_path(str(recipes / "latents.py"))
    page = (docs / "latents.md").read_text(encoding="utf-8")
    for table in ("blur_table", "scores_table", "tokens_table"):
        assert "\n".join(latents[table]()) in page
    page = (docs / "selection.md").read_text(encoding="utf-8")
    rows, correlation, count = scores["predicted"]()
    assert "\n".join(rows) in page
    assert f"was {correlation:.2f} (n = {count}), under 0.6" in MODEL


def test_the_table_of_averages_is_what_the_code_beside_it_gives():
    text = (README.parent / "docs" / "training.md").read_text(encoding="utf-8")
    (code,) = (one.code for one in blocks(text) if "def error" in one.code)
    scope: dict[str, Any] = {"sf": sf}
    exec(code, scope)
    for count in (16, 32, 64):
        shown = [scope["error"](s, count) for s in (0.03, 0.08, 0.15, 0.2, 0.25)]
        assert f"| {count} | " + " | ".join(f"{100 * e:.2g} %" for e in shown) + " |" in text


@pytest.mark.parametrize(
    ("page", "languages"),
    [
        ("README.md", {"bash"}),
        ("docs/hub.md", {"python", "bash"}),
        ("docs/tour.md", {"python", "bash"}),
        ("docs/choosing.md", {"python"}),
        ("docs/corruptions.md", {"python"}),
        ("docs/training.md", {"python"}),
        ("docs/tracking.md", {"python"}),
        ("docs/guidance.md", {"python"}),
        ("docs/few-steps.md", {"python"}),
        ("docs/latents.md", {"python"}),
        ("docs/deepinv.md", {"python"}),
        ("docs/notebooks.md", {"python"}),
        ("docs/diffusers.md", {"python", "bash"}),
        ("docs/backbones.md", {"python", "bash"}),
        ("docs/demo.md", {"python", "bash"}),
    ],
)
def test_the_code_of_a_page_runs(page, languages, tmp_path, monkeypatch, capsys):
    path = README.parent / page
    found = blocks(path.read_text(encoding="utf-8"))
    assert languages == {block.language for block in found}
    shutil.copytree(README.parent / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for block in found:
        where = f"{page}, line {block.line}"
        if block.language == "python":
            padding = "\n" * (block.line - 1)  # a traceback then shows the page's own line numbers
            code = compile(padding + block.code, str(path), "exec")
            if not block.slow:
                exec(code, namespace)
        elif block.language == "bash":
            for arguments in commands(block):
                code = main(arguments)
                out, err = capsys.readouterr()
                shown = f"{where}: sfumato {shlex.join(arguments)}\n{out}{err}"
                assert code == 0, shown
