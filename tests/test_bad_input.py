"""What a user may get wrong: one line on standard error, exit code 2, and nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sfumato.cli import main
from sfumato.errors import Refused
from sfumato.names import choose

TINY = ("--width", "8", "--multipliers", "1", "--batch", "32", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of one step."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    words = ("train", "soft", "--steps", "2", "--images", "32", "--preview-every", "0")
    assert main([*words, "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Runs a command in an empty folder that must be refused; returns the sentence."""
    monkeypatch.chdir(tmp_path)

    def check(*words: object) -> str:
        before = tree(tmp_path)
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("sfumato: ") and err.endswith((".\n", "?\n"))
        assert err.count("\n") == 1, err
        assert tree(tmp_path) == before
        return err.removeprefix("sfumato: ").rstrip("\n")

    return check


DATA = "~nobody-of-this-name/photos"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "ddpm", "--data", DATA, "--out", "x"),
        ("train", "ddpm", "--data", f"{DATA}/{{0..1}}.tar", "--out", "x"),
        ("train", "ddpm", "--data", f"hf:{DATA}", "--out", "x"),
        ("train", "ddpm", "--config", DATA, "--out", "x"),
        ("sample", DATA, "--out", "x.png"),
        ("sample", "fashion-soft", "--out", DATA),
        ("restore", "fashion-soft", DATA, "--operator", "blur:sigma=2"),
    ],
    ids=" ".join,
)
def test_a_home_that_is_not_there_is_said(refused, words):
    if "hf:" in " ".join(words):
        pytest.importorskip("datasets")
    assert DATA in refused(*words)


def test_a_name_that_is_not_utf_8_is_refused(refused):
    assert "no name in UTF-8" in refused("train", "ddpm", *TINY, "--out", os.fsdecode(b"x\xff"))


def tree(root: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


def test_choose_gives_the_entry_or_the_name_that_was_meant():
    assert choose("size", "small", {"small": 1, "large": 2}) == 1
    assert choose("size", "small", ("small", "large")) == "small"
    for known in ({"small": 1, "large": 2}, ("small", "large")):
        with pytest.raises(Refused, match=r"no size 'smal'; did you mean 'small'\?"):
            choose("size", "smal", known)
        with pytest.raises(ValueError, match=r"no size 'x'; choose from small, large\."):
            choose("size", "x", known)
        with pytest.raises(Refused, match=r"no size 'x'; see --help\."):
            choose("size", "x", known, "see --help.")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("smaple runs/a", "no verb 'smaple'; did you mean 'sample'?"),
        ("train sfot", "no method 'sfot'; did you mean 'soft'?"),
        ("cite dpm", "no method 'dpm'; did you mean 'ddpm'?"),
        ("show sfot", "no method or run 'sfot'; did you mean 'soft'?"),
        ("train soft --imags 3", "no option '--imags'; did you mean '--images'?"),
        ("train ddpm --xyz 1,2", "no option '--xyz'; see sfumato train ddpm --help."),
        ("train soft --learning_rate=1", "did you mean '--learning-rate'?"),
        ("train soft --epochs 3", "no option '--epochs'; training is counted in images: use --im"),
        ("train soft --max_steps=3", "use --images N, which is steps times --batch."),
        ("train soft --resume", "no option '--resume'; the same command resumes a run; --from RUN"),
        ("train soft --lr 1e-4", "no option '--lr'; use --learning-rate X."),
        ("sample r --num-samples 9", "use --seeds 0-63: one image for each."),
        ("sample r --resume", "no option '--resume'; did you mean '--sampler'?"),
        ("sample r --sed 3", "no option '--sed'; did you mean '--seeds'?"),
        ("train soft --data digit", "no data set 'digit'; did you mean 'digits'?"),
        ("show soft --data foto", "no data set 'foto'; did you mean 'photos'?"),
        ("sample r --sampler ddmi", "no sampler 'ddmi'; did you mean 'ddim'?"),
        ("sample r --sampler ddim:eat=1", "sampler ddim takes eta; got 'eat=1'."),
        ("sample r --sampler ddim:eta=x", "sampler ddim needs a number for eta; got 'x'."),
        ("sample r --sampler ddim:eta=2", "ddim needs eta in [0, 1]; got 2."),
        ("train ddpm --betas cosin", "--betas takes linear, cosine; got 'cosin'."),
        ("train soft --dtype half", "--precision takes auto, float32, bfloat16; got 'half'."),
        ("train soft --device gpu", "--device takes auto, cpu, cuda, mps; got 'gpu'."),
        ("train", "train needs a method first, as in sfumato train soft; there are ddpm, ddim,"),
        ("train --images 3", "train needs a method first"),
        ("show", "show needs a method or a run first"),
        ("sample", "sample needs a run or a model's name"),
        ("cite", "cite needs a method"),
        ("train soft digits", "train soft does not take 'digits'."),
        ("methods soft", "methods does not take 'soft'."),
        ("train soft --images", "--images needs a value."),
        ("train soft --blur 1", "--blur needs 2 values, X,X; got 1."),
        ("train soft --blur 1,x", "--blur needs a number; got 'x'."),
        ("train soft --width 7", "width must be a multiple of 8; got 7."),
        ("train soft --blur 0,0.3", "blur goes from a small to a large level; got 0, 0.3."),
        ("train own.py:f", "no file 'own.py' for the method own.py:f."),
        ("sample r --method own.py:f", "no file 'own.py' for the method own.py:f."),
        ("sample r", "no model at r"),
        ("show soft --out a.npz", "a strip is one picture, --out NAME.png; got a.npz."),
        ("show soft --frames 1 --rows 1", "a strip needs two frames or more; got 1."),
        ("show soft nothing.png", "there is no image nothing.png."),
    ],
)
def test_unknown_words(refused, words, sentence):
    assert sentence in refused(*words.split())


