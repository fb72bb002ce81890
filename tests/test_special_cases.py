"""Laws of special cases: published samplers re-typed, limits that coincide, diffusers.

Every trajectory is compared state by state, with a denoiser that is not linear and the same noise.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import (
    COUPLINGS,
    PROCESSES,
    SHAPE,
    TABLEAUX,
    Toy,
    basis_of,
    matrix,
    normal,
    time,
)
from sfumato.algebra import Diagonal, Operator, dct, hartley
from sfumato.corruption import coupling
from sfumato.corruption.families import Fixed, Heat, Scale
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    CosineSNR,
    Geometric,
    Linear,
    cosine_betas,
    linear_betas,
)
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.predictions import noise, residual, x0
from sfumato.methods import METHODS
from sfumato.methods.spacing import SPACINGS, leading, linspace, spaced
from sfumato.sampling.flow import EULER, HEUN, flow
from sfumato.sampling.kernels import Kernel, langevin, reverse
from sfumato.sampling.sample import Seeds, sample, uniform_grid

SEEDS = [1, 2, 3]
T, S = time(0.5), time(0.4)
COSINE = CosineSNR(10.0, -10.0)


def states(
    kernel: Kernel, denoiser: Denoiser, grid: Tensor, stream: RandnLike | None = None
) -> list[Tensor]:
    """x after each step, from a fixed start, with a stream of noise for each sample."""
    path: list[Tensor] = []
    x = 3 * normal(len(SEEDS), *SHAPE)
    stream = stream or Seeds(SEEDS)
    sample(kernel, denoiser, x, grid, stream, callback=lambda i, x: path.append(x))
    return path


def literally(step: Callable[..., Tensor], grid: Tensor) -> list[Tensor]:
    """The same from a published step (x, t, s, draw) -> x."""
    path, x, stream = [], 3 * normal(len(SEEDS), *SHAPE), Seeds(SEEDS)
    for t, s in pairwise(grid):
        x = step(x, t, s, lambda like=x: stream(like))
        path.append(x)
    return path


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def toy(x: Tensor, t: Tensor) -> Tensor:
    return Toy()(x, t.expand(len(x)))


def level(process: Process, t: Tensor) -> float:
    return float(process.noise.at(t).gain)


# Soft Diffusion, Cold Diffusion.

GRID = uniform_grid(8, 1.0, 0.1)
SOFT = NetworkDenoiser(PROCESSES["soft"], residual, Toy())


def test_algorithm_2():
    """Soft's Momentum Sampler as printed: z filtered at t with the noise of s, then re-filtered."""

    def step(x, t, s, draw):
        signal, var = SOFT.process.signal, {u: level(SOFT.process, u) ** 2 for u in (t, s)}
        x0 = toy(x, t) + x
        y = signal.at(t)(x0)
        eps = y - x
        fresh = (
            draw() if var[t] != var[s] else 0
        )  # the kernel draws nothing that it multiplies by 0
        z = x - (var[s] - var[t]) / var[t] * eps + math.sqrt(var[t] - var[s]) * fresh
        return z + (signal.at(s)(x0) - y)

    same(states(reverse(coupling.momentum), SOFT, GRID), literally(step, GRID))


def test_probability_flow_momentum():
    """Euler's step of Eq. 18: x + (C_s - C_t) x_0^ - (v_s - v_t) / (2 v_t) (C_t x_0^ - x)."""

    def step(x, t, s, draw):
        signal, (v_t, v_s) = SOFT.process.signal, (level(SOFT.process, u) ** 2 for u in (t, s))
        x0 = toy(x, t) + x
        y = signal.at(t)(x0)
        return x + (signal.at(s)(x0) - y) - (v_s - v_t) / (2 * v_t) * (y - x)

    same(states(reverse(coupling.pf_momentum), SOFT, GRID), literally(step, GRID))


def test_algorithm_1():
    """Soft's Naive Sampler: corrupt the estimate anew."""

    def step(x, t, s, draw):
        return SOFT.process.signal.at(s)(toy(x, t) + x) + level(SOFT.process, s) * draw()

    same(states(reverse(coupling.naive), SOFT, GRID), literally(step, GRID))


