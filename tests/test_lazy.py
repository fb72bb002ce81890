"""Data that are read as they are needed give what data in memory give; the order of both."""

import dataclasses
import json
import math
import multiprocessing
import os
import pickle
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import sfumato as sf
from sfumato.cli import main
from sfumato.training import arrays, data, draws, items, lazy, loader
from sfumato.training.lazy import Lazy, Stored
from sfumato.training.options import TrainOptions
from sfumato.training.order import permuted


@pytest.mark.parametrize("count", [*range(1, 70), 255, 256, 257, 1500, 60_000])
def test_an_order_has_each_row_once(count):
    found = permuted(np.arange(count), count, 11)
    assert sorted(found.tolist()) == list(range(count))
    some = np.array([count - 1, 0, count // 2])
    assert np.array_equal(permuted(some, count, 11), found[some])


@pytest.mark.parametrize("count", [5, 7, 16, 100])
def test_orders_of_many_keys_are_uniform(count):
    """Rows at two places, and how far apart they are: chi^2 tests at 1e-4 over 2,000 keys."""
    rows = np.stack([permuted(np.array([0, 1]), count, key) for key in range(2_000)])
    for values, possible in (
        (rows[:, 0], count),
        (rows[:, 1], count),
        ((rows[:, 1] - rows[:, 0]) % count - 1, count - 1),
    ):
        counts = np.bincount(values, minlength=possible)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_an_order_has_no_trend():
    """Rows at neighbouring places are uncorrelated, as those of a random permutation."""
    count = 4_096
    for key in range(20):
        rows = permuted(np.arange(count), count, key)
        for lag in (0, 1, 2, 64):
            other = np.arange(count) if not lag else np.roll(rows, lag)
            assert abs(np.corrcoef(rows, other)[0, 1]) < 5 / math.sqrt(count)


def pictures(home: Path, mode: str) -> Path:
    """30 PNGs of 9 x 7 pixels in two classes, of 8-bit gray or colour or 16-bit gray."""
    generator = np.random.default_rng(0)
    for i in range(30):
        folder = home / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        if mode == "deep":
            image = Image.fromarray(generator.integers(0, 65536, (9, 7)).astype(np.uint16))
        else:
            shape = (9, 7, 3) if mode == "colour" else (9, 7)
            image = Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8))
        image.save(folder / f"{i:02}.png")
    return home


def stored(home: Path, kind: str) -> Path:
    generator = np.random.default_rng(1)
    values = {
        "bytes": lambda: generator.integers(0, 256, (30, 9, 7, 3)).astype(np.uint8),
        "gray": lambda: generator.integers(0, 256, (30, 9, 7)).astype(np.int32),
        "floats": lambda: generator.uniform(0, 1.001, (30, 9, 7, 1)),
        "signals": lambda: generator.standard_normal((30, 50)),
    }[kind]()
    np.save(home / "x.npy", values)
    return home / "x.npy"


SOURCES = {
    **{f"folder-{mode}": (pictures, mode) for mode in ("gray", "colour", "deep")},
    **{f"npy-{kind}": (stored, kind) for kind in ("bytes", "gray", "floats", "signals")},
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path) -> Path:
    make, kind = SOURCES[request.param]
    return make(tmp_path / "data" if make is pictures else tmp_path, kind)


def read(monkeypatch, source: Path, lazy: bool, **how) -> sf.Data:
    for module in (items, arrays):
        monkeypatch.setattr(module, "LARGEST", 0 if lazy else 2**30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sf.load(source, **how)
    assert isinstance(found.images, Lazy) == lazy
    return found


def same(a: sf.Data, b: sf.Data) -> None:
    """Equal but for the hash, which is of the files of one and of the values of the other."""
    assert dataclasses.replace(a.record, sha256="") == dataclasses.replace(b.record, sha256="")
    rows = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    assert torch.equal(a.batch(rows), b.batch(rows))
    classes = a.classes(rows), b.classes(rows)
    assert classes == (None, None) or torch.equal(*classes)


def test_lazy_data_are_those_in_memory(source, monkeypatch):
    both = [read(monkeypatch, source, lazy) for lazy in (True, False)]
    same(*both)
    for name, value in both[0].stats().tensors().items():
        assert torch.equal(value, both[1].stats().tensors()[name]), name
    assert len({one.record.sha256 for one in both}) == 2


def test_slices_sizes_and_mirrors_of_lazy_data(source, monkeypatch):
    part = [read(monkeypatch, source, lazy, split="train[4:21]") for lazy in (True, False)]
    same(*part)
    assert part[0].record.sha256 != read(monkeypatch, source, True).record.sha256
    if part[0].record.pictures:
        for how in ({"resize": 5}, {"resize": 12, "crop": "none"}):
            same(*(read(monkeypatch, source, lazy, **how).mirrored() for lazy in (True, False)))


def test_a_lazy_array_is_sent_to_another_process(source, monkeypatch):
    found = read(monkeypatch, source, True)
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.batch([3, 0]), found.batch([3, 0]))


