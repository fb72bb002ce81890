"""Images in .tar files are those of the same files in a folder; a bad shard is told in one line."""

import gzip
import io
import json
import pickle
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.cli import main
from sfumato.notes import Note
from sfumato.training import items, shards
from sfumato.training.lazy import Lazy


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))


def test_links_beside_shards_lead_somewhere(tmp_path):
    archive(tmp_path / "s" / "0.tar", {"0.png": png(VALUES[0]), "1.png": png(VALUES[1])})
    (tmp_path / "s" / "round").symlink_to("round")
    assert len(sf.load(tmp_path / "s")) == 2
    with pytest.raises(ValueError, match=r"0\.tar has no image by the --key jpg"):
        sf.load(tmp_path / "s" / "0.tar", key="jpg")
    (tmp_path / "s" / "1.tar").symlink_to("nowhere.tar")
    with pytest.raises(sf.Refused, match=r"1\.tar cannot be read: No such file"):
        sf.load(tmp_path / "s")


VALUES = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3)).astype(np.uint8)
LABELS = [10, 9, 2] * 4


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as opened:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            opened.addfile(about, io.BytesIO(data))
    return path


def sample(i: int, label: str = "cls") -> dict[str, bytes]:
    told = {
        "cls": {"cls": str(LABELS[i]).encode()},
        "json": {"json": json.dumps({"label": LABELS[i], "of": [1]}).encode()},
        "none": {},
    }[label]
    parts = {"png": png(VALUES[i]), **told}
    return {f"part.1/{i:03}.{kind}": data for kind, data in parts.items()}


def made(home: Path, label: str = "cls", form: int = tarfile.PAX_FORMAT) -> Path:
    """Three shards of four images."""
    for shard in range(3):
        rows = (sample(i, label) for i in range(4 * shard, 4 * shard + 4))
        archive(home / f"{shard + 8:02}.tar", {k: v for row in rows for k, v in row.items()}, form)
    return home


def folder(home: Path) -> Path:
    home.mkdir(parents=True)
    for i, value in enumerate(VALUES):
        (home / f"{i:03}.png").write_bytes(png(value))
    return home


@pytest.mark.parametrize("largest", [0, 2**30], ids=["lazy", "memory"])
@pytest.mark.parametrize("label", ["cls", "json", "none"])
def test_shards_are_the_images_of_a_folder(tmp_path, monkeypatch, label, largest):
    monkeypatch.setattr(items, "LARGEST", largest)
    found = sf.load(made(tmp_path / "shards", label))
    assert isinstance(found.images, Lazy) == (not largest)
    rows = torch.tensor([11, 0, 5, 5, 3])
    assert torch.equal(found.batch(rows), sf.load(folder(tmp_path / "folder")).batch(rows))
    if label == "none":
        assert found.record.classes is None
    else:
        assert found.record.classes == ("2", "9", "10")
        names = [found.record.classes[i] for i in found.classes(rows).tolist()]
        assert names == [str(LABELS[i]) for i in rows.tolist()]
    part = sf.load(tmp_path / "shards", "train[2:9]")
    assert torch.equal(part.batch([0, 6]), found.batch([2, 8]))
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.batch([3]), found.batch([3]))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_forms_of_tar(tmp_path, form):
    """Long names are in headers of their own, of two kinds."""
    long = f"{'d' * 90}/{'e' * 60}.png"
    path = archive(tmp_path / "x.tar", {long: png(VALUES[0]), "b.png": png(VALUES[1])}, form)
    expected = torch.from_numpy(VALUES[:2].transpose(0, 3, 1, 2)).float().div(127.5).sub(1)
    assert torch.allclose(sf.load(path).batch([0, 1]), expected)


