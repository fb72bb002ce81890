"""`sfumato distill`, end to end with tiny networks; students as models; bad input in one line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato import pictures
from sfumato.cli import main
from sfumato.training import train as training

SIZE = ("--width", "8", "--multipliers", "1")
FAST = ("--batch", "16", "--device", "cpu", "--quiet")
STAGES = ("--images", 48, "--checkpoint-every", 16, "--n", 0, *FAST)


def run(*words: object) -> int:
    return main([str(word) for word in words])


def trained(folder: Path, *words: object) -> Path:
    out = folder / "teacher"
    assert (
        run("train", *words, "--images", 32, "--preview-every", 0, "--out", out, *SIZE, *FAST) == 0
    )
    return out


@pytest.fixture(scope="module")
def soft(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("soft"), "soft", "--prediction", "wiener")


@pytest.fixture(scope="module")
def classed(tmp_path_factory) -> Path:
    words = ("--conditional", "--drop-classes", "0.5", "--prediction", "velocity")
    return trained(tmp_path_factory.mktemp("ddpm"), "ddpm", *words)


@pytest.fixture(scope="module")
def students(soft, tmp_path_factory) -> dict[str, Path]:
    """One model of each way; of progressive distillation the folder of stages."""
    home = tmp_path_factory.mktemp("students")
    for way in ("progressive", "consistency", "shortcut"):
        words = ("--by", way, "--teacher-steps", 4, "--out", home / way)
        assert run("distill", soft, *words, *STAGES) == 0
    return {way.name: way for way in home.iterdir()}


def weights(folder: Path) -> dict[str, bytes]:
    last = max((folder / "checkpoints").iterdir())
    return {file.name: file.read_bytes() for file in last.glob("*.safetensors")}


def test_each_halving_is_a_run_of_its_own(students):
    assert sorted(path.name for path in students["progressive"].iterdir()) == ["1", "2"]
    for steps in (2, 1):
        model = sf.from_pretrained(students["progressive"] / str(steps))
        assert model.sampler.whole == (sf.Sampler("ddim").kernel, steps)
        assert model.network_calls() == steps
    origin = json.loads((students["progressive"] / "1" / "run.json").read_text())["model"]["origin"]
    assert origin["name"] == str(students["progressive"] / "2")


@pytest.mark.parametrize("stop", [2, 4])
def test_a_stopped_distillation_ends_with_the_same_bytes(
    soft, students, stop, tmp_path, monkeypatch
):
    """Stopped within the first stage of three steps, and within the second."""
    words = ("distill", soft, "--teacher-steps", 4, "--out", tmp_path / "out", *STAGES)
    steps, whole = [], training.gradients

    def stopping(*given):
        steps.append(1)
        if len(steps) == stop:
            raise KeyboardInterrupt
        return whole(*given)

    with monkeypatch.context() as patched:
        patched.setattr(training, "gradients", stopping)
        assert run(*words) == 130
    assert run(*words) == 0
    for steps_ in ("2", "1"):
        assert weights(tmp_path / "out" / steps_) == weights(students["progressive"] / steps_)


def test_the_table_compares_with_the_teacher_at_as_many_steps(soft, students, capsys):
    out = students["progressive"]
    words = ("--teacher-steps", 4, "--images", 48, "--checkpoint-every", 16, "--n", 50)
    assert run("distill", soft, *words, "--out", out, *FAST[:-1]) == 0
    said = capsys.readouterr()
    assert "samples in one step" in said.out and "progressive" in said.out
    assert "4 steps of ddim, 4 network calls" in said.err
    record = json.loads((out / "scores.json").read_text())
    assert [row["steps"] for row in record["results"]] == [2, 1] and record["n"] == 50
    assert all(row["fid"] > 0 and row["teacher_fid"] > 0 for row in record["results"])


def test_students_are_models_like_others(students, tmp_path):
    """sample, show, evaluate; seeds give the same images in any batch."""
    student = students["progressive"] / "2"
    call = ("--quiet", "--device", "cpu")
    assert run("sample", student, "--seeds", "0-3", "--out", tmp_path / "a.png", *call) == 0
    assert run("show", student, "--seeds", "0", "--out", tmp_path / "b.png", *call) == 0
    score = ("--n", 40, "--out", tmp_path / "c.json", *call)
    assert run("evaluate", student, *score) == 0
    for way in ("consistency", "shortcut"):
        model = sf.from_pretrained(students[way])
        for steps in (1, 2, 4):
            images = model.sample(range(3), sf.Sampler(steps=steps), batch=2)
            again = model.sample([2], sf.Sampler(steps=steps))
            torch.testing.assert_close(images[2:], again, rtol=0, atol=1e-5)
    model = sf.from_pretrained(students["shortcut"])
    assert model.sample([0], sf.Sampler("heun", 9)).isfinite().all()


@pytest.mark.parametrize("objective", ["consistency", "shortcut"])
def test_models_without_a_teacher_are_trained_by_train(objective, tmp_path):
    out = tmp_path / "run"
    words = ("--objective", objective, "--flow-levels", 4, "--images", 32, "--out", out)
    assert run("train", "ddpm", "--prediction", "velocity", *words, *SIZE, *FAST) == 0
    flow = sf.from_pretrained(out).config.flow_map
    assert flow is not None and (flow.by, flow.sampler, len(flow.times)) == (objective, None, 5)
    assert run("sample", out, "--seeds", "0", "--steps", 2, "--out", tmp_path / "a.png") == 0
    again = ("train", "--config", out / "run.json", "--out", tmp_path / "again", "--quiet")
    assert run(*again, "--device", "cpu") == 0
    assert weights(tmp_path / "again") == weights(out)


def test_a_weight_of_guidance_becomes_an_input(classed, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--teacher-steps", 4, "--guidance", "4", "--out", out)
    assert run("distill", classed, *words, *STAGES) == 0
    model = sf.from_pretrained(out / "1")
    assert model.network_calls(guidance=2.0) == 1
    images = [model.sample([0], classes=[3], guidance=w) for w in (0.0, 2.0, 4.0)]
    assert all(float((a - b).abs().max()) > 0 for a, b in itertools.pairwise(images))
    call = ("--seeds", "0", "--out", tmp_path / "a.png", "--quiet")
    assert run("sample", out / "1", "--guidance", 2, *call) == 0
    assert run("sample", out / "1", "--guidance", 5, *call) == 2
    assert "takes a weight of guidance from 0 to 4; got 5" in capsys.readouterr().err


REFUSED = [
    ((), "a teacher"),
    (("no-such-run",), "no model"),
    (("soft", "--sampler", "ancestral"), "draws noise"),
    (("soft", "--sampler", "euler-maruyama"), "draws noise"),
    (("soft", "--teacher-steps", "15"), "15 steps of a teacher halve to nothing"),
    (("soft", "--teacher-steps", "12", "--to", "2"), "halve to 6, 3; got 2"),
    (("soft", "--to", "0"), "--to"),
    (("soft", "--by", "shortcut", "--teacher-steps", "12"), "2, 4, 8, 16"),
    (("soft", "--by", "adversarial"), "--by"),
    (("soft", "--guidance", "4"), "--drop-classes 0.1"),
    (("soft", "--by", "shortcut", "--sampler", "heun"), "leave --sampler out"),
    (("soft", "--by", "consistency", "--sampler", "unipc"), "Use ddim, or heun"),
    (("soft", "--by", "consistency", "--to", "17"), "from 1 to 16; got 17"),
    (("soft", "--n", "3"), "6 samples or more"),
    (("ihdm",), "its own 200 steps"),
    (("soft", "--sampler", "nonesuch"), "nonesuch"),
    (("soft", "--data", "photos"), "shape"),
    (("classed", "--guidance", "-1"), "positive"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(w) for w, _ in REFUSED])
def test_bad_input_is_one_line(words, said, soft, classed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"soft": soft, "classed": classed}
    if "ihdm" in words:
        known["ihdm"] = trained(tmp_path / "ihdm", "ihdm", "--memory", "8")
    told = [known.get(word, word) for word in words]
    assert run("distill", *told[:1], "--out", "out", *STAGES, *told[1:]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not Path("out", "2").exists()


def test_another_teacher_is_refused(soft, classed, students, tmp_path, capsys):
    """In a folder of another teacher's students, and in Python."""
    words = ("--teacher-steps", 4, "--out", students["progressive"], *STAGES)
    assert run("distill", classed, *words) == 2
    assert "belongs to another run" in capsys.readouterr().err
    data = sf.load("digits")
    options = sf.TrainOptions(images=16, batch=16, preview_every=0)
    config = sf.from_pretrained(students["progressive"] / "2").config
    model = sf.build(config, data, options, soft)
    for teacher, said in (
        (sf.from_pretrained(classed), "method"),
        (sf.from_pretrained(students["progressive"] / "2"), "other weights"),
        (None, "distilled"),
    ):
        with pytest.raises(ValueError, match=said):
            sf.train(model, data, options, tmp_path / "run", teacher=teacher, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("sample", ("--steps", "3"), "takes no other number"),
        ("sample", ("--sampler", "heun"), "which is ddim; got"),
        ("sample", ("--sampler", "ancestral"), "which is ddim; got"),
        ("sample", ("--grid", "karras"), "leave --grid out"),
        ("sample", ("--guidance", "2"), "--guidance 4"),
        ("edit", ("x.png",), "edits need"),
        ("restore", ("x.png", "--operator", "identity"), "need estimates of the mean"),
        ("likelihood", ("--n", "2", "--out", "x.json"), "likelihoods need"),
    ],
)
def test_what_a_student_cannot_do_is_one_line(
    verb, words, said, students, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pictures.save(pictures.grid(sf.load("digits").batch([0]), scale=1), "x.png")
    out = () if "--out" in words else ("--out", "made.png")
    assert run(verb, students["progressive"] / "2", *words, *out, "--quiet") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_record_of_a_student_is_not_a_config_of_train(students, capsys):
    config = students["progressive"] / "2" / "run.json"
    assert run("train", "--config", config, "--dry-run") == 2
    assert "run of distill" in capsys.readouterr().err
