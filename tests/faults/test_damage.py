"""What is damaged is said and not used: a run ends with the weights of a whole one, or refuses."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sfumato as sf
from faults.damage import last, spoiled, weights
from sfumato import files
from sfumato.cli import main
from sfumato.notes import Note
from sfumato.training import report, train

SIZE = ("--width", "8", "--multipliers", "1", "--patch", "1")
PLAN = (*SIZE, "--batch", "8", "--images", "32", "--checkpoint-every", "8", "--preview-every", "0")
PLAN += ("--keep", "4")
ALL = ("config.json", "facts", "manifest.json", "model", "optimizer", "raw")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def training(out: Path) -> int:
    return run("train", "ddpm", *PLAN, "--device", "cpu", "--quiet", "--out", out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run with its four checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert training(out) == 0
    return out


@pytest.fixture(params=["finished", "in progress"])
def copy(request, whole, tmp_path) -> Path:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    if request.param == "in progress":
        shutil.rmtree(last(out))
    return out


def test_a_folder_lists_the_hashes_of_its_files(whole):
    """SHA-256 of the bytes; all files of the user's umask alike."""
    folder = last(whole)
    told = json.loads((folder / "manifest.json").read_text())["sha256"]
    others = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert told == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in others}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    assert files.damaged(folder) is None


@pytest.mark.parametrize("how", ["flip", "cut"])
@pytest.mark.parametrize("name", ALL)
def test_a_run_with_a_damaged_checkpoint_ends_as_a_whole_one(copy, whole, name, how):
    """By the checkpoint before it; the damaged one is kept beside."""
    (path,) = last(copy).glob(f"{name}*")
    step = last(copy).name
    for place in (0.02, 0.97) if name == "model" else (0.5,):
        trial = copy.with_name(f"{place}")
        shutil.copytree(copy, trial)
        spoiled(trial / path.relative_to(copy), how, place)
        assert run("check", trial, "--quiet") == 1
        assert training(trial) == 0
        assert weights(trial) == weights(whole)
        assert (trial / "checkpoints" / f"{step}.damaged").is_dir()
        assert run("check", trial) == 1  # says so until it is removed
        shutil.rmtree(trial / "checkpoints" / f"{step}.damaged")
        assert run("check", trial) == 0


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_record_of_a_run_is_refused_or_harmless(copy, whole, place):
    spoiled(copy / "run.json", "flip", place)
    assert training(copy) in (0, 2)
    if (last(copy)).name == last(whole).name:
        assert weights(copy) == weights(whole)


@pytest.mark.parametrize("name", ALL)
def test_a_damaged_model_is_not_sampled(whole, tmp_path, name, capsys):
    """Where a file is damaged that samples depend on; else it is."""
    folder = tmp_path / "model"
    shutil.copytree(last(whole), folder)
    (path,) = folder.glob(f"{name}*")
    spoiled(path, "flip", 0.99)
    told = ("sample", folder, "--seeds", 0, "--steps", 1, "--device", "cpu", "--quiet")
    code = run(*told, "--out", tmp_path / "x.png")
    assert code == (0 if name in ("optimizer", "raw") else 2)
    if code:
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(path) in line or "manifest" in line


def test_a_folder_changed_on_purpose_is_used_without_its_manifest(whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(last(whole), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"record": config["record"] | {"name": "mine"}})
    )
    with pytest.raises(ValueError, match="if you changed the folder yourself"):
        sf.from_pretrained(folder)
    (folder / "manifest.json").unlink()
    assert sf.from_pretrained(folder).config.record.name == "mine"


def test_damaged_latents_are_not_trained_on(tmp_path, capsys):
    """A flipped byte in the cache of a model of latents."""
    size = ("--channels", 2, "--down", 2, "--width", 8, "--n", 10, "--extractor", "pca")
    few = ("--images", 16, "--batch", 8, "--preview-every", 0, "--device", "cpu", "--quiet")
    part = ("--split", "train[:40]")
    assert run("train-autoencoder", "--out", tmp_path / "ae", *size, *few, *part) == 0
    told = ("train", "ddpm", "--latent", tmp_path / "ae", *SIZE, *few, *part)
    assert run(*told, "--out", tmp_path / "run") == 0
    (path,) = (tmp_path / "run").rglob("latents.npy")
    spoiled(path, "flip", 0.5)
    assert run(*told, "--out", tmp_path / "run") == 2
    assert "latents.npy is damaged" in capsys.readouterr().err
    assert run("check", tmp_path / "run", "--quiet") == 1


def test_what_is_no_run_is_not_checked(tmp_path, capsys):
    assert run("check", tmp_path) == 2
    assert "no folder of a run or of a model" in capsys.readouterr().err
    assert run("check") == 2


class Failing:
    """A tracker that fails at a step, or at a picture."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls = 0

    def start(self, model, options, step) -> None: ...

    def log(self, step, figures) -> None:
        self._fail("log")

    def image(self, name, step, x) -> None:
        self._fail("image")

    def stop(self) -> None: ...

    def _fail(self, where: str) -> None:
        if self.at == where:
            self.calls += 1
            raise RuntimeError("the server\nis gone")


@pytest.mark.parametrize("at", ["log", "image", "previews"])
def test_training_goes_on_without_a_tracker_or_preview_that_fails(tmp_path, monkeypatch, at):
    """It is told once, and each checkpoint is written."""
    data = sf.load("digits")
    options = sf.TrainOptions(images=24, batch=8, checkpoint_every=8, preview_every=8, keep=9)
    network = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
    model = sf.build(sf.Config("ddpm", data.record, network=network), data, options)
    if at == "previews":

        def failing(*_: object) -> None:
            raise RuntimeError("no picture")

        monkeypatch.setattr("sfumato.training.denoising.previews", failing)
    tracker = Failing(at)
    with pytest.warns(Note, match="no picture" if at == "previews" else "the server is gone"):
        sf.train(model, data, options, tmp_path, [tracker], device="cpu")
    assert tracker.calls == (at != "previews")
    assert len([*(tmp_path / "checkpoints").iterdir()]) == 3
    assert report.EVERY and train.PATIENCE  # both modules are those that ran


def test_what_an_interrupted_write_has_left_is_removed(whole, tmp_path):
    """By the next command with the same output; other files stay."""
    left, other = tmp_path / ".x.npz.abc123.part", tmp_path / ".y.npz.abc123.part"
    for path in (left, other):
        path.write_bytes(b"half")
    told = ("sample", last(whole), "--seeds", 0, "--steps", 1, "--device", "cpu", "--quiet")
    assert run(*told, "--out", tmp_path / "x.npz") == 0
    assert not left.exists() and other.exists()
    assert np.load(tmp_path / "x.npz")["images"].shape == (1, 8, 8, 1)


@pytest.mark.parametrize("verb", ["select", "tune"])
def test_work_cut_between_its_two_files_is_done_again(tmp_path, monkeypatch, verb):
    words = {
        "select": ("select", "soft", "--levels", 3, "--candidates", 5),
        "tune": ("tune", "--steps", 5, "--methods", "ddpm", "--samplers", "ddim"),
    }[verb]
    told = (*words, "--quiet", "--out", tmp_path)
    plain = files.write

    def cut(path, content) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write", cut)
    assert run(*told) == 130
    monkeypatch.setattr(files, "write", plain)
    assert run(*told) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{verb}.json", f"{verb}.png"}
