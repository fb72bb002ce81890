"""Laws of solvers: multistep integrators, reverse SDEs, exact variances, adaptive steps.

Orders are measured on a mixture: deterministic kernels against its exact flow (quantiles),
stochastic ones by expectations pushed backwards through quadrature, without any sampling.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.integrate
import torch
from scipy.interpolate import CubicSpline

from cases import (
    BASES,
    PROCESSES,
    SHAPE,
    Affine,
    Bimodal,
    N,
    Toy,
    affine,
    basis_of,
    centred,
    diagonal_cov,
    exact,
    marginal,
    matrix,
    modal,
    normal,
    push,
    time,
    variance,
)
from sfumato.algebra import Diagonal, dct, identity, zero
from sfumato.corruption import coupling
from sfumato.corruption.families import Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement, Linear, linear_betas
from sfumato.corruption.statistics import measure
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.predictions import noise, x0
from sfumato.sampling import samplers
from sfumato.sampling.flow import EULER, HEUN, RK4, churn, dopri5, flow, solved
from sfumato.sampling.kernels import (
    Call,
    Kernel,
    analytic_variance,
    moves,
    reverse,
    reverse_diffusion,
)
from sfumato.sampling.multistep import _moments, multistep
from sfumato.sampling.sample import sample, uniform_grid
from sfumato.sampling.samplers import KERNELS
from sfumato.sampling.sde import growth, markov, sde

each_process = pytest.mark.parametrize("process", PROCESSES)


# Multistep: the published formulas, and diffusers' schedulers step by step.


def chained() -> tuple[Process, Denoiser]:
    power = linear_betas()
    process = Process(Scale(Amplitude(power)), Scale(Complement(power)))
    return process, NetworkDenoiser(process, noise, Toy())


class Scheduled(NamedTuple):
    """A scheduler of diffusers and the kernel that it should be."""

    name: str
    options: dict
    kernel: Kernel


SCHEDULERS = {
    "dpm-solver++ 2m": Scheduled("DPMSolverMultistepScheduler", {"solver_order": 2}, multistep(2)),
    "unipc 1": Scheduled("UniPCMultistepScheduler", {"solver_order": 1}, multistep(1, True)),
    "unipc 2": Scheduled("UniPCMultistepScheduler", {"solver_order": 2}, multistep(2, True)),
    "unipc 3": Scheduled("UniPCMultistepScheduler", {"solver_order": 3}, multistep(3, True)),
    # Our order 3 corrects its first point alone.
    "unip 3": Scheduled(
        "UniPCMultistepScheduler",
        {"solver_order": 3, "disable_corrector": [*range(1, 99)]},
        multistep(3),
    ),
    "ddim": Scheduled("DDIMScheduler", {}, multistep(1)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_diffusers_step_by_step(name):
    """The same x after every step, to the rounding of their float32 schedules.

    But for the last two, where theirs fall back to lower orders; ours end with x_0^.
    """
    diffusers = pytest.importorskip("diffusers")
    kind, options, kernel = SCHEDULERS[name]
    if kind != "DDIMScheduler":
        options = {**options, "final_sigmas_type": "zero"}
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options
    )
    if kind == "DDIMScheduler":
        scheduler.config.clip_sample = False
    scheduler.set_timesteps(12)
    steps = [int(k) for k in scheduler.timesteps]
    x = first = normal(2, 1, 3, 4).float()
    theirs, ours = [], []
    for k in steps:
        told = torch.full((2,), (k + 1) / 1000)
        x = scheduler.step(Toy()(x, told), k, x).prev_sample
        theirs.append(x)
    _, denoiser = chained()
    grid = torch.tensor([(k + 1) / 1000 for k in steps] + [0.0], dtype=torch.float64)
    sample(kernel, denoiser, first, grid, callback=lambda _, y: ours.append(y))
    for found, expected in zip(ours[:-2], theirs[:-2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@each_process
def test_the_first_order_is_ddim(process):
    process = PROCESSES[process]
    denoiser, x, grid = (
        NetworkDenoiser(process, noise, Toy()),
        normal(2, *SHAPE),
        uniform_grid(5, 0.8, 0.2),
    )
    found, expected = (
        sample(kernel, denoiser, x, grid) for kernel in (multistep(1), reverse(coupling.ddim(0.0)))
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_process
def test_the_second_order_is_the_published_one(process):
    """ddim's step with x_0^ + (x_0^ - x_0^prev) / 2r for each coefficient."""
    process = PROCESSES[process]
    basis, grid = basis_of(process), torch.tensor([0.8, 0.6, 0.45, 0.35], dtype=torch.float64)
    denoiser, x = NetworkDenoiser(process, x0, Toy()), normal(2, *SHAPE)
    found = sample(multistep(2), denoiser, x, grid)
    half = [process.log_snr(t) / 2 for t in grid]
    before = None
    for i in range(3):
        t, s = grid[i], grid[i + 1]
        u, c = basis.analyze(x), [process.signal.at(a).gain for a in (t, s)]
        ratio = (process.noise.at(s).log_gain - process.noise.at(t).log_gain).exp()
        guess = basis.analyze(Toy()(x, t.expand(2)))
        shown = guess
        if before is not None:
            h, last = half[i + 1] - half[i], half[i] - half[i - 1]
            r = last / torch.where(h.abs() > 1e-9, h, torch.inf)
            # Nothing was known of a coefficient whose signal was 1e-4 of its noise.
            alone = (r < 0.1) | (2 * half[i - 1] < -18)
            shown = torch.where(alone, guess, guess + (guess - before) / (2 * r))
        x, before = basis.synthesize(ratio * u + (c[1] - ratio * c[0]) * shown), guess
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("span", [-3.0, 1e-8, 0.4, 1.999, 2.001, 30.0])
def test_moments_are_integrals(span):
    found = [float(m) for m in _moments(torch.tensor(span, dtype=torch.float64), 5)]
    density = lambda z: math.exp(span * (z - 1))  # noqa: E731
    whole = scipy.integrate.quad(density, 0, 1, epsabs=1e-13)[0]
    for i, moment in enumerate(found):
        expected = scipy.integrate.quad(lambda z, i=i: density(z) * z**i, 0, 1, epsabs=1e-13)[0]
        assert moment == pytest.approx(expected / whole, rel=1e-9)


