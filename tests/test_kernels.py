"""Laws of kernels and of the loop: exact moments, orders of convergence, seeds, refusals.

Kernels are affine in (x, noise) where the denoiser is the exact one of Gaussian data, so moments
are pushed, never sampled. The references are dense recursions written here from the matrices C_t,
S_t of a process (docs/mathematics.md, "Predictions for Gaussian data").
"""

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cases import (
    COUPLINGS,
    PROCESSES,
    RANKS,
    SHAPE,
    STRUCTURES,
    TABLEAUX,
    Bimodal,
    N,
    Toy,
    affine,
    amount,
    basis_of,
    centred,
    densified,
    diagonal_cov,
    driven,
    exact,
    marginal,
    matrix,
    modal,
    normal,
    push,
    spd,
    time,
    variance,
)
from sfumato.algebra import (
    Dense,
    Diagonal,
    MatrixFree,
    Operator,
    dct,
    hartley,
    identity,
    pixel,
    scaled,
    zero,
)
from sfumato.algebra.combine import Spectra
from sfumato.corruption.coupling import ancestral, ancestral_large, ddim, momentum, naive
from sfumato.corruption.families import Family, Fixed, Heat, Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    Geometric,
    Linear,
    linear_betas,
)
from sfumato.estimation.denoise import (
    Ask,
    Conditions,
    Denoiser,
    Estimator,
    NetworkDenoiser,
    flow_operators,
    flow_velocity,
)
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import noise, residual, x0
from sfumato.sampling import operator_table, samplers
from sfumato.sampling.flow import EULER, HEUN, RK4, churn, flow
from sfumato.sampling.kernels import Kernel, chain, corrector, langevin, reverse
from sfumato.sampling.sample import Seeds, diverged, sample, uniform_grid

GRID = torch.tensor([1.0, 0.7, 0.4, 0.12, 0.0], dtype=torch.float64)
FREE_OF_INVERSES = {"naive": naive, "ddim": ddim(0.0), "momentum": momentum}


def full(value: float) -> Tensor:
    return torch.full(SHAPE, value, dtype=torch.float64)


# References, from matrices.


class Matrices(NamedTuple):
    clean_t: Tensor
    clean_s: Tensor
    root_t: Tensor
    cov_t: Tensor
    cov_s: Tensor
    forward: Tensor  # C_t C_s^-1


def matrices(process: Process, t: Tensor, s: Tensor, shape: tuple[int, ...] = SHAPE) -> Matrices:
    early, late = process.signal.at(s), process.signal.at(t)
    root_t, root_s = (matrix(process.noise.at(at), shape) for at in (t, s))
    if isinstance(late, Diagonal):  # gains of e^-53 have a ratio, but no inverse in floats
        ratio = Diagonal(late.log_gain - early.log_gain, None, late.basis)
        forward = matrix(ratio, shape)
    else:
        forward = torch.linalg.solve(matrix(early), matrix(late), left=False)
    cov_t, cov_s = root_t @ root_t.T, root_s @ root_s.T
    x0 = (matrix(late, shape), matrix(early, shape))
    return Matrices(*x0, root_t, cov_t, cov_s, forward)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def dense_ancestral(m: Matrices) -> tuple[Tensor, Tensor]:
    carry = m.cov_s @ m.forward.T @ torch.linalg.inv(m.cov_t)
    return carry, m.cov_s - carry @ m.cov_t @ carry.T


def dense_large(m: Matrices) -> tuple[Tensor, Tensor]:
    return dense_ancestral(m)[0], m.cov_t - m.forward @ m.cov_s @ m.forward.T


def dense_ddim(m: Matrices) -> tuple[Tensor, Tensor]:
    return root(m.cov_s) @ torch.linalg.inv(m.root_t), 0 * m.cov_s


def dense_half(m: Matrices) -> tuple[Tensor, Tensor]:
    fresh = dense_ancestral(m)[1] / 4
    return root(m.cov_s - fresh) @ torch.linalg.inv(m.root_t), fresh


def dense_momentum(m: Matrices) -> tuple[Tensor, Tensor]:
    return m.cov_s @ torch.linalg.inv(m.cov_t), m.cov_t - m.cov_s


def dense_bridge(m: Matrices) -> tuple[Tensor, Tensor]:
    carry = m.cov_s @ torch.linalg.inv(m.cov_t)
    return carry, m.cov_s - carry @ m.cov_s


def dense_pf(m: Matrices) -> tuple[Tensor, Tensor]:
    carry = m.cov_s @ torch.linalg.inv(m.cov_t)
    return (torch.eye(len(carry)) + carry) / 2, 0 * carry


def dense_annealed(m: Matrices) -> tuple[Tensor, Tensor]:
    return 0.1 * torch.eye(len(m.cov_s)).double(), m.cov_s - 0.01 * m.cov_t


