"""What a release is made of: versions from tags, completion, reports, the files of CI."""

import getpass
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from sfumato.cli import VERBS, main
from sfumato.methods import METHODS
from sfumato.sampling.samplers import KERNELS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GIT = (
    "git",
    "-c",
    "user.name=x",
    "-c",
    "user.email=x@example.org",
    "-c",
    "init.defaultBranch=main",
)


def version_of(folder: Path) -> Version:
    """The version that a build of the folder would have."""
    command = [sys.executable, "-m", "hatchling", "metadata", "version"]
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    found = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=True
    ).stdout
    return Version(found.strip())


def test_the_version_is_that_of_the_last_tag(tmp_path):
    """Of a copy without git the fallback; of a repository its tag, and after it a next version."""
    pytest.importorskip("hatch_vcs")
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "src" / "sfumato").mkdir(parents=True)
    fallback = Version(PROJECT["tool"]["hatch"]["version"]["fallback-version"])
    assert version_of(copy) == fallback

    def git(*words: str) -> None:
        subprocess.run([*GIT, *words], cwd=copy, check=True, capture_output=True)

    git("init")
    git("add", "-A")
    git("commit", "-m", "one")
    assert version_of(copy).is_prerelease  # no tag yet
    git("tag", "v3.1.4")
    assert version_of(copy) == Version("3.1.4")
    git("commit", "--allow-empty", "-m", "two")
    assert Version("3.1.4") < version_of(copy) < Version("3.1.5")


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    text = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_sfumato; echo '
    command = ["bash", "-c", text + '"${COMPREPLY[@]}"', str(script), "sfumato", *words]
    return {*subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()}


def test_bash_completes_what_there_is(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "sfumato"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "") >= {*VERBS}
    assert completed(script, "train", "") >= {*METHODS}
    assert completed(script, "sample", "fashion-s") == {"fashion-soft", "fashion-soft-4"}
    assert completed(script, "sample", "x", "--sampler", "") == {*KERNELS}
    assert completed(script, "train", "soft", "--device", "c") == {"cpu", "cuda"}
    assert completed(script, "train", "soft", "--learning") == {"--learning-rate"}
    assert completed(script, "train", "ddpm", "--pre") >= {"--prediction", "--precision"}
    assert completed(script, "show", "ddpm", "--fram") == {"--frames"}
    assert completed(script, "evaluate", "x", "--ver") == {"--verify"}


def test_completion_needs_a_shell_and_its_package(monkeypatch, capsys):
    assert main(["completion"]) == 2 and main(["completion", "fish"]) == 2
    assert "one of bash, zsh, tcsh; got fish." in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err.endswith("Install it: pip install 'sfumato[completion]'.\n")


def test_env_tells_versions_and_nothing_private(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SFUMATO_DATA", "/srv/secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    told = dict(line.split(": ", 1) for line in out.splitlines())
    assert [*told] == [
        *("system", "kernel", "processor", "threads", "devices", "torch", "environment"),
        "packages",
    ]
    assert platform.python_version() in told["system"] and "cpu" in told["devices"]
    assert told["environment"] == "OMP_NUM_THREADS=1, SFUMATO_DATA is set, HF_TOKEN is set"
    assert re.search(r"diffusers \d", told["packages"])
    secrets = ["secret", str(Path.home()), os.getcwd(), sys.prefix, socket.gethostname()]
    assert not [word for word in secrets if word != "/" and word in out]
    assert "/" not in out.replace(told["processor"], "") and getpass.getuser() not in out.split()


def test_env_works_where_torch_does_not(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["env"]) == 0
    assert "torch: cannot be imported: ModuleNotFoundError\n" in capsys.readouterr().out


def test_the_matrix_of_ci_is_what_the_project_promises():
    """Every Python of the classifiers, and the oldest torch that the requirements allow."""
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = flow["jobs"]["test"]["strategy"]["matrix"]
    named = (re.fullmatch(r".* :: (3\.\d+)", line) for line in PROJECT["project"]["classifiers"])
    pythons = {found[1] for found in named if found}
    assert {*matrix["python"]} == pythons
    assert min(pythons, key=Version) == PROJECT["project"]["requires-python"].removeprefix(">=")
    assert {*matrix["os"]} == {"ubuntu-latest", "macos-latest"}
    (torch,) = (
        one for one in map(Requirement, PROJECT["project"]["dependencies"]) if one.name == "torch"
    )
    (oldest,) = (row["torch"] for row in matrix["include"])
    assert matrix["torch"] == ["newest"] and str(torch.specifier) == f">={oldest[:-2]}"


def test_the_citation_and_the_forms_can_be_read():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["license"] == PROJECT["project"]["license"] and cited["title"] == "Sfumato"
    assert {"cff-version", "message", "type", "authors", "abstract"} <= {*cited}
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.name for form in forms] == ["bug.yml", "config.yml", "feature.yml"]
    for form in forms[::2]:
        found = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= {*found}
        ids = [part.get("id") for part in found["body"] if part["type"] != "markdown"]
        assert len({*ids}) == len(ids) and None not in ids
    assert "sfumato env" in forms[0].read_text(encoding="utf-8")


def test_the_page_of_dependencies_has_them_all():
    """Every requirement and every extra of the project has its row, and no other package has."""
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    always, extras = page.split("\n## ")[1:3]
    needed = {Requirement(line).name for line in PROJECT["project"]["dependencies"]}
    assert {*re.findall(r"^\| `([\w-]+)` \|", always, re.M)} == needed
    optional = {
        extra: Requirement(lines[0]).name
        for extra, lines in PROJECT["project"]["optional-dependencies"].items()
        if len(lines) == 1
    }
    rows = re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \|", extras, re.M)
    assert dict(rows) == optional


def test_charts_are_left_out_without_matplotlib(monkeypatch, tmp_path, capsys):
    """`select` writes its levels, and one line says how to have the chart."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.chdir(tmp_path)
    words = ("--levels", "4", "--candidates", "8", "--out", "out")
    assert main(["select", "soft", "--data", "digits", *words]) == 0
    assert [path.name for path in Path("out").iterdir()] == ["select.json"]
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("sfumato: note: out/select.png is not drawn, without matplotlib")
    assert note.endswith("Install it: pip install 'sfumato[charts]'.")
