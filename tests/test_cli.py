"""The command line, end to end on digits with a tiny network; help without torch."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from sfumato import cli, from_pretrained
from sfumato.cli import kinds, main, signatures
from sfumato.cli.sample import labels
from sfumato.errors import NotFound, Refused, RefusedType, TrainingDiverged, Unsupported
from sfumato.methods import METHODS
from sfumato.methods.table import rows
from sfumato.networks import UNetOptions
from sfumato.progress import bar
from sfumato.sampling.samplers import KERNELS, Sampler
from sfumato.training import stop
from sfumato.training.trackers import JsonLines
from sfumato.training.train import TrainOptions

TINY = (
    *("--width", "8", "--multipliers", "1"),
    *("--batch", "32", "--preview-every", "0", "--device", "cpu", "--quiet"),
)
OWN = '''
"""A variant of one's own.

References:
    Mine (Me, 2026)
"""
from sfumato.methods.soft import soft


def variant(shape, stats=None, *, blur: tuple[float, float] = (0.01, 0.2), steps: int = 4):
    """Less blur.

    Args:
        blur: smallest and largest.
        steps: of the sampler.
    """
    return soft(shape, stats, blur=blur, steps=steps)
'''


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of `soft` that has seen 128 images."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert run("train", "soft", "--steps", 4, "--images", 128, "--out", out, *TINY) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def array(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["images"]


def test_help_and_slips_need_no_torch(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path}/own.py:variant"
    words = [
        *([], ["--help"], ["--version"], ["cite", "soft"], ["methods", "--help"]),
        *(["train", "--help"], ["train", "soft", "--help"], ["train", own, "--help"]),
        *(["sample", "--help"], ["show", "--help"], ["show", "ddpm", "--help"], ["cite", "-h"]),
        *(["trian"], ["train", "sfot"], ["train", "soft", "--imags", "3"], ["train"]),
    ]
    script = f"""
import json, sys
from sfumato.cli import main
codes = [main(words) for words in {words!r}]
heavy = {{"torch", "numpy", "diffusers", "sklearn", "PIL"}} & set(sys.modules)
print(json.dumps([codes, sorted(heavy)]))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    codes, heavy = json.loads(ran.stdout.splitlines()[-1])
    assert codes == [0] * 12 + [2] * 4
    assert not heavy
    assert len(ran.stderr.splitlines()) == 4


@pytest.mark.parametrize("name", METHODS)
def test_signatures_of_methods_are_those_of_the_functions(name):
    read = signatures.method(name)
    real = inspect.signature(METHODS[name]).parameters.values()
    expected = {p.name: p.default for p in real if p.kind is p.KEYWORD_ONLY}
    assert {parameter.name: parameter.default for parameter in read.parameters} == expected
    assert all(parameter.help for parameter in read.parameters)
    assert "References:" in read.module and read.summary


@pytest.mark.parametrize(
    ("file", "options"),
    [("training/options.py", TrainOptions), ("networks/backbones.py", UNetOptions)],
)
def test_signatures_of_options_are_those_of_the_classes(file, options):
    read = signatures.read(signatures.SOURCE / file, options.__name__)
    expected = {field.name: field.default for field in dataclasses.fields(options)}
    assert {parameter.name: parameter.default for parameter in read.parameters} == expected
    assert all(parameter.help for parameter in read.parameters)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "soft"),
        ("train", "ddpm"),
        ("show", "soft"),
        ("sample",),
        ("train",),
        ("restore",),
        ("edit",),
    ],
)
def test_every_option_is_explained_with_its_default(words, capsys):
    assert run(*words, "--help") == 0
    text = capsys.readouterr().out
    options = text.partition("options:")[2].partition("\nmethods:")[0]
    entries = [entry for entry in options.split("\n  -") if entry.strip()]
    assert len(entries) > 8
    for entry in entries:
        said = " ".join(entry.partition("  ")[2].split()) or " ".join(entry.split("\n")[1:])
        assert len(said.split()) > 1, entry


