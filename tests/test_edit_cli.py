"""`sfumato edit`, end to end with tiny networks; bad input in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import pictures
from sfumato.cli import main

TINY = ("--width", "8", "--multipliers", "1", "--batch", "32", "--device", "cpu", "--quiet")
CALL = ("--steps", "6", "--device", "cpu")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def trained(folder: Path, method: str, *words: object) -> Path:
    """A run of one step on digits."""
    out = folder / f"{method}{len(words)}"
    told = ("--images", 32, "--preview-every", 0, *words, "--out", out, *TINY)
    assert run("train", method, *told) == 0
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "soft")


@pytest.fixture(scope="module")
def classed(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), "ddpm", "--conditional")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with two digits, `a.png` and `b.png`, and a wider image."""
    monkeypatch.chdir(tmp_path)
    x = sf.load("digits", "test").batch([0, 1])
    for name, one in zip("ab", x, strict=True):
        pictures.save(pictures.grid(one[None], scale=1), f"{name}.png")
    Image.new("L", (9, 8)).save("wide.png")
    return tmp_path


def test_a_round_trip_is_a_strip_and_prints_its_error(plain, here, capsys):
    assert run("edit", plain, "a.png", "--out", "r.png", *CALL) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("r.png: image, x_1, decoded; 6 steps of heun, ")
    assert told[1].startswith("round trip, in [-1, 1]: largest error ")
    assert Image.open("r.png").size == (3 * 56 + 2 * 2, 56)


def test_the_command_is_the_functions(plain, here):
    assert run("edit", plain, "a.png", "b.png", "--between", 3, "--out", "x.npz", *CALL) == 0
    model, sampler = sf.from_pretrained(plain), sf.Sampler("heun", 6)
    x = torch.cat([pictures.read(f"{name}.png") for name in "ab"])
    expected = {
        "image": x,
        "x1": sf.encode(model, x, sampler=sampler),
        "decoded": sf.interpolate(model, x[0], x[1], 3, sampler=sampler),
    }
    with np.load("x.npz") as found:
        assert {*found} == {*expected}
        for name, one in expected.items():
            np.testing.assert_allclose(found[name], one.movedim(1, -1).numpy(), atol=1e-4)


def test_floats_are_taken_as_they_are(plain, here):
    x = pictures.read("a.png").movedim(1, -1).numpy()
    np.savez("floats.npz", images=x)
    for name in ("a.png", "floats.npz"):
        assert run("edit", plain, name, "--out", f"{name}.out.npz", *CALL, "--quiet") == 0
    with np.load("a.png.out.npz") as one, np.load("floats.npz.out.npz") as other:
        np.testing.assert_allclose(one["decoded"], other["decoded"], atol=1e-5)


def test_a_class_is_changed_to_others_or_to_all(classed, here):
    words = ("edit", classed, "a.png", "--from-class", 3, *CALL, "--quiet")
    assert run(*words, "--to-class", "5,1", "--out", "some") == 0
    names = [path.name for path in sorted(Path("some").iterdir())]
    assert names == ["class-1.png", "class-3.png", "class-5.png", "image.png", "x1.png"]
    assert run(*words, "--to-class", "all", "--out", "all.npz") == 0
    model, sampler = sf.from_pretrained(classed), sf.Sampler("heun", 6)
    x1 = sf.encode(model, pictures.read("a.png"), [3], sampler)
    expected = sf.decode(model, x1.expand(10, 1, 8, 8), range(10), sampler)
    with np.load("all.npz") as found:
        np.testing.assert_allclose(found["decoded"], expected.movedim(1, -1).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "edit needs a model and one image or two"),
        ("wide.png", "wide.png is 9 x 8 pixels in 1 channel; images of RUN are 8 x 8 pixels in 1"),
        ("no.png", "there is no file or folder no.png."),
        ("a.png --sampler ancestral", "only a deterministic sampler can be run backwards: ddim, "),
        ("a.png --sampler ddim:eta=0.5", "only a deterministic sampler can be run backwards"),
        ("a.png b.png --between 1", "an interpolation has 2 images or more, with its ends; got 1."),
        ("a.png b.png --to-class 3", "--to-class changes one image"),
        ("a.png --to-class 3", "this model has no classes; leave --to-class out."),
        ("a.png --from-class 3", "this model has no classes; leave --from-class out."),
        ("a.png --out x.gif", "cannot write x.gif"),
        (". ", "edit takes one image or two; . hold 3."),
    ],
)
def test_what_is_refused(words, sentence, plain, here, capsys):
    refused(plain, words, sentence, capsys)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("a.png", "this model was trained on classes; name the image's by --from-class."),
        ("a.png --from-class 1,2", "--from-class is one class; got 1,2."),
        ("a.png --from-class 12", "no class '12'"),
        ("a.png --from-class 1 --to-class bag", "no class 'bag'"),
    ],
)
def test_what_is_refused_of_classes(words, sentence, classed, here, capsys):
    refused(classed, words, sentence, capsys)


def refused(model: Path, words: str, sentence: str, capsys) -> None:
    before = sorted(path.name for path in Path().iterdir())
    capsys.readouterr()
    assert run("edit", model, *words.split()) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"sfumato: {sentence.replace('RUN', str(model))}"), err
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.parametrize(
    ("method", "words", "sentence"),
    [
        ("cold", (), "cold has no noise, so that x_1 does not hold"),
        ("soft-mask", ("--wander",), "soft-mask draws a corruption for each image"),
    ],
)
def test_methods_whose_flow_has_no_inverse(method, words, sentence, here, capsys):
    refused(trained(here, method, *words), "a.png", sentence, capsys)
