"""Situations from public bug reports, one a line: what was fed, and what must happen.

A case is (report, situation, feed, outcome). `feed(folder)` does what the user did, in a process
that has imported everything and with `folder` empty and current; what it returns, or the error that
it raises, is handed to `outcome`. New ones go into the table of their kind.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pickle
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sfumato as sf
from sfumato import from_pretrained, networks, pretrained
from sfumato.algebra import MatrixFree, scaled
from sfumato.checks import check_operator
from sfumato.cli import main
from sfumato.corruption.families import Mapping, Scale
from sfumato.corruption.learned import Monotone
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Betas, Complement
from sfumato.corruption.statistics import default_statistics
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.limit import Limited, clip
from sfumato.estimation.predictions import noise
from sfumato.methods import METHODS, grids
from sfumato.sampling import samplers
from sfumato.sampling.sample import sample
from sfumato.training.trackers import Figures, JsonLines


class Case(NamedTuple):
    """One situation.

    Attributes:
        report: where it was reported, as OWNER/NAME#NUMBER.
        situation: what was fed, in a few words.
        feed: (folder) -> what came of it.
        outcome: asserts on what `feed` returned or raised.
    """

    report: str
    situation: str
    feed: Callable[[Path], Any]
    outcome: Callable[[Any], None]


def refuses(sentence: str, kind: type[Exception] = ValueError) -> Callable[[Any], None]:
    """The outcome: an error of `kind`, of one sentence that the pattern `sentence` finds."""

    def outcome(found: object) -> None:
        assert isinstance(found, kind), f"wanted {kind.__name__}, got {found!r}"
        assert re.search(sentence, str(found)), f"no {sentence!r} in: {found}"

    return outcome


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def command(*words: object) -> Callable[[Path], Ended]:
    """The feed: one command line."""
    return lambda folder: run(*words)


def run(*words: object) -> Ended:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Ended(code, out.getvalue(), err.getvalue())


def exits(code: int, said: str = "") -> Callable[[Any], None]:
    """The outcome: this exit code, and the pattern `said` in what was printed."""

    def outcome(found: object) -> None:
        assert isinstance(found, Ended), f"got {found!r}"
        assert found.code == code, found.err
        assert re.search(said, found.out + found.err), f"no {said!r} in: {found.out}{found.err}"

    return outcome


def equals(expected: object) -> Callable[[Any], None]:
    """The outcome: this."""

    def outcome(found: object) -> None:
        assert found == expected, f"wanted {expected!r}, got {found!r}"

    return outcome


def is_true(found: object) -> None:
    """The outcome: `feed` found what it looked for."""
    assert found is True, f"got {found!r}"


# A stranger's files.
def bundled(folder: Path, **config: Any) -> Path:
    """A copy of a bundled model, with some values of its config replaced."""
    shutil.copytree(pretrained.path("fashion-soft"), folder / "model")
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder / "model"


def pickled_weights(folder: Path) -> sf.Model:
    """Weights that run code when they are unpickled, under the name of others."""
    (bundled(folder) / "model.safetensors").write_bytes(pickle.dumps(breakpoint))
    return from_pretrained(folder / "model")


FILES: list[Case] = [
    Case(
        "mit-ll-responsible-ai/equine#168",
        "a model whose weights are a pickle",
        pickled_weights,
        refuses("not a safetensors file"),
    ),
    Case(
        "voicepaw/so-vits-svc-fork#193",
        "a model whose config names code beside it",
        lambda folder: from_pretrained(bundled(folder, method="model/x.py:f", sha256=None)),
        refuses("code in a file, which no checkpoint may run by itself"),
    ),
]

TINY = (
    *("train", "soft", "--width", 8, "--multipliers", 1, "--batch", 16, "--steps", 2),
    *("--preview-every", 0, "--checkpoint-every", 16, "--device", "cpu", "--quiet", "--out", "run"),
)
"""A training of seconds on digits; words after it win."""


def then(*commands: tuple[object, ...]) -> Callable[[Path], Ended]:
    """The feed: command lines in turn, all but the last of which end well; how the last ends."""

    def feed(folder: Path) -> Ended:
        for words in commands[:-1]:
            ended = run(*words)
            assert ended.code == 0, ended.err
        return run(*commands[-1])

    return feed


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of each kept checkpoint of `folder`/run, by file and name."""
    return {
        f"{path.relative_to(folder)} {name}": value
        for path in sorted(folder.glob("run/checkpoints/*/*.safetensors"))
        for name, value in load_file(path).items()
    }