def dense_naive(m: Matrices) -> tuple[Tensor, Tensor]:
    return 0 * m.cov_s, m.cov_s


def dense_cold(m: Matrices) -> tuple[Tensor, Tensor]:
    return torch.eye(len(m.cov_s)).double(), 0 * m.cov_s


def dense_redrawn(m: Matrices) -> tuple[Tensor, Tensor]:
    return 0 * m.cov_s, 0.09 * torch.eye(len(m.cov_s)).double()


DENSE = {
    "ancestral": dense_ancestral,
    "ancestral-large": dense_large,
    "ddim": dense_ddim,
    "ddim-half": dense_half,
    "ddim-one": dense_ancestral,  # C_t and S_t commute in PROCESSES, if only as matrices
    "bridge": dense_bridge,
    "momentum": dense_momentum,
    "pf-momentum": dense_pf,
    "naive": dense_naive,
    "annealed": dense_annealed,
    "cold": dense_cold,
    "ihdm": dense_redrawn,
}
"""(K, L L^T) of every coupling."""


def recursion(process, dense, grid, mean, cov, data_mean, data_cov, shape=SHAPE):
    """B = C_s G + K (I - C_t G), P_s = B P B^T + L L^T, mean_s - C_s m = B (mean_t - C_t m).

    A grid that ends at 0 ends with x_0^: B = G.
    """
    moments, m, eye = [], data_mean.flatten(), torch.eye(math.prod(shape), dtype=torch.float64)
    for t, s in pairwise(grid):
        c = matrices(process, t, t if s == 0 else s, shape)
        carry, fresh = (0 * eye, 0 * eye) if s == 0 else dense(c)
        clean_s = eye if s == 0 else c.clean_s
        total = c.clean_t @ data_cov @ c.clean_t.T + c.cov_t
        gain = data_cov @ c.clean_t.T @ torch.linalg.inv(total)
        step = clean_s @ gain + carry @ (eye - c.clean_t @ gain)
        mean = clean_s @ m + step @ (mean - c.clean_t @ m)
        cov = step @ cov @ step.T + fresh
        moments.append((mean, cov))
    return moments


def agree(found, expected, tolerance: float = 1e-8) -> None:
    for pair in zip(found, expected, strict=True):
        for a, b in zip(*pair, strict=True):
            assert torch.isfinite(a).all()
            torch.testing.assert_close(
                a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max()))
            )


# Exact moments.


@pytest.mark.parametrize(("process", "structure"), STRUCTURES)
@pytest.mark.parametrize("name", COUPLINGS)
def test_moments_are_those_of_the_dense_recursion(name, process, structure):
    """For data that no basis diagonalises, with a process in its basis and as matrices."""
    process, grid, cov = PROCESSES[process], GRID, Dense(spd(N), SHAPE)
    if structure == "none":
        process, grid = densified(process), GRID[2:]
    mean = normal(*SHAPE, seed=1)
    start = normal(N, seed=2), spd(N, seed=3)
    steps = affine(reverse(COUPLINGS[name].coupling), exact(process, mean, cov), grid, SHAPE)
    expected = recursion(process, DENSE[name], grid, *start, mean, matrix(cov))
    # At eta = 1 the carry is the root of a difference that may cancel: half the digits are lost.
    agree(push(steps, *start), expected, 3e-6 if name == "ddim-one" else 1e-8)


@pytest.mark.parametrize("name", ["ancestral", "momentum", "ddim", "naive"])
@pytest.mark.parametrize("rank", RANKS)
def test_signals_of_any_rank(rank, name):
    """The recursion on vectors, sequences and volumes."""
    process, shape = RANKS[rank]
    cov = diagonal_cov(basis_of(process) if rank != "vector" else dct(6))
    mean, n = normal(*shape, seed=1), math.prod(shape)
    start = normal(n, seed=2), spd(n, seed=3)
    denoiser = exact(process, mean, cov)
    steps = affine(reverse(COUPLINGS[name].coupling), denoiser, GRID, shape)
    dense = recursion(process, DENSE[name], GRID, *start, mean, matrix(cov, shape), shape)
    agree(push(steps, *start), dense)
    for kernel in (flow(HEUN), langevin(0.1)):
        x = sample(kernel, denoiser, normal(2, *shape), torch.tensor([0.6, 0.5, 0.4, 0.0]))
        assert x.shape == (2, *shape)
        assert torch.isfinite(x).all()


SHIFTED = Process(
    Mapping(lambda t: MatrixFree(lambda x: (1 - t / 2) * x + t / 3 * x.roll(1, -1))),
    Scale(Linear(0.05, 0.5)),
)
"""C_t that is not even symmetric."""