# Orders.

DETERMINISTIC = {
    "ddim": (1, reverse(coupling.ddim(0.0))),
    "pf-momentum": (1, reverse(coupling.pf_momentum)),
    "multistep 2": (2, multistep(2)),
    "multistep 3": (3, multistep(3)),
    "unipc 1": (2, multistep(1, True)),
    "unipc 2": (3, multistep(2, True)),
    "euler": (1, flow(EULER)),
    "heun": (2, flow(HEUN)),
    "rk4": (4, flow(RK4)),
}
"""Declared order and kernel."""


@each_process
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_on_the_exact_flow(name, process):
    """The error of x against the quantiles of a mixture falls as h^order."""
    data, (order, kernel), (t, s) = Bimodal(PROCESSES[process]), DETERMINISTIC[name], (0.6, 0.45)
    denoiser = NetworkDenoiser(data.process, x0, data.oracle())
    x = data.process.corrupt(data.oracle().means, time(t), normal(2, *SHAPE, seed=5))
    truth, count = data.flow(x, t, s), {1: 16, 2: 12, 3: 10, 4: 4}[order]
    coarse, fine = (
        float((sample(kernel, denoiser, x, uniform_grid(n, t, s)) - truth).norm())
        for n in (count, 2 * count)
    )
    assert abs(math.log2(coarse / fine) - order) < 0.3


STOCHASTIC = {
    "ancestral": (1, reverse(coupling.ancestral), 6),
    "ancestral-large": (1, reverse(coupling.ancestral_large), 6),
    "ddim-half": (1, reverse(coupling.ddim(0.5)), 6),
    "bridge": (1, reverse(coupling.bridge), 6),
    "momentum": (1, reverse(coupling.momentum), 6),
    "reverse diffusion": (1, moves(reverse_diffusion), 6),
    "euler-maruyama": (1, sde(markov), 6),
    "soft-sde": (1, sde(growth), 6),
    "stochastic-heun": (2, sde(markov, HEUN), 8),
    "churn": (2, churn(HEUN, 0.3), 8),
}
"""Declared weak order, kernel, and the smaller number of steps looked at."""

Z = np.linspace(-6, 6, 97)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def looked_at(v: np.ndarray) -> np.ndarray:
    """Test functions of a standardised coefficient."""
    return np.stack([np.sin(1.3 * v), v**2, np.tanh(v) ** 3, np.cos(v)], -1)