@pytest.mark.parametrize("name", ["cold", "momentum"])
@pytest.mark.parametrize("noise_level", [0.0, 0.1])
def test_cold_diffusion(name, noise_level):
    """Algorithm 2 of Cold Diffusion is momentum where noise is constant, or none."""
    process = Process(PROCESSES["soft"].signal, Scale(Constant(noise_level)))

    def step(x, t, s, draw):
        x0 = toy(x, t)
        return x - process.signal.at(t)(x0) + process.signal.at(s)(x0)

    denoiser = NetworkDenoiser(process, x0, Toy())
    same(states(reverse(COUPLINGS[name].coupling), denoiser, GRID), literally(step, GRID))


# Noise alone: C = I.

VE = NetworkDenoiser(PROCESSES["ve"], x0, Toy())


def score(x: Tensor, t: Tensor) -> Tensor:
    return (toy(x, t) - x) / level(VE.process, t) ** 2


def test_momentum_without_blur_is_reverse_diffusion():
    """The predictor of score SDE's VE: x + (v_t - v_s) score + sqrt(v_t - v_s) z."""

    def step(x, t, s, draw):
        gap = level(VE.process, t) ** 2 - level(VE.process, s) ** 2
        return x + gap * score(x, t) + math.sqrt(gap) * draw()

    same(states(reverse(coupling.momentum), VE, GRID), literally(step, GRID))


def test_annealed_langevin():
    """NCSN: alpha = epsilon (sigma / sigma_L)^2, x + alpha score + sqrt(2 alpha) z, T times."""
    last, count = level(VE.process, GRID[-1]), 3
    epsilon = 0.1 * last**2

    def step(x, t, s, draw):
        alpha = epsilon * (level(VE.process, s) / last) ** 2
        for _ in range(count):
            x = x + alpha * score(x, s) + math.sqrt(2 * alpha) * draw()
        return x

    same(states(langevin(epsilon / last**2, count), VE, GRID), literally(step, GRID))


def test_consistent_annealed_sampling():
    """x + eta v_t score + beta sigma_s z with beta^2 = 1 - (1 - eta)^2 v_t / v_s."""
    eta = 0.7

    def step(x, t, s, draw):
        v_t, v_s = level(VE.process, t) ** 2, level(VE.process, s) ** 2
        beta = math.sqrt(1 - (1 - eta) ** 2 * v_t / v_s)
        return x + eta * v_t * score(x, t) + beta * math.sqrt(v_s) * draw()

    grid = uniform_grid(16, 1.0, 0.1)
    same(states(reverse(coupling.annealed(eta)), VE, grid), literally(step, grid))


@pytest.mark.parametrize("order", [1, 2])
def test_edm(order):
    """EDM's sampler in sigma = 80 t: d = (x - D) / sigma, Euler or Heun, the last step Euler."""
    grid = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.001, 0.0], dtype=torch.float64)

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return (x - toy(x, t)) / (80 * t)

    def step(x, t, s, draw):
        d = slope(x, t)
        y = x + 80 * (s - t) * d
        return y if order == 1 or s == 0 else x + 80 * (s - t) * (d + slope(y, s)) / 2

    denoiser = NetworkDenoiser(Process(Scale(Constant(1.0)), Scale(Linear(0.0, 80.0))), x0, Toy())
    same(states(flow({1: EULER, 2: HEUN}[order]), denoiser, grid), literally(step, grid))


