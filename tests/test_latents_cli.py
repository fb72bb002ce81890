"""Latents on the command line, end to end with tiny networks; bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

import sfumato as sf
from sfumato.cli import main

SIZE = ("--width", "8", "--multipliers", "1", "--patch", "1")
FAST = ("--batch", "32", "--device", "cpu", "--quiet", "--split", "train[:300]")
FEW = ("--sampler", "ddim", "--steps", "3", "--device", "cpu", "--quiet")

pytestmark = pytest.mark.filterwarnings("ignore::sfumato.sampling.sample.Diverged")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def refused(capsys, *words: object) -> str:
    """The one line that a command prints which is refused."""
    capsys.readouterr()
    assert run(*words) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, told
    return told[0]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ae") / "ae"
    size = ("--channels", 3, "--down", 2, "--width", 8, "--n", 20)
    told = ("--images", 320, "--preview-every", 0, "--extractor", "pca", *size)
    assert run("train-autoencoder", "--data", "digits", "--out", out, *told, *FAST) == 0
    return out


def trained(autoencoder: Path, out: Path, *words: object) -> Path:
    told = ("--latent", autoencoder, "--images", 64, *words, "--out", out, *SIZE, *FAST)
    assert run("train", "ddpm", *told) == 0
    return out


@pytest.fixture(scope="module")
def latent(autoencoder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "run"
    return trained(autoencoder, out, "--conditional", "--drop-classes", 0.2)


def last(out: Path) -> Path:
    return max((out / "checkpoints").iterdir())


def same_weights(a: Path, b: Path) -> bool:
    files = [(last(out) / "model.safetensors").read_bytes() for out in (a, b)]
    return files[0] == files[1]


def test_a_run_in_latents_has_pictures_of_images(latent):
    for name in ("samples", "reverse", "forward"):
        Image.open(latent / "previews" / f"{name}-000000064.png").verify()
    model = sf.from_pretrained(latent)
    assert model.shape == (3, 4, 4) and model.config.pixels.shape == (1, 8, 8)
    assert len([*(latent / "latents").iterdir()]) == 1


def test_a_models_folder_is_all_that_sampling_needs(latent, tmp_path):
    """Also after the autoencoder and the run's data are gone."""
    expected = sf.from_pretrained(latent).sample([3, 8], sf.Sampler("ddim", 3), [1, 2])
    folder = tmp_path / "model"
    sf.from_pretrained(latent).save_pretrained(folder)
    assert torch.equal(
        sf.from_pretrained(folder).sample([3, 8], sf.Sampler("ddim", 3), [1, 2]), expected
    )


