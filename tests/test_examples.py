"""The examples run: they train, sample, and are as short as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato.cli import main
from sfumato.methods import lookup

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_and_samples(path, tmp_path):
    """By the commands in its docstring, two steps of each."""
    spec = f"{path}:{path.stem}"
    small = "--images 32 --batch 16 --width 8 --multipliers 1,2 --preview-every 0 --device cpu"
    assert main(["train", spec, *small.split(), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    words = ["sample", str(tmp_path / "run"), "--method", spec, "--steps", "2", "--seeds", "0-1"]
    assert main([*words, "--out", str(tmp_path / "x.png"), "--quiet"]) == 0
    assert (tmp_path / "x.png").is_file()
    assert len(path.read_text().splitlines()) <= 40


def test_rotation_blur_keeps_what_turning_keeps():
    """C_t is linear, is I at t = 0, and keeps an image that depends on the radius alone."""
    build, _ = lookup.own("method", f"{EXAMPLES[0]}:rotation_blur")
    signal = build((1, 33, 33)).process.signal
    axis = torch.linspace(-1, 1, 33, dtype=torch.float64)
    disc = torch.exp(-4 * (axis[:, None] ** 2 + axis**2)).reshape(1, 1, 33, 33)
    lump = torch.exp(-9 * ((axis[:, None] - 0.4) ** 2 + axis**2)).reshape(1, 1, 33, 33)
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (0.0, 1.0))
    torch.testing.assert_close(signal.at(start)(lump), lump)
    torch.testing.assert_close(signal.at(end)(disc), disc, rtol=0, atol=0.02)
    assert float(signal.at(end)(lump).max()) < 0.4 * float(lump.max())
    torch.testing.assert_close(
        signal.at(end)(2 * disc + lump), 2 * signal.at(end)(disc) + signal.at(end)(lump)
    )