TINT = torch.linspace(0.1, 0.5, N, dtype=torch.float64).reshape(4, 5)
CLASHING = Process(
    Heat(Geometric(0.3, 3.0, zero_at_start=True), dct(4, 5)),
    Mapping(lambda t: Diagonal((0.05 + t * TINT).log(), None, hartley(4, 5))),
)
"""Blur with reflected edges under noise of a periodic, changing colour: no common basis."""


@pytest.mark.parametrize("name", FREE_OF_INVERSES)
@pytest.mark.parametrize("process", [SHIFTED, CLASHING], ids=["matrix-free", "clashing"])
def test_couplings_without_inverses_need_no_common_basis(process, name):
    """Where C_t is a callable, and where C_t and S_t do not commute."""
    mean, cov = normal(*SHAPE, seed=1), Dense(spd(N), SHAPE)
    start = normal(N, seed=2), spd(N, seed=3)
    oracle = gaussian(densified(process), mean, cov)
    steps = affine(
        reverse(FREE_OF_INVERSES[name]),
        NetworkDenoiser(process, residual, wrap(oracle)),
        GRID,
        SHAPE,
    )
    agree(push(steps, *start), recursion(process, DENSE[name], GRID, *start, mean, matrix(cov)))


def wrap(oracle: nn.Module) -> nn.Module:
    """The residual that an oracle would predict."""

    class Residual(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return oracle(x, label) - x

    return Residual()


@pytest.mark.parametrize("name", [name for name in DENSE if name != "ddim-one"])
def test_matrices_need_not_be_symmetric(name):
    """With C_t^T differing from C_t: transposes stand where the formulas have them."""
    process, mean, cov = densified(SHIFTED), normal(*SHAPE, seed=1), Dense(spd(N), SHAPE)
    start = normal(N, seed=2), spd(N, seed=3)
    steps = affine(reverse(COUPLINGS[name].coupling), exact(process, mean, cov), GRID[1:], SHAPE)
    expected = recursion(process, DENSE[name], GRID[1:], *start, mean, matrix(cov))
    agree(push(steps, *start), expected)


@pytest.mark.parametrize("process", [SHIFTED, CLASHING], ids=["matrix-free", "clashing"])
def test_flow_needs_no_common_basis(process):
    """An Euler step is x + h (C' x_0^ + S' S^-1 (x - C x_0^)), C' and S' by differences."""
    mean, cov = normal(*SHAPE, seed=1), Dense(spd(N), SHAPE)
    denoiser = NetworkDenoiser(process, x0, gaussian(densified(process), mean, cov))
    t, s, x = time(0.6), time(0.5), normal(3, *SHAPE)
    clean_t, root_t = matrix(process.signal.at(t)), matrix(process.noise.at(t))
    slope = [
        (matrix(family.at(t + 1e-5)) - matrix(family.at(t - 1e-5))) / 2e-5
        for family in (process.signal, process.noise)
    ]
    clean, flat = denoiser(x, t).mean.flatten(1), x.flatten(1)
    eps = (flat - clean @ clean_t.T) @ torch.linalg.inv(root_t).T
    expected = flat + (s - t) * (clean @ slope[0].T + eps @ slope[1].T)
    found = sample(flow(EULER), denoiser, x, torch.stack([t, s]))
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-8)


def test_couplings_with_inverses_refuse_matrix_free_signals():
    denoiser = NetworkDenoiser(SHIFTED, residual, Toy())
    with pytest.raises(NotImplementedError, match="MatrixFree has no inverse, which ancestral"):
        sample(reverse(ancestral), denoiser, normal(2, *SHAPE), uniform_grid(5))


# Closed forms.


