"""Methods as published: update formulas re-typed from the papers, beside the compositions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch
from torch import Tensor

from cases import PROCESSES, SHAPE, Toy, matrix, normal, time
from sfumato.algebra import Dense
from sfumato.corruption.colours import colour, measured, power_law
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import measure
from sfumato.estimation.denoise import NetworkDenoiser, flow_operators
from sfumato.estimation.loss import loss
from sfumato.estimation.predictions import Precondition, noise
from sfumato.methods import METHODS
from sfumato.methods.ncsn import ratio, step_size
from sfumato.sampling.flow import HEUN, churn, flow
from sfumato.sampling.kernels import corrector, moves, reverse_diffusion
from sfumato.sampling.sample import Seeds, sample, uniform_grid

IMAGE = (1, 8, 8)


def drawn(seeds: list[int], count: int, shape: tuple[int, ...]) -> list[Tensor]:
    """The first `count` draws of each seed's stream."""
    source, like = Seeds(seeds), torch.zeros(len(seeds), *shape, dtype=torch.float64)
    return [source(like) for _ in range(count)]


def toy(x: Tensor, t: float) -> Tensor:
    return Toy()(x, torch.full((len(x),), t, dtype=torch.float64))


def stats():
    return measure([normal(40, *IMAGE, seed=2) / 2], IMAGE)


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_reverse_diffusion_predictor(name):
    """x - f + G^2 score + G z with f = (sqrt(alpha) - 1) x, G^2 = 1 - alpha for VP."""
    recipe = METHODS[name](IMAGE)
    x, t, s = normal(3, *IMAGE), 0.6, 0.55
    kernel = moves(reverse_diffusion)
    denoiser = NetworkDenoiser(recipe.process, noise, Toy())
    grid = torch.tensor([t, s], dtype=torch.float64)
    found = sample(kernel, denoiser, x, grid, Seeds([1, 2, 3]))
    log_power = lambda u: -0.5 * u**2 * 19.9 - 0.1 * u  # noqa: E731
    power_t, power_s = math.exp(log_power(t)), math.exp(log_power(s))
    alpha = power_t / power_s
    level = (1 - power_t) ** (0.5 if name == "vp" else 1.0)
    before = (1 - power_s) ** (0.5 if name == "vp" else 1.0)
    squared = level**2 - alpha * before**2  # G^2, the transition's variance; 1 - alpha for VP
    if name == "vp":
        assert squared == pytest.approx(1 - alpha)
    score = -toy(x, t) / level
    (z,) = drawn([1, 2, 3], 1, IMAGE)
    expected = x - (math.sqrt(alpha) - 1) * x + squared * score + math.sqrt(squared) * z
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_reverse_diffusion_of_ve():
    """x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z."""
    recipe = METHODS["ve"](IMAGE, sigma=(0.01, 50.0))
    x, t, s = normal(3, *IMAGE), 0.6, 0.55
    denoiser = NetworkDenoiser(recipe.process, noise, Toy())
    kernel = moves(reverse_diffusion)
    found = sample(kernel, denoiser, x, torch.tensor([t, s], dtype=torch.float64), Seeds([1, 2, 3]))
    sigma = lambda u: 0.02 * 5000**u  # noqa: E731
    gap = sigma(t) ** 2 - sigma(s) ** 2
    (z,) = drawn([1, 2, 3], 1, IMAGE)
    expected = x - gap * toy(x, t) / sigma(t) + math.sqrt(gap) * z
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_langevin_corrector(name):
    """x + e score + sqrt(2 e) z, e = 2 (r ||z|| / ||score||)^2 for each sample."""
    process, x, snr = METHODS[name](IMAGE).process, normal(3, *IMAGE), 0.16
    denoiser = NetworkDenoiser(process, noise, Toy())
    grid = torch.tensor([0.6, 0.5], dtype=torch.float64)
    found = sample(corrector(snr), denoiser, x, grid, Seeds([1, 2, 3]))
    score = -toy(x, 0.5) / float(process.noise.at(time(0.5)).gain)
    (z,) = drawn([1, 2, 3], 1, IMAGE)
    norms = [y.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for y in (z, score)]
    size = 2 * (snr * norms[0] / norms[1]) ** 2
    torch.testing.assert_close(found, x + size * score + (2 * size).sqrt() * z)


