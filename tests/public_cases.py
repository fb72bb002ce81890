"""Situations from public bug reports, one a line: what was fed, and what must happen.

A case is (report, situation, feed, outcome). `feed(folder)` does what the user did, in a process
that has imported everything and with `folder` empty and current; what it returns, or the error that
it raises, is handed to `outcome`. New ones go into the table of their kind.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfumato import from_pretrained, networks
from sfumato.algebra import MatrixFree
from sfumato.checks import check_operator
from sfumato.cli import main
from sfumato.corruption.families import Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Betas, Complement
from sfumato.estimation.denoise import Denoiser, noise
from sfumato.estimation.limit import clip, limited
from sfumato.methods import lookup
from sfumato.sampling.sample import sample


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


def is_true(found: object) -> None:
    """The outcome: `feed` found what it looked for."""
    assert found is True, f"got {found!r}"


# A stranger's files.
FILES: list[Case] = []

# Training that goes wrong, is cut, or goes on.
TRAINING: list[Case] = []

# Images, folders and arrays as people have them.
DATA: list[Case] = []


def clipped_sample(folder: Path) -> bool:
    """Does a clipped sample stay in the range of the data, and without clip not?"""
    model = from_pretrained("fashion-ddpm")
    plain, kept = (model.sample([0, 1], 2, "ancestral", clip=clip) for clip in (False, True))
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
    loud = limited(Denoiser(process, noise, Loud()), clip)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)
    grid = torch.tensor([1.0, 0.5], dtype=torch.float64)
    x0 = ((x - v**0.5 * 5) / c).clamp(-1, 1)
    expected = before * x0 + (1 - before**2) ** 0.5 * (x - c * x0) / v**0.5
    return torch.allclose(sample(lookup.kernel("ddim"), loud, x, grid), expected)


# Samplers, grids and levels.
SAMPLING: list[Case] = [
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
        command(*"sample fashion-ddpm --seeds 0 --steps 2 --kernel ddim --clip".split()),
        exits(0, "2 steps of kernel ddim"),
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
EVALUATION: list[Case] = [
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
]

CASES = [*FILES, *TRAINING, *DATA, *SAMPLING, *EVALUATION, *PYTHON]