def test_ways_to_name_shards(tmp_path, monkeypatch):
    home = made(tmp_path / "shards")
    whole = sf.load(home)
    monkeypatch.chdir(tmp_path)
    for source in ("shards/{08..10}.tar", "shards/{08,09,10}.tar", str(home / "{08..10}.tar")):
        found = sf.load(source)
        assert found.record.sha256 == whole.record.sha256 and len(found) == 12
        assert found.record.name == source
    assert len(sf.load("shards/{09..10}.tar")) == 8 and len(sf.load("shards/08.tar")) == 4
    made(tmp_path / "split" / "train")
    made(tmp_path / "split" / "test")
    assert len(sf.load("split", "test[:5]")) == 5
    assert shards.expanded("a{1,x}/{098..101}.tar") == [
        f"a{a}/{b}.tar" for a in "1x" for b in ("098", "099", "100", "101")
    ]


def test_members_are_found_once(tmp_path, monkeypatch):
    """The second reading opens no archive; a changed shard is read again."""
    home = made(tmp_path / "shards")
    first = sf.load(home).record.sha256
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert sf.load(home).record.sha256 == first
    archive(home / "08.tar", sample(0))
    assert len(sf.load(home)) == 9


def test_the_hash_changes_with_what_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "LARGEST", 0)
    plain = {"a.png": png(VALUES[0]), "b.png": png(0 * VALUES[1])}
    variants = [
        plain,
        {"a.png": plain["a.png"], "c.png": plain["b.png"]},
        {"a.png": plain["b.png"], "b.png": plain["a.png"]},
        {"a.png": plain["a.png"], "a.cls": b"0", "b.png": plain["b.png"], "b.cls": b"1"},
        {"a.png": plain["a.png"], "a.cls": b"1", "b.png": plain["b.png"], "b.cls": b"0"},
    ]
    assert len(plain["a.png"]) != len(plain["b.png"])
    hashes = []
    for number, members in enumerate(variants):
        path = archive(tmp_path / str(number) / "x.tar", members)
        hashes.append(sf.load(path).record.sha256)
    assert len({*hashes}) == len(variants)


def test_what_is_no_image_is_counted(tmp_path):
    members = {**sample(0), "part.1/000.txt": b"a caption", "._x.png": b"", "only.txt": b""}
    with pytest.warns(Note, match=r"2 skipped that are no images: 2 \.txt"):
        assert len(sf.load(archive(tmp_path / "x.tar", members))) == 1


def test_one_of_two_images_of_a_sample_is_named(tmp_path):
    members = {"a.left.png": png(VALUES[0]), "a.right.png": png(VALUES[1])}
    path = archive(tmp_path / "x.tar", members)
    with pytest.raises(sf.Refused, match=r"a\.left\.png and a\.right\.png; name one: --key left"):
        sf.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sf.load(path, key="right.png")
    assert found.record.key == "right.png"
    assert np.array_equal(found.raw([0])[0], VALUES[1].transpose(2, 0, 1))


def cut(data: bytes) -> bytes:
    """In the third member."""
    return data[:2600]


def without_end(data: bytes) -> bytes:
    return data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512)


def header(data: bytes) -> bytes:
    """A flipped byte in the second header."""
    at = data.index(b"part.1/000.cls")
    return data[:at] + b"q" + data[at + 1 :]


def spoiled(data: bytes) -> bytes:
    """A flipped byte in an image."""
    at = data.index(b"IHDR") + 6
    return data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :]