@pytest.mark.parametrize("between", [(0.0, math.inf), (0.05, 50.0), (1.0, math.inf), (0.0, 0.5)])
@pytest.mark.parametrize("s_noise", [1.0, 1.007])
def test_edm_with_churn(between, s_noise):
    """Algorithm 2, line for line, with its four parameters: from sigma_max down to 0."""
    s_churn, (s_min, s_max) = 4.0, between
    stirred = (s_min, 0.0 if s_max == math.inf else s_max)
    recipe = METHODS["edm"](IMAGE, stir=s_churn, stir_between=stirred, stir_noise=s_noise)
    grid = recipe.grid(8)
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Toy())
    x = 80 * normal(2, *IMAGE)
    found = sample(recipe.sampler.kernel, denoiser, x, grid, Seeds([1, 2]))
    sigmas = (80 * grid).tolist()

    def clean(y: Tensor, sigma: float) -> Tensor:
        total = sigma**2 + 0.25
        out = Toy()(
            y / math.sqrt(total), torch.full((2,), math.log(sigma) / 4, dtype=torch.float64)
        )
        return 0.25 / total * y + sigma * 0.5 / math.sqrt(total) * out

    for sigma, after, z in zip(sigmas[:-1], sigmas[1:], drawn([1, 2], 8, IMAGE), strict=True):
        gamma = min(s_churn / 8, math.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
        raised = sigma + gamma * sigma
        y = x + math.sqrt(raised**2 - sigma**2) * s_noise * z
        slope = (y - clean(y, raised)) / raised
        x = y + (after - raised) * slope
        if after:
            x = y + (after - raised) * (slope + (x - clean(x, after)) / after) / 2
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


def test_churn_leaves_a_process_within_its_times():
    """A blur has no time above 1: its first step is not raised, and the law is kept."""
    process = PROCESSES["blurring"]
    assert process.last == 1 and METHODS["edm"](IMAGE).process.last == math.sqrt(2)
    asked: list[float] = []

    def watched(process: Process, t: Tensor) -> Precondition:
        asked.append(float(t.max()))
        return noise(process, t)

    sample(
        churn(HEUN, 9.0),
        NetworkDenoiser(process, watched, Toy()),
        normal(2, *SHAPE),
        uniform_grid(4),
    )
    assert max(asked) <= 1.0


def test_churn_of_nothing_is_the_flow():
    process = PROCESSES["blurring"]
    denoiser, x = NetworkDenoiser(process, noise, Toy()), normal(2, *SHAPE)
    grid = torch.tensor([0.8, 0.5, 0.3], dtype=torch.float64)
    found, expected = (sample(kernel, denoiser, x, grid) for kernel in (churn(HEUN, 0), flow(HEUN)))
    torch.testing.assert_close(found, expected)


def heated(x: Tensor, width: float) -> Tensor:
    """exp(-lambda width^2 / 2) by scipy's DCT."""
    omega = np.pi * np.arange(8) / 8
    gain = np.exp(-(omega[:, None] ** 2 + omega**2) * width**2 / 2)
    u = scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    return torch.from_numpy(scipy.fft.idctn(gain * u, axes=(-2, -1), norm="ortho"))


def test_ihdm():
    """Loss || F_{k-1} x_0 - (x_k + f) ||^2, sampler x + f + delta z, and the last mean."""
    recipe = METHODS["ihdm"](IMAGE, count=4)
    widths = [0.0, *np.exp(np.linspace(math.log(0.5), math.log(6.0), 4))]
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Toy())
    x0, eps, k = normal(2, *IMAGE) / 2, normal(2, *IMAGE, seed=1), 3
    x = heated(x0, widths[k]) + 0.02 * eps
    target = heated(x0, widths[k - 1])
    t = torch.full((2, 1, 1, 1), k / 4, dtype=torch.float64)
    found = loss(denoiser, recipe.weighting, x0, t, eps)
    expected = (x + toy(x, k / 4) - target).square().flatten(1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    found = sample(recipe.sampler.kernel, denoiser, x, recipe.grid(4), Seeds([1, 2]))
    for k, z in zip((4, 3, 2, 1), [*drawn([1, 2], 3, IMAGE), 0.0], strict=True):
        x = x + toy(x, k / 4) + 0.025 * z
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"trained on 4 levels .* Use --steps 4"):
        recipe.grid(5)
    with pytest.raises(ValueError, match="is not defined between"):
        denoiser(x, time(0.6))


