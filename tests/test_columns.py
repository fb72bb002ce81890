"""Data sets of Hugging Face's library, as it is where it is installed."""

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.cli import main
from sfumato.training import items
from sfumato.training.lazy import Lazy

VALUES = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3)).astype(np.uint8)
LABELS = [1, 0, 2] * 4


def test_the_package_is_asked_for(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["train", "ddpm", "--data", "hf:x", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'sfumato[datasets]'" in line


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return found


def made(datasets, **more):
    """12 images in three classes, and other columns."""
    features = {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])}
    images = [Image.fromarray(value) for value in VALUES]
    rows = {"photo": images, "kind": LABELS, "text": ["x"] * 12}
    kinds = {**features, "text": datasets.Value("string"), **{k: v[0] for k, v in more.items()}}
    rows |= {name: value[1] for name, value in more.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def saved(table, home: Path, form: str) -> str:
    if form == "parquet":
        home.mkdir()
        table.to_parquet(home / "train.parquet")
        return f"hf:{home / 'train.parquet'}"
    if form == "folder":
        (home / "data").mkdir(parents=True)
        table.to_parquet(home / "data" / "train-00000-of-00001.parquet")
        table.select(range(5)).to_parquet(home / "data" / "validation-00000-of-00001.parquet")
        return f"hf:{home}"
    table.save_to_disk(home)
    return f"hf:{home}"


EXPECTED = torch.from_numpy(VALUES.transpose(0, 3, 1, 2)).float().div(127.5).sub(1)


@pytest.mark.parametrize("largest", [0, 2**30], ids=["lazy", "memory"])
@pytest.mark.parametrize("form", ["disk", "parquet", "folder"])
def test_columns_are_found_by_their_features(datasets, tmp_path, monkeypatch, form, largest):
    monkeypatch.setattr(items, "LARGEST", largest)
    source = saved(made(datasets), tmp_path / "x", form)
    found = sf.load(source)
    assert isinstance(found.images, Lazy) == (not largest)
    rows = torch.tensor([11, 0, 5, 5])
    assert torch.allclose(found.batch(rows), EXPECTED[rows])
    assert found.record.classes == ("a", "b", "c") and found.record.name == source
    assert found.classes(rows).tolist() == [LABELS[i] for i in rows]
    if form == "folder":
        assert len(sf.load(source, "val")) == 5
        with pytest.raises(sf.Refused, match="has no test split"):
            sf.load(source, "test")


def test_the_hash_is_of_the_content(datasets, tmp_path, monkeypatch):
    """The same for another place and form; another for other images or classes."""
    monkeypatch.setattr(items, "LARGEST", 0)
    table = made(datasets)
    other = made(datasets, kind=(datasets.ClassLabel(names=["a", "b", "c"]), [0] * 12))
    hashes = [
        sf.load(saved(one, tmp_path / str(i), form)).record.sha256
        for i, (one, form) in enumerate(
            [
                (table, "disk"),
                (table, "parquet"),
                (table.select([1, 0, *range(2, 12)]), "disk"),
                (other, "disk"),
            ]
        )
    ]
    assert hashes[0] == hashes[1] and len({*hashes}) == 3


def test_data_are_sent_to_workers_and_measured_once(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(items, "LARGEST", 0)
    found = sf.load(saved(made(datasets), tmp_path / "x", "disk"))
    assert torch.equal(pickle.loads(pickle.dumps(found)).batch([7]), found.batch([7]))
    stats = found.stats()
    assert torch.equal(found.stats().mean, stats.mean)


def test_training_reads_them_ahead(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(items, "LARGEST", 0)
    source = saved(made(datasets), tmp_path / "x", "disk")
    small = ("--width", "8", "--multipliers", "1", "--patch", "1", "--preview-every", "0")
    small += ("--batch", "4", "--images", "8", "--quiet", "--device", "cpu")
    weights = []
    for workers in ("0", "1"):
        out = tmp_path / workers
        told = ("train", "ddpm", "--data", source, *small, "--workers", workers)
        assert main([*told, "--out", str(out)]) == 0
        (last,) = (out / "checkpoints").iterdir()
        weights.append((last / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_columns_are_named_where_there_are_several(datasets, tmp_path):
    more = {
        "mask": (datasets.Image(), [Image.fromarray(255 - value) for value in VALUES]),
        "sex": (datasets.ClassLabel(names=["f", "m"]), [0, 1] * 6),
        "number": (datasets.Value("int64"), [10, 9] * 6),
    }
    source = saved(made(datasets, **more), tmp_path / "x", "disk")
    for key, told in (
        (None, "images in photo and in mask; name one: --key NAME"),
        ("photo", "classes in kind and in sex; name one, as in --key photo:kind"),
        ("hue", "has no column hue; it has photo, kind, text, mask, sex, number"),
        ("text", "the column text of .* holds no images"),
    ):
        with pytest.raises(sf.Refused, match=told):
            sf.load(source, key=key)
    found = sf.load(source, key="mask:sex")
    assert torch.allclose(found.batch(range(12)), -EXPECTED, atol=1e-6)
    assert found.record.classes == ("f", "m") and found.record.key == "mask:sex"
    assert sf.load(source, key="mask:").record.classes is None
    assert sf.load(source, key="photo:number").record.classes == ("9", "10")


def test_what_cannot_be_read_is_said_in_one_line(datasets, tmp_path, capsys, monkeypatch):
    table = made(datasets)
    plain = saved(table.remove_columns("photo"), tmp_path / "plain", "disk")
    gone = made(datasets, photo=(datasets.Image(), [*map(Image.fromarray, VALUES[:11]), None]))
    spoiled = Path(saved(table, tmp_path / "spoiled", "parquet").removeprefix("hf:"))
    spoiled.write_bytes(spoiled.read_bytes()[:400])
    text = [{"bytes": b"no image", "path": None}] * 12
    bad = made(datasets, photo=(datasets.Image(), text))
    (tmp_path / "empty").mkdir()
    for source, told in (
        (plain, "has no column of images: its columns are kind, text"),
        (saved(gone, tmp_path / "gone", "disk"), "row 11 of hf:.* has no image"),
        (saved(bad, tmp_path / "bad", "disk"), "row 0 of hf:.* is not an image"),
        (f"hf:{spoiled}", "cannot be read by datasets"),
        (f"hf:{tmp_path / 'empty'}", "no data set that save_to_disk wrote, and no .parquet"),
        (f"hf:{tmp_path / 'none'}", "there is no folder .*, and nothing is fetched"),
        ("hf:nobody/nothing-here", "nor is nobody/nothing-here in the cache of datasets"),
        ("hf:", "hf: names no data set"),
    ):
        code = main(["train", "ddpm", "--data", source, "--quiet", "--out", str(tmp_path / "run")])
        assert code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(told, line), line


def test_unknown_classes(datasets, tmp_path):
    """-1 is the library's word for unknown: of all rows, or of none."""
    kind = datasets.ClassLabel(names=["a", "b"])
    table = made(datasets, kind=(kind, [-1] * 12))
    assert sf.load(saved(table, tmp_path / "all", "disk")).record.classes is None
    table = made(datasets, kind=(kind, [0] * 7 + [-1] * 5))
    with pytest.raises(sf.Refused, match=r"row 7 of .* has no class"):
        sf.load(saved(table, tmp_path / "some", "disk"))
