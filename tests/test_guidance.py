"""Laws of guided and restored sampling: exact moments against the posterior of Gaussian data.

The references are dense linear algebra of this file (docs/mathematics.md, "Guidance"): for data
N(m, S) and y = H x_0 + r, r ~ N(0, R), the posterior is N(m', S') with S' = (S^-1 + H^T R^-1 H)^-1,
m' = m + S' H^T R^-1 (y - H m), and its score at t that of N(C m', C S' C^T + V).
"""

import math
import re

import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from cases import N, affine, exact, matrix, normal, push, spd, time
from sfumato.algebra import Dense, Diagonal, MatrixFree, dct, pixel, zero
from sfumato.algebra.solve import conjugate_gradients
from sfumato.corruption.coupling import ddim
from sfumato.corruption.statistics import default_statistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.guided import FLOOR, Guided, classifier, tilt
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import x0
from sfumato.estimation.restored import Measured, Restored, spectrum
from sfumato.methods import METHODS
from sfumato.sampling import samplers
from sfumato.sampling.kernels import Kernel, reverse
from sfumato.sampling.multistep import multistep
from sfumato.sampling.sample import check_conditional, sample, uniform_grid

SHAPE = (1, 4, 5)
RECIPES = {name: METHODS[name](SHAPE) for name in ("soft", "ddpm", "ni-ddpm", "blurring")}
MEAN = 0.3 * normal(*SHAPE, seed=1)
COV = 0.25 * spd(N)
H = normal(7, N, seed=4)
NOISE = 0.2 * (torch.eye(7, dtype=torch.float64) + 0.3 * normal(7, 7, seed=5))  # R is not diagonal
R = NOISE @ NOISE.T
Y = normal(7, seed=6)
GAIN = COV @ H.T @ torch.linalg.inv(H @ COV @ H.T + R)
POSTERIOR_MEAN = MEAN.flatten() + GAIN @ (Y - H @ MEAN.flatten())
POSTERIOR = COV - GAIN @ H @ COV

SAMPLERS = {
    "ddim": 1,
    "ancestral": 1,
    "multistep": 2,
    "unipc": 3,
    "heun": 2,
    "euler-maruyama": 1,
    "analytic-variance": 1,
}
"""Samplers and their declared orders, as tests/test_solvers.py verifies them."""

KINKED = {("heun", "ddpm"), ("heun", "ni-ddpm")}
"""Chains are interpolated between their levels: rates, which heun uses, jump there."""


def linear(matrix: Tensor) -> MatrixFree:
    """x (B, *SHAPE) -> matrix x (B, m), and its transpose."""
    return MatrixFree(
        lambda x: x.flatten(1) @ matrix.T.to(x), lambda z: (z @ matrix.to(z)).reshape(-1, *SHAPE)
    )


def noise() -> MatrixFree:
    """A root of R."""
    return MatrixFree(lambda z: z @ NOISE.T.to(z), lambda z: z @ NOISE.to(z))


def denoiser(name: str, mean: Tensor, cov: Tensor) -> Denoiser:
    """The exact denoiser of N(mean, cov), with statistics for the sampler that needs some."""
    process = RECIPES[name].process
    backbone = gaussian(process, mean, Dense(cov, SHAPE))
    return NetworkDenoiser(process, x0, backbone, default_statistics(SHAPE))


def unguided(name: str) -> Denoiser:
    return denoiser(name, MEAN, COV)


def posterior(name: str) -> Denoiser:
    """The exact denoiser of p(x_0 | y)."""
    return denoiser(name, POSTERIOR_MEAN.reshape(SHAPE), POSTERIOR)


def restored(name: str) -> Guided:
    """The linear-Gaussian update with the data's own covariance, solved to rounding."""
    guide = spectrum(Measured(linear(H), Y[None], noise()), Dense(COV, SHAPE), tolerance=1e-11)
    return Guided(unguided(name), guide)


