"""Models that come along: small, half precision, sampled by name alone, each with its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sfumato import from_pretrained, pretrained
from sfumato.cli import main
from sfumato.sampling.samplers import Sampler

MODELS = pretrained.models()


def test_all_are_there():
    """Two models, and of each the student of four steps."""
    assert MODELS == ("fashion-ddpm", "fashion-ddpm-4", "fashion-soft", "fashion-soft-4")


@pytest.mark.parametrize("name", MODELS)
def test_it_is_small_and_has_a_card(name):
    home = pretrained.path(name)
    assert sum(file.stat().st_size for file in home.iterdir()) <= 8 * 2**20
    weights = load_file(home / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    card = (home / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n") and "training images seen" in card and "MIT" in card


def test_they_differ_in_the_corruption_only():
    ddpm, soft = (from_pretrained(name).config for name in ("fashion-ddpm", "fashion-soft"))
    assert ddpm.network == soft.network and ddpm.record == soft.record
    assert (ddpm.method, soft.method) == ("ddpm", "soft")


@pytest.mark.parametrize("name", MODELS)
def test_seed_i_gives_image_i_at_any_batch_size(name):
    """Batch 1 and 3 agree to 1e-4, absolutely, and images lie in about [-1, 1]."""
    model = from_pretrained(name)
    sampler = Sampler(steps=10 if model.config.flow_map is None else 4)
    images = model.sample(range(6), sampler, batch=3)
    assert float(images.abs().max()) < 1.5
    assert (model.sample([4], sampler, batch=1) - images[4:5]).abs().max() < 1e-4


def test_a_student_takes_its_own_steps_alone(tmp_path, capsys):
    words = ("--seeds", "0", "--quiet", "--out", str(tmp_path / "a.png"))
    assert main(["sample", "fashion-soft-4", "--steps", "4", *words]) == 0
    assert main(["sample", "fashion-soft-4", "--steps", "5", *words]) == 2
    assert "was distilled to 4 steps" in capsys.readouterr().err


def test_no_sample_is_drawn_by_a_network_in_training():
    """Whichever of denoiser and network was last trained, sampling leaves both in evaluation."""
    model = from_pretrained(MODELS[0])
    for part in (model.denoiser, model.denoiser.backbone):
        part.train()
        model.sample([0], Sampler(steps=1))
        assert not any(module.training for module in model.denoiser.modules())


def test_a_name_goes_before_a_path(tmp_path, monkeypatch, capsys):
    """`./fashion-soft` is a folder of one's own; an unknown name is guessed at."""
    monkeypatch.chdir(tmp_path)
    Path("fashion-soft").mkdir()
    words = ["--seeds", "0", "--steps", "1", "--quiet", "--out", "a.png"]
    assert main(["sample", "fashion-soft", *words]) == 0
    assert main(["sample", "./fashion-soft", *words]) == 2
    assert main(["sample", "fashion-sofd", *words]) == 2
    assert "did you mean 'fashion-soft'?" in capsys.readouterr().err
