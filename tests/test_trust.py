"""No file that the library reads makes it run code: each kind of file, with a canary."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import sfumato as sf
from sfumato.cli import main

TINY = ("--width", "8", "--multipliers", "1", "--batch", "32", "--device", "cpu", "--quiet")
CODE = """
from pathlib import Path
Path({path!r}).write_text("ran")
def f(shape, stats=None, **given):
    import sfumato
    return sfumato.METHODS["soft"](shape, stats, **given)
def features(images):
    return images.flatten(1).float()
"""
VERBS = {
    "sample": ("sample", "{}", "--seeds", "0", "--out", "out.png"),
    "evaluate": ("evaluate", "{}", "--n", "4", "--steps", "1", "--out", "out.json"),
    "likelihood": ("likelihood", "{}", "--n", "1"),
    "show": ("show", "{}", "--seeds", "0", "--out", "out.png"),
}


class Bomb:
    """What unpickling would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trust") / "run"
    words = ("train", "soft", "--steps", "2", "--images", "32", "--preview-every", "0")
    assert main([*words, "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def model(trained, tmp_path, monkeypatch) -> Path:
    """A stranger's model in a folder of its own, with code beside it that must not run."""
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = (trained / "checkpoints").iterdir()
    shutil.copytree(checkpoint, tmp_path / "model")
    shutil.copy(trained / "run.json", tmp_path / "run.json")
    (tmp_path / "model" / "manifest.json").unlink()  # its author may have changed any file
    (tmp_path / "model" / "code.py").write_text(CODE.format(path=str(tmp_path / "canary")))
    return tmp_path / "model"


def alive(folder: Path) -> bool:
    return not (folder / "canary").exists()


def rewrite(path: Path, **values: object) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **values}))


SPELLINGS = ["model/code.py:f", "{}/model/code.py:f", "model/../model/code.py:f"]
SPELLINGS += ["model/code.py:nothing", "./model/code.py:f"]


@pytest.mark.parametrize("verb", [*VERBS, "python"])
@pytest.mark.parametrize("sha256", [None, "", "0" * 64, "without"])
def test_a_config_names_no_code(model, capsys, verb, sha256):
    for spelling in SPELLINGS:
        spec = spelling.format(model.parent)
        rewrite(model / "config.json", method=spec, sha256=sha256)
        if sha256 == "without":
            found = json.loads((model / "config.json").read_text())
            del found["sha256"]
            (model / "config.json").write_text(json.dumps(found))
        if verb == "python":
            with pytest.raises(ValueError, match="no checkpoint may run by itself"):
                sf.from_pretrained(model)
        else:
            assert main([word.format(model) for word in VERBS[verb]]) == 2
            assert "no checkpoint may run by itself" in capsys.readouterr().err
        assert alive(model.parent)
    assert main(["sample", "model", "--method", "model/code.py:f", "--seeds", "0", "--quiet"]) == 0
    assert not alive(model.parent)


@pytest.mark.parametrize(
    "values",
    [
        {"sampler": {"kernel": "model/code.py:f"}},
        {"kernel": "code:f", "steps": None},
        {"parameters": {"noise": "model/code.py:f"}},
        {"parameters": {"noise": "model/code.py"}},
        {"method": "model/code.py"},
        {"method": "model.code"},
        {"time_warp": ["model/code.py:f"]},
        {"network": {"width": "model/code.py:f"}},
        {"backbone": {"name": "model/code.py:f"}},
        {"backbone": {"name": "diffusers-unet", "options": {"unet": "model/code.py:f"}}},
    ],
)
def test_no_other_field_of_a_config_runs_code(model, values):
    rewrite(model / "config.json", **values)
    with pytest.raises((ValueError, TypeError)):
        sf.from_pretrained(model).sample([0])
    assert alive(model.parent)