# Variance preserving, and per frequency.


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance):
    """Ho et al.: the posterior mean of x_0^ and x_t; beta~ or beta as variance."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    process = Process(Scale(Amplitude(linear_betas())), Scale(Complement(linear_betas())))
    bar = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])

    def step(x, t, s, draw):
        k = round(1000 * float(t))
        beta, x0 = betas[k - 1], (x - (1 - bar[k]).sqrt() * toy(x, t)) / bar[k].sqrt()
        mean = bar[k - 1].sqrt() * beta / (1 - bar[k]) * x0
        mean = mean + (1 - beta).sqrt() * (1 - bar[k - 1]) / (1 - bar[k]) * x
        if k == 1:
            return mean
        small = beta * (1 - bar[k - 1]) / (1 - bar[k])
        return mean + (small if variance == "small" else beta).sqrt() * draw()

    kernel = {"small": coupling.ancestral, "large": coupling.ancestral_large}[variance]
    grid = torch.arange(12, -1, -1, dtype=torch.float64) / 1000
    denoiser = NetworkDenoiser(process, noise, Toy())
    same(states(reverse(kernel), denoiser, grid), literally(step, grid), 1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim(eta):
    """Song et al.: sqrt(abar_s) x_0^ + c1 z + sqrt(1 - abar_s - c1^2) eps^."""
    process = PROCESSES["vp"]

    def step(x, t, s, draw):
        a_t, a_s = (float(process.signal.at(u).gain) ** 2 for u in (t, s))
        eps = toy(x, t)
        x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        c1 = eta * math.sqrt((1 - a_t / a_s) * (1 - a_s) / (1 - a_t))
        fresh = draw() if eta else 0
        return math.sqrt(a_s) * x0 + c1 * fresh + math.sqrt(1 - a_s - c1**2) * eps

    denoiser = NetworkDenoiser(process, noise, Toy())
    same(states(reverse(coupling.ddim(eta)), denoiser, GRID), literally(step, GRID), 1e-7)


def test_vdm():
    """Kingma et al.: sqrt(a_s / a_t) (z - sigma_t c eps^) + sqrt((1 - a_s) c) z, a = alpha^2."""
    process = PROCESSES["vp"]

    def step(x, t, s, draw):
        g_t, g_s = (-float(process.log_snr(u)) for u in (t, s))
        a_t, a_s = 1 / (1 + math.exp(g_t)), 1 / (1 + math.exp(g_s))
        c = -math.expm1(g_s - g_t)
        mean = math.sqrt(a_s / a_t) * (x - math.sqrt(1 - a_t) * c * toy(x, t))
        return mean + math.sqrt((1 - a_s) * c) * draw()

    denoiser = NetworkDenoiser(process, noise, Toy())
    same(states(reverse(coupling.ancestral), denoiser, GRID), literally(step, GRID), 1e-7)


def test_blurring_diffusion():
    """Hoogeboom & Salimans: DDPM's posterior for each frequency, the noise predicted in pixels."""
    process, basis = PROCESSES["blurring"], basis_of(PROCESSES["blurring"])

    def step(x, t, s, draw):
        (c_t, c_s) = (process.signal.at(u).gain for u in (t, s))
        v_t, v_s = level(process, t) ** 2, level(process, s) ** 2
        ratio = c_t / c_s
        v_ts = v_t - ratio**2 * v_s
        left = 1 / (1 / v_s + ratio**2 / v_ts)
        u, eps = basis.analyze(x), basis.analyze(toy(x, t))
        mean = left * (ratio / v_ts * u + c_s / v_s * (u - math.sqrt(v_t) * eps) / c_t)
        return basis.synthesize(mean + left.sqrt() * basis.analyze(draw()))

    denoiser = NetworkDenoiser(process, noise, Toy())
    same(states(reverse(coupling.ancestral), denoiser, GRID), literally(step, GRID), 1e-6)


class Coloured(nn.Module):
    """A backbone that sees x = L z where it is handed z."""

    def __init__(self, colour: Operator) -> None:
        super().__init__()
        self.colour = colour

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return Toy()(self.colour(x), label)


@pytest.mark.parametrize("name", ["ancestral", "ancestral-large", "ddim", "ddim-half"])
def test_coloured_noise_is_white_in_other_coordinates(name):
    """Voleti et al.: NI-DDPM on x is DDPM on z = L^-1 x."""
    process, white = PROCESSES["coloured"], PROCESSES["vp"]
    colour = process.noise.at(T) @ white.noise.at(T).inv()
    kernel, x = reverse(COUPLINGS[name].coupling), normal(3, *SHAPE)
    found = sample(kernel, NetworkDenoiser(process, noise, Toy()), colour(x), GRID, Seeds(SEEDS))
    denoiser = NetworkDenoiser(white, noise, Coloured(colour))
    z = sample(kernel, denoiser, x, GRID, Seeds(SEEDS))
    torch.testing.assert_close(found, colour(z), rtol=1e-8, atol=1e-8)