@pytest.mark.parametrize("count", [4, 16])
def test_ddim_leaves_cos_to_the_2n(count):
    """N equal steps of phi = atan(c sqrt(s) / sqrt(v)) leave the variance cos^2N(D phi) M."""
    process, cov = PROCESSES["vp"], Diagonal(time(0.0))
    grid = uniform_grid(count, 1.0, 0.1)  # the angle of this schedule is linear in t
    turn = [math.atan(math.exp(process.log_snr(t) / 2)) for t in grid]
    steps = modal(reverse(ddim(0.0)), centred(process, cov), grid, dct(4, 5))
    ratio = variance(steps, torch.ones(SHAPE)) / marginal(process, cov, 0.1)
    expected = math.cos((turn[-1] - turn[0]) / count) ** (2 * count)
    torch.testing.assert_close(ratio, full(expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("coupling", "expected"), [(ancestral_large, 0.999900), (ancestral, 0.991067)]
)
def test_ddpm_of_a_thousand_steps(coupling, expected):
    """Linear betas, unit-variance data from N(0, I): .999900 (large), .991067 (small)."""
    process = Process(Scale(Amplitude(linear_betas())), Scale(Complement(linear_betas())))
    grid = torch.arange(1000, -1, -1).double() / 1000
    denoiser = centred(process, identity())
    steps = modal(reverse(coupling), denoiser, grid[:-1], dct(4, 5))
    last = denoiser(full(1.0)[None], grid[-2]).mean[0]
    ratio = variance(steps, full(1.0)) * last**2
    torch.testing.assert_close(ratio, full(expected), rtol=0, atol=6e-7)


@pytest.mark.parametrize("process", ["blurring", "soft", "coloured"])
def test_naive_tends_to_half_the_variance(process):
    """P / M -> 1 / (1 + r), r = c^2 s / M, extrapolated from N and 2N steps."""
    process = PROCESSES[process]
    basis = basis_of(process)
    cov, end = diagonal_cov(basis), 0.1
    total = marginal(process, cov, end)
    signal = process.signal.at(time(end)).gain ** 2 * amount(cov)
    ratios = [
        variance(
            modal(reverse(naive), centred(process, cov), uniform_grid(n, 0.6, end), basis),
            marginal(process, cov, 0.6),
        )
        / total
        for n in (100, 200)
    ]
    limit = 2 * ratios[1] - ratios[0]
    torch.testing.assert_close(limit, 1 / (1 + signal / total), rtol=6e-3, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    "name", [name for name, case in COUPLINGS.items() if case.consistency == "exact"]
)
def test_consistent_couplings_are_exact_on_a_single_image(name, process):
    """Dirac data in one step: N(C_t m, V_t) becomes N(C_s m, V_s)."""
    process, mean = PROCESSES[process], normal(*SHAPE, seed=1)
    t, s = time(0.5), time(0.3)
    c = matrices(process, t, s)
    kernel = reverse(COUPLINGS[name].coupling)
    (step,) = affine(kernel, exact(process, mean, zero()), torch.stack([t, s]), SHAPE)
    found = push([step], c.clean_t @ mean.flatten(), c.cov_t)
    agree(found, [(c.clean_s @ mean.flatten(), c.cov_s)], 1e-10)


def test_momentum_spreads_a_single_image():
    """Geometric noise, v_s = rho v_t at every step: Dirac data end with variance v / rho."""
    process, grid = PROCESSES["ve"], uniform_grid(12, 1.0, 0.1)
    rho = (process.cov(grid[1]).gain / process.cov(grid[0]).gain).item()
    level = process.cov(grid[-1]).gain
    steps = modal(reverse(momentum), centred(process, zero()), grid, dct(4, 5))
    ratio = variance(steps, process.cov(grid[0]).gain.expand(SHAPE)) / level
    torch.testing.assert_close(ratio, full(1 / rho), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("count", "expected"), [(9, 1.63359), (18, 1.11355), (36, 1.02454), (72, 1.00571)]
)
def test_edm_heun(count, expected):
    """EDM's Heun sampler, s = .25, from N(0, 80^2) on Karras's levels; time is sigma / 80."""
    process, cov = Process(Scale(Constant(1.0)), Scale(Linear(0.0, 80.0))), scaled(0.25)
    ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), count, dtype=torch.float64) ** 7
    denoiser = centred(process, cov)
    # A sample is linear in x, so that one vector tells its variance; the grid ends with x_0^.
    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    gain = sample(flow(HEUN), denoiser, x, torch.cat([ramp / 80, torch.zeros(1)]))
    ratio = gain**2 * 80**2 / 0.25
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected), rtol=0, atol=6e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_langevin(process):
    """T steps leave rho^2T (P - w) + w, rho = 1 - delta v / M, w = M / (1 - delta v / 2M)."""
    process = PROCESSES[process]
    basis, delta, count, s = basis_of(process), 0.3, 3, 0.4
    cov = diagonal_cov(basis)
    total, level = marginal(process, cov, s), process.cov(time(s)).gain
    decay, limit = 1 - delta * level / total, total / (1 - delta * level / (2 * total))
    denoiser, grid = centred(process, cov), torch.tensor([0.5, s], dtype=torch.float64)
    steps = affine(langevin(delta, count), denoiser, grid, SHAPE, draws=count)
    start = 2 * total
    into = basis_matrix(basis)
    ((_, found),) = push(
        steps, torch.zeros(N).double(), into @ torch.diag(start.flatten()) @ into.T
    )
    expected = decay ** (2 * count) * (start - limit) + limit
    torch.testing.assert_close(into.T @ found @ into, torch.diag(expected.flatten()))