def poisoned(folder: Path) -> Ended:
    """A run whose weights are NaN is sampled."""
    run(*TINY, "--images", 16)
    (path,) = folder.glob("run/checkpoints/*/model.safetensors")
    save_file({name: value * float("nan") for name, value in load_file(path).items()}, path)
    path.with_name("manifest.json").unlink()  # else they are known to be damaged
    return run("sample", "run", "--seeds", 0)


def diverging(folder: Path) -> bool:
    """Training at a learning rate of 1e30 leaves finite checkpoints only, and a strict log."""
    ended = run(*TINY, "--images", 640, "--learning-rate", 1e30, "--warmup", 0, "--keep", 1)
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    kept = weights(folder)
    finite = bool(kept) and all(bool(value.isfinite().all()) for value in kept.values())
    return ended.code == 1 and finite and any(e.get("event") == "skipped" for e in entries)


def signalled(*numbers: int) -> Callable[[Path], Ended]:
    """The feed: these signals, one after the other, at the second step of training."""

    def feed(folder: Path) -> Ended:
        log = JsonLines.log

        def heard(self: JsonLines, done: int, figures: Figures) -> None:
            log(self, done, figures)
            for number in numbers if done == 2 else ():
                signal.raise_signal(number)

        with patch.object(JsonLines, "log", heard):
            ended = run(*TINY, "--images", 64, "--checkpoint-every", 640)
        saved = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
        return ended._replace(out=f"saved {saved}")

    return feed


def together(folder: Path) -> Ended:
    """While a command trains in a folder, another one does."""
    log, second = JsonLines.log, []

    def meanwhile(self: JsonLines, done: int, figures: Figures) -> None:
        log(self, done, figures)
        if done == 1:
            second.append(run(*TINY, "--images", 64))

    with patch.object(JsonLines, "log", meanwhile):
        assert run(*TINY, "--images", 64).code == 0
    return second[0]


def further(folder: Path) -> bool:
    """A finished run with more images is the run that had asked for them from the start."""
    constant = ("--decay", "none", "--warmup", 0)
    found = []
    for counts in ((32, 64), (64,)):
        for count in counts:
            assert run(*TINY, *constant, "--images", count, "--keep", 1).code == 0
        found.append(weights(folder))
        shutil.rmtree(folder / "run")
    return all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def moved(folder: Path) -> Ended:
    """The data of a run are moved, and the run goes on."""
    arrays(folder / "here.npy", (8, 8))
    run(*TINY, "--images", 32, "--data", "here.npy")
    (folder / "there").mkdir()
    (folder / "here.npy").rename(folder / "there" / "now.npy")
    return run(*TINY, "--images", 32, "--data", "there/now.npy")


def arrays(path: Path, shape: tuple[int, ...]) -> None:
    np.save(path, np.random.default_rng(0).integers(0, 256, (40, *shape), np.uint8))


def elsewhere(shape: tuple[int, ...]) -> Callable[[Path], Ended]:
    """The feed: fine-tuning from a run on digits, on other data of this shape."""

    def feed(folder: Path) -> Ended:
        arrays(folder / "new.npy", shape)
        run(*TINY, "--images", 16)
        return run(*TINY, "--images", 16, "--data", "new.npy", "--from", "run", "--out", "tuned")

    return feed


