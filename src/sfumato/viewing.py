r"""Looking at images in a notebook: a grid of them, and a trajectory as a moving picture.

`show` returns a picture, which a notebook displays where it is the last value of a cell. `animate`
writes a file.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from sfumato import files, pictures
from sfumato.errors import Refused

REST = 1.5
"""Seconds for which the last frame is held."""


def show(
    images: Tensor | Sequence[Tensor],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    scale: int | None = None,
    gap: int = 2,
) -> Image.Image:
    """One picture of images, which a notebook displays.

    Args:
        images: in [-1, 1]: one (C, H, W); a grid (n, C, H, W); rows (rows, n, C, H, W), such as
            samples of each seed or steps of a trajectory; or a sequence of rows (n, C, H, W).
        labels: a caption for each row; then each image of a grid is a row.
        columns: of a grid; by default as many as rows, or one more.
        scale: enlargement by repeated pixels; by default the least that makes a cell 56 pixels.
        gap: white pixels between cells.

    Raises:
        ValueError: images of another rank, with other channels than 1 or 3, or none.

    >>> sf.show(torch.rand(6, 1, 28, 28), columns=3).size
    (172, 114)
    """
    if isinstance(images, Tensor):
        if images.ndim not in (3, 4, 5):
            raise Refused(
                "images to show are (C, H, W), (n, C, H, W) or (rows, n, C, H, W); got shape "
                f"{tuple(images.shape)}."
            )
        images = images[None] if images.ndim == 3 else images
        if images.ndim == 4 and labels is None:
            return pictures.grid(images, columns, scale, gap)
        images = images[:, None] if images.ndim == 4 else images
    if columns is not None:
        raise Refused(f"rows are as long as they are, and take no columns; got {columns}.")
    return pictures.strip(list(images), labels, scale, gap)


def animate(
    trajectory: Tensor,
    path: str | Path,
    fps: float = 8.0,
    columns: int | None = None,
    scale: int | None = None,
) -> Path:
    """Write a trajectory as a moving picture, a grid of all images in each frame.

    Args:
        trajectory: (n, frames, C, H, W) in [-1, 1], as `sfumato.trajectory` makes it.
        path: `x.gif`, or `x.mp4`, which needs the package imageio-ffmpeg or the program ffmpeg.
        fps: frames a second. The last frame is held for 1.5 seconds more.
        columns, scale: of the grid, as in `show`.

    Returns:
        The path.

    Raises:
        ValueError: another shape or suffix, fps that is not above 0, no frame, or no encoder for
            .mp4.

    >>> sf.animate(torch.rand(2, 5, 1, 8, 8), "x.gif").name
    'x.gif'
    """
    path = Path(path)
    if trajectory.ndim != 5:
        raise Refused(
            "a trajectory is (n, frames, channels, height, width); got shape "
            f"{tuple(trajectory.shape)}."
        )
    if not trajectory.shape[1]:
        raise Refused("a trajectory without a step has no frame to show.")
    if not fps > 0:
        raise Refused(f"frames a second are more than 0; got {fps:g}.")
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise Refused(f"a moving picture is .gif or .mp4; got {path}.")
    files.check_writable(path)
    encoder = _encoder() if path.suffix.lower() == ".mp4" else None
    shown = [pictures.grid(frame, columns, scale) for frame in trajectory.transpose(0, 1)]
    if encoder is None:
        files.write(path, lambda part: _gif(shown, part, fps))
    else:
        files.write(path, lambda part: _mp4(encoder, shown, part, fps))
    return path


def _gif(shown: Sequence[Image.Image], part: Path, fps: float) -> None:
    each = round(1000 / fps)
    last = round(1000 * (1 / fps + REST))
    durations = [*[each] * (len(shown) - 1), last]
    shown[0].save(
        part, "GIF", save_all=True, append_images=shown[1:], duration=durations, loop=0, disposal=2
    )


def _mp4(encoder: str, shown: Sequence[Image.Image], part: Path, fps: float) -> None:
    """H.264 with sides padded to even numbers, which its colours need."""
    width, height = shown[0].size
    held = [*shown, *[shown[-1]] * round(REST * fps)]
    command = [encoder, "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-", "-an"]
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p"]
    command += ["-movflags", "+faststart", "-f", "mp4", str(part)]
    frames = b"".join(np.asarray(one.convert("RGB")).tobytes() for one in held)
    ended = subprocess.run(command, input=frames, capture_output=True, check=False)
    if ended.returncode:
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        raise Refused(f"{encoder} cannot write .mp4: {said[-1] if said else 'no reason given'}.")


def _encoder() -> str:
    """The program that encodes .mp4."""
    if find_spec("imageio_ffmpeg") is not None:
        try:
            return import_module("imageio_ffmpeg").get_ffmpeg_exe()
        except RuntimeError:  # a platform for which it has no program: look for another
            pass
    found = shutil.which("ffmpeg")
    if found is None:
        raise Refused(
            "a .mp4 needs an encoder, and there is none: pip install imageio-ffmpeg, or install "
            "ffmpeg, or write a .gif."
        )
    return found