@pytest.mark.parametrize("name", ["images", "batch", "accumulate", "checkpoint-every", "keep"])
@pytest.mark.parametrize("value", [0, -3])
def test_training_counts_are_one_or_more(refused, name, value):
    sentence = refused("train", "soft", f"--{name}", value)
    assert sentence == f"{name.replace('-', '_')} must be 1 or more; got {value}."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train soft --seed -1", "seed must be 0 or more; got -1."),
        ("train soft --images 1.5", "--images needs a whole number; got '1.5'."),
        ("train soft --learning-rate 0", "learning_rate must be positive and finite; got 0."),
        ("train soft --learning-rate inf", "--learning-rate needs a finite number; got 'inf'."),
        ("train soft --weight-decay inf", "--weight-decay needs a finite number; got 'inf'."),
        ("train soft --clip -1", "clip must be 0 or more and finite; got -1."),
        ("train soft --warmup -0.1", "warmup must be 0 or more and finite; got -0.1."),
        ("train soft --beta2 1", "beta2 must lie in [0, 1); got 1."),
        ("train soft --learning-rate nan", "--learning-rate needs a number; got 'nan'."),
        ("train soft --batch 10 --accumulate 3", "batch 10 does not split into 3 equal parts."),
        ("sample r --steps 0", "--steps must be 1 or more; got 0."),
        ("sample r --steps -5", "--steps must be 1 or more; got -5."),
        ("sample r --batch 0", "--batch must be 1 or more; got 0."),
        ("sample r --seeds -1", "--seeds needs numbers of 0 or more such as 0-3,8; got '-1'."),
        ("sample r --seeds 5-3", "--seeds needs ranges that rise; got '5-3'."),
        ("sample r --seeds 9223372036854775808", "--seeds needs numbers below 2^63; got"),
        ("sample r --seeds 1,,2", "--seeds needs numbers of 0 or more such as 0-3,8; got '1,,2'."),
        ("show soft --seed -1", "--seed must be 0 or more; got -1."),
        ("show soft --rows 0", "--rows must be 1 or more; got 0."),
    ],
)
def test_numbers_out_of_range(refused, words, sentence):
    assert refused(*words.split()).startswith(sentence)