def test_a_hash_needs_no_image(tmp_path, monkeypatch):
    """The hash of a folder changes with a file's size or name, and not with its place."""
    first = read(monkeypatch, pictures(tmp_path / "x", "gray"), True).record.sha256
    assert read(monkeypatch, pictures(tmp_path / "y", "gray"), True).record.sha256 == first
    path = tmp_path / "y" / "a" / "00.png"
    path.rename(path.with_name("01.png"))
    assert read(monkeypatch, tmp_path / "y", True).record.sha256 != first
    path.with_name("01.png").rename(path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert read(monkeypatch, tmp_path / "y", True).record.sha256 != first


def test_statistics_are_of_so_many_images_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DECODED", 3)
    assert int(read(monkeypatch, pictures(tmp_path / "x", "gray"), True).stats().count) == 3
    whole = sf.load("digits")
    monkeypatch.setattr(data, "MEASURED", 400)
    found = whole.stats()
    assert int(found.count) == 400
    pixels = whole.batch(range(1500)).double()
    error = float(found.spectrum.sum() / pixels.var(0).sum() - 1)
    assert 0 < abs(error) < 0.05


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_read_ahead_are_those_of_the_steps(tmp_path, monkeypatch, workers):
    found = read(monkeypatch, pictures(tmp_path / "x", "colour"), True)
    options = TrainOptions(images=80, batch=8, workers=0)
    ahead = dataclasses.replace(options, workers=workers)
    cpu = torch.device("cpu")
    expected = [*loader.read(found, options, 0, cpu)]
    assert len(expected) == 10
    for first in (0, 7):
        rest = [*loader.read(found, ahead, first, cpu)]
        assert all(torch.equal(a, b) for a, b in zip(rest, expected[first:], strict=True))
    first, second = ([*loader.read(found, ahead, 0, cpu, i, 2)] for i in range(2))
    for one, other, whole in zip(first, second, expected, strict=True):
        assert torch.equal(torch.cat([one, other]), whole)


def test_processes_that_read_outlive_a_signal_to_all(tmp_path, monkeypatch):
    """As a scheduler sends it: the one that trains has yet to save, and stops them itself."""
    found = read(monkeypatch, pictures(tmp_path / "x", "gray"), True)
    options = TrainOptions(images=400, batch=8, workers=2)
    cpu = torch.device("cpu")
    batches = loader.read(found, options, 0, cpu)
    first = [next(batches) for _ in range(2)]  # one of each process, which has begun then
    for process in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process.pid or 0, number)
    expected = [*loader.read(found, dataclasses.replace(options, workers=0), 0, cpu)]
    rest = [*first, *batches]
    assert all(torch.equal(a, b) for a, b in zip(rest, expected, strict=True))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_trained_before_a_bad_file_is_kept(tmp_path, monkeypatch, workers):
    """One that was whole when the data were loaded."""
    home = pictures(tmp_path / "x", "gray")
    found = read(monkeypatch, home, True)
    options = TrainOptions(images=30, batch=1, workers=workers, preview_every=0)
    network = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
    model = sf.build(sf.Config("ddpm", found.record, network=network), found, options)
    row = int(draws.rows(7, found, options))
    (home / sorted(path.relative_to(home) for path in home.rglob("*.png"))[row]).write_bytes(b"")
    with pytest.raises(ValueError, match="is not an image"):
        sf.train(model, found, options, tmp_path / "run", device="cpu")
    assert [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()] == [7]


def test_batches_that_wait_are_bounded(monkeypatch, tmp_path):
    """By bytes, at least one for each process; of several, each reads with its share of cores."""
    found = read(monkeypatch, pictures(tmp_path / "x", "gray"), True)
    size = 8 * 9 * 7
    for room, expected in ((size, 1), (2 * 3 * size, 3), (2**30, 4)):
        monkeypatch.setattr(loader, "WAITING", room)
        assert loader._ahead(found, 8, 2) == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12), raising=False)
    for told, count in (
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 3),
        ({"SLURM_CPUS_PER_TASK": "12"}, 8),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "12"}, 3),
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
                patch.delenv(name, raising=False)
            for name, value in told.items():
                patch.setenv(name, value)
            assert loader.workers(found, TrainOptions(), processes=16) == count


