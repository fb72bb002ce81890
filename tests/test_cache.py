"""What is kept of large data is what was computed, of these data, whole or not at all."""

import json
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.notes import Note
from sfumato.training import arrays, cache, data, items


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    for module in (items, arrays):
        monkeypatch.setattr(module, "LARGEST", 0)
    return tmp_path / "cache"


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """A number for each time that data are measured."""
    found: list[int] = []
    plain = data.measure

    def counted(*given, **more):
        found.append(len(found))
        return plain(*given, **more)

    monkeypatch.setattr(data, "measure", counted)
    return found


def pictures(home: Path, values: np.ndarray) -> Path:
    """BMPs, whose size says nothing of their content, in two classes."""
    for i, value in enumerate(values):
        folder = home / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(folder / f"{i:02}.bmp")
    return home


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 8, 6)).astype(np.uint8)


def stored(home: Path, values: np.ndarray) -> Path:
    home.mkdir(exist_ok=True)
    np.save(home / "x.npy", values)
    return home / "x.npy"


SOURCES = {"folder": pictures, "npy": stored}


@pytest.fixture(params=SOURCES)
def make(request):
    return SOURCES[request.param]


def same(one: sf.DataStatistics, other: sf.DataStatistics) -> bool:
    rows = one.tensors(), other.tensors()
    return rows[0].keys() == rows[1].keys() and all(
        torch.equal(value, rows[1][name]) and value.dtype == rows[1][name].dtype
        for name, value in rows[0].items()
    )


def test_statistics_are_measured_once(make, tmp_path, passes):
    path = make(tmp_path / "x", noise())
    first = sf.load(path).stats()
    assert same(sf.load(path).stats(), first) and len(passes) == 1
    for other in (sf.load(path).mirrored(), sf.load(path, "train[:8]"), sf.load(path, resize=4)):
        other.stats()
    assert len(passes) == 4


def test_statistics_of_changed_files_are_measured_again(make, tmp_path, passes):
    """Of the same names and sizes, and of rows that the hash does not look at."""
    path = make(tmp_path / "x", noise())
    first = sf.load(path).stats()
    make(tmp_path / "x", 255 - noise(1))
    touched = [*tmp_path.rglob("*.bmp"), *tmp_path.rglob("*.npy")]
    for one in touched:
        os.utime(one, ns=(1, one.stat().st_mtime_ns + 1))
    assert not same(sf.load(path).stats(), first) and len(passes) == 2


def test_other_labels_have_other_statistics(tmp_path, passes):
    """Of the images that a prior remembers, the classes are remembered too."""
    found = sf.load(pictures(tmp_path / "x", noise()))
    first = found.stats()
    turned = sf.Data(found.images, 1 - found.labels, found.record).stats()
    assert len(passes) == 2
    assert torch.equal(first.labels, 1 - turned.labels)


def entry(own: Path) -> Path:
    (folder,) = (path for path in (own / "statistics").iterdir() if path.is_dir())
    return folder


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:90]),
    "flip": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["facts.safetensors", "about.json", "manifest.json"])
def test_a_damaged_entry_is_said_and_made_again(tmp_path, own, passes, name, how):
    path = stored(tmp_path / "x", noise())
    first = sf.load(path).stats()
    DAMAGE[how](entry(own) / name)
    with pytest.warns(Note, match=r"the cache has a damaged entry, made again: .*"):
        assert same(sf.load(path).stats(), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(sf.load(path).stats(), first)
    assert len(passes) == 2


def test_an_entry_of_other_data_is_not_used(tmp_path, own, passes):
    """Not even where it is whole and lies where this one's would."""
    one, other = (stored(tmp_path / name, noise(i)) for i, name in enumerate("xy"))
    sf.load(one).stats()
    there = entry(own)
    expected = sf.load(other).stats()
    (second,) = {path for path in there.parent.iterdir() if path.is_dir()} - {there}
    for path in second.iterdir():
        path.unlink()
    second.rmdir()
    there.rename(second)
    with pytest.warns(Note, match="is of other data"):
        assert same(sf.load(other).stats(), expected)
    assert len(passes) == 3


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, own, passes):
    own.write_text("a file")
    path = stored(tmp_path / "x", noise())
    with pytest.warns(Note, match="nothing is kept for the next run"):
        sf.load(path).stats()
    assert len(passes) == 1


def test_an_entry_is_whole_or_absent(own):
    def cut(value: int, part: Path) -> None:
        (part / "x").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.kept("kind", {}, lambda: 1, cut, lambda folder: 2)
    assert not [path for path in (own / "kind").iterdir() if path.is_dir()]


def test_of_several_that_ask_one_computes(own):
    made = []

    def slow() -> str:
        made.append(1)
        threading.Event().wait(0.2)
        return "value"

    def ask() -> None:
        told = cache.kept(
            "kind",
            {"of": "x"},
            slow,
            lambda value, part: (part / "x").write_text(value),
            lambda folder: (folder / "x").read_text(),
        )
        found.append(told)

    found: list[str] = []
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["value"] * 4 and len(made) == 1
    assert json.loads(next((own / "kind").rglob("about.json")).read_text()) == {"of": "x"}


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SFUMATO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for platform, place in (
        ("linux", ".cache/sfumato"),
        ("darwin", "Library/Caches/sfumato"),
        ("win32", "AppData/Local/sfumato"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.home() == tmp_path / place
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert cache.home() == tmp_path / "mine" / "sfumato"
    monkeypatch.setenv("SFUMATO_CACHE", "~/here")
    assert cache.home() == tmp_path / "here"


@pytest.mark.parametrize("given", ["SFUMATO_CACHE", "XDG_CACHE_HOME"])
def test_a_home_that_is_not_there_is_said(monkeypatch, given):
    monkeypatch.delenv("SFUMATO_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(given, "~nobody-of-this-name/cache")
    with pytest.raises(ValueError, match=r"no such home|set SFUMATO_CACHE"):
        cache.home()