def weak_error(kernel: Kernel, data: Bimodal, t: float, s: float, count: int) -> float:
    """Largest |E f(u_s) - exact| over test functions and coefficients, without sampling.

    Coefficients are independent, and a step's expectation is a quadrature over its noise: backwards
    from f, each expectation is a spline through its values on a grid of each coefficient.
    """
    process, basis, places = data.process, data.basis, [0, data.INDEX, 13]
    grid = uniform_grid(count, t, s)
    gains = [process.signal.at(time(float(a))).gain.expand(SHAPE[1:]).numpy() for a in grid]
    spread = [marginal(process, data.cov, float(a)).sqrt()[0].numpy() for a in grid]
    modes = data.modes[:, 0].numpy()
    # Wide enough for both modes.
    scale = [d + np.abs(c * modes).max(0) for c, d in zip(gains, spread, strict=True)]
    x = np.repeat(Z, len(NODES))[:, None, None] * np.ones(SHAPE[1:])
    eps = basis.synthesize(
        torch.from_numpy(np.tile(NODES, len(Z)))[:, None, None, None].expand(-1, *SHAPE).clone()
    )
    denoiser = NetworkDenoiser(process, x0, data.oracle())
    start = basis.synthesize(torch.from_numpy(x)[:, None].clone())
    loop = kernel.prepare(denoiser, start, grid)
    values = [looked_at(Z) for _ in places]
    for i in reversed(range(count)):
        begin = basis.synthesize(torch.from_numpy(x * scale[i])[:, None])
        after, _ = loop.step(loop.state, begin, i, Call(lambda _: eps))
        reached = basis.analyze(after)[:, 0].numpy() / scale[i + 1]
        new = []
        for value, (row, column) in zip(values, (divmod(p, 5) for p in places), strict=True):
            at = np.clip(reached[:, row, column], Z[0], Z[-1])
            each = CubicSpline(Z, value)(at).reshape(len(Z), len(NODES), -1)
            new.append(np.einsum("znf,n->zf", each, WEIGHTS))
        values = new
    fine, weights = np.polynomial.hermite_e.hermegauss(60)
    weights, worst = weights / weights.sum(), 0.0
    for value, (row, column) in zip(values, (divmod(p, 5) for p in places), strict=True):
        totals = []
        for k, f in ((0, CubicSpline(Z, value)), (-1, looked_at)):
            total = 0.0
            for share, mode in zip((data.WEIGHT, 1 - data.WEIGHT), modes, strict=True):
                u = gains[k][row, column] * mode[row, column] + spread[k][row, column] * fine
                total = total + share * weights @ f(u / scale[k][row, column])
            totals.append(total)
        worst = max(worst, float(np.abs(totals[0] - totals[1]).max()))
    return worst


@each_process
@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order(name, process):
    """Expectations under a kernel's law tend to those of q_s as h^order, on a mixture."""
    order, kernel, count = STOCHASTIC[name]
    data = Bimodal(PROCESSES[process])
    coarse, fine = (weak_error(kernel, data, 0.6, 0.45, n) for n in (count, 2 * count))
    assert coarse > 1e-7, "there is no error to see an order in"
    assert abs(math.log2(coarse / fine) - order) < 0.3


# Consistency.

CONSISTENCY = {
    "exact": (
        "ancestral ddim ddim:eta=0.5 bridge annealed naive multistep multistep:order=3 unipc"
    ).split(),
    "order 1": (
        "ancestral-large momentum pf-momentum reverse-diffusion euler euler-maruyama soft-sde"
    ).split(),
    "order 2": "heun stochastic-heun churn:amount=0.3".split(),
    "order 4": ["rk4"],
    "none": "cold ihdm langevin:delta=0.5 euler-langevin".split(),
}
"""What the page says of kernels with affine steps: all but `reverse-diffusion-pc`, `dopri5`."""


def departure(kernel: Kernel, process: Process, count: int) -> float:
    """Of x_s from N(C_s m, V_s), from N(C_t m, V_t) in `count` steps, x_0^ = m: exact moments.

    The largest over means and covariances, in units of the deviations and variances at s.
    """
    mean, grid = normal(*SHAPE, seed=1), uniform_grid(count, 0.6, 0.45)
    denoiser = exact(process, mean, zero())
    (c, v), (d, w) = (
        (matrix(process.signal.at(t)) @ mean.flatten(), matrix(process.cov(t)))
        for t in grid[[0, -1]]
    )
    if kernel.name.startswith(("multistep", "unipc")):  # whose steps know the ones before
        probe = torch.cat([torch.eye(N), torch.zeros(1, N)]).double().reshape(-1, *SHAPE)
        y = sample(kernel, denoiser, probe, grid).flatten(1)
        steps = [Affine((y[:-1] - y[-1]).T, y[-1], torch.zeros(N, 0).double())]
    else:
        steps = affine(kernel, denoiser, grid, SHAPE)
    found, spread = push(steps, c, v)[-1]
    scale = w.diagonal().min().sqrt()
    return max(float((found - d).abs().max() / scale), float((spread - w).abs().max() / scale**2))