def test_free_field():
    """S S^T of the paper's complex construction with |k_00| = 1, of unit variance."""
    n = 8
    k = np.fft.fftfreq(n) * n
    size = np.sqrt(k[:, None] ** 2 + k**2)
    size[0, 0] = 1.0
    weights = 1 / size / math.sqrt(np.mean(size**-2.0))
    units = np.eye(n * n).reshape(-1, n, n)
    columns = np.fft.ifft2(np.fft.fft2(units) * weights).real.reshape(n * n, -1).T
    found = matrix(power_law(IMAGE), IMAGE).numpy()
    np.testing.assert_allclose(found @ found.T, columns @ columns.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(found @ found.T), 1.0, atol=1e-12)
    with pytest.raises(ValueError, match="above 0 at frequency 0"):
        power_law(IMAGE, dc=0.0)


def test_measured_noise_has_the_spectrum_of_the_data(tmp_path):
    """The variance of each DCT coefficient over their mean; and a covariance's file likewise."""
    images = normal(40, *IMAGE, seed=2) / 2
    found = measured(measure([images], IMAGE)).gain ** 2
    u = scipy.fft.dctn(images.numpy(), axes=(-2, -1), norm="ortho")[:, 0]
    np.testing.assert_allclose(found, u.var(0) / u.var(0).mean(), rtol=1e-10)
    cov = np.cov(images.flatten(1).numpy().T) + 0.1 * np.eye(64)
    np.save(tmp_path / "cov.npy", cov)
    root = colour(str(tmp_path / "cov.npy"), IMAGE, stats()).matrix(IMAGE).numpy()
    np.testing.assert_allclose(root @ root.T, cov / np.diag(cov).mean(), atol=1e-10)
    np.save(tmp_path / "odd.npy", np.eye(5))
    for name, sentence in (("odd.npy", r"must be \(64, 64\)"), ("none.npy", "holds no covariance")):
        with pytest.raises(ValueError, match=sentence):
            colour(str(tmp_path / name), IMAGE, stats())
    with pytest.raises(ValueError, match="no noise 'pink'"):
        colour("pink", IMAGE, stats())


@pytest.mark.parametrize("variance", ["small", "large"])
def test_non_isotropic_ddpm(variance):
    """(17)-(19): x_0^ = (x - sqrt(1 - abar) L e) / sqrt(abar), DDPM's mean, sqrt(beta) L z."""
    cov = torch.from_numpy(np.cov(normal(200, 64, seed=3).numpy().T)) + 0.1 * torch.eye(64).double()
    recipe = METHODS["ni-ddpm"](IMAGE, None, Dense(cov, IMAGE), variance=variance)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors @ values.sqrt().diag() @ vectors.T

    def coloured(y: Tensor) -> Tensor:
        return (y.flatten(1) @ root).reshape(y.shape)

    x, betas = normal(2, *IMAGE), np.linspace(1e-4, 0.02, 1000)
    power, k = np.cumprod(1 - betas), 600
    grid = torch.tensor([k / 1000, (k - 1) / 1000], dtype=torch.float64)
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Toy())
    found = sample(recipe.sampler.kernel, denoiser, x, grid, Seeds([1, 2]))
    now, before, beta = power[k - 1], power[k - 2], betas[k - 1]
    clean = (x - math.sqrt(1 - now) * coloured(toy(x, k / 1000))) / math.sqrt(now)
    mean = math.sqrt(before) * beta / (1 - now) * clean
    mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
    spread = beta * (1 - before) / (1 - now) if variance == "small" else beta
    (z,) = drawn([1, 2], 1, IMAGE)
    expected = mean + math.sqrt(spread) * coloured(z)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_levels_of_ncsnv2():
    """Techniques 1, 2 and 4: the first level, the ratio of levels, the variance after T steps."""
    gamma = ratio(3072)
    shift, phi = math.sqrt(2 * 3072) * (gamma - 1), scipy.stats.norm.cdf
    assert phi(shift + 3 * gamma) - phi(shift - 3 * gamma) == pytest.approx(0.5, abs=1e-9)
    known = stats()
    far = torch.cdist(known.low.flatten(1).double(), known.low.flatten(1).double()).max()
    recipe = METHODS["ncsnv2"](IMAGE, known)
    first = float(recipe.process.noise.at(time(1.0)).gain)
    assert first == pytest.approx(float(far), rel=1e-6)
    last = float(recipe.process.noise.at(time(1 / recipe.sampler.steps)).gain)
    assert last == pytest.approx(0.02, rel=1e-9)
    assert (first / last) ** (1 / (recipe.sampler.steps - 1)) <= ratio(64) + 1e-9

    def left(delta: float, gamma: float = 1.0376, inner: int = 5) -> float:
        variance = gamma**2
        for _ in range(inner):
            variance = (1 - delta) ** 2 * variance + 2 * delta
        return abs(variance - 1)

    best = step_size(1.0376, 5)
    assert left(best) <= min(left(best * 0.95), left(best * 1.05))


