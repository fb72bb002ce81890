"""Laws of an evaluation: a record says all, resumes from its blocks, and holds when made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import Model, from_pretrained, load, pretrained
from sfumato.cli import main
from sfumato.evaluation import extractor, protocol, samples
from sfumato.pictures import to_uint8
from sfumato.sampling.samplers import Sampler

COUNT = 24
QUICK = ("--n", COUNT, "--quiet", "--device", "cpu", "--threads", 1)
TRAIN = "train soft --images 32 --batch 16 --width 8 --multipliers 1 --steps 3".split()


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "run"
    assert run(*TRAIN, "--preview-every", 0, "--device", "cpu", "--quiet", "--out", out) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def record(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("records") / "record.json"
    assert run("evaluate", trained, "--steps", "2,3", *QUICK, "--out", out) == 0
    return out


def test_a_record_says_all_that_decided_the_numbers(record):
    found = protocol.read(record)
    assert found["n"] == COUNT and found["rounding"] == "uint8, round((x + 1) 127.5)"
    assert found["data"]["split"] == "test" and found["data"]["count"] == 297
    assert found["extractor"]["features"] == 64 and len(found["extractor"]["sha256"]) == 64
    assert found["floor"]["split"] == "train" and found["floor"]["n"] == COUNT
    assert found["subject"]["weights"] == "ema" and {"torch", "sfumato"} <= set(found["versions"])
    assert "n = 24 is below 10000" in found["warnings"][0]
    for row, steps in zip(found["results"], (2, 3), strict=True):
        assert row["steps"] == row["network_calls"] == steps and len(row["grid"]) == steps + 1
        assert row["seeds"] == "0-23" and row["seconds_per_image"] > 0
        assert row["sampler"] == "momentum" and row["threads"] == 1
        assert sum(row["classes"].values()) == pytest.approx(1)
        assert {"fid", "kid", "precision", "recall", "density", "coverage"} <= set(row)
    assert list(record.parent.iterdir()) == [record], "blocks are gone once the record is there"


def test_its_numbers_are_those_of_the_images(record, trained):
    """The record's hash and FID, from a sample drawn and scored by hand."""
    row = protocol.read(record)["results"][0]
    torch.set_num_threads(1)
    pixels = torch.from_numpy(
        to_uint8(from_pretrained(trained).sample(range(COUNT), Sampler(steps=2)))
    )
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    assert samples.digest(pixels) == row["images_sha256"]
    found = extractor.shipped("digits")
    real = load("digits", "test")
    real_pixels = torch.from_numpy(to_uint8(real.batch(range(len(real))))).permute(0, 3, 1, 2)
    a, b = (found.features(p).double() for p in (real_pixels, pixels))
    shift = (a.mean(0) - b.mean(0)).square().sum()
    roots = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).sqrt().real.sum()
    fid = shift + torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * roots
    assert row["fid"] == pytest.approx(float(fid), rel=1e-6)


def test_a_record_holds_when_made_again(record, capsys):
    assert run("evaluate", "--verify", record, "--quiet") == 0
    assert "reproduced: equal bytes of images and FID within 1e-3 in 2 results" in (
        capsys.readouterr().out
    )


def test_a_record_that_does_not_hold_says_where(record, here, capsys):
    found = json.loads(record.read_text())
    found["results"][0]["images_sha256"] = "0" * 64
    found["results"][1]["fid"] *= 1.01
    found["processor"] = "an abacus"
    Path("odd.json").write_text(json.dumps(found))
    assert run("evaluate", "--verify", "odd.json", "--quiet") == 1
    out = capsys.readouterr().out
    assert "2 steps: the images' bytes differ (recorded on an abacus; this is " in out
    assert "odd.json: 3 steps: FID" in out


def test_another_processor_adds_its_bytes_where_fid_holds(record, here, capsys):
    """Made elsewhere, a record fails here, is attested, and then holds; its scores stay."""
    found = json.loads(record.read_text())
    found["processor"] = "an abacus"
    for row in found["results"]:
        row["images_sha256"] = "0" * 64
        row["fid"] *= 1.0005
    Path("made.json").write_text(json.dumps(found))
    words = ("evaluate", "--verify", "made.json", "--quiet")
    assert run(*words) == 1
    assert run(*words, "--attest") == 0
    assert "made.json: reproduced on " in capsys.readouterr().out
    assert run(*words) == 0
    added = json.loads(Path("made.json").read_text())
    assert protocol.processors(added) == ["an abacus", json.loads(record.read_text())["processor"]]
    for row in added["results"]:
        del row[protocol.ELSEWHERE]
    assert added == found


