r"""Pictures: image files of tensors in [-1, 1].

A tensor of images is (n, C, H, W). One channel is gray, three are red, green and blue; other
numbers of channels have no picture. A file is written whole or not at all.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from sfumato import files, limits
from sfumato.errors import NotFound, Refused, reason

CELL = 56
"""The least side of a cell in pixels, where no `scale` is given."""
MARGIN = 4
"""Pixels around a caption."""
PAPER = "white"
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, TypeError, LookupError),
    *(ArithmeticError, RuntimeError, MemoryError, AttributeError),
)
"""What Pillow raises, depending on the format, for a file that is cut off or damaged."""
FORMATS = (
    *("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA", "PCX", "SGI"),
    *("JPEG2000", "AVIF"),
)
"""Those that are read: pictures whose size is in the header, and none that is a program."""


def to_uint8(x: Tensor) -> np.ndarray:
    r"""Images as bytes: round((x + 1) 127.5), clipped to 0 and 255.

    Args:
        x: images in [-1, 1], (n, C, H, W).

    Returns:
        Array (n, H, W, C) of uint8.

    Raises:
        ValueError: `x` has another rank or NaNs.
    """
    if x.ndim != 4:
        raise Refused(f"images must be (n, channels, height, width); got shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise Refused(f"images must be floating-point numbers in [-1, 1]; got {x.dtype}.")
    x = x.detach().float().cpu()
    if x.isnan().any():
        raise Refused(f"{int(x.isnan().sum())} of {x.numel()} values of the images are NaN.")
    x = ((x + 1) * 127.5).round().clamp(0, 255)
    return np.ascontiguousarray(x.to(torch.uint8).permute(0, 2, 3, 1).numpy())


def grid(
    images: Tensor, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image.Image:
    r"""One picture of all images, row by row.

    Args:
        images: images in [-1, 1], (n, C, H, W).
        columns: cells in a row; by default as many as rows, or one more.
        scale: enlargement by repeated pixels; by default the least that makes a cell 56 pixels.
        gap: white pixels between cells.

    Raises:
        ValueError: there is no image, images have other channels than 1 or 3, or a number is out
            of its range.
    """
    cells = _cells(_shown(images), scale)
    columns = math.ceil(math.sqrt(len(cells))) if columns is None else columns
    if columns < 1:
        raise Refused(f"a grid needs at least one column; got {columns}.")
    return _paste([cells[i : i + columns] for i in range(0, len(cells), columns)], gap)


def strip(
    rows: Sequence[Tensor],
    labels: Sequence[str] | None = None,
    scale: int | None = None,
    gap: int = 2,
) -> Image.Image:
    r"""One picture with a row of cells for each tensor: steps of a process, one method a row.

    Args:
        rows: images in [-1, 1], each (n, C, H, W); n may differ, C between gray and colour too.
        labels: a caption for each row, drawn small on its left in Latin letters.
        scale: enlargement by repeated pixels; by default the least that makes a cell 56 pixels.
        gap: white pixels between cells.

    Raises:
        ValueError: there is no image, sizes differ, images have other channels than 1 or 3, or
            captions are not one per row.
    """
    arrays = [_shown(row) for row in rows]
    sizes = sorted({array.shape[1:3] for array in arrays})
    if len(sizes) != 1:
        raise Refused(f"the rows of a strip must hold images of one size; got {sizes}.")
    picture = _paste([_cells(array, scale) for array in arrays], gap)
    if labels is None:
        return picture
    if len(labels) != len(rows):
        raise Refused(f"a strip of {len(rows)} rows needs as many labels; got {len(labels)}.")
    return _caption(picture, labels, gap)


def save(
    images: Tensor | np.ndarray | Image.Image,
    path: str | Path,
    names: Sequence[str] | None = None,
) -> None:
    r"""Write images in the format that the path gives.

    Args:
        images: images in [-1, 1], (n, C, H, W); or bytes of `to_uint8` (for a folder only), or a
            picture (for `.png` only).
        path: `x.png`, a grid, or one image as it is; `x.npz`, the array `images` of uint8,
            (n, H, W, C); or a folder (no suffix, or it exists): `000000.png` and so on. Missing
            folders are created.
        names: the files' names in a folder.

    Raises:
        ValueError: another suffix, a path that cannot be written, or `images` or `names` that do
            not fit it.
    """
    path = Path(path)
    kind = _kind(path)
    if names is not None and kind:
        raise Refused(f"names are for the files of a folder; {path} is one file.")
    if isinstance(images, Tensor) and not len(images):
        raise Refused(f"there is no image to save as {path}.")
    if isinstance(images, Image.Image):
        if kind != ".png":
            raise Refused(f"a picture is saved as .png; got {path}.")
        _write_png(path, images)
    elif kind and isinstance(images, np.ndarray):
        raise Refused(f"bytes are saved as the pictures of a folder; {path} is one file.")
    elif kind and isinstance(images, Tensor):
        if kind == ".png":
            _write_png(path, grid(images, scale=1 if len(images) == 1 else None))
        else:
            files.write_arrays({"images": to_uint8(images)}, path)
    else:
        array = _shown(images)
        for name, one in zip(_names(names, len(array)), array, strict=True):
            _write_png(path / name, _picture(one))


def drawable(shape: Sequence[int]) -> bool:
    """Whether a picture shows signals of `shape`: (1, H, W) or (3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def check_writable(path: str | Path) -> None:
    """Raise now the ValueError that `save` would raise for `path` after the work."""
    _kind(Path(path))
    files.check_writable(path)


def check_alone(path: str | Path, names: Sequence[str] | None, count: int) -> None:
    """Raise ValueError if `path` is a folder with pictures that `save` would not overwrite.

    Args:
        path, names: as in `save`.
        count: number of images to be saved.
    """
    if _kind(path := Path(path)):
        return
    mine = {*_names(names, count)}
    if others := sorted(old.name for old in path.glob("*.png") if old.name not in mine):
        raise Refused(
            f"{path} holds other images, such as {others[0]}, which would mix with these. Choose "
            "another --out, or remove them."
        )


def read(path: str | Path) -> Tensor:
    """One image file as a tensor (1, C, H, W) in [-1, 1]; raises as `pixels` does."""
    return torch.from_numpy(pixels(path)).float().div_(127.5).sub_(1)[None]


def pixels(path: str | Path) -> np.ndarray:
    """As `deep`, with 16 bits reduced to 8."""
    return eight_bits(deep(path))


def eight_bits(array: np.ndarray) -> np.ndarray:
    """What `deep` returns, with 16 bits reduced to 8."""
    return array if array.dtype == np.uint8 else np.rint(array / 257).astype(np.uint8)


def deep(path: str | Path) -> np.ndarray:
    r"""The values of one image file, turned as its EXIF orientation says, (C, H, W).

    C is 1 for a gray image, else 3; uint8, or uint16 for gray images of 16 bits. What is
    transparent becomes white.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is cut off, or holds numbers that have no natural range.
    """
    path = Path(path)
    if not path.exists():
        raise NotFound(f"there is no image {path}.")
    if path.is_dir():
        raise Refused(f"{path} is a folder; give one image file.")
    return _values(path, str(path))


def decoded(data: bytes, name: str) -> np.ndarray:
    """As `deep`, of the bytes of an image file that sentences call `name`."""
    return _values(io.BytesIO(data), name)


def received(
    data: bytes, formats: tuple[str, ...] = ("PNG", "JPEG"), most: int = 2**24
) -> np.ndarray:
    r"""As `deep`, of an image file's bytes from a source that is not trusted.

    Args:
        data: the whole file.
        formats: of Pillow; no other decoder is tried.
        most: pixels, which the header tells before anything is decoded.

    Raises:
        ValueError: another format, more pixels, or a file that is cut off or damaged.
    """
    return _values(io.BytesIO(data), "this file", formats, most)


def _values(
    source: Path | io.BytesIO,
    name: str,
    formats: tuple[str, ...] | None = None,
    most: int | None = None,
) -> np.ndarray:
    array = None
    try:
        with _quiet(), Image.open(source, formats=formats or FORMATS) as opened:
            width, height = opened.size
            if most is None:
                limits.check_memory(f"{width} x {height} pixels", limits.PIXEL * width * height)
            if most is None or width * height <= most:
                array = _plain(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        kind = "an image that Pillow can read" if formats is None else " or ".join(formats)
        raise Refused(f"{name} is not {kind}.") from None
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise Refused(f"{name} cannot be read as an image: {reason(error)}.") from error
    if array is None:
        raise Refused(f"{name} has {width} x {height} pixels; reduce it to {most:,} at most.")
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, Pillow does not warn of large images: `limits` refuse them, or are raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def fit(image: np.ndarray, side: int, crop: bool = True) -> np.ndarray:
    r"""An image (C, H, W) whose shorter side is `side`; with `crop`, the middle square of that.

    Pillow's Lanczos filter, which is antialiased, on each channel. Bytes stay bytes; other numbers
    become float32 and may leave their range a little.
    """
    height, width = image.shape[1:]
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    planes = image if image.dtype == np.uint8 else image.astype(np.float32)
    resized = [Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS) for plane in planes]
    whole = np.stack([np.asarray(plane) for plane in resized])
    if not crop:
        return whole
    top, left = ((length - side) // 2 for length in whole.shape[1:])
    return whole[:, top : top + side, left : left + side]


def _plain(image: Image.Image) -> np.ndarray:
    """Any mode of Pillow's as an array (H, W) or (H, W, 3)."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Refused("its integers exceed 16 bits")
        return values.astype(np.uint16)
    if image.mode == "F":
        raise Refused("it holds floating-point numbers; save them as .npy")
    if image.mode in ("LA", "La") or (image.mode == "L" and "transparency" in image.info):
        image = image.convert("LA")
        paper = Image.new("L", image.size, PAPER)
        return np.array(Image.composite(image.getchannel(0), paper, image.getchannel(1)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, PAPER)
        return np.array(Image.alpha_composite(paper, image).convert("RGB"))
    return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _kind(path: Path) -> str:
    """`.png`, `.npz`, or "" for a folder."""
    if path.is_dir():
        return ""
    if path.suffix.lower() not in (".png", ".npz", ""):
        raise Refused(
            f"cannot write {path}: {path.suffix} is not a format for images here. "
            "Use .png (a grid), .npz (an array) or a folder (no suffix)."
        )
    if not path.suffix and path.exists():
        raise Refused(f"cannot write {path}: it is a file. Give a folder, or add .png or .npz.")
    return path.suffix.lower()


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"{i:06d}.png" for i in range(count)]
    if len(names) != count:
        raise Refused(f"{count} images need {count} names; got {len(names)}.")
    if len(set(names)) < count:
        raise Refused("two images have one name; names must differ.")
    for name in names:
        if not name or Path(name).name != name:
            raise Refused(f"{name!r} is not the name of a file in a folder.")
    return [name if name.lower().endswith(".png") else f"{name}.png" for name in names]


def _write_png(path: Path, picture: Image.Image) -> None:
    files.write(path, lambda part: picture.save(part, format="PNG"))


def _picture(array: np.ndarray) -> Image.Image:
    """An array (H, W, C) as gray or colour."""
    return Image.fromarray(array if array.shape[-1] == 3 else array[..., 0])


def _shown(images: Tensor | np.ndarray) -> np.ndarray:
    """`to_uint8` of images that a picture can show."""
    array = images if isinstance(images, np.ndarray) else to_uint8(images)
    if (channels := array.shape[-1]) not in (1, 3):
        raise Refused(f"a .png has 1 or 3 channels, these images {channels}; save them as .npz.")
    return array


def _cells(array: np.ndarray, scale: int | None) -> list[Image.Image]:
    """Enlarged pictures of an array (n, H, W, C)."""
    count, height, width, _ = array.shape
    if not count:
        raise Refused("there is no image to show.")
    scale = math.ceil(CELL / min(height, width)) if scale is None else scale
    if scale < 1:
        raise Refused(f"scale must be at least 1; got {scale}.")
    size = (width * scale, height * scale)
    return [_picture(one).resize(size, Image.Resampling.NEAREST) for one in array]


def _paste(rows: list[list[Image.Image]], gap: int) -> Image.Image:
    """Cells of one size on a white background."""
    if gap < 0:
        raise Refused(f"gap must be at least 0 pixels; got {gap}.")
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    mode = "RGB" if any(cell.mode == "RGB" for row in rows for cell in row) else "L"
    size = (columns * (width + gap) - gap, len(rows) * (height + gap) - gap)
    paper = Image.new(mode, size, PAPER)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            paper.paste(cell.convert(mode), (j * (width + gap), i * (height + gap)))
    return paper


def _caption(picture: Image.Image, labels: Sequence[str], gap: int) -> Image.Image:
    """The picture with a column of captions, each centred on its row."""
    row = (picture.height + gap) // len(labels)
    font = ImageFont.load_default(size=max(8, min(13, row - 2)))
    column = max(math.ceil(font.getlength(label)) for label in labels) + 2 * MARGIN
    paper = Image.new(picture.mode, (column + picture.width, picture.height), PAPER)
    paper.paste(picture, (column, 0))
    pen = ImageDraw.Draw(paper)
    for i, label in enumerate(labels):
        middle = i * row + (row - gap) // 2
        pen.text((column - MARGIN, middle), label, fill="black", font=font, anchor="rm")
    return paper