# Limits that coincide.

WHITE = Process(Scale(Amplitude(COSINE)), Scale(Complement(COSINE)))
LIMITS = {
    "no blur": Process(
        Heat(Constant(0.0), dct(4, 5)) @ Scale(Amplitude(COSINE)), Scale(Complement(COSINE))
    ),
    "little blur": Process(
        Heat(Geometric(1e-7, 1e-6), dct(4, 5), floor=0.1) @ Scale(Amplitude(COSINE)),
        Scale(Complement(COSINE)),
    ),
    "white colour": Process(
        Scale(Amplitude(COSINE)),
        Fixed(Diagonal(torch.zeros(4, 5).double(), None, hartley(4, 5)))
        @ Scale(Complement(COSINE)),
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", COUPLINGS)
def test_limits_are_variance_preserving(name, limit):
    """Blur -> 0 turns Blurring Diffusion into DDPM, a white colour NI-DDPM: the same K and L."""
    step = COUPLINGS[name].coupling(LIMITS[limit], T, S)
    expected = COUPLINGS[name].coupling(WHITE, T, S)
    for found, operator in zip(step, expected, strict=True):
        torch.testing.assert_close(matrix(found), matrix(operator), rtol=0, atol=1e-9)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", [*TABLEAUX, "ancestral"])
def test_limits_sample_alike(name, limit):
    """And the same samples, by reverse steps and by the flow."""
    kernel = reverse(coupling.ancestral) if name == "ancestral" else flow(TABLEAUX[name])
    found, expected = (
        states(kernel, NetworkDenoiser(process, noise, Toy()), GRID)
        for process in (LIMITS[limit], WHITE)
    )
    same(found, expected)


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_one_is_ancestral(process):
    """eta = 1 in coefficients that share a basis."""
    one = coupling.ddim(1.0)(PROCESSES[process], T, S)
    for found, expected in zip(one, coupling.ancestral(PROCESSES[process], T, S), strict=True):
        torch.testing.assert_close(matrix(found), matrix(expected), rtol=0, atol=2e-6)


# diffusers: index k - 1 there is t = k / 1000 here.

BETAS = {"linear": linear_betas, "squaredcos_cap_v2": cosine_betas}


def scheduled(scheduler, steps: int, **kwargs) -> list[Tensor]:
    """diffusers' own loop. Its table of abar, a cumulative product, is taken in float64."""
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    scheduler.set_timesteps(steps)
    path, x = [], 3 * normal(len(SEEDS), *SHAPE)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    for k in scheduler.timesteps:
        eps = toy(x, (k + 1).double() / 1000)
        x = scheduler.step(eps, k, x, generator=generators, **kwargs).prev_sample
        path.append(x)
    return path


def ours(kernel: Kernel, betas: str, scheduler) -> list[Tensor]:
    log_power = BETAS[betas]()
    process = Process(Scale(Amplitude(log_power)), Scale(Complement(log_power)))
    grid = torch.cat([(scheduler.timesteps + 1).double() / 1000, torch.zeros(1).double()])
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]

    def drawn(x: Tensor) -> Tensor:
        """As diffusers draws it: in the dtype of x."""
        rows = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators]
        return torch.stack(rows)

    return states(kernel, NetworkDenoiser(process, noise, Toy()), grid, drawn)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("betas", BETAS)
