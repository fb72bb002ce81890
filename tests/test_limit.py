"""Laws of clipped estimates: the official rule re-typed, and no change within the range."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import Toy, normal
from sfumato import from_pretrained
from sfumato.cli import main
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.limit import Limited, clip
from sfumato.estimation.predictions import noise, x0
from sfumato.methods import METHODS
from sfumato.sampling import samplers
from sfumato.sampling.sample import Seeds, sample
from sfumato.sampling.samplers import Sampler

IMAGE = (1, 4, 4)
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LEVELS = (1000, 999, 998, 700, 420, 419, 60, 2, 1)
GRID = torch.tensor([*(k / 1000 for k in LEVELS), 0.0], dtype=torch.float64)
KERNELS = (
    *("ancestral", "ddim", "ddim:eta=0.5", "momentum", "naive", "euler", "heun", "rk4"),
    *("multistep", "unipc", "euler-maruyama", "stochastic-heun", "euler-langevin", "langevin"),
)


def asked(x: Tensor, k: int) -> Tensor:
    """What the network says at level k."""
    return Toy()(x, torch.full((len(x),), k / 1000, dtype=torch.float64))


def start_and_noise() -> tuple[Tensor, list[Tensor]]:
    source = Seeds([1, 2, 3])
    x = normal(3, *IMAGE)
    return x, [source(x) for _ in LEVELS]


@pytest.mark.parametrize("kernel", ["ancestral", "ancestral-large"])
def test_ddpm_s_clipped_step(kernel):
    """x_0^ clipped, then the posterior mean of q(x_s | x_t, x_0^), as `p_mean_variance` has it."""
    x, drawn = start_and_noise()
    denoiser = NetworkDenoiser(METHODS["ddpm"](IMAGE).process, noise, Toy())
    found = sample(samplers.kernel(kernel), Limited(denoiser, clip), x, GRID, Seeds([1, 2, 3]))
    clipped = 0
    for (k, s), z in zip(pairwise((*LEVELS, 0)), drawn, strict=True):
        abar, before = ABAR[k - 1], ABAR[s - 1] if s else 1.0
        x0 = x / abar**0.5 - (1 / abar - 1) ** 0.5 * asked(x, k)
        clipped += int((x0.abs() > 1).sum())
        x0 = x0.clamp(-1, 1)
        beta = 1 - abar / before
        mean = before**0.5 * beta / (1 - abar) * x0
        mean = mean + (1 - beta) ** 0.5 * (1 - before) / (1 - abar) * x
        variance = beta if kernel == "ancestral-large" else beta * (1 - before) / (1 - abar)
        x = mean + variance**0.5 * z if s else mean
    assert clipped > 100
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_s_clipped_step(eta):
    """The noise is taken again from the clipped x_0^, as `ddim_sample` has it."""
    x, drawn = start_and_noise()
    denoiser = NetworkDenoiser(METHODS["ddim"](IMAGE).process, noise, Toy())
    kernel = samplers.kernel(f"ddim:eta={eta}")
    found = sample(kernel, Limited(denoiser, clip), x, GRID, Seeds([1, 2, 3]))
    for (k, s), z in zip(pairwise((*LEVELS, 0)), drawn, strict=True):
        abar, before = ABAR[k - 1], ABAR[s - 1] if s else 1.0
        x0 = (x / abar**0.5 - (1 / abar - 1) ** 0.5 * asked(x, k)).clamp(-1, 1)
        eps = (x / abar**0.5 - x0) / (1 / abar - 1) ** 0.5
        sigma = eta * ((1 - before) / (1 - abar)) ** 0.5 * (1 - abar / before) ** 0.5
        x = x0 * before**0.5 + max(1 - before - sigma**2, 0.0) ** 0.5 * eps + sigma * z
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["ddpm", "blurring", "soft", "edm", "ncsn", "ni-ddpm", "vdm"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_estimates_within_the_range_stay(kernel, method):
    """Nothing changes where the limit changes nothing, whatever the network predicts."""
    recipe = METHODS[method](IMAGE)
    x, grid = normal(2, *IMAGE), torch.tensor([0.9, 0.6, 0.35, 0.2], dtype=torch.float64)
    for means, limit in ((recipe.parametrization, lambda x0: x0), (x0, clip)):
        denoiser = NetworkDenoiser(recipe.process, means, Toy())
        found, expected = (
            sample(samplers.kernel(kernel), one, x, grid, Seeds([1, 2]))
            for one in (Limited(denoiser, limit), denoiser)
        )
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


class Loud(nn.Module):
    """A backbone whose estimates are far out of range."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return 9 * Toy()(x, label)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_clipped_sample_ends_in_the_range(kernel):
    denoiser = Limited(NetworkDenoiser(METHODS["soft"](IMAGE).process, x0, Loud()), clip)
    grid = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    found = sample(samplers.kernel(kernel), denoiser, normal(2, *IMAGE), grid, Seeds([1, 2]))
    assert float(found.abs().max()) == 1.0


def test_what_estimates_a_blurred_image_has_nothing_to_clip():
    recipe = METHODS["ihdm"]((1, 8, 8), count=3)
    denoiser = Limited(NetworkDenoiser(recipe.process, recipe.parametrization, Toy()), clip)
    with pytest.raises(ValueError, match="so blurred that x_0 cannot be recovered"):
        sample(recipe.sampler.kernel, denoiser, normal(1, 1, 8, 8), recipe.grid(3))


@pytest.fixture
def trained(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    tiny = "--width 8 --multipliers 1 --batch 32 --images 32 --preview-every 0 --device cpu --quiet"
    assert main(["train", "ddpm", *tiny.split(), "--out", "run"]) == 0
    return "run"


def test_a_record_says_that_it_clipped_and_else_nothing(trained, capsys):
    """`sample`, `show` and `evaluate` clip where they are asked to; without, no record knows it."""
    steps, quick = ("--steps", "4"), ("--n", "6", "--quiet", "--threads", "1", "--out")
    for name, asked_for in (("plain", []), ("clipped", ["--clip"])):
        assert main(["sample", trained, *steps, *asked_for, "--seeds", "0-5", "--out", name]) == 0
        words = ["evaluate", trained, *steps, *asked_for, *quick, f"{name}.json"]
        assert main(words) == 0
        assert main(["show", trained, *steps, *asked_for, "--out", f"{name}.png"]) == 0
    plain, clipped = (json.loads(Path(f"{n}.json").read_text()) for n in ("plain", "clipped"))
    assert "clip" not in plain["subject"] and "clip" not in plain["results"][0]
    assert clipped["subject"]["clip"] is True and clipped["results"][0]["clip"] is True
    assert plain["results"][0]["images_sha256"] != clipped["results"][0]["images_sha256"]
    assert plain["results"][0]["model"] == clipped["results"][0]["model"]
    assert Path("plain.png").read_bytes() != Path("clipped.png").read_bytes()
    assert main(["evaluate", "--verify", "clipped.json", "--quiet"]) == 0, capsys.readouterr()
    made = from_pretrained(trained).sample(range(6), Sampler(steps=4), clip=True)
    assert float(made.abs().max()) <= 1.0