def test_files_are_closed_with_the_arrays_that_read_them(tmp_path):
    path = stored(tmp_path, "bytes")
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        whole = Stored(path)
        part = whole[:10]
        assert np.array_equal(whole[np.arange(3)], part[np.arange(3)])
        del whole
        assert len(part[np.arange(3)]) == 3
        del part
    assert len(os.listdir("/dev/fd")) == before


SIZE = ("--width", "8", "--multipliers", "1", "--patch", "1", "--preview-every", "0")


def test_training_is_the_same_from_files(tmp_path, monkeypatch):
    """In memory, lazily in one process, read ahead by two, and interrupted: the same weights."""
    home = pictures(tmp_path / "x", "gray")
    told = (
        "train",
        "ddpm",
        "--data",
        str(home),
        *SIZE,
        "--batch",
        "8",
        "--images",
        "48",
        "--quiet",
    )
    weights = []
    for largest, workers in ((2**30, "0"), (0, "0"), (0, "2")):
        monkeypatch.setattr(items, "LARGEST", largest)
        out = tmp_path / f"{largest}-{workers}"
        assert main([*told, "--workers", workers, "--out", str(out)]) == 0
        last = max((out / "checkpoints").iterdir())
        weights.append((last / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


def broken(home: Path, kind: str) -> str:
    """Spoil one file, and what is said of it."""
    path = home / "b" / "21.png"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:60])
        return "21.png cannot be read as an image"
    shape = {"size": (9, 8), "colour": (9, 7, 3), "deep": (9, 7)}[kind]
    dtype = np.uint16 if kind == "deep" else np.uint8
    Image.fromarray(np.full(shape, 300 if kind == "deep" else 3).astype(dtype)).save(path)
    return {"size": "is 8 x 9. Use --resize N", "colour": "is in colour", "deep": "has uint16"}[
        kind
    ]


@pytest.mark.parametrize("kind", ["cut", "size", "colour", "deep"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_bad_file_is_named_in_one_line(tmp_path, monkeypatch, capsys, kind, workers):
    """When its batch is read, in whatever process: before anything is trained where it is soon."""
    home = pictures(tmp_path / "x", "gray")
    told = broken(home, kind)
    for module in (items, arrays):
        monkeypatch.setattr(module, "LARGEST", 0)
    monkeypatch.setattr(data, "DECODED", 2)
    out = ("--out", str(tmp_path / "run"), "--workers", workers)
    monkeypatch.setattr(lazy, "LOOK", 2)
    words = ["train", "ddpm", "--data", str(home), *SIZE, "--batch", "30", "--images", "30", *out]
    assert main([*words, "--quiet"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0], lines


def test_stored_arrays_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 5, 5), np.uint8))
    whole = path.read_bytes()
    for content, told in (
        (whole[:-1], "its header asks for 228: it is cut off"),
        (whole + b"\0", "its header asks for 228"),
        (whole[:50], "cannot be read as arrays"),
        (b"no array at all", "cannot be read as arrays"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            Stored(path)
    for values in (np.asfortranarray(np.zeros((4, 5))), np.zeros(()), np.array([{}])):
        np.save(path, values)
        with pytest.raises(ValueError, match="save rows of numbers"):
            Stored(path)


def test_what_is_outside_of_the_range_is_found_when_it_is_read(tmp_path, monkeypatch):
    """Bytes are not looked through first; those of a given range are checked batch by batch."""
    path = stored(tmp_path, "bytes")
    monkeypatch.setattr(arrays, "LARGEST", 0)
    with pytest.raises(ValueError, match="outside of the range 0 to 100"):
        sf.load(path, range=(0, 100))


def test_workers_are_counted(tmp_path, monkeypatch):
    found = read(monkeypatch, pictures(tmp_path / "x", "gray"), True)
    assert loader.workers(found, TrainOptions(workers=3)) == 3
    assert loader.workers(found, TrainOptions()) >= 1
    assert loader.workers(found, TrainOptions(), processes=10**6) == 1
    assert loader.workers(sf.load("digits"), TrainOptions()) == 0
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        TrainOptions(workers=-1)
    with pytest.raises(ValueError, match="100,000,000 steps are more than 99,999,999"):
        TrainOptions(images=10**8, batch=1)


def test_workers_are_no_part_of_a_run(tmp_path):
    told = ["train", "ddpm", *SIZE, "--batch", "8", "--images", "8", "--quiet"]
    assert main([*told, "--out", str(tmp_path)]) == 0
    assert main([*told, "--workers", "1", "--out", str(tmp_path)]) == 0
    assert "workers" in json.loads((tmp_path / "run.json").read_text())["options"]