def by_gradient(name: str, floor: float = -60.0) -> Guided:
    """Classifier guidance with p(y | x_t) = N(y; H E[x_0 | x_t], R + H Cov[x_0 | x_t] H^T)."""
    process = RECIPES[name].process

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        at = t[0].double()
        clean, cov = matrix(process.signal.at(at)), matrix(process.cov(at))
        pull = COV @ clean.T @ torch.linalg.inv(clean @ COV @ clean.T + cov)
        mean = MEAN.flatten() + (x.double().flatten(1) - clean @ MEAN.flatten()) @ pull.T
        spread = R + H @ (COV - pull @ clean @ COV) @ H.T
        off = Y - mean @ H.T
        return -0.5 * (off @ torch.linalg.inv(spread) * off).sum(1)

    return Guided(unguided(name), classifier(log_prob, floor=floor))


GUIDED = {"restored": restored, "classifier": by_gradient}


def marginal(name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x_t given y."""
    process = RECIPES[name].process
    clean, cov = matrix(process.signal.at(t)), matrix(process.cov(t))
    return clean @ POSTERIOR_MEAN, clean @ POSTERIOR @ clean.T + cov


def moments(kernel: Kernel, denoiser: Denoiser, grid: Tensor, start) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance after a whole loop from N(start)."""
    if not isinstance(kernel, multistep):
        return push(affine(kernel, denoiser, grid, SHAPE), *start)[-1]
    # It has a state and draws nothing: the loop as a whole is affine in x_1.
    x = torch.cat([torch.zeros(1, N), torch.eye(N)]).double().reshape(-1, *SHAPE)
    out = sample(kernel, denoiser, x, grid).flatten(1)
    gains = out[1:] - out[0]
    return out[0] + start[0] @ gains, gains.T @ start[1] @ gains


def apart(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """The largest difference of means and covariances."""
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kernel", SAMPLERS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("guide", GUIDED)
def test_guided_sampling_is_sampling_with_the_posteriors_denoiser(guide, name, kernel):
    """The same moments after a whole loop, the last jump to x_0^ included."""
    grid, chosen = RECIPES[name].grid(8), samplers.kernel(kernel)
    start = marginal(name, grid[0])
    found = moments(chosen, GUIDED[guide](name), grid, start)
    expected = moments(chosen, posterior(name), grid, start)
    assert apart(found, expected) < 1e-9


@pytest.mark.parametrize("kernel", SAMPLERS)
@pytest.mark.parametrize("name", RECIPES)
def test_restored_samples_reach_the_posterior_at_the_declared_order(name, kernel):
    """From the law of x_t given y at t = .6 to that at .45."""
    order = 1 if (kernel, name) in KINKED else SAMPLERS[kernel]
    count = {1: 24, 2: 12, 3: 8}[order]
    first, last = torch.tensor([0.6, 0.45], dtype=torch.float64)

    def error(steps: int) -> float:
        grid = uniform_grid(steps, float(first), float(last))
        found = moments(samplers.kernel(kernel), restored(name), grid, marginal(name, first))
        return apart(found, marginal(name, last))

    coarse, fine = error(count), error(2 * count)
    assert fine < 2e-2
    assert abs(math.log2(coarse / fine) - order) < 0.35


@pytest.mark.parametrize("guide", GUIDED)
@pytest.mark.parametrize("name", RECIPES)
def test_guided_score_is_that_of_the_diffused_posterior(name, guide):
    process, t = RECIPES[name].process, time(0.4)
    x = normal(5, *SHAPE, seed=8)
    mean, cov = marginal(name, t)
    expected = -(x.flatten(1) - mean) @ torch.linalg.inv(cov)
    found = process.score(x, GUIDED[guide](name)(x, t).mean, t).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("floor", "bound"), [(FLOOR, 5e-3), (-40.0, 1e-9)])
def test_the_floor_costs_what_it_states(floor, bound):
    grid = RECIPES["soft"].grid(8)
    start = marginal("soft", grid[0])
    found = moments(reverse(ddim()), by_gradient("soft", floor), grid, start)
    expected = moments(reverse(ddim()), posterior("soft"), grid, start)
    assert apart(found, expected) < bound


@pytest.mark.parametrize("name", RECIPES)
def test_the_start_has_the_law_of_x1_given_y(name):
    """Mean and covariance by unit vectors of the three draws of `start`."""
    given = Restored(unguided(name), linear(H), Y[None], noise(), mean=MEAN, cov=Dense(COV, SHAPE))
    sizes, m = (N, len(Y), N), len(Y)
    rows = 1 + 2 * N + m
    firsts = iter((1, 1 + N, 1 + N + m))
    left = iter(sizes)

    def units(z: Tensor) -> Tensor:
        eps, first, n = torch.zeros(rows, z[0].numel()).to(z), next(firsts), next(left)
        eps[first : first + n] = torch.eye(n)
        return eps.reshape(z.shape)

    out = given.start(torch.zeros(rows, *SHAPE, dtype=torch.float64), units).flatten(1)
    gains = out[1:] - out[0]
    found = out[0], gains.T @ gains
    assert apart(found, marginal(name, time(1.0))) < 1e-6


def test_the_closed_form_is_what_conjugate_gradients_find():
    """Where A, R and the data share the process's basis there is one operator and no iteration."""
    basis, t = dct(4, 5), time(0.3)
    blur, colour = (Diagonal(-w * basis.laplacian, None, basis) for w in (0.5, 0.1))
    y, x = normal(3, *SHAPE, seed=1), normal(3, *SHAPE, seed=3)
    cov = Diagonal((0.3 / (1 + basis.laplacian)).log(), None, basis)
    free = MatrixFree(lambda z: blur(z), lambda z: blur(z))
    closed, solved = (
        Guided(unguided("soft"), spectrum(Measured(a, y, colour), cov, tolerance=1e-13))
        for a in (blur, free)
    )
    torch.testing.assert_close(closed(x, t).mean, solved(x, t).mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3])