@pytest.mark.parametrize(
    ("name", "declared"), [(name, how) for how, names in CONSISTENCY.items() for name in names]
)
def test_consistency(name, declared):
    """With the true x_0 the marginals are kept: at once, as h^order, or however small h not."""
    kernel, seen = samplers.kernel(name), []
    for process in (PROCESSES[name] for name in ("vp", "ve", "soft", "coloured")):
        try:
            once = departure(kernel, process, 1)
        except ValueError:
            assert name == "annealed"  # its eta is too small for so long a step
            continue
        coarse, fine = (departure(kernel, process, n) for n in (16, 32))
        if declared == "exact":
            assert max(once, coarse) < 1e-8
            seen.append(True)
        elif declared == "none":
            seen.append(fine / coarse > 0.8 and fine > 1e-2)
        elif once > 1e-8:  # a blur in noise that stays leaves some of them nothing to do
            assert abs(math.log2(coarse / fine) - int(declared[-1])) < 0.3
            seen.append(True)
    assert sum(seen) >= 2


def test_the_kernels_page_says_so():
    page = (Path(__file__).parent.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    table = page.partition("## All kernels")[2].partition("##")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in table.splitlines()]
    told = {row[1]: (row[2], row[5]) for row in rows if len(row) == 8}
    words = {"order 1": "first order", "order 2": "second order", "order 4": "fourth order"}
    for how, names in CONSISTENCY.items():
        for name in names:
            row = told.get(name) or told[name.partition(":")[0]]
            assert row[1] == words.get(how, how), name
    for name, (order, *_) in {**DETERMINISTIC, **STOCHASTIC}.items():
        if name in told:
            assert told[name][0] == str(order), name
    assert {name for name, row in told.items() if row[0] == "none"} == {
        *"annealed naive cold ihdm langevin euler-langevin reverse-diffusion-pc".split()
    }


# The SDEs.


@each_process
def test_without_noise_the_sde_is_the_flow(process):
    process = PROCESSES[process]
    denoiser, x, grid = (
        NetworkDenoiser(process, noise, Toy()),
        normal(2, *SHAPE),
        uniform_grid(3, 0.8, 0.4),
    )
    for tableau in (EULER, HEUN):
        found = sample(sde(markov, tableau, 0.0), denoiser, x, grid)
        torch.testing.assert_close(found, sample(flow(tableau), denoiser, x, grid))


def test_the_markov_diffusion_of_vp_is_beta():
    """g^2 = beta_t, with drift -beta x / 2 - beta score."""
    from sfumato.corruption.schedules import LinearBeta

    power = LinearBeta(0.1, 20.0)
    process = Process(Scale(Amplitude(power)), Scale(Complement(power)))
    for t in (0.1, 0.5, 0.9):
        found = float(markov(process, time(t)).gain)
        assert found == pytest.approx(0.1 + 19.9 * t, rel=1e-9)
    x, t, s = normal(2, *SHAPE), 0.5, 0.49
    denoiser = NetworkDenoiser(process, noise, Toy())
    found = sample(
        sde(markov), denoiser, x, torch.tensor([t, s], dtype=torch.float64), lambda y: y * 0 + 1
    )
    beta, deviation = 0.1 + 19.9 * t, float(process.noise.at(time(t)).gain)
    score = -Toy()(x, torch.full((2,), t).double()) / deviation
    expected = x + (t - s) * (beta * x / 2 + beta * score) + math.sqrt(beta * (t - s))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_negative_diffusion_is_refused():
    falling = Process(Mapping(lambda t: identity()), Scale(Linear(1.0, 0.5)))
    denoiser = NetworkDenoiser(falling, x0, Toy())
    with pytest.raises(ValueError, match=r"nu\^2 >= 0; growth has a negative .* Use the flow"):
        sample(sde(growth), denoiser, normal(2, *SHAPE), uniform_grid(2, 0.8, 0.4))


# Exact variance.


@each_process
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["ancestral", "ddim", "bridge"])
def test_matched_noise_keeps_the_variance_of_gaussian_data(name, count, process):
    """P_s = M_s to rounding, in one step as in three."""
    process = PROCESSES[process]
    basis = basis_of(process)
    cov = diagonal_cov(basis)
    which = coupling.ddim(0.0) if name == "ddim" else getattr(coupling, name)
    kernel = reverse(coupling.analytic_variance(which, cov))
    steps = modal(kernel, centred(process, cov), uniform_grid(count, 0.8, 0.3), basis)
    found = variance(steps, marginal(process, cov, 0.8))
    torch.testing.assert_close(found, marginal(process, cov, 0.3), rtol=1e-9, atol=1e-12)


