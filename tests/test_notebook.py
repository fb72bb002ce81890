"""What a notebook shows: representations, grids, moving pictures and bars, read back."""

from __future__ import annotations

import base64
import io
import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import sfumato as sf
from sfumato import pictures, viewing
from sfumato.config import Config
from sfumato.progress import bar


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def embedded(page):
    """The picture within HTML, as an array."""
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def model():
    return sf.Model(Config("soft", sf.Record("<b>", (3, 16, 16))), backbone=nn.Linear(2, 3))


@pytest.mark.parametrize("name", sorted(sf.METHODS))
def test_every_method_has_a_table_and_a_strip(name):
    page = sf.METHODS[name]((1, 16, 16))._repr_html_()
    assert embedded(page).shape[:2] == (64, 8 * 64 + 7 * 2) and len(page) < 60_000
    assert page.count("<table>") == page.count("</table>") == 1


def test_the_strip_is_the_corruption():
    """A signal that falls to 0 without noise: from the picture to a gray that is everywhere one."""
    fading = sf.families.Scale(sf.schedules.Linear(1.0, 0.0))
    none = sf.families.Fixed(sf.operators.scaled(0.0))
    strip = embedded(sf.Process(fading, none)._repr_html_()).astype(int)
    cells = [strip[:, k * 66 : k * 66 + 64] for k in range(8)]
    assert {0, 255} <= {*cells[0].ravel().tolist()} and {*cells[7].ravel().tolist()} == {128}
    for k, cell in enumerate(cells):
        assert np.abs((cell - 127.5) - (1 - k / 7) * (cells[0] - 127.5)).max() <= 1


def test_a_model_says_what_it_is_and_is_escaped():
    page = model()._repr_html_()
    assert "&lt;b&gt;, 3 x 16 x 16" in page and "<td style" in page and "9 parameters" in page
    assert embedded(page).ndim == 3
    assert repr(model()).startswith("Model(") and "3 x 16 x 16" in repr(model())
    sampler = sf.Sampler("ddim:eta=0.5", grid=[1.0, 0.25, 0.0])
    assert eval(repr(sampler), {"Sampler": sf.Sampler}) == sampler
    page = sampler._repr_html_()
    assert "ddim:eta=0.5" in page and "1, 0.25, 0" in page and "<img" not in page


class Broken(sf.families.Family):
    """A family that fails at whatever a display asks of it, or at the named part alone."""

    def __init__(self, said=None):
        super().__init__()
        self.said = said

    def at(self, t):
        raise RuntimeError("no operator")

    @property
    def factors(self):
        if self.said is None:
            raise RuntimeError("no formula")
        return (self.said,)


def test_a_representation_never_raises():
    noise = sf.families.Scale(sf.schedules.Constant(0.1))
    page = sf.Process(Broken("<script>"), noise)._repr_html_()
    assert "&lt;script&gt;" in page and "<script>" not in page and "<img" not in page
    page = sf.Process(Broken(), noise)._repr_html_()
    assert page.startswith("<pre>Process(") and "<img" not in page
    wave = sf.families.Heat(sf.schedules.Linear(0.0, 3.0), sf.bases.dct(64))
    page = sf.Process(wave, noise)._repr_html_()
    assert "<table>" in page
    half = object.__new__(sf.Model)
    assert half._repr_html_().startswith("<pre>")


def test_show_is_the_picture_of_a_grid_or_of_rows():
    x = images(2, 3, 1, 4, 5)
    assert sf.show(x[0]).tobytes() == pictures.grid(x[0]).tobytes()
    assert sf.show(x[0, 0]).tobytes() == pictures.grid(x[0, :1]).tobytes()
    assert sf.show(x).tobytes() == pictures.strip(list(x)).tobytes()
    assert sf.show([x[0], x[1, :1]]).tobytes() == pictures.strip([x[0], x[1, :1]]).tobytes()
    labelled = sf.show(x[0], ["a", "b", "c"])
    assert labelled.tobytes() == pictures.strip(list(x[0][:, None]), ["a", "b", "c"]).tobytes()
    assert labelled._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(sf.Refused, match=r"got shape \(4, 5\)"):
        sf.show(x[0, 0, 0])
    with pytest.raises(sf.Refused, match="take no columns"):
        sf.show(x, columns=2)


def test_a_gif_has_every_frame(tmp_path):
    x = images(3, 4, 1, 8, 8)
    path = sf.animate(x, tmp_path / "new" / "x.gif", fps=10, columns=3, scale=2)
    with Image.open(path) as read:
        assert read.n_frames == 4 and read.info["loop"] == 0
        for k in range(4):
            read.seek(k)
            assert read.info["duration"] == (1600 if k == 3 else 100)
            expected = np.asarray(pictures.grid(x[:, k], 3, 2)).astype(int)
            assert np.abs(np.asarray(read.convert("L")).astype(int) - expected).max() <= 1


def test_an_mp4_gets_every_frame(tmp_path, monkeypatch):
    """The encoder is a stand-in that writes its options and its input."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nframes = sys.stdin.buffer.read()\n"
        "open(sys.argv[-1], 'wb').write(' '.join(sys.argv).encode() + b'|' + frames)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr(viewing, "find_spec", lambda name: None)
    x = images(1, 3, 3, 6, 8)
    path = sf.animate(x, tmp_path / "x.mp4", fps=2, scale=1)
    options, _, found = path.read_bytes().partition(b"|")
    assert b"-s 8x6 -r 2 " in options and b"yuv420p" in options
    shown = pictures.to_uint8(x[0])
    expected = b"".join(frame.tobytes() for frame in [*shown, *[shown[-1]] * 3])
    assert found == expected
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such codec')\n")
    with pytest.raises(sf.Refused, match="no such codec"):
        sf.animate(x, tmp_path / "y.mp4")
    program.unlink()
    with pytest.raises(sf.Refused, match="pip install imageio-ffmpeg"):
        sf.animate(x, tmp_path / "y.mp4")
    assert not list(tmp_path.glob("*y.mp4*"))


@pytest.mark.parametrize(
    ("shape", "name", "fps", "sentence"),
    [
        ((2, 1, 8, 8), "x.gif", 8, "a trajectory is"),
        ((1, 2, 1, 8, 8), "x.webm", 8, ".gif or .mp4"),
        ((1, 2, 1, 8, 8), "x.gif", 0, "more than 0"),
        ((1, 2, 2, 8, 8), "x.gif", 8, "1 or 3 channels"),
        ((1, 0, 1, 8, 8), "x.gif", 8, "no frame"),
    ],
)
def test_what_is_no_moving_picture_is_refused(shape, name, fps, sentence, tmp_path):
    with pytest.raises(sf.Refused, match=sentence):
        sf.animate(images(*shape), tmp_path / name, fps)
    assert not list(tmp_path.iterdir())


def test_a_notebook_has_a_bar(monkeypatch):
    shown = []
    display = types.ModuleType("IPython.display")
    display.HTML = str
    display.display = lambda page, display_id: shown.append(page) or display
    display.update = shown.append
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    console = Console(file=io.StringIO(), force_jupyter=True)
    with bar("images", 20, done=4, console=console) as advance:
        advance(8, "loss <1>")
        advance(8, "loss <2>")
    assert 'value="4" max="20"' in shown[0] and "4/20 images" in shown[0]
    assert 'value="20" max="20"' in shown[-1] and "loss &lt;2&gt;" in shown[-1]
    assert console.file.getvalue() == ""