def test_counts_of_a_method_are_in_range(refused):
    sentence = refused("train", "soft", "--steps", 0, "--images", 32, "--out", "new", *TINY)
    assert sentence == "a sampler needs one step or more; got 0."
    linear = "the length of a linear chain must be 21 or more"
    assert linear in refused("train", "ddpm", "--length", 0, *TINY)
    assert "memory must be 0 or more" in refused("train", "soft", "--memory", -1, *TINY)
    assert linear in refused("train", "ni-ddpm", "--length", 0, *TINY)
    assert "bands are from 1 to the 64" in refused("train", "vdm", "--bands", -1, *TINY)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("imags: 3", "--config: no option 'imags'; did you mean 'images'?"),
        ("images: many", "images needs a whole number; got 'many'."),
        ("compile: perhaps", "compile needs true or false; got 'perhaps'."),
        ("- images", "--config it.yaml holds no table of options."),
        ("a: [", "--config it.yaml cannot be read: while parsing a flow node"),
        ("quiet: true", "--config: no option 'quiet'"),
    ],
)
def test_config_files(refused, tmp_path, text, sentence):
    (tmp_path / "it.yaml").write_text(text)
    assert sentence in refused("train", "soft", "--config", "it.yaml")
    assert "cannot be read: No such file" in refused("train", "--config", "no.yaml")


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def truncated(path: Path) -> None:
    picture(path, (64, 64))
    path.write_bytes(path.read_bytes()[:500])


def other(path: Path) -> None:
    path.write_text("not an image")


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (None, "folder data has no images"),
        (truncated, "data/b.png cannot be read as an image"),
        (other, "data/b.png is not an image"),
        (lambda path: picture(path, (8, 9)), "images must have one size; in data, a.png is 8 x 8"),
    ],
    ids=["empty", "truncated", "other", "sizes"],
)
@pytest.mark.parametrize("verb", ["train", "show"])
def test_folders_of_images(refused, tmp_path, verb, fill, sentence):
    (tmp_path / "data").mkdir()
    if fill is not None:
        picture(tmp_path / "data" / "a.png")
        fill(tmp_path / "data" / "b.png")
    assert sentence in refused(verb, "soft", "--data", "data")


def test_one_image_that_is_none(refused, tmp_path):
    other(tmp_path / "a.png")
    assert "a.png is not an image" in refused("show", "soft", "a.png")
    truncated(tmp_path / "b.png")
    assert "b.png cannot be read" in refused("show", "soft", "b.png")
    assert "is a folder" in refused("show", "soft", ".")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.full((3, 8, 8), np.nan), "has NaN or infinite values"),
        (np.full((3, 8, 8), 7.0), "has values from 7 to 7"),
        (np.full((3, 8, 8), 70000), "has whole numbers from 70000 to 70000"),
        (np.full((3, 8, 8), -1), "has whole numbers from -1 to -1"),
        (np.zeros((3, 1, 8, 8)), "channels come last"),
        (np.zeros((0, 8, 8)), "at least one"),
        (np.full((3, 8, 8), "x"), "must hold numbers"),
        (np.zeros(8), "must hold images"),
    ],
)
def test_arrays(refused, tmp_path, values, sentence):
    np.save(tmp_path / "a.npy", values)
    assert sentence in refused("train", "soft", "--data", "a.npy")
    np.savez(tmp_path / "a.npz", other=values)
    assert "has no array by the name images" in refused("train", "soft", "--data", "a.npz")


def test_data_without_classes(refused, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8)))
    sentence = refused("train", "soft", "--data", "a.npy", "--conditional")
    assert sentence == "a.npy has no classes; train without --conditional."


def test_files_that_hold_no_data(refused, tmp_path):
    (tmp_path / "a.npy").write_bytes(b"nothing")
    assert "cannot be read as arrays" in refused("train", "soft", "--data", "a.npy")
    (tmp_path / "a.txt").write_text("text")
    assert "a.txt is no data set" in refused("train", "soft", "--data", "a.txt")
    assert refused("train", "soft", "--data", "./no") == "there is no folder or file ./no."


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return apply


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")


def rename(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["mine"] = tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "model.safetensors")


