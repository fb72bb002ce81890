"""Data: every source against its own bytes, every bad file with the sentence that names it."""

import dataclasses
import gzip
import hashlib
import json
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from sfumato import pictures
from sfumato.training import sources
from sfumato.training.data import Data, Record, load

GRAY = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
GRAY[0, 0, 0], GRAY[0, 0, 1] = 0, 255
COLOUR = np.random.default_rng(1).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)


def refused(message, call, *args, error=ValueError):
    with pytest.raises(error) as caught:
        call(*args)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_digits_are_those_of_scikit_learn():
    train, test = load("digits"), load("digits", "test")
    truth = load_digits()
    assert (len(train), len(test)) == (1500, 297)
    both = np.concatenate([train.images, test.images])
    assert np.array_equal(both[:, 0], truth.images)
    labels = np.concatenate([train.labels, test.labels])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    record = train.record
    assert (record.name, record.shape, record.low, record.high) == ("digits", (1, 8, 8), 0, 16)
    assert (record.count, record.split, record.classes) == (1500, "train", tuple("0123456789"))
    assert (
        record.sha256 == hashlib.sha256(truth.images[:1500].astype(np.uint8).tobytes()).hexdigest()
    )
    assert test.record.split == "test"


def test_a_batch_lies_in_minus_one_to_one():
    data = load("digits")
    batch = data.batch(torch.tensor([7, 0, 7]))
    assert batch.dtype == torch.float32 and batch.shape == (3, 1, 8, 8)
    truth = load_digits().images[[7, 0, 7], None] / 8 - 1
    assert torch.equal(batch, torch.from_numpy(truth).float())
    assert data.classes([7, 0]).tolist() == load_digits().target[[7, 0]].tolist()
    assert data.classes(np.array([3])).dtype == torch.int64
    assert data.batch([]).shape == (0, 1, 8, 8)
    everything = data.batch(range(1500))
    assert everything.min() == -1 and everything.max() == 1


def test_facts_are_measured_on_all_images():
    data = load("digits", "test")
    facts = data.facts(batch=100)
    pixels = data.batch(range(297)).double()
    assert int(facts.count) == 297
    torch.testing.assert_close(facts.basis.synthesize(facts.mean), pixels.mean(0))
    power = pixels.var(0).sum()  # an orthonormal basis keeps the sum of the variances
    assert abs(float(facts.spectrum.sum() / power) - 1) < 1e-2


def test_records_travel_as_json():
    record = load("digits").record
    text = json.dumps(dataclasses.asdict(record))
    assert Record.from_dict(json.loads(text)) == record