def test_analytic_variance_reads_the_statistics():
    """By its name, the spectrum measured of the data decides, exactly."""
    process = PROCESSES["blurring"]
    stats = measure([normal(50, *SHAPE, seed=3)], SHAPE)
    cov = Diagonal(stats.spectrum.log(), None, dct(*SHAPE[1:]))
    denoiser = centred(process, cov)
    known = NetworkDenoiser(process, denoiser.parametrization, denoiser.backbone, stats=stats)
    found = variance(
        modal(KERNELS["analytic-variance"](), known, uniform_grid(2, 0.8, 0.3), basis_of(process)),
        marginal(process, cov, 0.8),
    )
    torch.testing.assert_close(found, marginal(process, cov, 0.3), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="needs statistics of the data"):
        sample(analytic_variance(), denoiser, normal(2, *SHAPE), uniform_grid(2, 0.8, 0.3))


@pytest.mark.parametrize("name", ["pixel", "hartley-2d", "haar-2d", "dense-2d"])
def test_facts_know_variances_in_every_basis(name):
    """The diagonal of V^T D^T S D V, as matrices."""
    basis = BASES[name]
    stats = measure([normal(30, 1, *basis.shape, seed=3)], (1, *basis.shape))
    n = math.prod(basis.shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *basis.shape)
    d, v = (b.analyze(unit).reshape(n, n).T for b in (dct(*basis.shape), basis))
    expected = (v @ d.T @ torch.diag(stats.spectrum.flatten()) @ d @ v.T).diagonal()
    torch.testing.assert_close(stats.cov(basis).gain.flatten(), expected, rtol=1e-9, atol=1e-12)


# Adaptive steps.


@each_process
def test_adaptive_steps_follow_the_exact_flow(process):
    data = Bimodal(PROCESSES[process])
    denoiser = NetworkDenoiser(data.process, x0, data.oracle())
    x = data.process.corrupt(data.oracle().means, time(0.8), normal(2, *SHAPE, seed=5))
    found = sample(dopri5(1e-7, 1e-7), denoiser, x, uniform_grid(2, 0.8, 0.4))
    torch.testing.assert_close(found, data.flow(x, 0.8, 0.4), rtol=0, atol=2e-6)


def test_adaptive_steps_stay_within_time():
    """The last step ends at the grid's end: beyond t = 1 there is no process."""
    process = PROCESSES["vp"]
    denoiser = NetworkDenoiser(process, noise, Toy())
    assert bool(
        sample(dopri5(), denoiser, normal(2, *SHAPE), uniform_grid(1, 1.0, 1e-4)).isfinite().all()
    )


@pytest.mark.parametrize("ends", [(0.9, 0.4), (0.4, 0.9)])
def test_the_first_look_for_a_step_stays_between_the_ends(ends):
    """Of x' = -1e-3 x, where it would look ten times as far as time goes."""
    asked: list[float] = []

    def rates(t: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        asked.append(float(t))
        return (-1e-3 * state[0],)

    times = torch.tensor(ends, dtype=torch.float64)
    (found,) = solved(rates, (torch.ones(1, dtype=torch.float64),), times, 1e-6, 1e-6)
    assert min(ends) <= min(asked) and max(asked) <= max(ends)
    assert float(found) == pytest.approx(math.exp(-1e-3 * (ends[1] - ends[0])), rel=1e-9)


# Refusals.


def test_what_a_solver_cannot_do_is_refused():
    with pytest.raises(ValueError, match="1, 2 or 3 estimates; got 4"):
        multistep(4)
    with pytest.raises(ValueError, match="EULER or HEUN"):
        sde(markov, RK4)
    with pytest.raises(ValueError, match="tolerances must be positive"):
        samplers.kernel("dopri5:rtol=0")
    process = Process(
        Mapping(lambda t: Diagonal(-t * normal(4, 5).abs(), None, dct(4, 5))),
        Mapping(lambda t: Diagonal(t * normal(4, 6)[:, :5], None, BASES["haar-2d"])),
    )
    with pytest.raises(ValueError, match="diagonal in one basis"):
        sample(
            multistep(2),
            NetworkDenoiser(process, x0, Toy()),
            normal(2, *SHAPE),
            uniform_grid(2, 0.8, 0.3),
        )