def stats(folder: Path) -> None:
    save_file({"mine": torch.zeros(3)}, folder / "facts.safetensors")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (cut("model.safetensors"), "model.safetensors is truncated or not a safetensors file"),
        (cut("facts.safetensors"), "facts.safetensors is truncated or not a safetensors file"),
        (cut("config.json"), "config.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing."),
        (lambda folder: edit(folder, format=99), "has format 99; this version of sfumato reads"),
        (lambda folder: edit(folder, network={"width": 16}), "does not fit the network"),
        (lambda folder: edit(folder, network={"wide": 16}), "wrong or missing field"),
        (lambda folder: edit(folder, method="sfot"), "no method 'sfot'; did you mean 'soft'?"),
        (lambda folder: edit(folder, parameters={"blurr": 1}), "method soft: "),
        (lambda folder: edit(folder, record={"name": "x"}), "a data record needs the field"),
        (reshape, "does not fit the network: "),
        (rename, "does not fit the network: "),
        (stats, "facts.safetensors"),
    ],
)
def test_checkpoints(refused, tmp_path, trained, harm, sentence):
    shutil.copytree(next((trained / "checkpoints").iterdir()), tmp_path / "model")
    harm(tmp_path / "model")
    assert sentence in refused("sample", "model", "--seeds", 0)
    assert sentence in refused("show", "model", "--seeds", 0)


def test_a_model_refuses_what_it_cannot_do(refused, trained):
    assert "has no classes" in refused("sample", trained, "--classes", 1)
    own = "--method", trained / "own.py:f"
    assert "no file" in refused("sample", trained, *own)
    if not torch.cuda.is_available():
        assert "there is no device cuda here" in refused("sample", trained, "--device", "cuda")
        assert "there is no device cuda here" in refused("train", "soft", "--device", "cuda")


def test_a_model_that_needs_no_method_refuses_one(refused, trained, tmp_path):
    (tmp_path / "own.py").write_text("def f(shape, stats=None): ...\n")
    sentence = refused("sample", trained, "--method", "own.py:f")
    assert sentence == f"{trained} was trained by soft; leave --method out."


def test_files_of_methods(refused, tmp_path):
    (tmp_path / "own.py").write_text("def f(:\n")
    assert "own.py is not Python" in refused("train", "own.py:f")
    (tmp_path / "own.py").write_text("x = 3\n")
    assert refused("train", "own.py:f") == "own.py defines no function 'f'."
    (tmp_path / "own.py").write_text("def f(shape, stats=None, *, a: int): ...\n")
    assert refused("train", "own.py:f") == "train own.py:f needs --a."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--seed", 1), "options.seed is 0, here 1"),
        (("--blur", "0.01,0.3"), "model.parameters.blur is None, here [0.01, 0.3]"),
        (("--data", "photos"), "model.record."),
        (("--width", 16), "model.network.width is 8, here 16"),
    ],
)
def test_a_run_folder_of_another_configuration(refused, tmp_path, trained, words, sentence):
    shutil.copytree(trained, tmp_path / "run")
    same = ("train", "soft", "--steps", 2, "--images", 32, "--preview-every", 0, "--out", "run")
    found = refused(*same, *TINY, *words)
    assert found.startswith("run belongs to another run: ") and sentence in found


def test_a_folder_that_is_no_run(refused, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    sentence = refused("train", "soft", "--images", 32, "--out", "full", *TINY)
    assert "full is not empty and holds no run" in sentence


@pytest.mark.parametrize("name", ["file", "file/grid.png", "file/deep/images.npz", "a.jpg"])
def test_unwritable_outputs_of_sampling(refused, tmp_path, trained, name):
    (tmp_path / "file").write_text("a file, not a folder")
    assert "cannot write" in refused("sample", trained, "--seeds", 0, "--out", name)


def test_a_folder_of_other_images_is_not_mixed_with(refused, tmp_path, trained):
    picture(tmp_path / "many" / "000100.png")
    sentence = refused("sample", trained, "--seeds", "0-3", "--out", "many")
    assert sentence.startswith("many holds other images, such as 000100.png, which would mix")
    words = ["sample", str(trained), "--steps", "2", "--quiet", "--out", "many", "--seeds"]
    assert main([*words, "100"]) == 0  # the same name is written over
    assert main([*words, "99-100"]) == 0


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_unwritable_outputs_of_training(refused, tmp_path, out):
    (tmp_path / "file").write_text("a file, not a folder")
    assert "cannot write" in refused("train", "soft", "--images", 32, "--out", out, *TINY)
    assert "cannot write" in refused("show", "soft", "--out", "file/strip.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_without_permission(refused, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "cannot write" in refused("train", "soft", "--images", 32, "--out", "shut/run", *TINY)