def test_photos_are_crops_and_splits_share_no_pixel():
    train, test = load("photos"), load("photos", "test")
    assert train.record.shape == test.record.shape == (3, 32, 32)
    assert train.record.classes == ("china", "flower")
    assert len(train) == 2 * 20 * 49 and len(test) == 2 * 6 * 49
    assert np.bincount(train.labels).tolist() == [20 * 49] * 2
    china = load_sample_images().images[0][:426].astype(float)
    small = china.reshape(213, 2, 320, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    crop, row, column = train.images[2 * 49 + 3].astype(float), 2 * 6, 3 * 6
    assert np.abs(crop - small[:, row : row + 32, column : column + 32]).max() <= 1
    last_of_train, first_of_test = 19 * 6 + 32, 149
    assert last_of_train <= first_of_test
    assert np.abs(test.images[0].astype(float) - small[:, 149 : 149 + 32, :32]).max() <= 1
    assert load("photos").record.sha256 == train.record.sha256


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">HBB", 0, 8, array.ndim) + sizes + array.tobytes()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder that load finds through SFUMATO_DATA, where no Debian package is."""
    monkeypatch.setattr(sources, "FASHION_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("SFUMATO_DATA", str(tmp_path))
    return tmp_path


LABELS = np.array([9, 0, 3], np.uint8)


@pytest.mark.parametrize("below", ["", "fashion-mnist"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_is_read_from_idx_files(fashion, below, packed):
    folder = fashion / below
    folder.mkdir(exist_ok=True)
    for prefix, images in (("train", GRAY), ("t10k", GRAY[:2])):
        for name, array in (("images-idx3", images), ("labels-idx1", LABELS[: len(images)])):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    train, test = load("fashion-mnist"), load("fashion-mnist", "test")
    assert np.array_equal(train.images[:, 0], GRAY) and train.labels.tolist() == [9, 0, 3]
    assert [train.record.classes[i] for i in train.labels] == ["Ankle boot", "T-shirt/top", "Dress"]
    assert np.array_equal(test.images[:, 0], GRAY[:2]) and test.record.split == "test"
    np.testing.assert_allclose(train.batch([1])[0, 0], GRAY[1] / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            idx(GRAY)[:-1],
            idx(LABELS),
            "cut off or too long: its header asks for 106 bytes, it has 105",
        ),
        (idx(GRAY) + b"0", idx(LABELS), "it has 107"),
        (b"", idx(LABELS), "not an idx file of 3-dimensional bytes: it begins with 0x00000000"),
        (idx(LABELS), idx(LABELS), "it begins with 0x00000801, not 0x00000803"),
        (idx(GRAY), idx(GRAY), "not an idx file of 1-dimensional bytes"),
        (idx(GRAY), idx(LABELS[:2]), "labels must be 3 whole numbers, one per image"),
        (idx(GRAY), idx(LABELS + 1), "labels must be class numbers 0 to at most 9; got 1 to 10"),
        (gzip.compress(idx(GRAY))[:-9], idx(LABELS), "is damaged or cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_idx_files_are_refused(fashion, images, labels, message):
    suffix = ".gz" if images[:2] == b"\x1f\x8b" else ""
    (fashion / f"train-images-idx3-ubyte{suffix}").write_bytes(images)
    (fashion / "train-labels-idx1-ubyte").write_bytes(labels)
    refused(message, load, "fashion-mnist")


def test_absent_fashion_mnist_says_how_to_get_it(fashion, monkeypatch):
    (fashion / "train-images-idx3-ubyte").write_bytes(idx(GRAY))
    refused("Debian package dataset-fashion-mnist", load, "fashion-mnist", error=FileNotFoundError)
    monkeypatch.delenv("SFUMATO_DATA")
    refused("or set SFUMATO_DATA to a folder", load, "fashion-mnist", error=FileNotFoundError)


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_a_folder_is_read_in_order_of_names(tmp_path):
    for name, array in zip(("b.png", "A.bmp", "c/d.png"), GRAY, strict=True):
        put(tmp_path / name, array)
    put(tmp_path / ".hidden" / "x.png", GRAY[0, :2])
    (tmp_path / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert np.array_equal(data.images[:, 0], GRAY[[1, 0, 2]])
    assert data.record.shape == (1, 5, 6) and data.record.classes is None and data.labels is None
    assert data.record.name == str(tmp_path) and data.classes([0]) is None


def test_subfolders_are_classes(tmp_path):
    for name, array in zip(("dog/a/1.png", "cat/1.png", "dog/2.png"), COLOUR, strict=True):
        put(tmp_path / name, array)
    data = load(str(tmp_path))
    assert data.record.classes == ("cat", "dog") and data.labels.tolist() == [0, 1, 1]
    assert np.array_equal(data.images.transpose(0, 2, 3, 1), COLOUR[[1, 2, 0]])
    put(tmp_path / "3.png", COLOUR[0])
    assert load(tmp_path).record.classes is None


def test_gray_images_among_colour_become_colour(tmp_path):
    put(tmp_path / "a.png", GRAY[0])
    put(tmp_path / "b.png", COLOUR[1])
    put(tmp_path / "c.png", GRAY[2])
    images = load(tmp_path).images
    assert np.array_equal(images[0], np.stack([GRAY[0]] * 3)) and np.array_equal(
        images[2, 1], GRAY[2]
    )
    assert np.array_equal(images[1], COLOUR[1].transpose(2, 0, 1))


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    refused("has no images (.png, .jpg", load, tmp_path)
    put(tmp_path / "a" / "x.png", GRAY[0])
    put(tmp_path / "a" / "y.png", GRAY[1, :, :4])
    refused("a/x.png is 6 x 5 pixels and a/y.png is 4 x 5", load, tmp_path)
    put(tmp_path / "a" / "y.png", np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))
    whole = (tmp_path / "a" / "y.png").read_bytes()
    (tmp_path / "a" / "y.png").write_bytes(whole[: len(whole) // 2])
    refused("y.png cannot be read as an image: image file is truncated", load, tmp_path)
    (tmp_path / "a" / "y.png").write_text("hello")
    refused("y.png is not an image that Pillow can read", load, tmp_path)


@pytest.mark.parametrize(
    ("array", "low", "high"),
    [
        (GRAY, 0, 255),
        (COLOUR, 0, 255),
        (GRAY.astype(np.int64), 0, 255),
        (GRAY > 100, 0, 1),
        ((GRAY / 255).astype(np.float64), 0, 1),
        ((COLOUR / 127.5 - 1).astype(np.float32), -1, 1),
        ((COLOUR / 127.5 - 1).astype(">f2"), -1, 1),
        (np.full((2, 5, 6, 2), 0.5), 0, 1),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_keep_their_values(tmp_path, array, low, high, suffix):
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, images=array)
    data = load(path)
    assert (data.record.low, data.record.high) == (low, high) and data.record.classes is None
    pixels = array[..., None] if array.ndim == 3 else array
    expected = (pixels.astype(np.float64) - low) / (high - low) * 2 - 1
    batch = data.batch(range(len(array)))
    assert batch.dtype == torch.float32
    np.testing.assert_allclose(batch.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


def test_what_pictures_saves_load_reads(tmp_path):
    x = load("digits").batch(range(6))
    pictures.save(x, tmp_path / "x.npz")
    pictures.save(x, tmp_path / "folder")
    for path in ("x.npz", "folder"):
        torch.testing.assert_close(load(tmp_path / path).batch(range(6)), x, rtol=0, atol=0.5 / 127)


def test_arrays_have_labels(tmp_path):
    np.savez(tmp_path / "x.npz", images=GRAY, labels=np.array([1, 0, 1], np.int32))
    data = load(tmp_path / "x.npz")
    assert data.record.classes == ("0", "1") and data.labels.tolist() == [1, 0, 1]
    assert data.labels.dtype == np.int64


HOLE = np.full((2, 4, 4), np.nan)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": HOLE}, "x.npz has NaN or infinite values"),
        ({"images": HOLE * 0 + np.inf}, "has NaN or infinite values"),
        ({"images": GRAY / 1.0}, "values from 0 to 255; floating-point images must lie in [0, 1]"),
        ({"images": GRAY / 255 - 1.5}, "must lie in [0, 1] or [-1, 1]"),
        ({"images": GRAY.astype(int) + 1}, "whole numbers from 1 to 256; they must be 0 to 255"),
        ({"images": GRAY.astype(int) - 1}, "whole numbers from -1 to 254"),
        ({"images": GRAY[:0]}, "at least one; got shape (0, 5, 6)"),
        ({"images": GRAY[0]}, "got shape (5, 6)"),
        ({"images": GRAY[None, None]}, "got shape (1, 1, 3, 5, 6)"),
        ({"images": COLOUR.transpose(0, 3, 1, 2)}, "channels come last here"),
        ({"images": GRAY.astype("U3")}, "must hold numbers; got <U3"),
        ({"images": GRAY.astype(complex)}, "must hold numbers; got complex128"),
        ({"images": GRAY.astype(object)}, "Object arrays cannot be loaded"),
        ({"x": GRAY, "y": GRAY}, "no array by the name images or signals; it holds x, y"),
        ({"images": GRAY, "labels": [0, 1]}, "labels must be 3 whole numbers, one per image"),
        ({"images": GRAY, "labels": [0.0, 1, 2]}, "got float64 of shape (3,)"),
        ({"images": GRAY, "labels": [0, 1, 3]}, "class numbers 0 to at most 2; got 0 to 3"),
        ({"images": GRAY, "labels": [-1, 1, 0]}, "got -1 to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    refused(message, load, tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_cut_off_arrays_are_refused(tmp_path, suffix, kept):
    path = tmp_path / f"x{suffix}"
    np.save(path, GRAY) if suffix == ".npy" else np.savez_compressed(path, images=GRAY)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refused(f"x{suffix} cannot be read as arrays", load, path)


@pytest.mark.parametrize(
    ("source", "split", "message", "error"),
    [
        ("digts", "train", "no data set 'digts'; did you mean 'digits'?", ValueError),
        ("qqq", "train", "choose from digits, fashion-mnist, photos.", ValueError),
        ("./digits", "train", "there is no folder or file ./digits", FileNotFoundError),
        ("x.npz", "train", "there is no folder or file x.npz", FileNotFoundError),
        ("digits", "valid", "no split 'valid'; choose train or test", ValueError),
        ("", "train", "no data set ''", ValueError),
    ],
)
def test_unknown_sources_are_refused(tmp_path, monkeypatch, source, split, message, error):
    monkeypatch.chdir(tmp_path)
    refused(message, load, source, split, error=error)


def test_sources_without_a_test_split_say_so(tmp_path):
    put(tmp_path / "x.png", GRAY[0])
    refused("has no test split: all of it is train", load, tmp_path, "test")
    refused("x.png is no data set: use a folder", load, tmp_path / "x.png")


def test_data_that_do_not_fit_their_record_are_refused():
    record = Record("mine", (1, 5, 6), 0, 255, None, 3)
    images = GRAY[:, None]
    assert len(Data(images, None, record)) == 3
    refused("got uint8 of shape (3, 5, 6)", Data, GRAY, None, record)
    refused("got int64 of shape (3, 1, 5, 6)", Data, images.astype(np.int64), None, record)
    refused("come together or not at all", Data, images, np.zeros(3, np.int64), record)
    classed = dataclasses.replace(record, classes=("a", "b"))
    refused("class numbers 0 to at most 1", Data, images, np.array([0, 1, 2]), classed)
    refused("at least one image", Data, images[:0], None, dataclasses.replace(record, count=0))


def test_batches_own_their_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 3), np.float32))
    data = load(tmp_path / "x.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.batch([0, 1]).fill_(7)
    assert (data.images == 0).all()