TEXT = {"part.1/001.png": b"no image at all", "part.1/001.cls": b"1"}
BAD = {
    "cut": (cut, "10.tar cannot be read as a .tar: unexpected end of data"),
    "cut in a header": (lambda data: data[:2300], "10.tar is damaged or cut off after 2048 bytes"),
    "no end": (without_end, "10.tar is damaged or cut off after"),
    "header": (header, "10.tar is damaged or cut off after"),
    "nothing": (lambda data: b"", "10.tar cannot be read as a .tar"),
    "no tar": (lambda data: b"words " * 500, "10.tar cannot be read as a .tar"),
    "packed": (gzip.compress, "10.tar is compressed"),
    "image": (spoiled, r"10.tar/part.1/000.png (cannot be read as|is not) an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_shard_is_told_in_one_line(tmp_path, capsys, kind):
    spoil, told = BAD[kind]
    home = made(tmp_path / "x")
    path = archive(home / "10.tar", {**sample(0), **sample(1)})
    path.write_bytes(spoil(path.read_bytes()))
    refused(capsys, home, told)


def refused(capsys, source: object, told: str, *words: str) -> None:
    out = "--out", str(Path(str(source)).parent / "run")
    assert main(["train", "ddpm", "--data", str(source), *words, *out, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(told, line), line


MEMBERS = {
    "no image inside": ({**sample(0), **TEXT}, "001.png is not an image"),
    "nothing but text": ({"a.txt": b""}, "has no images"),
    "one without class": ({**sample(0), "x.png": png(VALUES[0])}, "x.png has no class, unlike"),
    "one with class": ({"x.png": png(VALUES[0]), **sample(0)}, "000.png has a class, unlike"),
    "broken json": ({"a.png": png(VALUES[0]), "a.json": b"{"}, "a.json cannot be read: "),
    "class of json": ({"a.png": png(VALUES[0]), "a.json": b'{"cls": [1]}'}, "names no class"),
    "bytes": ({"a.png": png(VALUES[0]), "a.cls": b"\xff"}, "a.cls cannot be read as text"),
    "sizes": (
        {**sample(0), "part.1/001.png": png(VALUES[0, :4]), "part.1/001.cls": b"1"},
        "--resize N",
    ),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_bad_members_are_named(tmp_path, capsys, kind):
    members, told = MEMBERS[kind]
    refused(capsys, archive(tmp_path / "x" / "0.tar", members).parent, told)


def test_shards_that_are_not_there(tmp_path, capsys):
    made(tmp_path / "x")
    refused(capsys, tmp_path / "x" / "{08..11}.tar", "there is no file .*11.tar")
    refused(capsys, tmp_path / "x" / "{11..08}.tar", "must rise")
    refused(capsys, tmp_path / "x" / "{0..9999999999}.tar", "must rise, by less than")
    refused(capsys, tmp_path / "x" / "{1..9999}{1..9999}.tar", "more than 100,000 files")
    refused(capsys, tmp_path / "x", "--kind is for arrays", "--kind", "signals")
    (tmp_path / "x" / "11.tar.gz").write_bytes(b"")
    refused(capsys, tmp_path / "x", "11.tar.gz is compressed")
    refused(capsys, tmp_path / "x" / "11.tar.gz", "11.tar.gz is compressed")


def test_a_shard_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "LARGEST", 0)
    path = archive(tmp_path / "x.tar", {**sample(0), **sample(1)})
    found = sf.load(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(sf.Refused, match="was cut off while it was read"):
        found.batch([1])


def test_pickled_batches_are_refused_wherever_they_are(tmp_path, capsys):
    home = tmp_path / "x" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    for name in ("batches.meta", "data_batch_1"):
        (home / name).write_bytes(pickle.dumps({b"data": []}, 2))
    for source in (home, home / "data_batch_1"):
        refused(capsys, source, "cifar-10-batches-py is a pickle.* Get the binary version")


def test_a_class_without_files_is_refused(tmp_path, capsys):
    home = tmp_path / "x"
    for name in ("cat", "dog"):
        folder(home / name)
    (home / "eel" / "deep").mkdir(parents=True)
    refused(capsys, home, "x/eel has nothing in it, and would be no class beside cat, dog. Fill")
    (home / "eel" / "notes.txt").write_text("none yet")
    with pytest.warns(Note, match=r"1 skipped that are no images: 1 \.txt"):
        assert sf.load(home).record.classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz"])
def test_an_archive_beside_folders_of_images_is_skipped(tmp_path, name):
    """As before there were shards: its images are often those of the folders."""
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(2):
            (tmp_path / kind / f"{i}.png").write_bytes(png(VALUES[i]))
    (tmp_path / name).write_bytes(b"")
    with pytest.warns(Note, match="skipped"):
        data = sf.load(tmp_path)
    assert len(data) == 4 and data.record.classes == ("cat", "dog")
