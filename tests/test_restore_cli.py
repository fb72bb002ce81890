"""`sfumato restore` and `sf.restore`, end to end with a tiny network; bad input in one line."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import sfumato as sf
from sfumato import restoration
from sfumato.cli import main
from sfumato.evaluation import fidelity
from sfumato.evaluation.restorations import REQUEST
from sfumato.model import Model
from sfumato.sampling.sample import Seeds

TINY = ("--width", "8", "--multipliers", "1", "--batch", "32", "--device", "cpu", "--quiet")
CALL = ("--steps", "3", "--samples", "2", "--device", "cpu", "--quiet")
OWN = """
import torch
from sfumato.operators import MatrixFree, scaled

half = scaled(0.5)

def left(shape):
    def widen(y):
        return torch.nn.functional.pad(y, (0, shape[-1] // 2))
    return MatrixFree(lambda x: x[..., : shape[-1] // 2], widen)

def wrong(shape):
    return MatrixFree(lambda x: x[..., : shape[-1] // 2], lambda y: torch.cat([y, y], -1))

def nothing(shape):
    return 3
"""


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of `soft` on digits of one step."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    words = ("train", "soft", "--steps", 4, "--images", 32, "--preview-every", 0)
    assert run(*words, "--out", out, *TINY) == 0
    return out


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder with `clean`, three digits as .png, and `one.png`."""
    monkeypatch.chdir(tmp_path)
    pixels = sf.load("digits").batch(range(3)).add(1).mul(127.5).byte().numpy()
    Path("clean").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[0]).save(f"clean/{'abc'[i]}.png")
    Image.fromarray(pixels[0, 0]).save("one.png")
    return tmp_path


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_samples_depend_on_their_measurement_and_seed_alone(trained):
    """At any batch, beside any other measurement."""
    model = sf.from_pretrained(str(trained))
    operator = sf.measurement("down:2", model.shape)
    y = operator(sf.load("digits").batch(range(3)))
    few = sf.Sampler("ancestral", 3)
    together = sf.restore(model, y, operator, 0.1, range(4), few)
    assert together.shape == (3, 4, 1, 8, 8) and together.dtype == torch.float32
    batched = sf.restore(model, y, operator, 0.1, range(4), few, batch=5)
    torch.testing.assert_close(batched, together, rtol=1e-4, atol=1e-4)
    alone = sf.restore(model, y[1:2], operator, 0.1, [2], few)
    torch.testing.assert_close(alone[0, 0], together[1, 2], rtol=1e-4, atol=1e-4)
    again = model.sample(range(4), few)
    torch.testing.assert_close(model.sample(range(4), few), again, rtol=0, atol=0)


def test_a_measurement_without_noise_is_met(trained):
    """However little the network knows, A x is y for what was measured exactly."""
    model = sf.from_pretrained(str(trained))
    operator = sf.measurement("box:2,2,6,6", model.shape)
    x = sf.load("digits").batch(range(2))
    found = sf.restore(model, operator(x), operator, 0.0, range(2), sf.Sampler("ddim", 4))
    torch.testing.assert_close(
        operator(found), operator(x)[:, None].expand_as(found), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("rule", ["spectrum", "pigdm", "dps", "replacement"])
def test_every_rule_restores(rule, trained, here):
    words = ("--operator", "down:2", "--rule", rule, "--simulate", "--out", f"{rule}.npz")
    assert run("restore", trained, "one.png", *words, *CALL) == 0
    assert np.isfinite(arrays(f"{rule}.npz")["samples"]).all()


def test_the_models_own_corruption_is_where_sampling_starts(trained, here, capsys):
    """x.npz holds what `uncorrupt` draws from the measurement, which is x_t."""
    words = ("--operator", "corruption:0.3", "--simulate", "--steps", 3, "--samples", 2)
    assert run("restore", trained, "one.png", *words, "--out", "x.npz") == 0
    assert "3 steps of ancestral" in capsys.readouterr().out
    model, kept = sf.from_pretrained(str(trained)), arrays("x.npz")
    x = torch.from_numpy(kept["measurement"]).movedim(-1, -3)
    found = sf.uncorrupt(model, x, 0.3, range(2), sf.Sampler("ancestral", 3))
    expected = torch.from_numpy(kept["samples"]).movedim(-1, -3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found[:, 0].sub(found[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("t", [0.0, 1.5, math.nan, torch.rand(2, 1, 1, 1)])
def test_corrupted_images_have_one_time(t, trained):
    with pytest.raises(sf.Refused, match="one time, a number above 0, up to 1"):
        sf.uncorrupt(sf.from_pretrained(str(trained)), torch.zeros(2, 1, 8, 8), t)


def test_arrays_and_strips(trained, here, capsys):
    """x.npz has the arrays, x.png a row for each image of measurement, mean, spread, samples."""
    same = ("restore", trained, "clean", "--operator", "down:2", "--simulate", *CALL)
    assert run(*same, "--out", "x.npz") == 0
    found = arrays("x.npz")
    shapes = {name: value.shape for name, value in found.items()}
    images = (3, 8, 8, 1)
    assert shapes == {
        "mean": images,
        "samples": (3, 2, 8, 8, 1),
        "measurement": (3, 4, 4, 1),
        "truth": images,
    }
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found["mean"], found["samples"].mean(1), atol=1e-6)
    clean = np.stack([np.asarray(Image.open(f"clean/{name}.png")) for name in "abc"])
    np.testing.assert_allclose(found["truth"][..., 0], clean / 127.5 - 1, atol=1e-6)
    assert run(*same, "--out", "x.png") == 0
    width, height = Image.open("x.png").size
    cell = 56
    assert (width, height) == (6 * (cell + 2) - 2, 3 * (cell + 2) - 2)
    picture = np.asarray(Image.open("x.png"))
    np.testing.assert_array_equal(picture[:cell, -cell:][::7, ::7], clean[0])
    assert not [path for path in here.iterdir() if "blocks" in path.name]
    assert not capsys.readouterr().err


def test_the_truth_is_measured_with_seeded_noise(trained, here):
    words = ("--operator", "identity", "--noise", 0.3, "--simulate", *CALL)
    for out, seed in (("a.npz", 0), ("b.npz", 0), ("c.npz", 1)):
        assert run("restore", trained, "clean", *words, "--seed", seed, "--out", out) == 0
    one, again, other = (arrays(name) for name in ("a.npz", "b.npz", "c.npz"))
    noise = one["measurement"] - one["truth"]
    assert noise.std() == pytest.approx(0.3, rel=0.15)
    np.testing.assert_array_equal(one["samples"], again["samples"])
    assert np.abs(one["measurement"] - other["measurement"]).max() > 0.3
    drawn = Seeds([0])(torch.empty(1, 1, 8, 8)).numpy()[0, 0]
    assert abs(np.corrcoef(noise[0].ravel(), drawn.ravel())[0, 1]) < 0.5


def test_floats_keep_their_value_and_bytes_become_minus_one_to_one(trained, here, capsys):
    y = np.random.default_rng(0).normal(0, 0.9, (2, 8, 8, 1)).astype(np.float32)
    np.savez("floats.npz", y=y)
    np.save("bytes.npy", np.full((1, 8, 8), 255, np.uint8))
    words = ("--operator", "identity", *CALL[:-1])
    assert run("restore", trained, "floats.npz", "--key", "y", *words, "--out", "f.npz") == 0
    np.testing.assert_array_equal(arrays("f.npz")["measurement"], y)
    assert run("restore", trained, "bytes.npy", *words, "--out", "b.npz") == 0
    assert (arrays("b.npz")["measurement"] == 1).all()
    assert "note" not in capsys.readouterr().err
    np.save("unit.npy", np.abs(y))
    assert run("restore", trained, "unit.npy", *words, "--out", "u.npz") == 0
    assert "are taken as they are, on the scale [-1, 1]." in capsys.readouterr().err


def test_a_folder_that_was_cut_off_goes_on(trained, here, capsys, monkeypatch):
    """Whole images are skipped; the result is that of one run; other requests are refused."""
    same = ("restore", trained, "clean", "--operator", "blur:1", "--simulate", "--batch", 2, *CALL)
    assert run(*same, "--out", "whole") == 0
    calls = []
    real = restoration.restore

    def cut(model: Model, y: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        calls.append(len(y))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, y, *given, **named)

    monkeypatch.setattr(restoration, "restore", cut)
    assert run(*same, "--out", "out") == 130
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.npz", "a.png", REQUEST]
    assert run(*same, "--out", "out") == 0
    assert calls == [1, 1, 1, 1]
    assert run(*same, "--out", "out") == 0
    assert len(calls) == 4
    for name in "abc":
        for part, value in arrays(f"whole/{name}.npz").items():
            np.testing.assert_array_equal(arrays(f"out/{name}.npz")[part], value)
        one, other = (Path(f"{out}/{name}.png").read_bytes() for out in ("whole", "out"))
        assert one == other
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert run(*same, "--noise", 0.2, "--out", "out") == 2
    assert "another request: its noise was 0.05, not 0.2." in capsys.readouterr().err
    Image.open("clean/a.png").rotate(90).save("clean/b.png")
    assert run(*same, "--out", "out") == 2
    assert "out/b.npz is of another measurement." in capsys.readouterr().err
    assert run(*same, "--out", "clean") == 2
    assert "clean holds other files. Choose another --out." in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}


def test_one_file_of_many_images_goes_on_too(trained, here, monkeypatch):
    same = ("restore", trained, "clean", "--operator", "blur:1", "--batch", 2, *CALL)
    assert run(*same, "--out", "whole.npz") == 0
    real = restoration.restore
    calls = []

    def cut(model: Model, y: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        calls.append(len(y))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, y, *given, **named)

    monkeypatch.setattr(restoration, "restore", cut)
    assert run(*same, "--out", "x.npz") == 130
    assert not Path("x.npz").exists()
    assert run(*same, "--out", "x.npz") == 0
    assert len(calls) == 4
    for name, value in arrays("whole.npz").items():
        np.testing.assert_array_equal(arrays("x.npz")[name], value)
    assert not [path for path in here.iterdir() if "blocks" in path.name]


def test_what_is_compared_is_printed(trained, here, capsys):
    """PSNR by its formula; the images of digits are too small for SSIM's window."""
    words = ("--operator", "identity", "--noise", 0.5, "--simulate", *CALL[:-1])
    assert run("restore", trained, "clean", *words, "--out", "x.npz") == 0
    found = arrays("x.npz")
    printed = capsys.readouterr().out
    assert "x.npz: 3 images, 2 samples each, 3 steps of" in printed
    assert "SSIM" not in printed
    truth = found["truth"]
    pairs = {
        "measurement": (found["measurement"], truth),
        "mean": (found["mean"], truth),
        "one sample": (found["samples"], truth[:, None]),
    }
    for name, (x, y) in pairs.items():
        squared = np.square(x.clip(-1, 1) - y).mean((-3, -2, -1))
        expected = f"{(10 * np.log10(4 / squared)).mean():.4g}"
        (line,) = [line for line in printed.splitlines() if name in line]
        assert float(line.split("│")[2]) == pytest.approx(float(expected), abs=2e-2)


def test_ssim_is_that_of_its_paper():
    """With scipy's Gaussian means over 11 x 11 pixels, of deviation 1.5, at every pixel."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 1, 1, 20, 24, generator=generator) * 2 - 1).double()

    def mean(z: torch.Tensor) -> np.ndarray:
        return ndimage.gaussian_filter(z[0, 0].numpy(), 1.5, mode="mirror", radius=5)

    def cov(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return mean(a * b) - mean(a) * mean(b)

    one, two = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    expected = (2 * mean(x) * mean(y) + one) * (2 * cov(x, y) + two)
    expected /= (mean(x) ** 2 + mean(y) ** 2 + one) * (cov(x, x) + cov(y, y) + two)
    assert float(fidelity.ssim(x, y)) == pytest.approx(expected.mean(), abs=1e-4)


def test_lpips_is_told_where_it_is_installed(monkeypatch):
    class LPIPS(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            assert x.shape[1] == y.shape[1] == 3
            return (x - y).abs().mean((1, 2, 3), keepdim=True)

    spec = SimpleNamespace(name="lpips", loader=None)
    module = SimpleNamespace(LPIPS=LPIPS, __spec__=spec)
    monkeypatch.setitem(sys.modules, "lpips", module)
    assert [*fidelity.scores(64, 80, True)] == ["PSNR", "SSIM", "LPIPS"]
    assert [*fidelity.scores(64, 80)] == ["PSNR", "SSIM"]
    with pytest.raises(sf.Refused, match="64 pixels or more; got 28 x 28"):
        fidelity.scores(28, 28, True)
    x = torch.zeros(2, 1, 64, 64)
    torch.testing.assert_close(fidelity.lpips(x, x + 0.5), torch.full((2,), 0.5))


def test_an_operator_of_one_s_own(trained, here, capsys):
    Path("own.py").write_text(OWN)
    same = ("restore", trained, "one.png", "--simulate", *CALL)
    for name, shape in (("left", (1, 8, 4, 1)), ("half", (1, 8, 8, 1))):
        assert run(*same, "--operator", f"own.py:{name}", "--out", "x.npz") == 0
        assert arrays("x.npz")["measurement"].shape == shape
    assert run(*same, "--operator", "own.py:left", "--out", "out") == 0
    request = json.loads(Path(f"out/{REQUEST}").read_text())
    assert request["operator"] == "own.py:left" and len(request["sha256"]) == 64
    capsys.readouterr()
    Path("c.yaml").write_text("operator: own.py:left\n")
    for words, sentence in (
        (("--operator", "own.py:nothing"), "must be an Operator, or return one for the shape"),
        (("--operator", "own.py:wrong"), "<A x, y> = <x, A^T y> fails"),
        (("--operator", "own.py:none"), "own.py defines no function 'none'."),
        (("--config", "c.yaml"), "names code to run as its operator, own.py:left"),
    ):
        assert run(*same, *words, "--out", "y.npz") == 2
        assert sentence in capsys.readouterr().err
    Path("c.yaml").write_text("operator: blur:sigma=1\n")
    assert run(*same, "--config", "c.yaml", "--out", "y.npz") == 0


def test_classes_of_a_conditional_model(here, capsys):
    words = ("train", "soft", "--steps", 4, "--images", 32, "--preview-every", 0, "--conditional")
    assert run(*words, "--out", "runs", *TINY) == 0
    same = ("restore", "runs", "clean", "--operator", "blur:1", "--simulate", *CALL)
    for out, more in (
        ("a.npz", ()),
        ("b.npz", ("--classes", "3")),
        ("c.npz", ("--classes", "0,1,2")),
    ):
        assert run(*same, *more, "--out", out) == 0
    turn, three, named = (arrays(name)["samples"] for name in ("a.npz", "b.npz", "c.npz"))
    np.testing.assert_array_equal(turn, named)
    assert np.abs(three - named).max() > 0


@pytest.fixture
def refused(here, capsys) -> Callable[..., str]:
    """Runs a command that must be refused, in one line and without a trace."""

    def check(*words: object) -> str:
        before = {str(path): path.lstat().st_mtime_ns for path in here.rglob("*")}
        capsys.readouterr()
        assert run(*words) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and err.startswith("sfumato: "), err
        assert before == {str(path): path.lstat().st_mtime_ns for path in here.rglob("*")}
        return err

    return check


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "restore needs a model and an image, as in sfumato restore fashion-soft"),
        ("RUN", "restore needs a model and an image"),
        ("RUN one.png", "restore needs --operator, such as blur:sigma=2"),
        (
            "RUN one.png --operator blur --noise -0.1",
            "--noise is a standard deviation of 0 or more",
        ),
        ("RUN one.png --operator blurr:1", "no operator 'blurr'; did you mean 'blur'?"),
        ("RUN one.png --operator down:3", "down:3 does not fit an image of 8 x 8 pixels"),
        ("RUN one.png --operator box:0,0,9,9", "does not lie in an image of 8 x 8 pixels"),
        ("RUN one.png --operator down:2", "one.png is 8 x 8 pixels in 1 channel; measurements by"),
        (
            "RUN wide.png --operator blur --simulate",
            "wide.png is 9 x 8 pixels in 1 channel; images",
        ),
        (
            "RUN rgb.png --operator blur",
            "rgb.png is 8 x 8 pixels in 3 channels; measurements by bl",
        ),
        ("RUN none.png --operator blur", "there is no file or folder none.png."),
        ("RUN empty --operator blur", "folder empty has no images"),
        ("RUN one.png --operator blur --key y", "one.png has no arrays; leave out --key."),
        ("RUN one.png --operator blur --out x.jpg", "cannot write x.jpg: .jpg is not a format"),
        ("RUN one.png --operator blur --out one.png/x", "cannot write one.png/x: one.png is not a"),
        (
            "RUN one.png --operator blur --rule dsp",
            "--rule takes spectrum, pigdm, dps, replacement",
        ),
        ("RUN one.png --operator blur --lpips", "--lpips compares with the truth"),
        ("RUN one.png --operator blur --lpips --simulate", "LPIPS needs the package lpips"),
        ("RUN one.png --operator blur --samples 0", "--samples must be 1 or more; got 0."),
        ("RUN one.png --operator blur --classes 1", "this model has no classes; train with --cond"),
        ("RUN one.png --operator blur --sampler dim", "no sampler 'dim'; did you mean 'ddim'?"),
        ("RUN one.png --operator no.py:a", "no file 'no.py' for the operator no.py:a."),
        ("RUN one.png --operator corruption:0", "needs a time above 0, up to 1; got '0'."),
        ("RUN one.png --operator corruption:x", "needs a time above 0, up to 1; got 'x'."),
        (
            "RUN one.png --operator corruption:0.5 --sampler ddim",
            "ddim started from one x_t does not draw from p(x_0 | x_t)",
        ),
        ("RUN one.png --operator corruption:0.5 --grid auto", "equal steps: leave out --grid."),
        ("soft-none one.png --operator blur", "soft-none"),
        ("RUN nan.npy --operator blur", "nan.npy has NaN or infinite values"),
    ],
)
def test_bad_input_is_one_line(words, sentence, trained, refused, here):
    Path("empty").mkdir()
    np.save("nan.npy", np.full((1, 8, 8), np.nan))
    Image.new("L", (9, 8)).save("wide.png")
    Image.new("RGB", (8, 8)).save("rgb.png")
    spelled = [str(trained) if word == "RUN" else word for word in words.split()]
    assert sentence in refused("restore", *spelled)


def test_a_corruption_drawn_for_each_image_is_refused(refused):
    words = ("train", "soft-mask", "--wander", "--steps", 4, "--images", 32)
    assert run(*words, "--preview-every", 0, "--out", "mask", *TINY) == 0
    model = sf.from_pretrained("mask")
    with pytest.raises(sf.Refused, match="whose corruption is not drawn for each image"):
        sf.restore(model, torch.zeros(1, 1, 8, 8), sf.measurement("blur:1", model.shape), 0.1)
    found = refused("restore", "mask", "one.png", "--operator", "blur", "--simulate")
    assert "draws its corruption for each image" in found


def test_measurements_that_do_not_fit_are_refused_in_python(trained):
    model = sf.from_pretrained(str(trained))
    operator = sf.measurement("down:2", model.shape)
    for y, sentence in (
        (torch.zeros(1, 1, 8, 8), r"as \(1, 4, 4\); got y of shape \(1, 1, 8, 8\)"),
        (torch.zeros(0, 1, 4, 4), "whose first axis counts measurements"),
        (torch.full((1, 1, 4, 4), math.nan), "not finite"),
    ):
        with pytest.raises(sf.Refused, match=sentence):
            sf.restore(model, y, operator, 0.1)
    with pytest.raises(sf.Refused, match="standard deviation of 0 or more"):
        sf.restore(model, torch.zeros(1, 1, 4, 4), operator, -0.1)
    with pytest.raises(sf.Refused, match="does not measure signals"):
        sf.restore(model, torch.zeros(1, 1, 4, 4), sf.measurement("blur:1", (1, 5, 5)), 0.1)