def test_nothing_is_attested_where_fid_differs(record, here):
    found = json.loads(record.read_text())
    found["processor"] = "an abacus"
    found["results"][0]["fid"] *= 1.01
    Path("far.json").write_text(json.dumps(found))
    assert run("evaluate", "--verify", "far.json", "--quiet", "--attest") == 1
    assert json.loads(Path("far.json").read_text()) == found


def test_a_record_says_in_what_precision_its_samples_were_drawn(trained, here, capsys):
    """It is verified in that one; a record that names none is verified as before."""
    words = ("evaluate", trained, "--steps", 2, "--extractor", "pca", *QUICK)
    assert run(*words, "--dtype", "bfloat16", "--out", "half.json") == 0
    found = protocol.read(Path("half.json"))
    assert found["subject"]["dtype"] == "bfloat16"
    assert run("evaluate", "--verify", "half.json", "--quiet", "--device", "cpu") == 0
    other = {**found, "subject": {**found["subject"], "dtype": "float32"}}
    told = protocol.differences(found, other)
    assert told == ["computed in float32, recorded in bfloat16"]
    assert run(*words, "--out", "old.json") == 0
    old = json.loads(Path("old.json").read_text())
    assert old["subject"].pop("dtype") == "float32"
    Path("old.json").write_text(json.dumps(old))
    assert run("evaluate", "--verify", "old.json", "--quiet", "--device", "cpu") == 0


def test_a_cut_evaluation_goes_on_from_its_blocks(trained, here, monkeypatch):
    """Killed after some blocks, it draws only the others, and the record is the same."""
    monkeypatch.setattr(samples, "BLOCK", 8)
    drawn: list[int] = []
    draw = samples.Drawing._block

    def counted(self, first):
        if len(drawn) == 2 and first == 16 and "whole.json" not in str(self.keep):
            drawn.append(-1)
            raise KeyboardInterrupt
        drawn.append(first)
        return draw(self, first)

    monkeypatch.setattr(samples.Drawing, "_block", counted)
    words = ("evaluate", trained, "--steps", 2, *QUICK, "--out")
    assert run(*words, "cut.json") == 130
    assert not Path("cut.json").exists()
    assert run(*words, "cut.json") == 0
    assert drawn == [0, 8, -1, 16]
    assert run(*words, "whole.json") == 0
    cut, whole = (protocol.read(Path(name)) for name in ("cut.json", "whole.json"))
    assert cut["results"][0]["images_sha256"] == whole["results"][0]["images_sha256"]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_finished_images_are_judged_as_their_model_is(kind, trained, here, record):
    """`sample` to a file or a folder, then `evaluate`: the same bytes, the same scores."""
    out = "made.npz" if kind == "npz" else "made"
    seeds = f"0-{COUNT - 1}"
    assert run("sample", trained, "--seeds", seeds, "--steps", 2, "--out", out, "--quiet") == 0
    assert run("evaluate", out, "--data", "digits", *QUICK, "--out", "made.json") == 0
    found, of_model = protocol.read(Path("made.json")), protocol.read(record)
    assert found["results"][0]["images_sha256"] == of_model["results"][0]["images_sha256"]
    assert found["results"][0]["fid"] == pytest.approx(of_model["results"][0]["fid"], rel=1e-6)
    assert run("evaluate", "--verify", "made.json", "--quiet") == 0