@pytest.mark.parametrize("name", ["extractor", "method"])
def test_a_record_names_no_code(model, capsys, name):
    record = model.parent / "record.json"
    words = ["evaluate", "model", "--n", "8", "--steps", "1", "--extractor", "pca", "--quiet"]
    assert main([*words, "--out", "record.json"]) == 0
    spec = {"extractor": "model/code.py:features", "method": "model/code.py:f"}[name]
    found = json.loads(record.read_text())
    found["subject"][name] = spec
    record.write_text(json.dumps(found))
    capsys.readouterr()
    assert main(["evaluate", "--verify", "record.json"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"names code to run as its {name}, {spec}" in said
    assert alive(model.parent)
    main(["evaluate", "--verify", "record.json", f"--{name}", spec, "--quiet"])
    assert not alive(model.parent)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["train"], {"method": "model/code.py:f"}),
        (["select"], {"method": "model/code.py:f"}),
        (["select", "soft"], {"distance": "features", "extractor": "model/code.py:features"}),
        (["show"], {"target": "model/code.py:f"}),
        (["show", "model"], {"method": "model/code.py:f"}),
        (["sample", "model"], {"method": "model/code.py:f"}),
        (["likelihood", "model"], {"method": "model/code.py:f"}),
        (["evaluate", "model", "--out", "o.json"], {"extractor": "model/code.py:features"}),
    ],
)
@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_config_file_of_options_names_no_code(model, capsys, words, options, kind):
    Path("options").write_text((yaml.safe_dump if kind == "yaml" else json.dumps)(options))
    assert main([*words, "--config", "options"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "names code to run" in said
    assert alive(model.parent)


def test_the_record_of_a_run_names_no_code(model, capsys):
    found = json.loads(Path("run.json").read_text())
    found["model"] |= {"method": "model/code.py:f", "sha256": None, "parameters": {}}
    Path("run.json").write_text(json.dumps(found))
    assert main(["train", "--config", "run.json", "--out", "again"]) == 2
    assert "names code to run" in capsys.readouterr().err
    assert alive(model.parent)


def test_yaml_tags_make_nothing(model, capsys):
    tag = f"data: !!python/object/apply:os.system ['touch {model.parent}/canary']\n"
    Path("options").write_text(tag)
    assert main(["train", "soft", "--config", "options"]) == 2
    assert alive(model.parent) and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["model", "raw", "facts"])
def test_pickles_under_the_names_of_weights_are_refused(model, name):
    path = model / f"{name}.safetensors"
    for written in (torch.save, lambda bomb, file: file.write_bytes(pickle.dumps(bomb))):
        written(Bomb(model.parent / "canary"), path)
        with pytest.raises(ValueError, match="not a safetensors file"):
            sf.from_pretrained(model, weights="raw" if name == "raw" else "ema")
        assert alive(model.parent)


def test_a_pickled_optimizer_is_refused(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "run")
    (checkpoint,) = Path("run/checkpoints").iterdir()
    (checkpoint / "optimizer.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    words = ("train", "soft", "--steps", "2", "--images", "32", "--preview-every", "0")
    assert main([*words, "--out", "run", *TINY]) == 2
    assert alive(tmp_path) and "not a safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_are_not_unpickled(model, suffix):
    bomb = np.array([Bomb(model.parent / "canary")], dtype=object)
    path = model.parent / f"data.{suffix}"
    np.save(path, bomb) if suffix == "npy" else np.savez(path, images=bomb)
    with pytest.raises(ValueError):
        sf.load(path)
    with pytest.raises(ValueError):
        sf.METHODS["ni-ddpm"]((1, 8, 8), noise=str(path))
    assert alive(model.parent)


def test_a_zip_of_pickles_is_no_data(model):
    with zipfile.ZipFile("data.npz", "w") as file:
        file.writestr("images.npy", pickle.dumps(Bomb(model.parent / "canary")))
    with pytest.raises(ValueError):
        sf.load("data.npz")
    assert alive(model.parent)


def test_a_clock_is_numbers(model, capsys):
    for clock in (["model/code.py:f"], "model/code.py:f", {"clock": "model/code.py:f"}):
        Path("clock.json").write_text(json.dumps({"time_warp": clock}))
        assert main(["train", "soft", "--time-warp", "clock.json", "--out", "run"]) == 2
        assert "holds no time warp" in capsys.readouterr().err
        assert alive(model.parent)


def test_code_beside_images_is_left_alone(model):
    images = model.parent / "images"
    sf.pictures.save(torch.zeros(2, 1, 8, 8), images)
    shutil.copy(model / "code.py", images / "code.py")
    shutil.copy(model / "code.py", images / "__init__.py")
    assert len(sf.load(images)) == 2
    assert alive(model.parent)


def test_metadata_of_weights_say_nothing(model):
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "model.safetensors", {"method": "model/code.py:f", "format": "pt"})
    (model / "README.md").write_text("---\nmethod: model/code.py:f\n---\n")
    assert sf.from_pretrained(model).sample([0]).shape == (1, 1, 8, 8)
    assert alive(model.parent)
