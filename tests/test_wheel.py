"""The wheel holds all that the package needs: it trains and samples from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_is_the_package(tmp_path):
    """Built, unpacked apart from the source, it trains, and samples also what comes along."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    sources = {p.relative_to(ROOT / "src") for p in (ROOT / "src").rglob("*.py")}
    sources.add(Path("sfumato/py.typed"))
    sources |= {p.relative_to(ROOT / "src") for p in (ROOT / "src").rglob("*.safetensors")}
    sources |= {p.relative_to(ROOT / "src") for p in (ROOT / "src").glob("*/demo/static/*")}
    assert sources <= {p.relative_to(installed) for p in installed.rglob("*") if p.is_file()}

    script = """
from sfumato.cli import main
small = ["--width", "8", "--multipliers", "1", "--images", "128", "--preview-every", "0"]
assert main(["methods"]) == 0
assert main(["train", "soft", *small, "--out", "run", "--quiet"]) == 0
assert main(["sample", "run", "--seeds", "0-3", "--steps", "3", "--out", "grid.png"]) == 0
assert main(["sample", "fashion-soft", "--seeds", "0", "--steps", "2", "--out", "one.png"]) == 0
assert main(["demo", "--dry-run"]) == 0
import importlib.util
if importlib.util.find_spec("starlette"):
    from starlette.testclient import TestClient
    from sfumato.demo.app import create_app
    page = TestClient(create_app((), None), base_url="http://127.0.0.1")
    assert "<title>Sfumato</title>" in page.get("/").text
    assert page.get("/main.js").status_code == 200
import sfumato
print(sfumato.__file__)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert str(installed) in ran.stdout
    assert (tmp_path / "grid.png").stat().st_size > 100