@pytest.mark.parametrize("process", PROCESSES)
def test_corrector(process):
    """A Langevin step sized by norms multiplies the variance M of x_t by 1 + (delta V / M)^2.

    With delta = 2 snr^2 n / sum(V / M), where norms are as on average, as those of many channels
    are; a drift of the wrong sign would make it (1 + delta V / M)^2 + 2 delta V / M.
    """
    process, cov = PROCESSES[process], diagonal_cov(basis_of(PROCESSES[process]))
    at, snr, count, basis = 0.6, 0.3, 64, basis_of(process)
    total = marginal(process, cov, at)
    share = process.cov(time(at)).gain.expand_as(total) / total
    u = total.sqrt() * normal(count, 100, *SHAPE[1:])
    grid = torch.tensor([0.65, at], dtype=torch.float64)
    kernel = corrector(snr)
    x = basis.synthesize(u)
    (found,) = driven(kernel, centred(process, cov), x, grid, lambda y: normal(*y.shape, seed=9))
    delta = 2 * snr**2 * N / share.sum()
    before, after = (y.square().mean((0, 1)) for y in (u, basis.analyze(found)))
    torch.testing.assert_close((after / before)[None], 1 + (delta * share) ** 2, rtol=0, atol=0.06)
    assert float(4 * delta * share.max()) > 0.6


@pytest.mark.parametrize("process", PROCESSES)
def test_churn_keeps_the_law(process):
    """Noise added back and Heun's step further: the law of x_s, to the second order of the step."""
    process, cov = PROCESSES[process], diagonal_cov(basis_of(PROCESSES[process]))
    wrong = []
    for count in (40, 160):
        grid = torch.linspace(0.8, 0.3, count + 1, dtype=torch.float64)
        steps = modal(churn(HEUN, 5.0), centred(process, cov), grid, basis_of(process))
        end = variance(steps, marginal(process, cov, 0.8))
        wrong.append(float((end / marginal(process, cov, 0.3) - 1).abs().max()))
    assert wrong[0] / wrong[1] == pytest.approx(16, rel=0.25)


