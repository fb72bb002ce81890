"""Pictures: what is written is read back by Pillow and numpy, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import pictures


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def levels(*shape, seed=0):
    """Random bytes (n, H, W, C), and the tensor that stands for them."""
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return array, torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1


def refused(message, call, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    assert message in str(error.value)


def test_bytes_are_rounded_and_clipped():
    exact, x = levels(2, 16, 16, 3)
    assert np.array_equal(pictures.to_uint8(x), exact)
    every = torch.arange(256.0).reshape(1, 1, 16, 16) / 127.5 - 1
    assert pictures.to_uint8(every).ravel().tolist() == list(range(256))
    x = torch.tensor([-3.0, -1.0, -0.998, 0.0, 0.0118, 1.0, 9.0, float("inf")])
    assert pictures.to_uint8(x.reshape(1, 1, 1, 8)).ravel().tolist() == [
        *(0, 0, 0, 128, 129, 255, 255, 255)
    ]


def test_bytes_need_no_graph_and_no_float32():
    exact, x = levels(1, 4, 4, 1)
    assert np.array_equal(pictures.to_uint8(x.double().requires_grad_()), exact)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_no_picture_hides_channels(tmp_path, channels):
    _, x = levels(4, 5, 6, channels)
    sentence = f"1 or 3 channels, these images {channels}; save them as .npz"
    with pytest.raises(ValueError, match=sentence):
        pictures.grid(x)
    with pytest.raises(ValueError, match=sentence):
        pictures.strip([x])
    for name in ("x.png", "folder"):
        with pytest.raises(ValueError, match=sentence):
            pictures.save(x, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_pixel(channels):
    exact, x = levels(5, 4, 6, channels)
    picture = np.asarray(pictures.grid(x, columns=3, scale=2, gap=1))
    assert picture.shape[:2] == (2 * 8 + 1, 3 * 12 + 2)
    assert picture.ndim == (3 if channels == 3 else 2)
    shown = exact if channels == 3 else exact[..., 0]
    for i in range(5):
        top, left = (i // 3) * 9, (i % 3) * 13
        cell = picture[top : top + 8, left : left + 12]
        assert np.array_equal(cell[::2, ::2], shown[i]) and np.array_equal(
            cell[1::2, 1::2], shown[i]
        )
    assert (picture[8] == 255).all() and (picture[:, 12] == 255).all()
    assert (picture[9:, 26:] == 255).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1, 28, 28), (56, 56)),
        ((7, 3, 32, 32), (3 * 66 - 2, 3 * 66 - 2)),
        ((4, 1, 8, 8), (114, 114)),
        ((2, 1, 64, 100), (202, 64)),
        ((3, 1, 56, 56), (114, 114)),
    ],
)
def test_grid_is_nearly_square_with_cells_of_56_pixels(shape, size):
    assert pictures.grid(noise(*shape)).size == size


def test_strip_has_a_row_for_each_tensor():
    exact, x = levels(2, 4, 4, 1)
    colour, y = levels(3, 4, 4, 3, seed=1)
    picture = np.asarray(pictures.strip([x, y], scale=1, gap=1))
    assert picture.shape == (9, 14, 3)
    for channel in range(3):
        assert np.array_equal(picture[:4, 5:9, channel], exact[1, ..., 0])
    assert np.array_equal(picture[5:, 10:], colour[2])
    assert (picture[:4, 10:] == 255).all()


def test_captions_stand_left_of_their_rows():
    rows = [torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8)]
    plain = np.asarray(pictures.strip(rows))
    named = np.asarray(pictures.strip(rows, labels=["t = 0.25", ""]))
    margin = named.shape[1] - plain.shape[1]
    assert np.array_equal(named[:, margin:], plain)
    assert named[:56, :margin].min() < 100 and named[58:, :margin].min() == 255
    ink = np.nonzero(named[:, :margin].min(1) < 128)[0]
    assert abs(ink.mean() - 28) < 4


def test_png_is_the_grid(tmp_path):
    x = noise(3, 3, 8, 8)
    pictures.save(x, tmp_path / "new" / "x.png")
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.asarray(pictures.grid(x)))
    pictures.save(pictures.grid(x, columns=1), tmp_path / "new" / "x.png")
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert image.size == (56, 3 * 58 - 2)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


def test_a_single_image_is_read_back_as_it_was(tmp_path):
    """Where there is no grid nothing is enlarged, so that `restore` and `edit` take the file."""
    x = torch.rand(1, 1, 5, 7) * 2 - 1
    pictures.save(x, tmp_path / "one.png")
    read = pictures.read(tmp_path / "one.png")
    torch.testing.assert_close(read, x, rtol=0, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_npz_keeps_all_channels(tmp_path, channels):
    exact, x = levels(4, 5, 6, channels)
    pictures.save(x, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        assert loaded.files == ["images"]
        assert loaded["images"].dtype == np.uint8 and np.array_equal(loaded["images"], exact)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_has_a_file_for_each_image(tmp_path, channels):
    exact, x = levels(3, 5, 6, channels)
    pictures.save(x, tmp_path / "a" / "b")
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        *("000000.png", "000001.png", "000002.png")
    ]
    for i, path in enumerate(sorted((tmp_path / "a" / "b").iterdir())):
        with Image.open(path) as image:
            assert image.mode == ("L" if channels == 1 else "RGB")
            assert np.array_equal(np.asarray(image).reshape(5, 6, channels), exact[i])
        torch.testing.assert_close(pictures.read(path), x[i : i + 1], rtol=0, atol=1e-6)


def test_folder_takes_names_and_may_have_a_dot_if_it_exists(tmp_path):
    folder = tmp_path / "run.v2"
    folder.mkdir()
    pictures.save(noise(2, 1, 4, 4), folder, names=["seed-1.5", "b.PNG"])
    assert sorted(path.name for path in folder.iterdir()) == ["b.PNG", "seed-1.5.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "x.npz"
    pictures.save(noise(1, 1, 4, 4), target)
    before = target.read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    refused("No space left on device", pictures.save, noise(2, 1, 4, 4), target)
    assert target.read_bytes() == before and [*tmp_path.iterdir()] == [target]


def test_unwritable_places_are_known_before_and_after(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x.png", tmp_path / "file" / "folder" / "x.npz"):
        refused("cannot write", pictures.check_writable, path)
        refused("cannot write", pictures.save, noise(1, 1, 4, 4), path)
    for path in (tmp_path / "x.jpg", tmp_path / "x.npy", tmp_path / "no.folder"):
        refused("Use .png (a grid), .npz (an array) or a folder", pictures.check_writable, path)
        refused(
            "Use .png (a grid), .npz (an array) or a folder", pictures.save, noise(1, 1, 4, 4), path
        )
    refused("it is a file. Give a folder", pictures.check_writable, tmp_path / "file")
    for path in (tmp_path / "x.png", tmp_path / "new" / "x.NPZ", tmp_path / "a" / "b", tmp_path):
        pictures.check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


ONE = torch.zeros(1, 1, 4, 4)
HOLE = ONE.clone()
HOLE[0, 0, 1, 2] = float("nan")


@pytest.mark.parametrize(
    ("message", "call", "arguments"),
    [
        ("images must be (n, channels, height, width); got shape (4, 4)", "to_uint8", (ONE[0, 0],)),
        ("got torch.int64", "to_uint8", (ONE.long(),)),
        ("1 of 16 values of the images are NaN", "to_uint8", (HOLE,)),
        ("there is no image to show", "grid", (ONE[:0],)),
        ("at least one column; got 0", "grid", (ONE, 0)),
        ("scale must be at least 1; got 0", "grid", (ONE, 1, 0)),
        ("gap must be at least 0 pixels; got -1", "grid", (ONE, 1, 1, -1)),
        ("images of one size; got [(3, 4), (4, 4)]", "strip", ([ONE, ONE[:, :, 1:]],)),
        ("images of one size; got []", "strip", ([],)),
        ("2 rows needs as many labels; got 1", "strip", ([ONE, ONE], ["a"])),
    ],
)
def test_wrong_pictures_are_refused(message, call, arguments):
    refused(message, getattr(pictures, call), *arguments)


@pytest.mark.parametrize(
    ("message", "images", "name", "names"),
    [
        ("there is no image to save", ONE[:0], "folder", None),
        ("a picture is saved as .png", Image.new("L", (2, 2)), "x.npz", None),
        ("a picture is saved as .png", Image.new("L", (2, 2)), "folder", None),
        ("names are for the files of a folder", ONE, "x.png", ["a"]),
        ("1 images need 1 names; got 2", ONE, "folder", ["a", "b"]),
        ("names must differ", ONE.expand(2, 1, 4, 4), "folder", ["a", "a"]),
        ("'../a' is not the name of a file", ONE, "folder", ["../a"]),
        ("'' is not the name of a file", ONE, "folder", [""]),
        ("these images 2; save them as .npz", ONE.expand(1, 2, 4, 4), "folder", None),
    ],
)
def test_wrong_savings_are_refused_and_write_nothing(tmp_path, message, images, name, names):
    refused(message, pictures.save, images, tmp_path / name, names)
    assert [*tmp_path.iterdir()] == []


def draw(path, image, **kwargs):
    image.save(path, **kwargs)
    return pictures.pixels(path)


def test_every_kind_of_image_becomes_gray_or_colour(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    colour = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    clear = np.dstack([colour, np.full((5, 7), 255, np.uint8)])
    clear[0, 0, 3], clear[1, 1, 3] = 0, 51
    png = tmp_path / "x.png"
    assert np.array_equal(draw(png, Image.fromarray(gray)), gray[None])
    assert np.array_equal(draw(png, Image.fromarray(colour)), colour.transpose(2, 0, 1))
    assert np.array_equal(draw(tmp_path / "x.bmp", Image.fromarray(gray)), gray[None])
    assert np.array_equal(
        draw(png, Image.fromarray(gray > 128)), (gray > 128)[None] * np.uint8(255)
    )
    few = Image.fromarray(colour // 128 * 255).quantize(8)
    assert few.mode == "P"
    assert np.array_equal(draw(png, few), np.asarray(few.convert("RGB")).transpose(2, 0, 1))
    wide = gray.astype(np.uint16) * 257 + 100
    assert np.array_equal(
        draw(png, Image.fromarray(wide)), np.rint(wide / 257).astype(np.uint8)[None]
    )

    over = draw(png, Image.fromarray(clear))
    assert over[:, 0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(over[:, 2:], colour.transpose(2, 0, 1)[:, 2:])
    assert np.abs(over[:, 1, 1] - (0.2 * colour[1, 1] + 0.8 * 255)).max() <= 1
    two = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(clear[..., 3].copy())))
    over = draw(png, two)
    assert over.shape == (1, 5, 7) and over[0, 0, 0] == 255
    assert np.array_equal(over[0, 2:], gray[2:])
    assert abs(over[0, 1, 1] - (0.2 * gray[1, 1] + 0.8 * 255)) <= 1


def test_orientation_of_a_camera_is_obeyed(tmp_path):
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    turned = draw(tmp_path / "x.jpg", image, exif=exif, quality=95)
    assert turned.shape == (1, 16, 8)
    assert turned[0, :7].min() > 200 and turned[0, 9:].max() < 50


def test_bad_files_are_named(tmp_path):
    picture, text, cut = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    pictures.save(noise(9, 3, 16, 16), picture)
    text.write_text("no picture")
    cut.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    refused("b.png is not an image that Pillow can read", pictures.read, text)
    refused("c.png cannot be read as an image: image file is truncated", pictures.read, cut)
    refused("is a folder; give one image file", pictures.read, tmp_path)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "d.tiff")
    refused("it holds floating-point numbers", pictures.read, tmp_path / "d.tiff")
    with pytest.raises(FileNotFoundError, match=r"there is no image .*e\.png"):
        pictures.read(tmp_path / "e.png")
