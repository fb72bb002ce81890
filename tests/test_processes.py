"""Work that several processes share gives what one gives, and goes on where it was cut."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sfumato as sf
from sfumato import cli, files
from sfumato.cli import main
from sfumato.evaluation import blocks, samples
from sfumato.notes import Note
from sfumato.processes import Processes, here

SIZE = ("--width", "8", "--multipliers", "1", "--patch", "1", "--preview-every", "0")
FEW = ("--sampler", "ddim", "--steps", "2", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model") / "run"
    told = ["train", "ddpm", *SIZE, "--batch", "8", "--images", "8", "--quiet", "--device", "cpu"]
    assert main([*told, "--out", str(out)]) == 0
    return out


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(samples, "BLOCK", 7)


def run(*words: object) -> int:
    return main([str(word) for word in words])


def as_one_of(monkeypatch, index: int, count: int) -> None:
    monkeypatch.setenv("RANK", str(index))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("LOCAL_RANK", str(index))


def test_processes_are_those_of_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert here() == Processes(0, 1, 0) and here().first
    as_one_of(monkeypatch, 2, 3)
    assert here() == Processes(2, 3, 2) and not here().first
    monkeypatch.setenv("RANK", "none")
    assert here() == Processes()
    as_one_of(monkeypatch, 3, 1)
    with pytest.raises(sf.Refused, match="RANK=3 is no index of WORLD_SIZE=1 processes"):
        here()


def number(first: int) -> dict[str, np.ndarray]:
    return {"x": np.array(first)}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_block_is_computed_once(tmp_path, monkeypatch, count):
    """By the process whose turn it is; the first reads all in order, even those that come late."""
    made: list[tuple[int, int]] = []
    keep = blocks.Blocks(tmp_path)

    def make(first: int) -> dict[str, np.ndarray]:
        made.append((here().index, first))
        return {"x": np.array([first])}

    def share(index: int) -> list[int]:
        as_one_of(monkeypatch, index, count)
        return [int(part["x"][0]) for part in blocks.every(keep, {}, range(0, 40, 10), make)]

    late = {index: share(index) for index in range(1, count)}
    assert share(0) == [0, 10, 20, 30]
    assert sorted(made, key=lambda pair: pair[1]) == [(i % count, 10 * i) for i in range(4)]
    assert sorted(first for found in late.values() for first in found) == [
        10 * i for i in range(4) if i % count
    ]


def test_the_first_process_waits_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "PAUSE", 0.01)
    as_one_of(monkeypatch, 0, 2)
    keep = blocks.Blocks(tmp_path)
    parts = blocks.every(keep, {}, [0, 1], number)
    path = blocks._path(keep.folder({}), 1)
    timer = threading.Timer(0.3, lambda: files.write_arrays({"x": np.array(1)}, path))
    timer.start()
    assert [int(part["x"]) for part in parts] == [0, 1]


def test_the_first_process_does_the_part_of_one_that_is_gone(tmp_path, monkeypatch):
    """After a wait for its first block, and at once for the others."""
    monkeypatch.setattr(blocks, "WAIT", 0.02)
    monkeypatch.setattr(blocks, "SLOW", 0.0)
    monkeypatch.setattr(blocks, "PAUSE", 0.01)
    as_one_of(monkeypatch, 0, 2)
    with pytest.warns(Note, match="process 1 of 2 has ended or is slow") as told:
        parts = blocks.every(blocks.Blocks(tmp_path), {}, range(6), number)
        assert [int(part["x"]) for part in parts] == [*range(6)]
    assert len(told) == 1


def test_a_process_after_the_first_one_is_done_computes_nothing(tmp_path, monkeypatch):
    """One that begins late, and one that is at its first block then; the last removes the mark."""
    monkeypatch.setattr(blocks, "WAIT", 0.02)
    monkeypatch.setattr(blocks, "PAUSE", 0.01)
    out = tmp_path / "x.npz"
    as_one_of(monkeypatch, 1, 3)
    slow = blocks.every(blocks.beside(out), {}, range(9), number)
    assert int(next(slow)["x"]) == 1
    as_one_of(monkeypatch, 0, 3)
    keep = blocks.beside(out)
    with pytest.warns(Note):
        assert len([*blocks.every(keep, {}, range(9), number)]) == 9
    keep.forget()
    assert not [*tmp_path.rglob("*.npz")]
    as_one_of(monkeypatch, 1, 3)
    assert [*slow] == []
    as_one_of(monkeypatch, 2, 3)
    assert [*blocks.every(blocks.beside(out), {}, range(9), number)] == []
    assert [*tmp_path.iterdir()] == []


def test_a_process_that_is_overtaken_stores_nothing(tmp_path, monkeypatch):
    """All have begun, and the first is done and has removed the blocks while one is computed."""
    out = tmp_path / "x.npz"

    def make(first: int) -> dict[str, np.ndarray]:
        as_one_of(monkeypatch, 0, 2)
        blocks.forget(keep.folder({}))
        as_one_of(monkeypatch, 1, 2)
        return number(first)

    as_one_of(monkeypatch, 1, 2)
    keep = blocks.beside(out)
    assert len([*blocks.every(keep, {}, range(9), make)]) == 1
    assert [*tmp_path.iterdir()] == []


def test_a_resumed_process_knows_how_long_its_blocks_took(tmp_path, monkeypatch):
    """A block that takes as long as those which were read is waited for."""
    monkeypatch.setattr(blocks, "WAIT", 0.0)
    monkeypatch.setattr(blocks, "PAUSE", 0.01)
    keep = blocks.Blocks(tmp_path)
    as_one_of(monkeypatch, 0, 2)

    def slow(first: int) -> dict[str, np.ndarray]:
        time.sleep(0.1)
        return number(first)

    next(blocks.every(keep, {}, [0, 1], slow))
    path = blocks._path(keep.folder({}), 1)
    threading.Timer(0.2, lambda: files.write_arrays(number(1), path)).start()
    parts = blocks.every(keep, {}, [0, 1], lambda first: pytest.fail("computed again"))
    assert [{name: int(x) for name, x in part.items()} for part in parts] == [{"x": 0}, {"x": 1}]


def test_only_the_own_blocks_are_forgotten(tmp_path):
    out = tmp_path / "x.npz"
    mine, other = blocks.beside(out), blocks.beside(out)
    for keep, seed in ((mine, 0), (other, 1)):
        assert len([*blocks.every(keep, {"seed": seed}, [0], number)]) == 1
    (mine.home / "notes.txt").write_text("of the user")
    mine.forget()
    assert sorted(path.name for path in mine.home.rglob("*.*")) == ["00000000.npz", "notes.txt"]
    (mine.home / "notes.txt").unlink()
    other.forget()
    assert [*tmp_path.iterdir()] == []


def test_the_key_is_computed_once(tmp_path, monkeypatch):
    """The seeds in it may be many."""
    calls = []
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (calls.append(a), dumps(*a, **k))[1])
    assert len([*blocks.every(blocks.Blocks(tmp_path), {}, range(5), number)]) == 5
    assert len(calls) == 1


def test_blocks_of_another_precision_are_not_taken(model, tmp_path, monkeypatch, small):
    """Nor those of another device or version, which are beside it in the key."""
    out = tmp_path / "x.npz"
    as_one_of(monkeypatch, 1, 2)  # leaves its blocks, and writes no output
    words = ("sample", model, "--seeds", "0-13", *FEW, "--out", out)
    for dtype in ("bfloat16", "float32"):
        assert run(*words, "--dtype", dtype) == 0
    assert len([*blocks.beside(out).home.rglob("*.npz")]) == 2
    drawing = samples.Drawing(sf.from_pretrained(model), 1, sf.Sampler("ddim", 2))
    known = {"dtype": "float32", "device": "cpu", "sfumato": sf.__version__}
    assert known.items() <= drawing.key().items()


OUTPUTS = ("x.npz", "folder")


def content(out: Path) -> np.ndarray:
    if out.suffix:
        return np.load(out)["images"]
    return np.stack([np.asarray(Image.open(path)) for path in sorted(out.iterdir())])[..., None]


@pytest.mark.parametrize("out", OUTPUTS)
def test_many_samples_are_those_of_few(model, tmp_path, monkeypatch, out):
    """In blocks of 7 and in one: the same bytes and names, and no file beside them."""
    words = ("sample", model, "--seeds", "3-25", "--batch", 7, *FEW)
    assert run(*words, "--out", tmp_path / "one" / out) == 0
    monkeypatch.setattr(samples, "BLOCK", 7)
    assert run(*words, "--out", tmp_path / "many" / out) == 0
    found, expected = (content(tmp_path / name / out) for name in ("many", "one"))
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert [path.name for path in (tmp_path / "many").iterdir()] == [out]
    if not Path(out).suffix:
        names = [path.name for path in sorted((tmp_path / "many" / out).iterdir())]
        assert names == [f"{seed:06d}.png" for seed in range(3, 26)]


def test_an_interrupted_sample_goes_on(model, tmp_path, monkeypatch, small):
    words = ("sample", model, "--seeds", "0-20", *FEW, "--out", tmp_path / "x.npz")
    calls = []
    plain = sf.Model.sample

    def stopping(self, seeds, *args, **given):
        calls.append(list(seeds))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, seeds, *args, **given)

    monkeypatch.setattr(sf.Model, "sample", stopping)
    assert run(*words) == 130
    assert not (tmp_path / "x.npz").exists()
    assert run(*words) == 0
    assert [seeds[0] for seeds in calls] == [0, 7, 7, 14]
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_other_samples_do_not_take_the_blocks_of_an_interrupted_one(model, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "BLOCK", 7)
    out = tmp_path / "x.npz"
    as_one_of(monkeypatch, 1, 2)  # leaves its blocks, and writes no output
    assert run("sample", model, "--seeds", "0-20", *FEW, "--out", out) == 0
    monkeypatch.delenv("RANK")
    assert len([*blocks.beside(out).home.rglob("*.npz")]) == 1 and not out.exists()
    assert run("sample", model, "--seeds", "5-25", *FEW, "--out", out) == 0
    expected = sf.from_pretrained(model).sample(range(5, 26), sf.Sampler("ddim", 2), batch=7)
    assert np.abs(np.load(out)["images"].astype(int) - samples.to_uint8(expected)).max() <= 1


VERBS = {
    "sample": ("--seeds", "0-30", "--out", "s.npz", *FEW),
    "evaluate": ("--n", "31", "--extractor", "pca", "--out", "e.json", *FEW),
    "likelihood": ("--n", "9", "--batch", "2", "--by", "bound", "--draws", "3", "--steps", "9"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_two_processes_give_what_one_gives(model, tmp_path, monkeypatch, verb):
    """Started as torchrun starts them; only the first prints, and both end."""
    monkeypatch.chdir(tmp_path)
    words = [verb, str(model), *VERBS[verb]]
    if verb == "likelihood":
        words += ["--out", "l.json", "--threads", "1", "--device", "cpu"]
    script = (
        "import sys, sfumato.evaluation.samples as s; s.BLOCK = 7; "
        "from sfumato.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    outputs = {}
    for count in (1, 2):
        home = tmp_path / str(count)
        home.mkdir()
        started = []
        for index in range(count):
            told = {"RANK": str(index), "WORLD_SIZE": str(count), "LOCAL_RANK": str(index)}
            environment = {**os.environ, **told, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", script, *words]
            started.append(subprocess.Popen(command, cwd=home, env=environment))
        assert [one.wait(120) for one in started] == [0] * count
        (out,) = home.iterdir()
        outputs[count] = out
    one, two = outputs[1], outputs[2]
    assert one.name == two.name
    if verb == "sample":
        assert np.array_equal(np.load(one)["images"], np.load(two)["images"])
        return
    known, found = (json.loads(path.read_text()) for path in (one, two))
    for record in (known, found):
        for row in record.get("results", ()):
            row.pop("seconds_per_image")
    assert known == found


@pytest.mark.slow
def test_processes_without_a_gpu_train_together(tmp_path):
    """Without --device, too: one run of the whole batch, of which the first alone tells."""
    port = str(free())
    started = []
    for index in range(2):
        told = {"RANK": str(index), "WORLD_SIZE": "2", "LOCAL_RANK": str(index)}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, **told, "OMP_NUM_THREADS": "1"}
        words = ("train", "ddpm", *SIZE, "--batch", "8", "--images", "16", "--out", "run")
        command = [sys.executable, "-m", "sfumato", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
    outs = [one.communicate(timeout=120) for one in started]
    assert [one.returncode for one in started] == [0, 0], outs
    assert "run: checkpoints/" in outs[0][0] and not outs[1][0]
    events = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event.get("event") == "started"] == [0]
    assert [event["images"] for event in events if "images" in event] == [16]


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (2, {"batch": "7"}),
        (2, {"MASTER_ADDR": ""}),
    ],
)
def test_what_processes_cannot_share_is_refused_at_once(tmp_path, monkeypatch, capsys, count, told):
    """Before any waits for another, which is never started here."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": str(count), "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    words = ("train", "ddpm", *SIZE, "--batch", told.get("batch", "8"), "--images", "16")
    assert run(*words, "--device", "cpu", "--quiet", "--out", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ("Use a multiple of 2" if "batch" in told else "set MASTER_ADDR") in line
    assert not (tmp_path / "run").exists()


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_processes_share_a_likelihood_by_files_alone(model, monkeypatch, capsys):
    as_one_of(monkeypatch, 0, 2)
    assert run("likelihood", model, "--device", "cpu") == 2
    assert "2 processes share a measurement by files: give --out" in capsys.readouterr().err


def test_rows_are_written_as_one_array(tmp_path):
    parts = [np.arange(6).reshape(2, 3), np.arange(9).reshape(3, 3)]
    files.write_rows("x", parts, 5, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        assert found.files == ["x"] and np.array_equal(found["x"], np.concatenate(parts))
    for count in (4, 6):
        with pytest.raises(sf.Refused, match=f"5 rows came, where {count} were announced"):
            files.write_rows("x", parts, count, tmp_path / "y.npz")
    with pytest.raises(sf.Refused, match="there are no rows"):
        files.write_rows("x", [], 4, tmp_path / "y.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_refused_sample_sweeps_nothing_and_an_accepted_one_its_own(model, tmp_path, capsys):
    """Parts of pictures of another command, which may be writing them now, stay."""
    own, others = tmp_path / ".000000.png.abcd.part", tmp_path / ".000009.png.abcd.part"
    for path in (own, others):
        path.write_bytes(b"half")
    (tmp_path / "cat.png").write_bytes(b"of the user")
    words = ("sample", model, "--seeds", "0-1", *FEW, "--out", tmp_path)
    assert run(*words) == 2 and "holds other images" in capsys.readouterr().err
    assert own.exists() and others.exists()
    (tmp_path / "cat.png").unlink()
    assert run(*words) == 0
    assert not own.exists() and others.exists()


def launches() -> list[str]:
    """The lines of the pages that start processes, whole."""
    pages = [*(Path(__file__).parents[1] / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(pages))
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(\S+=\S+ )*(torchrun|accelerate launch) ", line)]


@pytest.mark.parametrize("line", launches())
def test_launchers_take_the_lines_of_the_pages(line):
    """By their own parsers: an option of ours that one of them takes for its own stops it."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    words = shlex.split(line.replace("$NODE", "0"), comments=True)
    first = next(i for i, word in enumerate(words) if word in ("torchrun", "accelerate"))
    torchrun = words[first] == "torchrun"
    parser = get_args_parser() if torchrun else launch_command_parser()
    told = parser.parse_args(words[first + (1 if torchrun else 2) :])
    assert told.module and told.training_script == "sfumato"
    rest = told.training_script_args
    assert [*rest] == words[words.index("sfumato") + 1 :] and rest[0] in cli.VERBS