# Training that goes wrong, is cut, or goes on.
TRAINING: list[Case] = [
    Case(
        "huggingface/diffusers#4820",
        "a learning rate at which the loss turns NaN",
        command(*TINY, "--images", 640, "--learning-rate", 1e30),
        exits(1, r"training diverged: .* 10 steps in a row.* --learning-rate below 1e\+30"),
    ),
    Case(
        "chairc/Integrated-Design-Diffusion-Model#60",
        "NaN after the first steps, one checkpoint kept",
        diverging,
        is_true,
    ),
    Case(
        "huggingface/diffusers#6492",
        "sampling a model whose weights are NaN",
        poisoned,
        exits(2, "the weights of this model are not finite numbers"),
    ),
    Case(
        "TheCacophonyProject/classifier-pipeline#14",
        "two trainings at a time in one folder",
        together,
        exits(2, "another process is training in run. Wait until it ends"),
    ),
    Case(
        "mlfoundations/open_clip#413",
        "more images of a finished run with a cosine",
        then((*TINY, "--images", 64), (*TINY, "--images", 128)),
        exits(2, "--decay cosine ends: 128 are another run. Train on from its weights, --from run"),
    ),
    Case("bohaohuang/mrs#50", "more images of a finished run", further, is_true),
    Case(
        "tdrussell/diffusion-pipe#436",
        "other data, from the weights of a run",
        elsewhere((8, 8)),
        exits(0),
    ),
    Case(
        "ayushtewari/DFM#7",
        "larger images, from the weights of a run",
        elsewhere((16, 16)),
        exits(2, r"run has weights for signals of shape \(1, 8, 8\); those of new.npy have"),
    ),
    Case("MrNeRF/LichtFeld-Studio#599", "data moved before a resume", moved, exits(0)),
    Case(
        "lucidrains/denoising-diffusion-pytorch#115",
        "looking for the option that resumes",
        command("train", "soft", "--resume"),
        exits(2, "the same command resumes a run"),
    ),
    Case(
        "martius-lab/cluster_utils#64",
        "SIGUSR1 before a time limit",
        signalled(signal.SIGUSR1),
        exits(130, "saved .*00000002.*the same command resumes"),
    ),
    Case(
        "facebookincubator/submitit#1603",
        "SIGTERM and SIGUSR1 in a row",
        signalled(signal.SIGTERM, signal.SIGUSR1),
        exits(130, "saved .*00000002.*the same command resumes"),
    ),
]

# Images, folders and arrays as people have them.
BYTES = np.random.default_rng(0).integers(0, 256, (4, 12, 12), np.uint8)
OVERSHOT = BYTES / 255
OVERSHOT[0, 0, :2] = -1e-7, 1.0000002
DEEP = np.random.default_rng(1).integers(0, 65536, (4, 12, 12), np.uint16)