def test_help_shows_a_method_s_parameters_and_defaults(capsys):
    run("train", "soft", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--blur X,X" in text and "(default: 0.005,0.36)" in text
    assert "--learning-rate X" in text and "(default: 0.001)" in text
    assert "--multipliers N,..." in text and "(default: 1,2,2)" in text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_methods_fits_its_terminal(columns, capsys, monkeypatch):
    """No line is longer than the terminal is wide, and no name of a method or a kernel is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    check_names(lines)


def test_methods_in_a_pipe_cuts_no_name():
    words = [sys.executable, "-m", "sfumato", "methods"]
    plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ran = subprocess.run(words, capture_output=True, text=True, check=True, env=plain)
    check_names(ran.stdout.splitlines())


def check_names(lines: list[str]) -> None:
    """Each name of METHODS and of KERNELS starts a line, and each default kernel is whole."""
    assert "…" not in "".join(lines)
    first = [line.split()[0] for line in lines if line.startswith(" ") and line[1:2].strip()]
    assert {*METHODS, *KERNELS} <= {*first}
    text = " ".join(" ".join(lines).split())
    for row in rows():
        assert f"sampler {row.sampler}; " in text


def test_methods_are_told_to_programs(capsys):
    """Names, titles, sources, defaults and samplers, as JSON that reads back."""
    assert run("methods", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["methods"]] == list(METHODS)
    assert [row["name"] for row in found["samplers"]] == list(KERNELS)
    assert all(row["title"] for row in [*found["methods"], *found["samplers"]])
    soft = next(row for row in found["methods"] if row["name"] == "soft")
    assert soft["source"] == {
        "title": "Soft Diffusion: Score Matching for General Corruptions",
        "authors": "Giannis Daras, Mauricio Delbracio, Hossein Talebi, Alexandros G. Dimakis, "
        "Peyman Milanfar",
        "year": 2022,
        "url": "https://arxiv.org/abs/2209.05442",
    }
    assert soft["defaults"]["sigma"] == [0.01, 0.1] and soft["defaults"]["steps"] == 100
    assert soft["sampler"] == "momentum"
    ddim = next(row for row in found["samplers"] if row["name"] == "ddim")
    assert ddim["defaults"] == {"eta": 0.0}
    years = {row["name"]: row["source"]["year"] for row in found["methods"]}
    assert all(1990 < year < 2100 for year in years.values())


def test_cite_prints_the_references(capsys):
    assert run("cite", "fashion-ddpm") == 0  # of the method of a bundled model
    bundled = capsys.readouterr().out
    assert run("cite", "ddpm") == 0
    assert capsys.readouterr().out == bundled
    assert run("cite", "ddpm") == 0
    text = capsys.readouterr().out
    assert "https://arxiv.org/abs/2006.11239" in text and "2020" in text


def test_train_writes_a_run_and_says_how_to_sample_it(here, capsys):
    words = [word for word in TINY if word != "--quiet"]
    assert run("train", "ddpm", "--images", 64, "--steps", 3, "--out", "runs/a", *words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "Sample it: sfumato sample runs/a --out samples.png"
    assert "ddpm on digits" in err and "2 steps of 32" in err
    model = from_pretrained("runs/a")
    assert model.config.parameters == {"steps": 3}
    assert model.config.network == UNetOptions(width=8, multipliers=(1,))


def test_quiet_is_quiet(trained, here, capsys):
    assert run("sample", trained, "--seeds", 0, "--out", "a.png", "--quiet") == 0
    assert run("show", trained, "--seeds", "0,1", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert Path("a.png").is_file() and Path("strip.png").is_file()


def test_sample_writes_a_grid_an_array_or_a_folder(trained, here, capsys):
    assert run("sample", trained, "--seeds", "0-8", "--out", "a.png") == 0
    out, err = capsys.readouterr()
    assert out.startswith("a.png: 9 images, 4 steps of momentum, EMA weights, ")
    assert not err  # no bar where there is no terminal
    assert Image.open("a.png").size == (3 * 56 + 4, 3 * 56 + 4)
    assert run("sample", trained, "--seeds", "0-8", "--out", "deep/a.npz", "--steps", 5) == 0
    images = array(Path("deep/a.npz"))
    assert images.shape == (9, 8, 8, 1) and images.dtype == np.uint8
    assert run("sample", trained, "--seeds", "7,3", "--out", "pngs", "--weights", "raw") == 0
    assert sorted(path.name for path in Path("pngs").iterdir()) == ["000003.png", "000007.png"]
    assert "2 images" in capsys.readouterr().out


def test_branches_share_their_start(trained, here):
    """--fix-start: the first seed's image is its own, the others leave its x_1 by other noise."""
    words = ("sample", trained, "--seeds", "3,4,5", "--steps", 20)
    assert run(*words, "--out", "own.npz") == 0
    assert run(*words, "--fix-start", "--out", "fix.npz") == 0
    own, fix = array(Path("own.npz")), array(Path("fix.npz"))
    assert np.array_equal(own[0], fix[0])
    assert not np.array_equal(own[1], fix[1]) and not np.array_equal(fix[0], fix[1])
    model = from_pretrained(trained)
    # Without fresh noise, the start decides all.
    images = model.sample([3, 4, 5], Sampler("ddim", 5), start=3)
    assert torch.allclose(images, images[:1].expand_as(images), atol=1e-5)


def test_a_seed_gives_its_image_in_any_batch(trained, here):
    assert run("sample", trained, "--seeds", "0-7", "--batch", 3, "--out", "all.npz") == 0
    assert run("sample", trained, "--seeds", "3", "--out", "one.npz") == 0
    rows, one = array(Path("all.npz")).astype(int), array(Path("one.npz")).astype(int)
    assert abs(rows[3] - one[0]).max() <= 1
    assert abs(rows[2] - one[0]).max() > 1
    model = from_pretrained(trained)
    assert (model.sample(range(8))[3] - model.sample([3])[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "kernel", ["ddim:eta=0.5", "momentum", "heun", "euler-langevin:delta=0.05"]
)
def test_sample_takes_any_kernel(trained, here, kernel, capsys):
    words = ("--seeds", "0-1", "--steps", 3, "--sampler", kernel, "--out", "a.npz")
    assert run("sample", trained, *words) == 0
    assert f"3 steps of {kernel}" in capsys.readouterr().out


def test_sample_in_half_precision_stays_close(trained, here):
    for dtype in ("float32", "bfloat16"):
        assert run("sample", trained, "--seeds", "0-3", "--dtype", dtype, "--out", dtype) == 0
    for seed in range(4):
        full, half = (
            np.asarray(Image.open(f"{dtype}/{seed:06d}.png"), int)
            for dtype in ("float32", "bfloat16")
        )
        assert abs(full - half).max() <= 8


def test_classes_by_number_and_name(here, capsys):
    words = ("train", "soft", "--conditional", "--images", 32, "--steps", 2, "--out", "c")
    assert run(*words, *TINY) == 0
    assert run("sample", "c", "--seeds", "0-11", "--out", "turn.npz") == 0
    assert run("sample", "c", "--seeds", "3", "--classes", "3", "--out", "one.npz") == 0
    assert abs(array(Path("turn.npz"))[3].astype(int) - array(Path("one.npz"))[0]).max() <= 1
    assert run("sample", "c", "--seeds", "0-3", "--classes", "1,2", "--out", "two.npz") == 0
    assert run("sample", "c", "--seeds", "0", "--classes", "ten") == 2
    assert "no class 'ten'" in capsys.readouterr().err


def test_show_draws_both_directions(trained, here, capsys):
    Image.new("RGB", (300, 20), (200, 30, 40)).save("photo.png")
    words = ("show", "soft", "photo.png", "--frames", 3, "--size", 90, "--out", "image.png")
    assert run(*words) == 0
    width, height = Image.open("image.png").size
    assert width == 3 * (90 * 10 + 2) - 2 and height == 6 * 10  # 90 x 6, enlarged to 60 high
    assert run("show", "ddpm", "--data", "photos", "--rows", 2, "--length", 50) == 0
    assert Image.open("strip.png").size == (9 * (64 + 2) - 2, 2 * (64 + 2) - 2)
    assert run("show", trained, "--seeds", "0-2", "--frames", 4, "--out", "back.png") == 0
    assert Image.open("back.png").size == (4 * (56 + 2) - 2, 3 * (56 + 2) - 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "back.png: 3 rows of 4 frames"


def test_a_method_s_name_goes_before_a_folder(trained, here):
    Path("soft").symlink_to(trained)
    assert run("show", "soft", "--rows", 1, "--quiet") == 0
    assert run("show", "./soft", "--seeds", "0", "--quiet", "--out", "back.png") == 0


def test_a_sampler_that_diverges_is_told_of(here, capsys):
    """Clamped to bytes its images are black and white noise; where they are NaN none is written."""
    words = "sample fashion-soft --sampler euler-maruyama --seeds 0-1 --steps".split()
    told = "euler-maruyama diverged in 2 of the samples at {} steps. Use another --sampler"
    assert main([*words, "3", "--out", "far.png"]) == 0
    assert f"note: {told.format(3)}" in capsys.readouterr().err
    assert main([*words, "50", "--out", "nan.png"]) == 2
    assert capsys.readouterr().err.startswith(f"sfumato: {told.format(50)}")
    assert not Path("nan.png").exists()
    words = (
        "show fashion-soft --sampler euler-maruyama --seeds 0-1 --steps 3 --out show.png".split()
    )
    assert main(words) == 0
    assert told.format(3) in capsys.readouterr().err
    assert main("sample fashion-soft --seeds 0-69 --steps 2 --out near.npz".split()) == 0
    assert not capsys.readouterr().err
    words = "evaluate fashion-soft --sampler euler-maruyama --n 8 --steps 3 --out a.json".split()
    assert main([*words, "--data", "near.npz", "--extractor", "pca"]) == 0
    told = told.replace(" 2 ", " 8 ").format(3)
    assert f"note: {told}" in capsys.readouterr().err
    assert json.loads(Path("a.json").read_text())["warnings"][-1].startswith(told)


def test_dry_run_prints_what_config_reads_and_writes_nothing(here, capsys):
    words = ("train", "soft", "--blur", "0.01,0.3", "--images", "1e3", "--multipliers", "[1,2]")
    assert run(*words, "--out", "r", "--dry-run") == 0
    text = capsys.readouterr().out
    values = yaml.safe_load(text)
    assert values["method"] == "soft" and values["blur"] == [0.01, 0.3]
    assert values["images"] == 1000 and values["multipliers"] == [1, 2]
    assert not {"dry_run", "config", "quiet"} & set(values)
    assert not list(here.iterdir())
    Path("again.yaml").write_text(text)
    assert run("train", "--config", "again.yaml", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out) == values
    assert run("sample", "r", "--seeds", "0-63", "--sampler", "ddim:eta=0.5", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)["seeds"] == "0-63"
    assert run("show", "soft", "no.png", "--dry-run") == 0
    assert [path.name for path in here.iterdir()] == ["again.yaml"]


VERBS = [
    *(("cite", name) for name in METHODS),
    *((verb, name) for verb in ("train", "select", "show") for name in METHODS),
    *((verb, "fashion-soft") for verb in ("show", "sample", "evaluate", "likelihood")),
    ("check", "fashion-soft"),
    ("average", "runs/soft", "--length", "0.08"),
    ("train-classifier", "soft"),
    ("train-autoencoder",),
    ("distill", "fashion-soft"),
    ("restore", "fashion-soft", "blurred.png", "--operator", "blur:sigma=2"),
    ("edit", "fashion-soft", "a.png"),
    ("demo",),
    ("tune",),
    ("methods",),
    ("push", "fashion-soft", "user/name"),
    ("env",),
    ("completion", "bash"),
]


def test_every_verb_is_among_these():
    assert {words[0] for words in VERBS} == {*cli.VERBS}


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_explains_itself_and_dry_runs_for_every_method(words, here, capsys):
    """`--help` ends with 0, and so does `--dry-run` where it is offered; neither writes a thing."""
    assert run(*words, "--help") == 0, capsys.readouterr().err
    if "--dry-run" in capsys.readouterr().out:
        assert run(*words, "--dry-run") == 0, capsys.readouterr().err
        assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)
    assert not [*here.iterdir()]


@pytest.mark.parametrize(
    ("method", "then", "now", "value"),
    [("soft-down", "width", "scale", [0.01, 0.3]), ("ihdm", "levels", "count", 3)],
)
def test_parameters_by_their_old_names_are_read(method, then, now, value, here, capsys):
    """A run from before loads, is a `--config`, and goes on."""
    chosen = f"--{now}", ",".join(map(str, value)) if isinstance(value, list) else value
    words = ("train", method, *chosen, "--images", 64, "--out", "r", *TINY)
    assert run(*words) == 0
    for record in [Path("r/run.json"), *Path("r/checkpoints").glob("*/config.json")]:
        found = json.loads(record.read_text())
        model = found.get("model", found)
        assert model["parameters"] == {now: value}
        model["parameters"] = {then: value}
        record.write_text(json.dumps(found))
        record.with_name("manifest.json").unlink(missing_ok=True)  # older versions wrote none
    assert from_pretrained("r").config.parameters == {now: value}
    capsys.readouterr()
    assert run("train", "--config", "r/run.json", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)[now] == value
    assert run(*words) == 0, capsys.readouterr().err


def test_flags_win_over_the_file_which_wins_over_defaults(here, capsys):
    Path("run.yaml").write_text("batch: 64\nlearning-rate: 1e-4\ncompile: true\nknee: 0.5\n")
    flags = ("--batch", 16, "--config", "run.yaml", "--knee", 0.75, "--no-compile")
    assert run("train", "soft", *flags, "--dry-run") == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["batch"] == 16 and values["knee"] == 0.75 and values["compile"] is False
    assert values["learning_rate"] == 1e-4 and values["clip"] == 1.0
    Path("run.json").write_text(json.dumps({"seeds": [1, 2], "run": "r", "steps": None}))
    assert run("sample", "--config", "run.json", "--dry-run") == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["seeds"] == "1,2" and values["run"] == "r"


def test_a_run_s_own_record_is_a_config_and_resumes_it(trained, capsys):
    before = load_file(from_latest(trained) / "model.safetensors")
    record = trained / "run.json"
    words = ("--config", record, "--out", trained, "--device", "cpu")
    assert run("train", *words) == 0
    assert "resumed at step 4" in capsys.readouterr().err
    after = load_file(from_latest(trained) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def from_latest(run_folder: Path) -> Path:
    return sorted((run_folder / "checkpoints").iterdir())[-1]


def deep(path: Path) -> np.ndarray:
    """Images of 12 bits, wider than high and brighter on the left, in a .npz of another name."""
    dark = np.linspace(4095, 0, 20).astype(np.uint16)
    values = np.random.default_rng(0).integers(0, 4096, (40, 16, 20), dtype=np.uint16)
    values = np.minimum(values, dark)
    np.savez(path, scans=values, labels=np.arange(40) % 3 + 1)
    return values


def test_how_data_are_read_travels_with_a_run(here, capsys, monkeypatch):
    """Range, key, size and mirror images: for the run again, and for what judges its model."""
    values = deep(here / "x.npz")
    words = ("train", "ddpm", "--data", "x.npz", "--images", 96, *TINY)
    how = ("--key", "scans", "--range", "0,4095", "--resize", 8, "--flip")
    assert run(*words) == 2 and "it holds scans, labels" in capsys.readouterr().err
    assert run(*words, *how[:2]) == 2 and "a small part of 0 to 65535" in capsys.readouterr().err
    assert run(*words, *how, "--out", "run") == 0
    record = json.loads((here / "run" / "run.json").read_text())["model"]["record"]
    assert record["classes"] == ["1", "2", "3"] and record["count"] == len(values)
    told = {name: record[name] for name in ("low", "high", "key", "resize", "flip", "shape")}
    assert told == {
        **{"low": 0, "high": 4095, "key": "scans", "resize": 8},
        **{"flip": True, "shape": [1, 8, 8]},
    }
    assert run("train", "--config", "run/run.json", "--out", "again", "--device", "cpu") == 0
    files = [next((here / out / "checkpoints").glob("*3")) for out in ("run", "again")]
    weights = [load_file(file / "model.safetensors") for file in files]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    stats = load_file(files[0] / "facts.safetensors")
    assert stats["mean"][0, :, 1::2].abs().max() < 1e-6  # odd waves have no mean in mirrored data
    capsys.readouterr()
    quick = ("--steps", 2, "--sampler", "ddim", "--extractor", "pca", "--quiet")
    assert run("evaluate", "run", "--n", 8, "--out", "e.json", *quick) == 0
    judged = json.loads((here / "e.json").read_text())["data"]
    assert judged == {name: value for name, value in record.items() if name != "flip"}
    assert run("evaluate", "--verify", "e.json") == 0
    np.savez(here / "other.npz", images=(values // 16).astype(np.uint8))
    assert run("evaluate", "run", "--data", "other.npz", "--n", 8, "--out", "f.json", *quick) == 0
    other = json.loads((here / "f.json").read_text())["data"]
    assert (other["low"], other["high"], other["shape"]) == (0, 255, [1, 8, 8])
    few = ("--n", 2, "--by", "bound", "--draws", 2, "--steps", 4, "--quiet")
    assert run("likelihood", "run", *few, "--out", "l.json") == 0
    measured = json.loads((here / "l.json").read_text())
    assert (measured["bins"], measured["data"]["high"]) == (4096, 4095)


def test_a_run_on_mirror_images_that_was_cut_is_the_run(here):
    """Which images are mirrored is of seed and step, as their order is."""
    words = ("train", "soft", "--flip", "--decay", "none", "--checkpoint-every", 64, *TINY)
    assert run(*words, "--images", 192, "--keep", 9, "--out", "whole") == 0
    shutil.copytree("whole", "cut")
    for late in sorted(Path("cut", "checkpoints").iterdir())[1:]:
        shutil.rmtree(late)
    assert run(*words, "--images", 192, "--keep", 9, "--out", "cut") == 0
    name = "checkpoints/00000006/raw.safetensors"
    whole, cut = (load_file(Path(out, name)) for out in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_range_may_begin_below_zero(here, capsys):
    assert run("train", "soft", "--range", "-1000,3000", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)["range"] == [-1000, 3000]
    assert run("train", "soft", "--range", "1", "--dry-run") == 2
    assert "--range needs 2 values" in capsys.readouterr().err


def test_notes_are_lines_on_standard_error(here, capsys):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    for i, image in enumerate(values):
        (here / "data").mkdir(exist_ok=True)
        Image.fromarray(image).save(here / "data" / f"{i}.png")
    (here / "data" / "a.gif").write_text("")
    words = ("show", "soft", "--data", "data", "--rows", 1, "--frames", 2)
    assert run(*words) == 0
    err = capsys.readouterr().err
    assert err == "sfumato: note: data: 1 skipped that are no images: 1 .gif.\n"
    assert run(*words, "--quiet") == 0 and not capsys.readouterr().err


def test_finished_images_are_read_as_they_are(here, capsys):
    """Dark images of one's own beside data known by name: the range is theirs."""
    dark = np.random.default_rng(0).integers(0, 40, (6, 8, 8), dtype=np.uint8)
    np.savez(here / "made.npz", images=dark)
    words = ("evaluate", "made.npz", "--data", "digits", "--extractor", "pca", "--quiet")
    assert run(*words, "--out", "a.json") == 2
    assert "--range LOW,HIGH" in capsys.readouterr().err
    assert run(*words, "--out", "a.json", "--range", "0,255") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_interrupted_run_says_how_to_go_on_and_does(number, here, capsys, monkeypatch):
    if number in (signal.SIGHUP, signal.SIGINT):  # ignored under nohup, and in the background
        monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_DFL)
    words = ("train", "soft", "--steps", 2, "--images", 160, "--out", "cut", *TINY)
    log = JsonLines.log

    def cut(self, done, figures):
        log(self, done, figures)
        if done == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "log", cut)
        assert run(*words) == 130
    assert capsys.readouterr().err == "sfumato: stopped; the same command resumes cut.\n"
    assert run(*words) == 0
    assert run(*words[:-1], "--quiet", "--out", "whole", "--device", "cpu") == 0
    log = [json.loads(line) for line in Path("cut/log.jsonl").read_text().splitlines()]
    assert {"event": "resumed", "step": 3} in log
    cut_run, whole = (load_file(from_latest(Path(r)) / "raw.safetensors") for r in ("cut", "whole"))
    assert all(torch.equal(cut_run[name], whole[name]) for name in whole)


def test_a_stop_is_asked_for_and_a_second_ctrl_c_interrupts():
    """Other signals in a row are one; what nohup ignores stays ignored; handlers are put back."""
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop.asked() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert not stopping()
            for _ in range(2):
                signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGINT)
            assert stopping()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_method_of_one_s_own(here, capsys):
    Path("own.py").write_text(OWN)
    assert run("train", "own.py:variant", "--blur", "0.02,0.1", "--images", 32, *TINY) == 0
    out = "runs/variant"  # the default, after the function
    assert run("cite", "own.py:variant") == 0
    assert capsys.readouterr().out == "Mine (Me, 2026)\n"
    assert run("sample", out, "--out", "a.png") == 2
    assert "--method FILE.py:NAME" in capsys.readouterr().err
    words = ("sample", out, "--method", "own.py:variant", "--seeds", "0-1", "--out", "a.npz")
    assert run(*words) == 0
    text, err = capsys.readouterr()
    assert "4 steps of momentum" in text and not err
    assert run("show", out, "--method", "own.py:variant", "--seeds", 0) == 0
    Path("own.py").write_text(OWN.replace("Less blur", "Little blur"))
    capsys.readouterr()
    assert run(*words) == 0
    assert "is not the file that runs/variant was trained with" in capsys.readouterr().err
    assert run("show", "own.py:variant", "--rows", 1, "--out", "forward.png") == 0


def test_a_parameter_may_not_hide_an_option(here, capsys):
    Path("own.py").write_text("def f(shape, stats=None, *, batch: int = 3): ...\n")
    assert run("train", "own.py:f", "--dry-run") == 2
    assert "'batch' is an option of train own.py:f already" in capsys.readouterr().err


def test_a_torchvision_that_does_not_fit_is_told_of_in_one_line(trained, here):
    """Beside the CPU's torch lies a torchvision that another package brought."""
    stand_in(here / "site", "torchvision", "raise RuntimeError('no operator torchvision::nms')")
    words = [
        ["evaluate", str(trained), "--n", "6", "--steps", "1", "--out", "a.json"],
        ["sample", str(trained), "--seeds", "0", "--steps", "1"],
        ["train", "soft", "--images", "32", "--out", "r"],
    ]
    script = f"import sys; from sfumato.cli import main; sys.exit(sum(map(main, {words!r})))"
    path = os.pathsep.join([str(here / "site"), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 * len(words) and not ran.stdout, ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == len(words)
    assert all("(no operator torchvision::nms)" in line for line in lines)
    assert all(line.endswith("or remove it: pip uninstall torchvision.") for line in lines)
    assert [path.name for path in here.iterdir()] == ["site"]


def stand_in(place: Path, name: str, source: str) -> None:
    """An installed package of one line, with what pip leaves beside it."""
    about = place / f"{name}-0.1.dist-info"
    for folder in (place / name, about):
        folder.mkdir(parents=True)
    (place / name / "__init__.py").write_text(source + "\n")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (about / "RECORD").write_text(f"{name}/__init__.py,,\n")


@pytest.mark.parametrize("error", [ValueError, TypeError, NotImplementedError, FloatingPointError])
def test_slips_in_the_code_keep_their_traceback(error, here, monkeypatch):
    """Whoever raised them: an error is a sentence for the user by its type."""

    def slip(*words, **given):
        raise error("a slip")

    monkeypatch.setattr("sfumato.training.data.load", slip)
    with pytest.raises(error, match="a slip"):
        run("show", "soft")


@pytest.mark.parametrize(
    ("error", "code"),
    [(Refused, 2), (RefusedType, 2), (Unsupported, 2), (NotFound, 2), (TrainingDiverged, 1)],
)
def test_what_is_refused_is_one_line(error, code, here, monkeypatch, capsys):
    """Also where code of one's own raises it; Python's own kinds catch it too."""

    def refuse(*words, **given):
        raise error("it\ncannot be.")

    monkeypatch.setattr("sfumato.training.data.load", refuse)
    assert run("show", "soft") == code
    assert capsys.readouterr().err == "sfumato: it cannot be.\n"
    kinds = {RefusedType: TypeError, Unsupported: NotImplementedError, NotFound: FileNotFoundError}
    assert issubclass(error, kinds.get(error, object))
    assert issubclass(error, FloatingPointError if code == 1 else ValueError)


def test_interrupt_anywhere_is_one_line(here, monkeypatch, capsys):
    def stop(*words, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.training.data.load", stop)
    assert run("show", "soft") == 130
    assert capsys.readouterr().err == "sfumato: stopped.\n"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("5", [5]), ("0-3", [0, 1, 2, 3]), ("0-1,8,10-11", [0, 1, 8, 10, 11]), ("7,3", [7, 3])],
)
def test_seeds(text, numbers):
    assert kinds.expand(text) == numbers


def test_values_are_read_as_written_in_flags_and_files():
    pair = kinds.several(kinds.NUMBER, 2)
    for written in ("0.1,2", "[0.1, 2]", "(0.1,2)", [0.1, 2], ("0.1", "2")):
        assert pair.read(written) == (0.1, 2.0)
    assert kinds.several(kinds.WHOLE, empty=True).read("none") == ()
    with pytest.raises(kinds.Unfit, match="one value or more"):
        kinds.several(kinds.WHOLE).read("")
    assert kinds.WHOLE.read("9223372036854775807") == 2**63 - 1
    assert kinds.WHOLE.read("1e5") == 100_000
    assert kinds.optional(kinds.WHOLE).read("none") is None
    for kind, wrong in [
        *((kinds.WHOLE, value) for value in ("1.5", "x", "", True, "nan", "inf", [1])),
        *((kinds.NUMBER, value) for value in ("x", "nan", True, None)),
        *((kinds.POSITIVE, 0), (kinds.NATURAL, -1), (kinds.YES, "maybe"), (pair, "1")),
        *((kinds.TEXT, {"a": 1}), (kinds.choice("a"), "b"), (kinds.SEEDS, "")),
    ]:
        with pytest.raises(kinds.Unfit):
            kind.read(wrong)


def test_python_m_sfumato_returns_the_exit_code():
    words = [sys.executable, "-m", "sfumato", "trian"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "sfumato: no verb 'trian'; did you mean 'train'?\n"


def test_progress_shows_an_estimate_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with bar("steps", 2, quiet=False) as advance:
        for _ in range(2):
            advance(1)
    out, err = capsys.readouterr()
    assert not out and "2/2" in err and "ETA" in err


def test_progress_is_plain_lines_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr("sfumato.progress.SECONDS_BETWEEN_LINES", 0.0)
    with bar("images", 4, quiet=False) as advance:
        advance(1)
        advance(3)
    with bar("images", 4, quiet=True) as advance:
        advance(1)
    out, err = capsys.readouterr()
    assert not out and re.fullmatch(r"1/4 images  ETA \d+\.\d min\n", err)


def test_many_small_operations_run_in_one_thread(tmp_path, monkeypatch):
    from sfumato.corruption import select
    from sfumato.threads import threads

    seen, chosen = [], select.select
    monkeypatch.setattr(
        select, "select", lambda *given: (seen.append(torch.get_num_threads()), chosen(*given))[1]
    )
    with threads(2):
        for i, more in enumerate(([], ["--threads", "2"])):
            words = ["select", "soft", "--candidates", "8", "--levels", "4", "--quiet"]
            assert main([*words, "--out", str(tmp_path / str(i)), *more]) == 0
        assert torch.get_num_threads() == 2
    assert seen == [1, 2]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("tench, Tinca", [0, 0, 0, 0]),
        ("tench", [2, 2, 2, 2]),
        ("tench, Tinca,tench", [0, 2, 0, 2]),
        ("goldfish,tench,Tinca", [1, 0, 1, 0]),
        ("1,0", [1, 0, 1, 0]),
        ("3", [3, 3, 3, 3]),
    ],
)
def test_classes_with_commas_are_named(words, numbers):
    record = SimpleNamespace(classes=("tench, Tinca", "goldfish", "tench", "a 3"))
    model = SimpleNamespace(config=SimpleNamespace(record=record, conditional=True))
    chosen = kinds.several(kinds.TEXT).read(words)
    assert labels(model, chosen, range(4)) == numbers
    assert labels(model, kinds.several(kinds.TEXT).read([words]), range(4)) == numbers


def test_a_class_that_is_none_is_told():
    record = SimpleNamespace(classes=("tench, Tinca", "goldfish"))
    model = SimpleNamespace(config=SimpleNamespace(record=record, conditional=True))
    with pytest.raises(ValueError, match="no class 'goldfsh'; did you mean 'goldfish'"):
        labels(model, ["tench", "Tinca", "goldfsh"], range(4))