POSITIVE: dict[str, Callable[[], object]] = {
    "soft-mask": lambda: METHODS["soft-mask"](IMAGE),
    "wandering": lambda: METHODS["soft-mask"](IMAGE, wander=True),
    "soft-down": lambda: METHODS["soft-down"](IMAGE),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_nothing_is_repainted_from_a_weight_of_zero(name):
    """Gains fall, are never zero, and the mask ends at a thousandth or less."""
    process = POSITIVE[name]().process  # pyright: ignore
    gains = [process.signal.at(time(t)).log_gain for t in np.linspace(0, 1, 101)]
    assert all(bool((later <= before).all()) for before, later in pairwise(gains))
    assert all(bool(gain.isfinite().all()) for gain in gains)
    assert float(gains[0].abs().max()) == 0
    if name != "soft-down":
        assert float(gains[-1].max()) <= math.log(1e-3)


def test_masks_are_drawn_for_each_image_and_told():
    """The context is the rates themselves: image i's process is damped by its own."""
    recipe = METHODS["soft-mask"](IMAGE, wander=True)
    assert recipe.context is not None
    context = recipe.context.draw(torch.zeros(3, *IMAGE).double(), Seeds([1, 2, 3]))
    log_gain = recipe.context.process(context).signal.at(time(0.5)).log_gain  # pyright: ignore
    level = log_gain / context
    torch.testing.assert_close(level, level.flatten()[0].expand_as(level))
    assert context.shape == (3, 1, 8, 8) and not torch.equal(context[0], context[1])
    again = recipe.context.draw(torch.zeros(1, *IMAGE).double(), Seeds([2]))
    assert torch.equal(again[0], context[1])


# Flows at the times of a table, where its slope jumps.


def test_the_flow_of_ni_ddpm_at_a_level_is_that_of_the_step_below():
    """G = S' / S and D = C' - G C with log abar linear between the levels, from its left side.

    A central difference over the level is the mean of two slopes: off by half of their jump.
    """
    k, log_power = 500, np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
    here, below, above = (float(log_power[k - 1 + i]) for i in (0, -1, 1))
    slope, power = 1000 * (here - below), math.exp(here)
    grow = -power * slope / (2 * (1 - power))
    drift, found = flow_operators(METHODS["ni-ddpm"](IMAGE, noise="white").process, time(k / 1000))
    close = pytest.approx(grow, rel=1e-9)
    assert float(found.gain.mean()) == close
    expected = math.sqrt(power) * (slope / 2 - grow)
    assert float(drift.gain.mean()) == pytest.approx(expected, rel=1e-9)
    assert abs((above - 2 * here + below) / (here - below)) > 1e-3  # the jump


def test_the_flow_of_ihdm_at_a_level_is_that_of_the_step_below():
    """C' = -Laplacian b b' C with widths linear between the levels k / K, from the left side."""
    count, k, (first, last) = 200, 100, (0.5, 0.75 * 8)
    widths = first * (last / first) ** (np.arange(count) / (count - 1))  # of levels 1 .. K
    width, slope = widths[k - 1], count * (widths[k - 1] - widths[k - 2])
    squared = np.add.outer(*[(np.pi * np.arange(8) / 8) ** 2] * 2)
    expected = -squared * width * slope * np.exp(-squared * width**2 / 2)
    process = METHODS["ihdm"]((1, 8, 8)).process
    drift, grow = flow_operators(process, time(k / count))
    np.testing.assert_allclose(drift.gain, expected, rtol=1e-9, atol=1e-15)
    assert not grow.gain.any()
    step = 1e-4  # within a piece a central difference is right as well
    middle = time((k - 0.5) / count)
    late, early = (process.signal.at(middle + h).gain for h in (step, -step))
    rate = process.signal.rate(middle).gain
    torch.testing.assert_close(rate, (late - early) / (2 * step), rtol=0, atol=1e-4)