def test_conjugate_gradients_against_scipy(rows):
    a = spd(12) @ spd(12, seed=2) @ spd(12)
    a, b = (
        (a + a.T) / 2 + 40 * torch.eye(12),
        normal(rows, 12, seed=5) * 10.0 ** torch.arange(rows)[:, None],
    )
    found = conjugate_gradients(lambda z: z @ a, b, 1e-12)
    for row, known in zip(found, b, strict=True):
        expected, _ = scipy.sparse.linalg.cg(a.numpy(), known.numpy(), rtol=1e-12)
        torch.testing.assert_close(row, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


def test_a_row_is_solved_the_same_in_any_batch():
    a, b = spd(12), normal(5, 12, seed=5) * 10.0 ** torch.arange(5)[:, None]
    together = conjugate_gradients(lambda z: z @ a, b, 1e-12)
    alone = torch.cat([conjugate_gradients(lambda z: z @ a, row[None], 1e-12) for row in b])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_dps_moves_by_the_gradient_of_the_norm():
    """x_0^ - scale C^-1 V grad |y - f(x_0^)|, for a function that is not linear."""
    process, t, x, y = (
        RECIPES["ddpm"].process,
        time(0.4),
        normal(2, *SHAPE),
        normal(2, *SHAPE, seed=2),
    )
    base = unguided("ddpm")
    found = Restored(base, torch.tanh, y, 0.1, "dps", 0.7, MEAN, Dense(COV, SHAPE))(x, t).mean
    at = x.clone().requires_grad_()
    norm = (y - torch.tanh(base(at, t).mean)).flatten(1).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(norm, at)
    expected = base(x, t).mean - 0.7 * tilt(process, t)(gradient)
    torch.testing.assert_close(found, expected.detach())


def test_pigdm_is_exact_for_data_of_unit_variance():
    """Its P_t and Jacobian are then those of the data: the posterior's estimate."""
    process, t, x = RECIPES["ddpm"].process, time(0.4), normal(4, *SHAPE)
    unit, off = Dense(torch.eye(N), SHAPE), Y - H @ MEAN.flatten()
    gain = H.T @ torch.linalg.inv(H @ H.T + R)
    mean = (MEAN.flatten() + gain @ off).reshape(SHAPE)
    expected = exact(process, mean, Dense(torch.eye(N) - gain @ H, SHAPE))(x, t).mean
    base = exact(process, MEAN, unit)
    found = Restored(base, linear(H), Y[None], noise(), "pigdm", 1.0, MEAN, unit)(x, t).mean
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_replacement_keeps_what_was_measured():
    hole = torch.ones(SHAPE[1:]).double()
    hole[1:3, 1:3] = 0
    mask = Diagonal(hole.log(), None, pixel(4, 5))
    x, y, t = normal(2, *SHAPE), normal(2, *SHAPE, seed=2), time(0.5)
    base = unguided("ddpm")
    given = Restored(base, mask, y, 0.0, "replacement", 1.0, MEAN, Dense(COV, SHAPE))
    expected = torch.where(hole > 0, y, base(x, t).mean)
    torch.testing.assert_close(given(x, t).mean, expected)


@pytest.mark.parametrize("kernel", ["ancestral", "ancestral-large", "euler-maruyama"])
@pytest.mark.parametrize("name", ["soft", "ddpm", "blurring"])
def test_markov_samplers_from_one_x_draw_from_its_posterior(name, kernel):
    """The covariance of x_0 given x_t at t = .5, whose error falls with the steps."""
    process, t, chosen = RECIPES[name].process, time(0.5), samplers.kernel(kernel)
    check_conditional(chosen)
    x = normal(N, seed=7)
    clean, cov = matrix(process.signal.at(t)), matrix(process.cov(t))
    pull = COV @ clean.T @ torch.linalg.inv(clean @ COV @ clean.T + cov)
    mean = MEAN.flatten() + pull @ (x - clean @ MEAN.flatten())
    expected = mean, COV - pull @ clean @ COV

    def error(steps: int) -> float:
        grid = uniform_grid(steps, 0.5)
        return apart(moments(chosen, unguided(name), grid, (x, 0 * COV)), expected)

    coarse, fine = error(20), error(80)
    assert fine < 0.5 * coarse
    assert fine < 0.1


@pytest.mark.parametrize("kernel", ["ddim", "heun", "multistep", "langevin", "ddim:eta=0.5"])
def test_other_samplers_are_refused_for_one_x(kernel):
    with pytest.raises(Refused, match="only samplers that reverse the Markov process do"):
        check_conditional(samplers.kernel(kernel))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"noise": -0.1}, "0 or more; got -0.1"),
        ({"noise": math.nan}, "0 or more; got nan"),
        ({"rule": "wiener"}, "no rule of restoration 'wiener'"),
        ({"operator": torch.tanh}, "use dps"),
        ({"mean": None}, "mean and spectrum"),
    ],
)
def test_what_cannot_be_restored(given, sentence):
    asked = {"operator": linear(H), "y": Y[None], "noise": 0.1, "mean": MEAN} | given
    base = NetworkDenoiser(
        RECIPES["ddpm"].process, x0, gaussian(RECIPES["ddpm"].process, MEAN, zero())
    )
    with pytest.raises(Refused, match=re.escape(sentence)):
        Restored(base, cov=None if asked["mean"] is None else Dense(COV, SHAPE), **asked)


def test_a_classifier_returns_one_number_for_each_signal():
    guided = Guided(unguided("ddpm"), classifier(lambda x, t: x))
    with pytest.raises(TypeError, match="one number for each signal"):
        guided(normal(2, *SHAPE), time(0.5))