def test_langevin_with_matrices_that_are_not_symmetric():
    """B = (1 - delta) I + delta C G, P' = B P B^T + 2 delta V, C^T differing from C."""
    process, mean, cov = densified(SHIFTED), normal(*SHAPE, seed=1), Dense(spd(N), SHAPE)
    delta, grid = 0.3, torch.tensor([0.6, 0.5], dtype=torch.float64)
    x0, noise = matrix(process.signal.at(grid[1])), matrix(process.cov(grid[1]))
    prior, m = matrix(cov), mean.flatten()
    gain = prior @ x0.T @ torch.linalg.inv(x0 @ prior @ x0.T + noise)
    ((found_mean, found_cov),) = push(
        affine(langevin(delta), exact(process, mean, cov), grid, SHAPE),
        start := normal(N, seed=2),
        spread := spd(N, seed=3),
    )
    step = (1 - delta) * torch.eye(N).double() + delta * x0 @ gain
    shift = delta * x0 @ (m - gain @ x0 @ m)
    torch.testing.assert_close(found_mean, step @ start + shift)
    torch.testing.assert_close(found_cov, step @ spread @ step.T + 2 * delta * noise)


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("kernel", ["reverse", "flow", "langevin"])
def test_gains_that_differ_from_sample_to_sample(kernel, count):
    """A mask for each of 4 images, on grids of as many steps and of others: as one by one."""
    masks = 0.2 + torch.rand(4, 1, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    made = {"reverse": reverse(ddim(0.0)), "flow": flow(HEUN), "langevin": langevin(0.1)}[kernel]
    x, grid = normal(4, *SHAPE), torch.linspace(0.9, 0.1, count + 1)

    def run(some: slice) -> Tensor:
        signal = Fixed(Diagonal(masks[some].log(), None, pixel(4, 5)))
        process = Process(signal, Scale(Linear(0.1, 0.5)))
        still = sample(made, NetworkDenoiser(process, x0, Toy()), x[some], grid, torch.zeros_like)
        return still

    torch.testing.assert_close(run(slice(4)), torch.cat([run(slice(i, i + 1)) for i in range(4)]))


def basis_matrix(basis) -> Tensor:
    """V: columns are basis vectors on signals of SHAPE."""
    return basis.synthesize(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).flatten(1).T


def test_chain_is_one_kernel_after_another():
    """The matrices of a chain are the products of its parts', noise in the order of the draws."""
    process, grid = PROCESSES["blurring"], GRID[:3]
    denoiser = exact(process, normal(*SHAPE, seed=1), Dense(spd(N), SHAPE))
    first = affine(reverse(ancestral), denoiser, grid, SHAPE)
    second = affine(langevin(0.2), denoiser, grid, SHAPE)
    both = affine(chain(reverse(ancestral), langevin(0.2)), denoiser, grid, SHAPE, draws=2)
    for one, two, chained in zip(first, second, both, strict=True):
        torch.testing.assert_close(chained.gain, two.gain @ one.gain)
        torch.testing.assert_close(chained.shift, two.gain @ one.shift + two.shift)
        fresh = torch.cat([two.gain @ one.fresh, two.fresh], 1)
        torch.testing.assert_close(chained.fresh, fresh)


# Convergence.

CONVERGENT = [
    "ancestral",
    "ancestral-large",
    "ddim",
    "ddim-half",
    "ddim-one",
    "bridge",
    "momentum",
    "pf-momentum",
]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", CONVERGENT)
def test_terminal_variance_is_of_first_order(name, process):
    """|P / M - 1| halves when N doubles, for every coefficient."""
    process = PROCESSES[process]
    basis, start, end = basis_of(process), 0.7, 0.3
    cov, kernel = diagonal_cov(basis), reverse(COUPLINGS[name].coupling)
    once, twice = (
        variance(
            modal(kernel, centred(process, cov), uniform_grid(n, start, end), basis),
            marginal(process, cov, start),
        )
        / marginal(process, cov, end)
        - 1
        for n in (16, 32)
    )
    assert once.abs().max() > 1e-3
    assert ((once - 2 * twice).abs() < 0.07 * once.abs() + 0.02 * once.abs().max()).all()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", TABLEAUX)
def test_order_of_convergence(name, process):
    """Each tableau has its declared order, on the exact flow of a mixture (quantiles)."""
    data, tableau, (t, s) = Bimodal(PROCESSES[process]), TABLEAUX[name], (0.6, 0.45)
    denoiser = NetworkDenoiser(data.process, x0, data.oracle())
    x = data.process.corrupt(data.oracle().means, time(t), normal(2, *SHAPE, seed=5))
    truth, count = data.flow(x, t, s), {1: 8, 2: 6, 4: 4}[tableau.order]
    coarse, fine = (
        float((sample(flow(tableau), denoiser, x, uniform_grid(n, t, s)) - truth).norm())
        for n in (count, 2 * count)
    )
    assert coarse < 0.05 * float((truth - x).norm())
    assert abs(math.log2(coarse / fine) - tableau.order) < 0.15


def test_velocity_agrees_with_torchdiffeq():
    """The velocity integrated by dopri5 is the flow kernel with fine steps."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    data = Bimodal(PROCESSES["haar"])
    denoiser = NetworkDenoiser(data.process, x0, data.oracle())
    grid, x = torch.tensor([0.8, 0.4], dtype=torch.float64), normal(2, *SHAPE)
    with torch.no_grad():
        path = odeint(lambda t, y: flow_velocity(denoiser, y, t), x, grid, rtol=1e-7, atol=1e-7)
    fine = sample(flow(RK4), denoiser, x, uniform_grid(16, 0.8, 0.4))
    torch.testing.assert_close(fine, path[-1], rtol=0, atol=1e-5)


# What kernels never do.


class Watched(Family):
    """Noise that must not be used where it is 0."""

    def __init__(self, of: Family) -> None:
        super().__init__()
        self.of = of

    def at(self, t: Tensor):
        operator = self.of.at(t)
        assert not torch.isneginf(operator.log_gain).any(), f"noise asked at {t.flatten()}"
        return operator


KERNELS: dict[str, Kernel] = {
    **{f"reverse-{name}": reverse(case.coupling) for name, case in COUPLINGS.items()},
    **{f"flow-{name}": flow(tableau) for name, tableau in TABLEAUX.items()},
    "langevin": langevin(0.1, 2),
    "predictor-corrector": chain(flow(EULER), langevin(0.1)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_looks_where_there_is_no_noise(name):
    """A grid that ends at 0 ends with x_0^; no operator is asked of S_0 = 0."""
    process = Process(Scale(Amplitude(linear_betas())), Watched(Scale(Complement(linear_betas()))))
    x = sample(
        KERNELS[name], NetworkDenoiser(process, noise, Toy()), normal(2, *SHAPE), uniform_grid(7)
    )
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    "level", [Linear(0.0, 80.0), Complement(linear_betas())], ids=["linear", "complement"]
)
def test_flow_is_refused_where_noise_starts(level):
    process = Process(Scale(Constant(1.0)), Scale(level))
    with pytest.raises(ValueError, match="no velocity at a time without noise"):
        flow_operators(process, time(0.0))


@pytest.mark.parametrize("name", KERNELS)
def test_blocks_of_steps_do_not_show(name, monkeypatch):
    """The same samples whether operators are made 3 or 64 steps at a time."""
    denoiser = NetworkDenoiser(PROCESSES["blurring"], residual, Toy())
    x, grid = normal(2, *SHAPE), uniform_grid(10, 1.0, 0.1)
    together = sample(KERNELS[name], denoiser, x, grid, Seeds([1, 2]))
    monkeypatch.setattr(operator_table, "BLOCK", 3)
    apart = sample(KERNELS[name], denoiser, x, grid, Seeds([1, 2]))
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_one_step_at_a_time_is_the_loop(name):
    """`sample` over a grid equals `sample` over each of its intervals: nothing is remembered."""
    denoiser = NetworkDenoiser(PROCESSES["coloured"], residual, Toy())
    x, grid = normal(2, *SHAPE), uniform_grid(6, 1.0, 0.1)
    whole, stream = sample(KERNELS[name], denoiser, x, grid, Seeds([3, 4])), Seeds([3, 4])
    for pair in pairwise(grid):
        x = sample(KERNELS[name], denoiser, x, torch.stack(pair), stream)
    torch.testing.assert_close(x, whole, rtol=0, atol=1e-12)


# Estimates of several shares.


class Guided(Denoiser):
    """The exact denoiser guided by y = H x_0 + r: shares x_0^ and C^-1 V grad log p(y | x)."""

    def __init__(self, base: Denoiser, cov: Tensor, h: Tensor, y: Tensor) -> None:
        super().__init__()
        self.base, self.process, self.stats = base, base.process, base.stats
        self.cov, self.h, self.y = cov, h, y

    def at(self, t: Tensor) -> Estimator:
        base, signal, noise_cov = self.base.at(t), self.process.signal.at(t), self.process.cov(t)
        share = base.of @ signal.inv()
        return base._replace(
            shares=(*base.shares, share), ask=Pulled(self, base.ask, signal, noise_cov)
        )


class Pulled(NamedTuple):
    """The values of a guided estimate: those of its base, and V_t times the guide's gradient."""

    guided: Guided
    ask: Ask
    signal: Operator
    noise_cov: Operator

    def __call__(self, x: Tensor, cond: Conditions, spectra: Spectra) -> tuple[Tensor, ...]:
        (clean,) = self.ask(x, cond, spectra)
        signal, (cov, h, y) = matrix(self.signal), (self.guided.cov, self.guided.h, self.guided.y)
        total = signal @ cov @ signal.T + matrix(self.noise_cov)
        gain = cov @ signal.T @ torch.linalg.inv(total)
        spread = h @ (cov - gain @ signal @ cov) @ h.T
        off = y - clean.flatten(1) @ h.T
        white = off @ torch.linalg.inv(spread + 0.1 * torch.eye(len(y)))
        return clean, self.noise_cov((white @ (h @ gain)).reshape(x.shape))


GUIDED = [
    *("reverse-ancestral", "reverse-ddim", "flow-heun", "langevin", "predictor-corrector"),
    *("multistep", "multistep:order=3", "unipc", "euler-maruyama", "churn:amount=2", "dopri5"),
]


@pytest.mark.parametrize("process", ["vp", "ve", "coloured"])
@pytest.mark.parametrize("name", GUIDED)
def test_shares_of_an_estimate_add_up(name, process):
    """Exact guidance by a second share is the exact sampler of the posterior N(m', S')."""
    kernel = KERNELS[name] if name in KERNELS else samplers.kernel(name)
    process, cov, mean = PROCESSES[process], spd(N), normal(*SHAPE, seed=1)
    h, y = normal(3, N, seed=4), normal(3, seed=5)
    posterior = torch.linalg.inv(torch.linalg.inv(cov) + h.T @ h / 0.1)
    shifted = mean.flatten() + posterior @ h.T @ (y - h @ mean.flatten()) / 0.1
    base = NetworkDenoiser(process, x0, gaussian(process, mean, Dense(cov, SHAPE)))
    guided = Guided(base, cov, h, y)
    direct = exact(process, shifted.reshape(SHAPE), Dense(posterior, SHAPE))
    x, grid = normal(3, *SHAPE), torch.tensor([0.7, 0.5, 0.3, 0.2, 0.0])
    found, expected = (
        sample(kernel, denoiser, x, grid, Seeds([1, 2, 3])) for denoiser in (guided, direct)
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


# The loop.


def conv() -> nn.Module:
    """A small convolutional network with random weights, float32."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1, bias=False)
    )

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return self.layers(x + label.reshape(-1, 1, 1, 1))

    return Timed()


@pytest.mark.parametrize("kernel", ["reverse-ancestral", "predictor-corrector"])
@pytest.mark.parametrize("process", ["blurring", "coloured"])
def test_a_seed_is_an_image_at_any_batch_size(process, kernel):
    """Image i of seed i is the same in batches of 1, 7 and 64, to 1e-4 after 50 float32 steps."""
    denoiser = NetworkDenoiser(PROCESSES[process], residual, conv())

    def images(seeds: list[int]) -> Tensor:
        stream = Seeds(seeds)
        x = stream(torch.empty(len(seeds), *SHAPE))
        return sample(KERNELS[kernel], denoiser, x, uniform_grid(50), stream)

    many = images(list(range(64)))
    assert many.dtype == torch.float32
    assert many.flatten(1).std(0).min() > 1e-2
    for seeds in ([5], [9, 5, 0, 63, 2, 1, 33]):
        torch.testing.assert_close(images(seeds), many[seeds], rtol=0, atol=1e-4)


def test_float32_follows_float64():
    """Operators are made in float64 and cast once: 50 steps in float32 stay within 1e-4."""
    denoiser, x = NetworkDenoiser(PROCESSES["blurring"], residual, Toy()), normal(4, *SHAPE)
    single, double = (
        sample(reverse(ddim()), denoiser, x.to(d), uniform_grid(50))
        for d in (torch.float, torch.double)
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


@pytest.mark.parametrize("last", [0.0, 0.1])
def test_callback_is_called_once_a_step(last):
    seen = []
    denoiser, x = NetworkDenoiser(PROCESSES["vp"], residual, Toy()), normal(2, *SHAPE)
    out = sample(
        reverse(ancestral),
        denoiser,
        x,
        uniform_grid(6, 1.0, last),
        callback=lambda i, x: seen.append((i, x)),
    )
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(seen[-1][1], out)


def test_a_grid_that_ends_at_0_ends_with_the_estimate():
    """[t, 0] is one call of the denoiser, whatever the kernel."""
    denoiser, x = NetworkDenoiser(PROCESSES["soft"], residual, Toy()), normal(2, *SHAPE)
    for kernel in KERNELS.values():
        out = sample(kernel, denoiser, x, torch.tensor([0.7, 0.0]))
        torch.testing.assert_close(out, denoiser(x, time(0.7)).mean)


def test_sampling_keeps_no_graph():
    backbone = conv()
    x = sample(
        flow(EULER),
        NetworkDenoiser(PROCESSES["vp"], residual, backbone),
        normal(2, *SHAPE).float(),
        uniform_grid(3),
    )
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        (
            [1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.2, 0.3, 0.0],
            r"grid must fall from 1 to 0; got 0.2 before 0.3 at index 7\.",
        ),
        ([1.0, 0.5, 0.5, 0.0], r"grid must fall from 1 to 0; got 0.5 before 0.5 at index 2\."),
        ([0.9, math.nan, 0.1], "grid must fall from 1 to 0; got 0.9 before nan at index 1"),
        ([1.1, 0.5], r"a grid lies in \[0, 1\]; got 0.5 to 1.1\."),
        ([0.5, -0.1], r"a grid lies in \[0, 1\]; got -0.1 to 0.5\."),
        ([0.5], r"a grid needs two times or more; got shape \(1,\)\."),
        ([[1.0, 0.5]], r"a grid needs two times or more; got shape \(1, 2\)\."),
    ],
)
def test_grids_that_do_not_fall_are_refused(grid, sentence):
    denoiser = NetworkDenoiser(PROCESSES["vp"], residual, Toy())
    with pytest.raises(ValueError, match=sentence):
        sample(reverse(ancestral), denoiser, normal(2, *SHAPE), torch.tensor(grid))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: uniform_grid(0), r"sampling needs one step or more; got 0\."),
        (lambda: Seeds([3, -2]), r"seeds must be 0 or more; got -2\."),
        (lambda: Seeds([1, 2])(torch.zeros(3, 4)), "2 seeds do not fit a batch of 3"),
        (lambda: langevin(2.0), r"langevin needs delta in \(0, 2\), else it diverges; got 2\."),
        (lambda: langevin(0.0), r"langevin needs delta in \(0, 2\), else it diverges; got 0\."),
        (lambda: langevin(0.1, 0), r"steps of langevin must be 1 or more; got 0\."),
        (lambda: chain(), r"chain needs one kernel or more; got none\."),
    ],
    ids=["steps", "seed", "batch", "delta", "no-delta", "count", "chain"],
)
def test_wrong_calls_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_a_signal_has_diverged_where_no_data_in_range_could_be(shape):
    """The root mean square of each signal by itself: of (3, 0, 3, 0) it is 2.1, over 2."""
    kept = [[1, -1, 1, -1], [2, -2, 2, -2], [3, 0, 0, 0], [0, 0, 0, 0]]
    lost = [[3, 0, 3, 0], [0, math.nan, 0, 0], [0, 0, -math.inf, 0], [1e30, 0, 0, 0]]
    x = torch.tensor([*kept, *lost])[[0, 4, 1, 5, 2, 6, 3, 7]]
    assert diverged(x.view(-1, *shape)).tolist() == [False, True] * 4