def test_diffusers_ddpm(betas, variance, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=betas, variance_type=variance, clip_sample=False
    )
    expected = scheduled(scheduler, steps)
    kernel = {"fixed_small": coupling.ancestral, "fixed_large": coupling.ancestral_large}[variance]
    same(ours(reverse(kernel), betas, scheduler), expected, 1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("betas", BETAS)
def test_diffusers_ddim(betas, eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule=betas, clip_sample=False)
    expected = scheduled(scheduler, 20, eta=eta)
    same(ours(reverse(coupling.ddim(eta)), betas, scheduler), expected, 1e-5)


@pytest.mark.parametrize("rule", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 5, 10, 20, 30, 50, 1000])
def test_spacings_are_those_of_diffusers(rule, steps):
    """Its timesteps count from 0, our levels from 1.

    For one step its linspace asks the least noisy level alone, which samples nothing; ours the
    noisiest.
    """
    diffusers = pytest.importorskip("diffusers")
    assert spaced(1000, linspace)(1).tolist() == [1.0, 0.0]
    scheduler = diffusers.DDIMScheduler(timestep_spacing=rule, clip_sample=False)
    scheduler.set_timesteps(steps)
    expected = (scheduler.timesteps.double() + 1) / 1000
    found = spaced(1000, SPACINGS[rule])(steps)
    torch.testing.assert_close(found[:-1], expected.cpu(), rtol=0, atol=1e-12)
    assert found[-1] == 0


def test_the_uniform_skip_of_ddim():
    """The published grid: 981, 961, ..., 21, 1 of 1,000 at 50 steps."""
    found = spaced(1000, leading)(50)[:-1] * 1000
    torch.testing.assert_close(found, torch.arange(981, 0, -20).double())


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ni-ddpm"])
@pytest.mark.parametrize("length", [100, 1000])
def test_chains_are_asked_at_trained_levels(name, length):
    recipe = METHODS[name](SHAPE, length=length)
    assert recipe.levels == length and recipe.sampler.steps <= length
    for steps in (1, 3, 7, 30, 99, length):
        asked = recipe.grid(steps) * length
        assert len(asked) == steps + 1 and asked[-1] == 0 and bool((asked.diff() < 0).all())
        torch.testing.assert_close(asked, asked.round(), rtol=0, atol=1e-9)
        assert asked[0] == length
    with pytest.raises(ValueError, match=f"a chain of {length} levels is sampled in 1 to {length}"):
        recipe.grid(length + 1)


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2", "ni-smld", "ihdm"])
def test_annealing_visits_the_levels_it_was_trained_on(name):
    """Down to the last sigma that was trained, never to one between (.0279 for .0100)."""
    recipe = METHODS[name](SHAPE)
    with pytest.raises(ValueError, match=rf"trained on {recipe.sampler.steps} levels.*--steps"):
        recipe.grid(recipe.sampler.steps - 1)
    asked = recipe.grid(recipe.sampler.steps)[:-1]
    torch.testing.assert_close(
        asked, torch.arange(recipe.sampler.steps, 0, -1).double() / recipe.sampler.steps
    )
    if name == "ncsn":
        noise_ = [float(recipe.process.noise.at(t).gain) for t in asked]
        np.testing.assert_allclose(noise_, 2 * np.geomspace(1.0, 0.01, 10))


def test_the_sde_of_ni_smld_takes_any_number_of_steps():
    recipe = METHODS["ni-smld"](SHAPE, sde=True)
    assert len(recipe.grid(37)) == 38


@pytest.mark.parametrize("steps", [5, 18])
def test_diffusers_edm_euler(steps):
    """Karras's grid, preconditioning and Euler steps: sigma (x - x_0^) / sigma d sigma to 0."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    x, expected = 80.0 * normal(len(SEEDS), *SHAPE), []
    recipe = METHODS["edm"](SHAPE)
    start = x.clone()
    for label in scheduler.timesteps:
        inner = scheduler.scale_model_input(x, label)
        out = Toy()(inner, label.double().expand(len(x)))
        x = scheduler.step(out, label, x, s_churn=0.0).prev_sample
        expected.append(x)
    found = []
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Toy())
    sample(flow(EULER), denoiser, start, recipe.grid(steps), callback=lambda _, y: found.append(y))
    # Its sigmas are float32.
    for ours_, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            ours_, theirs.double(), rtol=1e-5, atol=1e-5 * float(theirs.abs().max())
        )
