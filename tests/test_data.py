"""Data: every source against its own bytes, every bad file with the sentence that names it."""

import dataclasses
import gzip
import hashlib
import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import sfumato
from sfumato import pictures
from sfumato.notes import Note
from sfumato.training import named
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
    stats = data.stats(batch=100)
    pixels = data.batch(range(297)).double()
    assert int(stats.count) == 297
    torch.testing.assert_close(stats.basis.synthesize(stats.mean), pixels.mean(0))
    power = pixels.var(0).sum()  # an orthonormal basis keeps the sum of the variances
    assert abs(float(stats.spectrum.sum() / power) - 1) < 1e-2


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
    monkeypatch.setattr(named, "FASHION_FOLDER", tmp_path / "absent")
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
    with pytest.warns(Note, match=r"1 skipped that are no images: 1 \.txt"):
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


def test_signals_beyond_float32_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.full((4, 5), 1e300))
    with pytest.raises(ValueError, match=r"x\.npy has values beyond those of float32, 1e\+300 to"):
        load(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="a range goes from a low to a high value"):
        load(tmp_path / "x.npy", range=(-float("inf"), 1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": HOLE}, "x.npz has NaN or infinite values"),
        ({"images": HOLE * 0 + np.inf}, "has NaN or infinite values"),
        ({"images": GRAY / 1.0}, "values from 0 to 255; floating-point images must lie in [0, 1]"),
        ({"images": GRAY / 255 - 1.5}, "must lie in [0, 1] or [-1, 1]"),
        ({"images": GRAY.astype(int) + 1}, "values from 1 to 256, a small part of 0 to 65535. Say"),
        (
            {"images": GRAY.astype(int) - 1},
            "whole numbers from -1 to 254; without --range LOW,HIGH",
        ),
        ({"images": GRAY // 4}, "values from 0 to 63, a small part of 0 to 255. Say which become"),
        (
            {"images": GRAY / 255 * 1.2 - 0.2},
            "from -0.2 to 1, which may be [0, 1] overshot or part",
        ),
        ({"images": GRAY / 2550}, "values from 0 to 0.1, a small part of 0 to 1"),
        (
            {"images": np.zeros((3, 16, 8, 8))},
            "channels come last here, at most 4. Else say --kind",
        ),
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
        (
            "qqq",
            "train",
            "choose from digits, fashion-mnist, photos, mnist, cifar10, cifar100.",
            ValueError,
        ),
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


def quiet(source, *args, **how):
    """`load`, whose notes are mistakes here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(source, *args, **how)


DEEP = np.random.default_rng(2).integers(0, 65536, (3, 5, 6), dtype=np.uint16)


@pytest.mark.parametrize(
    ("array", "given", "low", "high"),
    [
        (GRAY > 100, None, 0, 1),
        ((GRAY > 100).astype(np.uint8), (0, 1), 0, 1),
        (GRAY // 4, (0, 63), 0, 63),
        (DEEP, None, 0, 65535),
        (DEEP // 16, (0, 4095), 0, 4095),
        (DEEP.astype(np.int32) // 16 - 1000, (-1000, 3095), -1000, 3095),
        (GRAY / 255 * 0.1, (0, 0.1), 0, 0.1),
        (GRAY / 255 * 300 - 50, [-50, 250], -50, 250),
        (GRAY / 255 * 1.2 - 0.2, (-1, 1), -1, 1),
    ],
)
def test_a_range_makes_raw_values_what_it_says(tmp_path, array, given, low, high):
    np.save(tmp_path / "x.npy", array)
    data = quiet(tmp_path / "x.npy", range=given)
    assert (data.record.low, data.record.high) == (low, high)
    expected = (array.astype(np.float64) - low) / (high - low) * 2 - 1
    np.testing.assert_allclose(data.batch(range(3))[:, 0].numpy(), expected, atol=1e-5)
    again = quiet(tmp_path / "x.npy", range=(data.record.low, data.record.high))
    assert again.record == data.record


@pytest.mark.parametrize("by", [-1e-7, 1e-7, 1.5e-3])
def test_values_just_outside_are_clipped_with_a_note(tmp_path, by):
    array = GRAY / 255
    array[1, 2, 3] = by if by < 0 else 1 + by
    np.save(tmp_path / "x.npy", array)
    with pytest.warns(Note, match="were clipped to 0 to 1"):
        data = load(tmp_path / "x.npy")
    assert (data.record.low, data.record.high) == (0, 1)
    expected = array.clip(0, 1) * 2 - 1
    np.testing.assert_allclose(data.batch(range(3))[:, 0].numpy(), expected, atol=1e-6)


def test_a_range_that_does_not_fit_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", GRAY)
    for given, sentence in (
        ((0, 100), "values from 0 to 255, outside of the range 0 to 100"),
        ((1, 1), "from a low to a high value; got 1 to 1"),
        ((0, float("inf")), "from a low to a high value"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load(tmp_path / "x.npy", range=given)
    with pytest.raises(ValueError, match="digits has a range of its own, 0 to 16"):
        load("digits", range=(0, 255))
    with pytest.warns(Note, match="a small part of 0 to 4095"):
        load(tmp_path / "x.npy", range=(0, 4095))


def test_arrays_are_named_by_key(tmp_path):
    np.savez(tmp_path / "x.npz", faces=GRAY, others=COLOUR)
    assert np.array_equal(load(tmp_path / "x.npz", key="faces").images[:, 0], GRAY)
    assert load(tmp_path / "x.npz", key="others").record.key == "others"
    np.save(tmp_path / "x.npy", GRAY)
    for name, key, sentence in (
        ("x.npz", None, "no array by the name images or signals; it holds faces, others. Name one"),
        ("x.npz", "face", "no array by the name face"),
        ("x.npy", "face", "one array without a name; leave out --key face"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load(tmp_path / name, key=key)
    put(tmp_path / "f" / "1.png", GRAY[0])
    with pytest.raises(ValueError, match="--key and --kind are for arrays"):
        load(tmp_path / "f", key="faces")


def test_deep_images_keep_their_bits(tmp_path):
    put(tmp_path / "a.png", DEEP[0])
    put(tmp_path / "b.tif", DEEP[1])
    data = quiet(tmp_path)
    assert (data.record.low, data.record.high) == (0, 65535)
    assert np.array_equal(data.images[:, 0], DEEP[:2])
    put(tmp_path / "c.png", GRAY[0])
    assert np.array_equal(quiet(tmp_path).images[2, 0], GRAY[0] * 257.0)
    with pytest.raises(ValueError, match="images of 8 and of 16 bits"):
        load(tmp_path, range=(0, 65535))


def test_twelve_bits_of_sixteen_need_a_range(tmp_path):
    put(tmp_path / "a.png", DEEP[0] // 16)
    refused("a small part of 0 to 65535. Say which become -1 and 1: --range", load, tmp_path)
    batch = quiet(tmp_path, range=(0, 4095)).batch([0])[0, 0]
    np.testing.assert_allclose(batch.numpy(), (DEEP[0] // 16) / 2047.5 - 1, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"a\.png has values from .* outside of the range 0 to 999"
    ):
        load(tmp_path, range=(0, 999))


def test_what_is_skipped_in_a_folder_is_said(tmp_path):
    put(tmp_path / "cat.png" / "1.tif", COLOUR[0])
    put(tmp_path / "dog" / "1.TIFF", COLOUR[1])
    put(tmp_path / "dog" / "2.gif", GRAY[0])
    (tmp_path / "dog" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "dog" / "around").symlink_to(tmp_path)
    (tmp_path / "dog" / ".DS_Store").write_text("")
    (tmp_path / "read me").write_text("")
    (tmp_path / "elsewhere").mkdir()
    put(tmp_path / ".other" / "3.png", COLOUR[2])
    (tmp_path / "elsewhere").rmdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / ".other")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "dog" / "through.png").symlink_to("1.TIFF/x")
    with pytest.warns(Note) as caught:
        data = load(tmp_path)
    assert np.array_equal(data.images.transpose(0, 2, 3, 1), COLOUR[[0, 1, 2]])
    assert data.record.classes == ("cat.png", "dog", "elsewhere")
    (note,) = (str(one.message) for one in caught)
    assert note == (
        f"{tmp_path}: 6 skipped that are no images: 1 .gif, 2 file without suffix, 2 link that "
        "leads nowhere, 1 link to a folder seen before."
    )
    assert caught[0].filename == __file__


@pytest.mark.parametrize("names", [("train", "test", "val"), ("Training", "testing", "valid")])
def test_subfolders_named_so_are_splits(tmp_path, names):
    for i, name in enumerate(names):
        put(tmp_path / name / "cat" / "1.png", COLOUR[i])
        put(tmp_path / name / "dog" / "1.png", COLOUR[i - 1])
    for i, split in enumerate(("train", "test", "val")):
        data = quiet(tmp_path, split)
        assert data.record.classes == ("cat", "dog") and data.record.split == split
        assert np.array_equal(data.images.transpose(0, 2, 3, 1), COLOUR[[i, i - 1]])
    put(tmp_path / "more" / "1.png", COLOUR[0])
    with pytest.warns(Note, match="its splits are read, not more beside them"):
        assert len(load(tmp_path)) == 2


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train", "tram"):
        put(tmp_path / name / "1.png", COLOUR[0])
    assert quiet(tmp_path).record.classes == ("bus", "train", "tram")
    refused("has no test split: all of it is train", load, tmp_path, "test")
    refused("digits has no val split: there are train, test", load, "digits", "val")


def test_labels_keep_their_numbers_as_names(tmp_path):
    labels = np.array([10, 1, 3, 1, 7])
    np.savez(tmp_path / "x.npz", images=GRAY[[0, 1, 2, 0, 1]], labels=labels)
    data = load(tmp_path / "x.npz")
    assert data.record.classes == ("1", "3", "7", "10")
    assert [int(data.record.classes[i]) for i in data.labels] == labels.tolist()
    assert load(tmp_path / "x.npz", "train[:1]").record.classes == ("1", "3", "7", "10")


def test_images_are_resized_as_pillow_does(tmp_path):
    rng = np.random.default_rng(3)
    sizes = {"a.png": (40, 24), "b.png": (24, 24), "c.png": (16, 37)}
    for name, (width, height) in sizes.items():
        put(tmp_path / name, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    data = quiet(tmp_path, resize=12)
    boxes = {"a.png": ((20, 12), 4, 0), "b.png": ((12, 12), 0, 0), "c.png": ((12, 28), 0, 8)}
    for image, (name, (size, left, top)) in zip(data.images, boxes.items(), strict=True):
        whole = Image.open(tmp_path / name).resize(size, Image.Resampling.LANCZOS)
        cut = whole.crop((left, top, left + 12, top + 12))
        assert np.array_equal(image, np.asarray(cut).transpose(2, 0, 1))
    assert (data.record.resize, data.record.crop) == (12, "center")
    with pytest.raises(ValueError, match="Leave out --crop none, which makes them squares"):
        load(tmp_path, resize=12, crop="none")
    with pytest.raises(ValueError, match="give --resize too"):
        load(tmp_path, crop="center")
    refused("Use --resize N, which makes them squares", load, tmp_path)


def test_resizing_averages_and_stays_in_range(tmp_path):
    """A pattern finer than the new pixels becomes its mean; ringing does not leave the range."""
    fine = np.indices((2, 48, 48)).sum(0) % 2 * 4095
    fine[0, :, 24:] = 0
    np.save(tmp_path / "x.npy", fine.astype(np.uint16))
    data = quiet(tmp_path / "x.npy", range=(0, 4095), resize=8)
    batch = data.batch([0, 1])
    assert batch.shape == (2, 1, 8, 8) and batch.min() >= -1 and batch.max() <= 1
    assert batch[1].abs().max() < 0.05
    assert load("digits", resize=16).images.max() == 16
    assert load("digits", resize=16).record.shape == (1, 16, 16)


def test_mirrored_data_hold_each_image_and_its_mirror_image():
    data = load("digits")
    both = data.mirrored()
    truth = load_digits().images[:1500] / 8 - 1
    assert len(both) == 3000 and both.record.flip and both.record.sha256 == data.record.sha256
    batch = both.batch([7, 1507, -1, 2999]).numpy()[:, 0]
    expected = [truth[7], truth[7][:, ::-1], truth[-1][:, ::-1], truth[-1][:, ::-1]]
    np.testing.assert_allclose(batch, expected, atol=1e-6)
    assert both.classes([7, 1507]).tolist() == load_digits().target[[7, 7]].tolist()
    stats = both.stats()
    mean = stats.basis.synthesize(stats.mean)[0]
    torch.testing.assert_close(mean, mean.flip(-1))
    np.testing.assert_allclose(mean, (truth + truth[..., ::-1]).mean(0) / 2, atol=1e-6)


def test_records_of_before_are_what_they_were():
    for path in sorted((Path(sfumato.__file__).parent / "pretrained").glob("*/config.json")):
        text = path.read_text()
        config = sfumato.Config.from_dict(json.loads(text))
        then, now = json.loads(text), config.to_dict()
        if "kernel" not in then:  # written since
            assert now == then
            continue
        assert now["sampler"] == {"kernel": then.pop("kernel"), "steps": then.pop("steps")} | {
            "grid": None
        }
        assert now == then | {"sampler": now["sampler"]}
        assert sfumato.Config.from_dict(now) == config
        assert config.record.pictures
    plain = {"name": "x", "shape": [4, 8, 8], "low": -1, "high": 1, "classes": None}
    plain |= {"count": 3, "split": "train", "sha256": ""}
    assert json.loads(json.dumps(Record.from_dict(plain).to_dict())) == plain
    later = {"kind": "signals", "key": "z", "resize": 8, "crop": "none", "flip": True}
    assert json.loads(json.dumps(Record.from_dict(plain | later).to_dict())) == plain | later
    with pytest.raises(ValueError, match="no kind 'image'; did you mean 'images'"):
        Record.from_dict(plain | {"kind": "image"})


def test_signals_have_a_measured_scale(tmp_path):
    values = np.random.default_rng(4).normal(0.3, 1, (7, 4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", signals=values)
    np.savez(tmp_path / "z.npz", latents=values)
    data, scale = quiet(tmp_path / "x.npz"), float(np.abs(values).max())
    assert (data.record.low, data.record.high, data.record.kind) == (-scale, scale, "signals")
    batch = data.batch(range(7))
    np.testing.assert_allclose(batch.numpy(), values / scale, atol=1e-6)
    np.testing.assert_allclose(data.record.raw(batch).numpy(), values, atol=1e-5)
    held = quiet(tmp_path / "z.npz", key="latents", kind="signals", range=(-2, 2))
    np.testing.assert_allclose(held.batch(range(7)).numpy(), values / 2, atol=1e-6)
    assert load(tmp_path / "x.npz", "train[:2]").record.high == scale
    np.save(tmp_path / "volumes.npy", values)
    refused("say --kind signals, if these are no pictures", load, tmp_path / "volumes.npy")
    assert load(tmp_path / "volumes.npy", kind="signals").record.shape == (4, 8, 8)
    np.savez(tmp_path / "none.npz", signals=np.zeros((2, 3)))
    refused("nothing but zeros", load, tmp_path / "none.npz")
    with pytest.raises(ValueError, match="only images are resized"):
        load(tmp_path / "x.npz", resize=4)
    with pytest.raises(ValueError, match="a mirror image is for images"):
        data.mirrored()


CIFAR = {
    "cifar10": (
        "cifar-10-batches-bin",
        1,
        5,
        "batches.meta.txt",
        "cifar-10-batches-py/data_batch_1",
    ),
    "cifar100": ("cifar-100-binary", 2, 1, "fine_label_names.txt", "cifar-100-python/train"),
}


def cifar(home, name, count=3):
    """Files as their page describes them, and the images and labels of the training split."""
    folder, labels, files, names, _ = CIFAR[name]
    generator, place = np.random.default_rng(0), home / folder
    place.mkdir(parents=True)
    classes = 10 if name == "cifar10" else 100
    (place / names).write_text("".join(f"c{i}\n" for i in range(classes)) + "\n")
    titles = [f"data_batch_{i + 1}.bin" for i in range(5)] if files == 5 else ["train.bin"]
    rows = generator.integers(0, 256, (files, count, labels + 3072)).astype(np.uint8)
    rows[..., :labels] %= classes
    for title, some in zip(titles, rows, strict=True):
        (place / title).write_bytes(some.tobytes())
    test = "test_batch.bin" if files == 5 else "test.bin"
    (place / test).write_bytes(rows[0, :1].tobytes())
    flat = rows.reshape(-1, labels + 3072)
    return place, flat[:, labels:].reshape(-1, 3, 32, 32), flat[:, labels - 1]


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("below", [False, True])
def test_cifar_is_read_from_its_binary_files(tmp_path, monkeypatch, name, below):
    place, images, labels = cifar(tmp_path / name if below else tmp_path, name)
    monkeypatch.setenv("SFUMATO_DATA", str(tmp_path))
    train, test = load(name), load(name, "test")
    assert np.array_equal(train.images, images) and np.array_equal(train.labels, labels)
    assert train.record.shape == (3, 32, 32) and train.record.classes[7] == "c7"
    assert np.array_equal(test.images, images[:1])
    monkeypatch.setenv("SFUMATO_DATA", str(place))
    assert np.array_equal(load(name).images, images)


@pytest.mark.parametrize("name", CIFAR)
def test_bad_cifar_files_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.delenv("SFUMATO_DATA", raising=False)
    refused("as SFUMATO_DATA is not set", load, name, error=FileNotFoundError)
    monkeypatch.setenv("SFUMATO_DATA", str(tmp_path))
    refused("the binary version was unpacked", load, name, error=FileNotFoundError)
    pickled = tmp_path / CIFAR[name][-1]
    pickled.parent.mkdir()
    pickled.write_bytes(b"\x80\x02}.")
    refused("is a pickle, which could run code when it is read. Get the binary", load, name)
    place, _, _ = cifar(tmp_path, name)
    path = next(path for path in sorted(place.glob("*.bin")) if "test" not in path.name)
    path.write_bytes(path.read_bytes()[:-1])
    refused(f"{path.name} is cut off or no such file", load, name)
    path.write_bytes(b"")
    refused("it has 0 in all", load, name)


def test_mnist_is_read_from_its_own_folder(fashion):
    """Beside files of the same names that are those of Fashion-MNIST."""
    refused("MNIST is not here", load, "mnist", error=FileNotFoundError)
    for folder, images in ((fashion, GRAY), (fashion / "mnist", GRAY[:2])):
        folder.mkdir(exist_ok=True)
        (folder / "train-images-idx3-ubyte").write_bytes(idx(images))
        (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[: len(images)]))
    assert len(load("mnist")) == 2 and load("mnist").record.classes == tuple("0123456789")
    assert len(load("fashion-mnist")) == 3


def test_a_middle_square_is_cut_before_images_are_resized(tmp_path):
    """As for CelebA in the papers: the middle 140 of 178 x 218 pixels, then 64 x 64."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (218, 178, 3)).astype(np.uint8)
    put(tmp_path / "000001.png", pixels)
    middle = pixels[39:179, 19:159]
    found = load(tmp_path, crop="140")
    assert np.array_equal(found.images[0].transpose(1, 2, 0), middle)
    small = Image.fromarray(middle).resize((64, 64), Image.Resampling.LANCZOS)
    found = load(tmp_path, crop="140", resize=64)
    assert np.array_equal(found.images[0].transpose(1, 2, 0), np.asarray(small))
    assert Record.from_dict(found.record.to_dict()).crop == "140"
    for crop, told in (
        ("200", "--crop 200 needs larger images than 178 x 218 pixels"),
        ("140px", "choose center, none, or a number of pixels"),
    ):
        with pytest.raises(ValueError, match=told):
            load(tmp_path, crop=crop, resize=9)