def test_pca_is_labelled_and_other_data_have_no_classifier(trained, here, capsys):
    assert run("evaluate", trained, "--extractor", "pca", *QUICK, "--out", "pca.json") == 0
    found = protocol.read(Path("pca.json"))
    assert not found["extractor"]["comparable"]
    assert any("not comparable" in sentence for sentence in found["warnings"])
    rng = np.random.default_rng(0)
    np.savez("own.npz", images=rng.integers(0, 255, (40, 8, 8), dtype=np.uint8))
    words = ("evaluate", trained, "--data", "own.npz", *QUICK, "--out", "own.json")
    assert run(*words) == 2
    assert capsys.readouterr().err == (
        "sfumato: no classifier is bundled for own.npz. Use --extractor FILE.py:NAME with your "
        "own features, inception for photographs, or pca (not comparable with others).\n"
    )
    Path("mine.py").write_text(
        "def halves(images):\n    return images.float().flatten(1)[:, ::2]\n"
        "def wrong(images):\n    return images.float().flatten(1)[:3]\n"
    )
    assert run(*words, "--extractor", "mine.py:halves") == 0
    assert protocol.read(Path("own.json"))["floor"] is None
    assert protocol.read(Path("own.json"))["extractor"]["name"] == "mine.py:halves"
    assert run(*words[:-1], "wrong.json", "--extractor", "mine.py:wrong") == 2
    assert "one row of finite features for each image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evaluate", "--out", "a.json"), "evaluate needs a run"),
        (("evaluate", "RUN"), "evaluate needs --out FILE.json"),
        (("evaluate", "RUN", "--out", "there.json"), "there.json exists. Check it with --verify"),
        (("evaluate", "RUN", "--n", 0, "--out", "a.json"), "--n must be 1 or more"),
        (("evaluate", "RUN", "--extractor", "pcb", "--out", "a.json"), "did you mean 'pca'?"),
        (("evaluate", "RUN", "--split", "tset", "--out", "a.json"), "no split 'tset'"),
        (("evaluate", "RUN", "--split", "test[400:]", "--out", "a.json"), "there is none in test"),
        (("evaluate", "nowhere", "--out", "a.json"), "no model 'nowhere'"),
        (("evaluate", "--verify", "there.json"), "there.json is no record of an evaluation"),
        (("evaluate", "RUN", "--verify", "there.json"), "leave out RUN and --out"),
        (("evaluate", "RUN", "--attest", "--out", "a.json"), "--attest adds to a record: name it"),
        (("evaluate", "made.npz", "--out", "a.json"), "finished images need --data"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(words, sentence, trained, here, capsys):
    Path("there.json").write_text("{}")
    np.savez("made.npz", images=np.zeros((4, 8, 8), np.uint8))
    assert run(*(trained if word == "RUN" else word for word in words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("sfumato: ") and err.count("\n") == 1 and sentence in err
    assert not Path("a.json").exists()


@pytest.fixture
def unasked(monkeypatch) -> None:
    """Nothing is sampled, and no features are looked at."""

    def refuse(*args, **given):
        raise AssertionError("something was made that could not be judged")

    monkeypatch.setattr(Model, "sample", refuse)
    monkeypatch.setattr(extractor.Extractor, "features", refuse)


@pytest.mark.parametrize("shape", [(12, 8), (8, 8, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("which", ["model", "images"])
def test_other_shapes_are_refused_before_anything_is_made(
    shape, which, trained, here, unasked, capsys
):
    pixels = np.random.default_rng(0).integers(0, 255, (40, *shape), dtype=np.uint8)
    np.savez("other.npz", images=pixels)
    found = (shape[2] if len(shape) > 2 else 1, *shape[:2])
    words = ("other.npz", "--data", "digits") if which == "images" else (trained, "--data")
    words = words if which == "images" else (*words, "other.npz", "--extractor", "pca")
    assert run("evaluate", *words, *QUICK, "--out", "a.json") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "(1, 8, 8)" in err and str(found) in err
    assert [path.name for path in here.iterdir()] == ["other.npz"]


def test_samples_of_another_shape_are_refused_in_python():
    digits = load("digits", "test")
    judge = protocol.Judge(digits, None, lambda *_: extractor.shipped("digits"), COUNT)
    for shape in [(1, 12, 8), (3, 8, 8)]:
        with pytest.raises(ValueError, match=r"\(1, 8, 8\); those of the samples have"):
            judge.scores(torch.zeros(COUNT, *shape, dtype=torch.uint8))


def test_who_is_too_few_is_named(trained, here, unasked, capsys):
    np.savez("few.npz", images=np.zeros((3, 8, 8), np.uint8))
    words = ("--quiet", "--device", "cpu", "--threads", 1, "--out", "a.json")
    for few in (("few.npz", "--data", "digits"), (trained, "--n", 3)):
        assert run("evaluate", *few, *words) == 2
        assert "needs 6 samples or more" in (err := capsys.readouterr().err)
        assert "got 3." in err and err.count("\n") == 1
    assert run("evaluate", trained, "--data", "few.npz", "--extractor", "pca", *words) == 2
    assert "needs 6 real images or more" in (err := capsys.readouterr().err) and "got 3." in err
    assert [path.name for path in here.iterdir()] == ["few.npz"]


@pytest.mark.parametrize("name", pretrained.features())
def test_shipped_classifiers_know_their_data(name):
    """Accuracy on some test images, as the file's own metadata says of all of them."""
    found = extractor.shipped(name)
    try:
        data = load(name, "test[:297]")
    except FileNotFoundError:
        # The tests pass without the Debian package, as .ci/run says where it cannot be had.
        pytest.skip(f"{name} is not on this machine")
    pixels = torch.from_numpy(to_uint8(data.batch(range(297)))).permute(0, 3, 1, 2)
    assert found.classify is not None
    right = found.classify(pixels) == data.classes(range(297))
    assert float(right.double().mean()) > 0.87
    assert found.features(pixels).shape == (297, {"digits": 64, "fashion-mnist": 128}[name])