@pytest.mark.parametrize("out", ["s.npz", "s.png"])
def test_samples_are_images(latent, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    assert run("sample", latent, "--seeds", "0-3", "--out", out, *FEW) == 0
    if out.endswith("z"):
        assert np.load(out)["images"].shape == (4, 8, 8, 1)


def test_a_guided_sample_and_a_strip(latent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("sample", latent, "--seeds", "0-3", "--guidance", 1, "--out", "g.png", *FEW) == 0
    assert run("show", latent, "--seeds", "0-1", "--frames", 3, "--out", "strip.png", *FEW) == 0
    assert Image.open("strip.png").size == (3 * 56 + 2 * 2, 2 * 56 + 2)


def test_an_evaluation_is_of_images_and_reproduced(latent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = ("--n", 20, "--extractor", "pca", *FEW)
    assert run("evaluate", latent, "--out", "e.json", *told) == 0
    record = json.loads(Path("e.json").read_text())
    assert record["data"]["name"] == "digits" and record["data"]["shape"] == [1, 8, 8]
    assert record["subject"]["model"]["latent"]["record"]["shape"] == [1, 8, 8]
    assert run("evaluate", "--verify", "e.json") == 0


@pytest.mark.parametrize("count", [1, 2])
def test_edits_are_of_images(latent, tmp_path, monkeypatch, count):
    monkeypatch.chdir(tmp_path)
    x = sf.load("digits", "test").batch(range(count))
    np.savez("x.npz", images=x.movedim(1, -1).numpy())
    how = ("--from-class", 3, "--steps", 3, "--device", "cpu", "--quiet")
    assert run("edit", latent, "x.npz", "--out", "e.png", *how) == 0
    assert run("edit", latent, "x.npz", "--out", "e.npz", *how) == 0
    found = np.load("e.npz")
    assert found["x1"].shape == (count, 4, 4, 3)
    assert found["decoded"].shape[1:] == (8, 8, 1)


def test_the_same_command_resumes_and_a_config_repeats(autoencoder, latent, tmp_path):
    again = trained(autoencoder, latent, "--conditional", "--drop-classes", 0.2)
    assert again == latent
    out = tmp_path / "again"
    assert run("train", "--config", latent / "run.json", "--out", out, "--quiet") == 0
    assert same_weights(out, latent)


def test_a_run_from_a_model_of_latents_keeps_its_codec(latent, tmp_path):
    out = tmp_path / "more"
    told = ("--images", 32, "--preview-every", 0, "--split", "train[300:400]")
    told = (*told, "--batch", 32, "--quiet", "--device", "cpu")
    assert run("train", "ddpm", "--from", latent, "--out", out, *told) == 0
    found, before = (sf.from_pretrained(folder) for folder in (out, latent))
    assert found.codec.sha256 == before.codec.sha256
    assert found.config.latent.name == str(latent)


@pytest.mark.parametrize("by", ["progressive", "consistency"])
def test_a_student_of_a_model_of_latents_keeps_its_codec(latent, tmp_path, by):
    told = ("--by", by, "--teacher-steps", 4, "--images", 32, "--n", 0, "--batch", 32, "--quiet")
    assert run("distill", latent, "--out", tmp_path / by, "--split", "train[:300]", *told) == 0
    assert len([*tmp_path.rglob("latents.npy")]) == 1
    out = tmp_path / by / ("1" if by == "progressive" else "")
    student = sf.from_pretrained(out)
    assert student.codec.sha256 == sf.from_pretrained(latent).codec.sha256
    assert student.sample([0], classes=[1]).shape == (1, 1, 8, 8)


def test_a_classifier_of_latents_guides_them(autoencoder, latent, tmp_path):
    out = tmp_path / "classifier"
    told = ("--latent", latent, "--images", 32, "--preview-every", 0, "--out", out)
    assert run("train-classifier", "ddpm", *told, *FAST) == 0
    model, guide = sf.from_pretrained(latent), sf.from_pretrained(out)
    guidance = sf.Guidance(1.0, classifier=guide)
    found = model.sample([0], sf.Sampler("ddim", 2), [1], guidance=guidance)
    assert found.shape == (1, 1, 8, 8)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("tokens")
    size = ("--channels", 4, "--down", 2, "--width", 8, "--n", 20, "--categorical")
    told = ("--images", 160, "--preview-every", 0, "--extractor", "pca", *size)
    assert run("train-autoencoder", "--out", home / "ae", *told, *FAST) == 0
    return trained(home / "ae", home / "run", "--preview-every", 0)


@pytest.mark.parametrize(("known", "share"), [(range(0, 8), 1.0), (range(6, 14), 0.25)])
def test_an_evaluation_of_tokens_counts_copies(tokens, tmp_path, monkeypatch, known, share):
    """Against its own samples of some seeds as training images."""
    monkeypatch.chdir(tmp_path)
    seeds = f"{known[0]}-{known[-1]}"
    assert run("sample", tokens, "--seeds", seeds, "--out", "s.npz", *FEW) == 0
    told = ("--data", "s.npz", "--n", 8, "--extractor", "pca", *FEW)
    assert run("evaluate", tokens, "--out", "e.json", *told) == 0
    record = json.loads(Path("e.json").read_text())
    assert record["results"][0]["copies"] == share


def test_levels_are_chosen_and_methods_ranked_for_latents(autoencoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = ("--latent", autoencoder, "--quiet", "--split", "train[:300]")
    assert run("select", "soft", "--levels", 4, "--candidates", 8, "--out", "s", *told) == 0
    assert json.loads(Path("s/select.json").read_text())["data"]["shape"] == [3, 4, 4]
    few = ("--steps", 5, "--methods", "ddpm", "--samplers", "ddim")
    assert run("tune", "--out", "t", *few, *told) == 0
    assert json.loads(Path("t/tune.json").read_text())["data"]["kind"] == "latents"


def test_samples_of_latents_of_tokens_are_tokens(tokens):
    """Of digits the whole numbers from 0 to 16, exactly."""
    x = sf.from_pretrained(tokens).sample(range(4), sf.Sampler("ddim", 2))
    raw = sf.load("digits").record.raw(x)
    assert torch.equal(raw, raw.round()) and 0 <= raw.min() <= raw.max() <= 16


def test_a_folder_of_diffusers_is_an_autoencoder(tmp_path):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    }
    sizes = {"block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 2}
    theirs = AutoencoderKL(in_channels=1, out_channels=1, **blocks, **sizes)
    theirs.save_pretrained(tmp_path / "vae")
    out = trained(tmp_path / "vae", tmp_path / "run", "--preview-every", 0)
    model = sf.from_pretrained(out)
    x = sf.load("digits").batch([0, 1])
    mean = theirs.eval().encode(x).latent_dist.mean
    torch.testing.assert_close(
        model.codec.encode(x), model.codec.whiten(mean), rtol=1e-4, atol=1e-4
    )


def test_bad_input_is_one_line(autoencoder, latent, tmp_path, capsys):
    out = ("--out", tmp_path / "x", "--quiet")
    photos = ("--data", "photos", "--split", "train[:9]")
    told = refused(capsys, "train", "ddpm", *photos, "--latent", autoencoder, *out)
    assert "is of images of shape (1, 8, 8); these have (3, 32, 32)" in told
    told = refused(capsys, "train", "ddpm", "--latent", tmp_path / "none", *out)
    assert told.startswith(f"sfumato: no model at {tmp_path / 'none'}")
    told = refused(capsys, "train", "ddpm", "--latent", "fashion-ddpm", *out)
    assert "is a model of pixels, and has no autoencoder. Train one: sfumato" in told
    told = refused(capsys, "train", "ddpm", "--latent", latent, "--data", "digits", "--out", latent)
    assert "belongs to another run" in told
    told = refused(capsys, "sample", latent, "--clip", "--out", tmp_path / "y.png")
    assert told.startswith("sfumato: clip needs a model of pixels")
    told = refused(capsys, "likelihood", latent)
    assert told.startswith("sfumato: a likelihood needs a model of pixels")
    told = refused(capsys, "restore", latent, "y.png", "--operator", "blur:sigma=2")
    assert told.startswith("sfumato: a restoration needs a model of pixels")
    told = refused(capsys, "sample", autoencoder, "--out", tmp_path / "y.png")
    assert "autoencoder" in told


def test_damaged_codecs_are_one_line(latent, tmp_path, capsys):
    folder = tmp_path / "model"
    sf.from_pretrained(latent).save_pretrained(folder)
    codec = folder / "codec.safetensors"
    whole = codec.read_bytes()
    codec.write_bytes(whole[:-9])
    told = refused(capsys, "sample", folder, "--out", tmp_path / "y.png")
    assert "codec.safetensors is truncated" in told
    codec.unlink()
    assert "codec.safetensors is missing" in refused(
        capsys, "sample", folder, "--out", tmp_path / "y.png"
    )
    held = json.loads((folder / "config.json").read_text())
    held["latent"]["sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(held))
    codec.write_bytes(whole)
    told = refused(capsys, "sample", folder, "--out", tmp_path / "y.png")
    assert "the model's latents are of another codec" in told