def pictures(folder: Path, **arrays: np.ndarray) -> None:
    """Write each array as an image; `cat_1_png` is cat/1.png."""
    for name, array in arrays.items():
        path = folder / name.replace("_", "/", name.count("_") - 1).replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def loaded(write: Callable[[Path], object], source: str = ".", **how: Any) -> Callable[[Path], Any]:
    """The feed: data that `write` put into the folder, and the sentences that `load` said."""

    def feed(folder: Path) -> tuple[sf.Data, list[str]]:
        write(folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = sf.load(folder / source, **how)
        return data, [str(one.message) for one in caught]

    return feed


def gives(
    images: object, low: float, high: float, said: str = "", classes: object = None
) -> Callable[[Any], None]:
    """The outcome: data of these raw values (n, H, W), range and classes, and only such notes."""

    def outcome(found: Any) -> None:
        assert isinstance(found, tuple), f"got {found!r}"
        data, notes = found
        assert (data.record.low, data.record.high) == (low, high)
        assert data.record.classes == classes
        expected = 2 * (np.asarray(images, np.float64) - low) / (high - low) - 1
        np.testing.assert_allclose(data.batch(range(len(data)))[:, 0], expected, atol=1e-5)
        assert bool(notes) == bool(said) and re.search(said, " ".join(notes)), notes

    return outcome


def splits(folder: Path) -> None:
    pictures(folder, train_ok_1_png=BYTES[0], train_nok_1_png=BYTES[1], test_1_png=BYTES[2])


def linked(folder: Path) -> None:
    pictures(folder, store_a_1_png=BYTES[0], store_b_1_png=BYTES[1], set_b_1_png=BYTES[2])
    (folder / "set" / "a").symlink_to(folder / "store" / "a")
    (folder / "set" / "b" / "2.png").symlink_to(folder / "store" / "lost.png")


def littered(folder: Path) -> None:
    pictures(folder, cat_1_png=BYTES[0], dog_1_png=BYTES[1])
    (folder / "cat" / ".DS_Store").write_text("")


def irregular(folder: Path) -> None:
    pictures(folder, a_png=np.full((24, 36), 40, np.uint8), b_png=np.full((50, 25), 250, np.uint8))


def halves(folder: Path) -> None:
    """One image, dark above and bright below, twice as high as wide."""
    pictures(folder, a_png=np.repeat(np.array([0, 255], np.uint8), 24)[:, None].repeat(24, 1))


def archive(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.savez(folder / "x.npz", **arrays)


def latents(folder: Path) -> bool:
    """Whether samples of latents come back in the units of the latents, as floats."""
    values = np.random.default_rng(2).normal(0, 5, (16, 4, 8, 8)).astype(np.float32)
    np.savez(folder / "x.npz", latents=values)
    words = "--key latents --kind signals --images 32 --batch 16 --width 8 --multipliers 1 --quiet"
    trained = run("train", "soft", "--data", "x.npz", "--out", "run", *words.split())
    sampled = run("sample", "run", "--seeds", "0-7", "--steps", 4, "--quiet", "--out", "s.npz")
    assert (trained.code, sampled.code) == (0, 0), trained.err + sampled.err
    with np.load(folder / "s.npz") as file:
        made = file["signals"]
    return made.dtype == np.float32 and made.shape == (8, 4, 8, 8) and bool(1 < made.std() < 25)


def mirrored(folder: Path) -> bool:
    """Whether training data hold a mirror image where none was asked for."""
    data = sf.load("digits")
    return len(data) == 1500 and not data.record.flip


SLIVER = "a small part of .* Say which become -1 and 1: --range LOW,HIGH"
DATA: list[Case] = [
    Case(
        "pytorch/pytorch#20524",
        "a folder of 16-bit PNGs",
        loaded(lambda folder: pictures(folder, a_png=DEEP[0], b_png=DEEP[1])),
        gives(DEEP[:2], 0, 65535),
    ),
    Case(
        "Nerogar/mgds#55",
        "whole numbers of 16 bits in an array",
        loaded(lambda folder: np.save(folder / "x.npy", DEEP), "x.npy"),
        gives(DEEP, 0, 65535),
    ),
    Case(
        "JiahuiYu/generative_inpainting#259",
        "16-bit TIFFs whose values are 0 to 40",
        loaded(lambda folder: pictures(folder, a_tif=DEEP[0] % 41)),
        refuses(SLIVER),
    ),
    Case(
        "JiahuiYu/generative_inpainting#259",
        "the same, with the range that they have",
        loaded(lambda folder: pictures(folder, a_tif=DEEP[0] % 41), range=(0, 40)),
        gives(DEEP[:1] % 41, 0, 40),
    ),
    Case(
        "DLopatkin/Heracleum-Dataset#1",
        "masks that are 0 and 1 of 255",
        loaded(lambda folder: pictures(folder, a_png=BYTES[0] % 2, b_png=BYTES[1] % 2)),
        refuses(SLIVER),
    ),
    Case(
        "dongrunmin/RefDiff#10",
        "masks of classes 0 to 5 in an array, range given",
        loaded(lambda folder: np.save(folder / "x.npy", BYTES % 6), "x.npy", range=(0, 5)),
        gives(BYTES % 6, 0, 5),
    ),
    Case(
        "pytorch/vision#8216",
        "floats in [0, 1] that a bicubic resize overshot",
        loaded(lambda folder: np.save(folder / "x.npy", OVERSHOT), "x.npy"),
        gives(OVERSHOT.clip(0, 1), 0, 1, "clipped"),
    ),
    Case(
        "python-pillow/Pillow#4783",
        "floats that a Lanczos filter took to -0.1 and 1",
        loaded(lambda folder: np.save(folder / "x.npy", BYTES / 255 * 1.1 - 0.1), "x.npy"),
        refuses(r"may be \[0, 1\] overshot or part of \[-1, 1\]. Say which: --range"),
    ),
    Case(
        "lucidrains/denoising-diffusion-pytorch#154",
        "floats in [-1, 1]",
        loaded(lambda folder: np.save(folder / "x.npy", BYTES / 127.5 - 1), "x.npy"),
        gives(BYTES / 127.5 - 1, -1, 1),
    ),
    Case(
        "openai/guided-diffusion#116",
        "an .npz whose array is called arr_0",
        loaded(archive(arr_0=BYTES), "x.npz"),
        refuses("it holds arr_0. Name one by --key"),
    ),
    Case(
        "openai/guided-diffusion#116",
        "the same, named by its key",
        loaded(archive(arr_0=BYTES), "x.npz", key="arr_0"),
        gives(BYTES, 0, 255),
    ),
    Case(
        "tqch/v-diffusion-torch#3",
        "labels from 1 on",
        loaded(archive(images=BYTES, labels=np.array([1, 10, 1, 2])), "x.npz"),
        gives(BYTES, 0, 255, classes=("1", "2", "10")),
    ),
    Case(
        "fastai/fastai#1552",
        "a folder of train/ with two classes, and test/",
        loaded(splits),
        gives(BYTES[[1, 0]], 0, 255, classes=("nok", "ok")),
    ),
    Case(
        "fastai/fastai#1552",
        "its test split",
        loaded(splits, split="test"),
        gives(BYTES[[2]], 0, 255),
    ),
    Case(
        "erdogant/clustimage#25",
        "a folder of .tif and .tiff",
        loaded(lambda folder: pictures(folder, a_tif=BYTES[0], b_tiff=BYTES[1])),
        gives(BYTES[:2], 0, 255),
    ),
    Case(
        "huggingface/datasets#6853",
        "a class that is a link to a folder, and a link that leads nowhere",
        loaded(linked, "set"),
        gives(BYTES[[0, 2]], 0, 255, "1 link that leads nowhere", classes=("a", "b")),
    ),
    Case(
        "apple/turicreate#641",
        "a .DS_Store among images",
        loaded(littered),
        gives(BYTES[:2], 0, 255, classes=("cat", "dog")),
    ),
    Case(
        "TencentARC/GFPGAN#271",
        "images of two sizes",
        loaded(irregular),
        refuses("36 x 24 pixels and b.png is 25 x 50. Use --resize N"),
    ),
    Case(
        "TencentARC/GFPGAN#271",
        "the same, resized",
        loaded(irregular, resize=8),
        gives(np.full((2, 8, 8), [[[40]], [[250]]]), 0, 255),
    ),
    Case(
        "huggingface/diffusers#5830",
        "a crop that comes after the resize: it keeps the whole shorter side",
        loaded(halves, resize=24),
        gives(np.repeat([0, 255], 12)[None, :, None].repeat(24, 2), 0, 255),
    ),
    Case(
        "openai/guided-diffusion#48",
        "training data of which nobody wants mirror images",
        mirrored,
        is_true,
    ),
    Case("Y-debug-sys/Diffusion-TS#3", "signals in units of their own, sampled", latents, is_true),
]


def clipped_sample(folder: Path) -> bool:
    """Does a clipped sample stay in the range of the data, and without clip not?"""
    model = from_pretrained("fashion-ddpm")
    plain, kept = (
        model.sample([0, 1], sf.Sampler("ancestral", 2), clip=clip) for clip in (False, True)
    )
    return float(plain.abs().max()) > 1 >= float(kept.abs().max())


class Loud(nn.Module):
    """A backbone that says 5."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.full_like(x, 5.0)


def noise_after_clip(folder: Path) -> bool:
    """One DDIM step by a network that shouts: is its noise that which the clipped x_0^ leaves?"""
    c, v, before = 0.6, 0.64, 0.8  # x_t = c x_0 + sqrt(v) eps, and x_s with c_s = before
    chain = Betas([1 - before**2, 1 - c**2 / before**2])
    process = Process(Scale(Amplitude(chain)), Scale(Complement(chain)))
    loud = Limited(NetworkDenoiser(process, noise, Loud()), clip)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    grid = torch.tensor([1.0, 0.5], dtype=torch.float64)
    x0 = ((x - v**0.5 * 5) / c).clamp(-1, 1)
    expected = before * x0 + (1 - before**2) ** 0.5 * (x - c * x0) / v**0.5
    return torch.allclose(sample(samplers.kernel("ddim"), loud, x, grid), expected)


def started(folder: Path) -> bool:
    """Whether x_1 of every class is a blurred training image of that class."""
    data = sf.load("digits")
    size = networks.UNetOptions(width=8, multipliers=(1,))
    config = sf.Config("soft", data.record, {"sigma": (1e-6, 1e-5)}, size, conditional=True)
    model = sf.build(config, data, sf.TrainOptions())
    blurred = model.recipe.process.signal.at(torch.ones(()).double())(data.batch(range(1500)))
    start = model.start(range(20), [seed % 10 for seed in range(20)])
    nearest = torch.cdist(start.flatten(1), blurred.flatten(1)).argmin(1)
    return torch.equal(data.classes(nearest), torch.arange(20) % 10)


def untold(conditional: bool, **how: Any) -> Callable[[Path], Tensor]:
    """The feed: samples of a model that was or was not trained on classes."""

    def feed(folder: Path) -> Tensor:
        data, size = sf.load("digits"), networks.UNetOptions(width=8, multipliers=(1,))
        config = sf.Config("soft", data.record, network=size, conditional=conditional)
        return sf.build(config, data, sf.TrainOptions()).sample([0], sf.Sampler(steps=2), **how)

    return feed


def neighbours(folder: Path) -> bool:
    """Whether the features that a vdm is told differ in sign between pixels of 254 and of 255."""
    stats = sf.load("photos").stats()
    (frequency,) = METHODS["vdm"]((3, 32, 32), stats, fourier=(7,)).fourier
    near, far = (torch.tensor(2 * value / 255 - 1).double() for value in (254, 255))
    return float((frequency * torch.pi * near).sin() * (frequency * torch.pi * far).sin()) < -0.99


def cold_grid(folder: Path) -> Tensor:
    """The times of five steps of a process without noise, by what they would do."""
    recipe, stats = METHODS["cold"]((1, 28, 28)), default_statistics((1, 28, 28))
    return grids.times(sf.Sampler(steps=5, grid="auto"), recipe, stats)


def slopes(folder: Path) -> bool:
    """Whether |1 - t| + t, summed of operators, has the slopes 0 and 0 at t = 0 and t = 1."""
    family = Mapping(lambda t: scaled(1 - t) + scaled(t))
    found = [float(family.rate(torch.tensor(t)).gain) for t in (0.0, 1.0)]
    return max(map(abs, found)) < 1e-8


def learned_zero(folder: Path) -> bool:
    """Whether a learned level that starts at 0 has finite gradients through sqrt and rate."""
    family = Scale(Complement(Monotone(0.0, -3.0)))
    family.rate(torch.zeros(()).double()).gain.sum().backward()
    return all(bool(p.grad.isfinite().all()) for p in family.parameters())


# Samplers, grids and levels.
def levels_of(steps: int, length: int = 1000) -> Callable[[Path], list[int]]:
    """The feed: the levels that a chain of `length` is asked at in so many steps."""
    recipe = sf.METHODS["ddim"]((1, 8, 8), length=length)
    return lambda folder: (recipe.grid(steps) * length).round(decimals=6).tolist()


SAMPLING: list[Case] = [
    Case(
        "huggingface/diffusers#10003",
        "as many steps as the chain has levels",
        levels_of(1000),
        equals([*range(1000, -1, -1)]),
    ),
    Case(
        "huggingface/diffusers#5921",
        "five steps of a chain of 1,000, from its noisiest level",
        levels_of(5),
        equals([1000, 800, 600, 400, 200, 0]),
    ),
    Case(
        "huggingface/diffusers#9261",
        "a number of steps that does not divide the chain",
        levels_of(13),
        equals([1000, 923, 846, 769, 692, 615, 538, 462, 385, 308, 231, 154, 77, 0]),
    ),
    Case(
        "huggingface/diffusers#2585",
        "more steps than there are levels",
        lambda folder: levels_of(22, 21)(folder),
        refuses("a chain of 21 levels is sampled in 1 to 21 steps; got 22"),
    ),
    Case(
        "openai/improved-diffusion#137",
        "samples are of other classes than asked for: x_1 of a blur told another",
        started,
        is_true,
    ),
    Case(
        "openai/improved-diffusion#50",
        "a model of classes sampled without any",
        untold(True),
        refuses("was trained on classes; name one for each image"),
    ),
    Case(
        "JuliaWolleb/diffusion-anomaly#10",
        "classes given to a model without",
        untold(False, classes=[3]),
        refuses("has no classes; train with --conditional"),
    ),
    Case(
        "arpitbansal297/Cold-Diffusion-Models#14",
        "a perfect network without noise needs one step: a grid of five asked for",
        cold_grid,
        refuses("the exact estimate is x_0 itself, whatever the kernel and the grid"),
    ),
    Case("genmoai/mochi#67", "Fourier features of pixels of 254 and 255", neighbours, is_true),
    Case("pytorch/pytorch#6394", "a derivative by the chain rule at a zero", slopes, is_true),
    Case("tensorflow/tensorflow#4914", "a gradient through sqrt at 0", learned_zero, is_true),
    Case(
        "lucidrains/denoising-diffusion-pytorch#84",
        "x_0 is clipped, the predicted noise is not taken again",
        noise_after_clip,
        is_true,
    ),
    Case("NVlabs/I2SB#10", "a clipped sample leaves [-1, 1] at its end", clipped_sample, is_true),
    Case(
        "ermongroup/ddim#2",
        "DDIM's steps cannot be clipped",
        command(*"sample fashion-ddpm --seeds 0 --steps 2 --sampler ddim --clip".split()),
        exits(0, "2 steps of ddim"),
    ),
]


def judged(*shape: int, n: int = 40) -> Callable[[Path], Ended]:
    """The feed: `evaluate` finished images (n, *shape) of noise against digits, (8, 8) in gray."""

    def feed(folder: Path) -> Ended:
        np.savez("made.npz", images=np.random.default_rng(0).integers(0, 256, (n, *shape), "uint8"))
        words = ("--data", "digits", "--threads", 1, "--out", "record.json")
        return run("evaluate", "made.npz", *words)

    return feed


# Scores and likelihoods.
SEVENTEEN = (
    "train vdm --data digits --images 32 --batch 16 --width 8 --multipliers 1 --hidden 4 --quiet "
    "--preview-every 0 --device cpu --out run"
).split()
EVALUATION: list[Case] = [
    Case(
        "yang-song/score_sde_pytorch#51",
        "a bound in bits of data with other values than 0 to 255",
        lambda folder: run(*SEVENTEEN),
        exits(0),
    ),
    Case(
        "mseitzer/pytorch-fid#1",
        "images of another size than the real ones",
        judged(16, 16),
        exits(2, r"\(1, 8, 8\).*\(1, 16, 16\)"),
    ),
    Case(
        "mseitzer/pytorch-fid#35",
        "gray and colour images",
        judged(8, 8, 3),
        exits(2, r"\(1, 8, 8\).*\(3, 8, 8\)"),
    ),
    Case(
        "Lightning-AI/torchmetrics#1652",
        "FID of one image",
        judged(8, 8, n=1),
        exits(2, "needs 6 samples or more.*got 1"),
    ),
    Case(
        "toshas/torch-fidelity#45",
        "fewer images than a subset of KID holds",
        judged(8, 8),
        exits(0, "n = 40 is below 10000"),
    ),
]


def unusable_torchvision(folder: Path) -> object:
    """Networks are imported beside a torchvision of another build of torch."""
    (folder / "torchvision").mkdir()
    source = "raise RuntimeError('operator torchvision::nms does not exist')"
    (folder / "torchvision" / "__init__.py").write_text(source)
    found = sys.modules.pop("torchvision", None)
    sys.path.insert(0, str(folder))
    try:
        return importlib.reload(networks)
    finally:
        sys.path.remove(str(folder))
        if found is not None:
            sys.modules["torchvision"] = found


def single_precision(folder: Path) -> bool:
    """An operator that computes in float32 is right."""
    matrix = torch.eye(64) + torch.linspace(0, 0.1, 64 * 64).reshape(64, 64)
    apply = MatrixFree(lambda x: (x.float() @ matrix).to(x), lambda y: (y.float() @ matrix.T).to(y))
    return check_operator(apply, (64,)) is None


# Calls from Python.


def model(**given: Any) -> sf.Model:
    """A small model of 8 x 8 images whose weights are drawn."""
    record = sf.Record("x", (1, 8, 8), -1.0, 1.0, None, 2, "train", "0" * 64)
    network = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
    torch.manual_seed(0)
    made = sf.Model(sf.Config("ddpm", record, network=network), **given)
    for parameter in made.trainable.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def compiled(module: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(module, backend="eager")


def alike(a: sf.Model, b: sf.Model, tolerance: float = 0.0) -> bool:
    """Whether two models draw the same images from the same seeds."""
    found, expected = (m.sample([1, 2], sf.Sampler(steps=3)) for m in (a, b))
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def read_back(folder: Path, saved: sf.Model, backbone: torch.nn.Module | None = None) -> bool:
    """Whether a saved model is read, into this backbone, as what it was."""
    saved.save_pretrained(folder / "model")
    return alike(sf.from_pretrained(folder / "model", backbone=backbone), saved)


def in_double(folder: Path) -> bool:
    double = model()
    double.denoiser.double()
    return alike(double, model(), 1e-5)


def seeds_in_double(folder: Path) -> bool:
    x = torch.zeros(1, 16)
    return torch.equal(sf.Seeds([0])(x.double()), sf.Seeds([0])(x).double())


def each_alone(folder: Path) -> bool:
    """Whether each signal of a batch has the time that it has alone."""
    one, x = model(), torch.randn(3, 1, 8, 8)
    t = torch.tensor([0.2, 0.5, 0.9]).reshape(3, 1, 1, 1)
    rows = [one.denoise(x[i : i + 1], float(t[i])) for i in range(3)]
    return torch.allclose(one.denoise(x, t), torch.cat(rows), atol=1e-5)


def bytes_in_the_loss(folder: Path) -> torch.Tensor:
    x0, denoiser = torch.randint(0, 256, (4, 1, 8, 8)).float(), model().denoiser
    return sf.loss(denoiser, sf.weightings.simple, x0, torch.rand(4, 1, 1, 1), torch.randn_like(x0))


def into_older_images(folder: Path) -> Ended:
    sf.pictures.save(torch.zeros(2, 1, 8, 8), folder / "samples", ["000000", "000064"])
    model().save_pretrained(folder / "model")
    return run("sample", "model", "--seeds", "0-3", "--out", "samples")


X = torch.zeros(2, 1, 8, 8)
PYTHON: list[Case] = [
    Case(
        "huggingface/diffusers#9109",
        "operator torchvision::nms does not exist",
        unusable_torchvision,
        refuses("torchvision.*does not work with this torch .*pip uninstall torchvision"),
    ),
    Case(
        "ComputationalCryoEM/ASPIRE-Python#331",
        "an adjoint test of an operator in single precision",
        single_precision,
        is_true,
    ),
    Case("huggingface/diffusers#11056", "a model in another precision", in_double, is_true),
    Case("pytorch/pytorch#79703", "16 numbers of a seed in double", seeds_in_double, is_true),
    Case(
        "karpathy/nanoGPT#325",
        "a compiled backbone saved, then read into a plain one",
        lambda folder: read_back(folder, model(backbone=compiled(model().denoiser.backbone))),
        is_true,
    ),
    Case(
        "huggingface/pytorch-image-models#2003",
        "a plain backbone saved, then read into a compiled one",
        lambda folder: read_back(folder, model(), compiled(model().denoiser.backbone)),
        is_true,
    ),
    Case(
        "huggingface/diffusers#1692",
        "a model of closures pickled for a spawned process",
        lambda folder: alike(pickle.loads(pickle.dumps(model())), model()),
        is_true,
    ),
    Case(
        "huggingface/diffusers#7406",
        "whole steps of a chain where times are",
        lambda folder: model().recipe.process.corrupt(X, torch.tensor([500, 20]), X),
        refuses(r"got torch.int64. Step k of a chain of n steps is the time k / n", TypeError),
    ),
    Case(
        "huggingface/diffusers#1784",
        "times (B,), one for each image",
        lambda folder: model().denoise(X, torch.tensor([0.2, 0.9])),
        refuses(r"Reshape them to \(2, 1, 1, 1\)"),
    ),
    Case("huggingface/diffusers#1784", "times (B, 1, 1, 1) of a batch", each_alone, is_true),
    Case(
        "lucidrains/denoising-diffusion-pytorch#20",
        "pixels from 0 to 255 in a training loop",
        bytes_in_the_loss,
        refuses(r"x0 must be data in \[-1, 1\]; got .* bytes by x / 127.5 - 1"),
    ),
    Case(
        "CellProfiler/CellProfiler#3420",
        "a picture of images of more channels than it can show",
        lambda folder: sf.pictures.save(torch.zeros(2, 5, 8, 8), folder / "x.png"),
        refuses("1 or 3 channels, these images 5; save them as .npz"),
    ),
    Case(
        "giulio98/functional-diffusion-processes#6",
        "a folder that holds samples of an earlier run",
        into_older_images,
        exits(2, "samples holds other images, such as 000064.png"),
    ),
]

CASES = [*FILES, *TRAINING, *DATA, *SAMPLING, *EVALUATION, *PYTHON]
