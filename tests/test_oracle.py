"""Laws of the exact denoisers, against matrices, torch.distributions and quadrature.

The closed forms are those of docs/mathematics.md, "Predictions for Gaussian data".
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from cases import (
    PROCESSES,
    RANKS,
    SHAPE,
    basis_of,
    densified,
    diagonal_cov,
    matrix,
    normal,
    spd,
    time,
)
from sfumato.algebra import Dense, Diagonal, dct, scaled, zero
from sfumato.corruption.families import Fade, Fixed, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Linear
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.oracle import Mixture, dataset, gaussian
from sfumato.estimation.predictions import x0

N = 20
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def estimate(oracle: Mixture, x: Tensor, t: Tensor) -> Tensor:
    return NetworkDenoiser(oracle.process, x0, oracle)(x, t).mean


def mixture(process: Process, covs: list) -> Mixture:
    return Mixture(process, normal(3, *SHAPE, seed=1), covs, WEIGHTS)


def law(oracle: Mixture, t: Tensor) -> MixtureSameFamily:
    """q_t as torch.distributions knows it: sum_k w_k N(C m_k, C S_k C^T + V)."""
    signal, cov = matrix(oracle.process.signal.at(t)), matrix(oracle.process.cov(t))
    spreads = torch.stack([signal @ matrix(one) @ signal.T + cov for one in oracle.covs])
    means = oracle.means.flatten(1) @ signal.T
    return MixtureSameFamily(Categorical(oracle.weights), MultivariateNormal(means, spreads))


@pytest.mark.parametrize("data", ["own", "spd", "dense"])
@pytest.mark.parametrize("process", PROCESSES)
def test_gaussian_data(process, data):
    """E[x_0 | x] = m + S C^T (C S C^T + V)^-1 (x - C m), for any covariance of the data."""
    process, t = PROCESSES[process], time(0.4)
    cov = diagonal_cov(basis_of(process)) if data == "own" else Dense(spd(N), SHAPE)
    process = densified(process) if data == "dense" else process
    mean, x = normal(*SHAPE, seed=1), normal(4, *SHAPE)
    signal, spread = matrix(process.signal.at(t)), matrix(cov)
    total = signal @ spread @ signal.T + matrix(process.cov(t))
    gain = spread @ signal.T @ torch.linalg.inv(total)
    expected = mean.flatten() + (x.flatten(1) - signal @ mean.flatten()) @ gain.T
    found = estimate(gaussian(process, mean, cov), x, t).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("data", ["own", "spd"])
@pytest.mark.parametrize("process", PROCESSES)
def test_tweedie(process, data):
    """E[C x_0 | x] = x + V grad log q(x) for a mixture, the score by autograd."""
    process, t = PROCESSES[process], time(0.4)
    own = diagonal_cov(basis_of(process))
    covs = [Diagonal(own.log_gain - k, None, own.basis) for k in range(3)]
    if data == "spd":
        covs = [Dense(spd(N, seed=k), SHAPE) for k in range(3)]
    oracle = mixture(process, covs)
    x = process.corrupt(oracle.means, t, normal(3, *SHAPE, seed=2)).flatten(1).requires_grad_()
    log_prob = law(oracle, t).log_prob(x)
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    expected = x + score @ matrix(process.cov(t))
    found = process.signal.at(t)(estimate(oracle, x.detach().reshape(-1, *SHAPE), t))
    torch.testing.assert_close(found.flatten(1), expected.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_component_densities_sum_to_the_marginal(process):
    """logsumexp of `components` is log q_t but for the constant n log(2 pi) / 2."""
    oracle = mixture(PROCESSES[process], [scaled(0.2), scaled(0.5), scaled(0.1)])
    x, t = normal(4, *SHAPE), time(0.3)
    logs, _ = oracle.components(x, t)
    found = logs.logsumexp(0) - N / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(found, law(oracle, t).log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [0.05, 0.4, 3.0])
def test_one_dimension_by_quadrature(noise):
    """The posterior mean is the ratio of two integrals over x_0."""
    process = Process(Scale(Constant(0.7)), Scale(Constant(noise)))
    means, deviations = (
        torch.tensor([-1.0, 0.2, 1.5]).double(),
        torch.tensor([0.3, 0.1, 0.6]).double(),
    )
    oracle = Mixture(process, means[:, None], [scaled(d**2) for d in deviations], WEIGHTS)
    x0 = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    prior = (
        WEIGHTS / deviations * torch.exp(-((x0[:, None] - means) ** 2) / (2 * deviations**2))
    ).sum(1)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    joint = prior * torch.exp(-((x[:, None] - 0.7 * x0) ** 2) / (2 * noise**2))
    expected = (joint * x0).sum(1) / joint.sum(1)
    torch.testing.assert_close(
        estimate(oracle, x[:, None], time(0.5))[:, 0], expected, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("process", PROCESSES)
def test_finite_data_are_a_softmax(process):
    """With S_k = 0: weights softmax(-(x - C x_k)^T V^-1 (x - C x_k) / 2)."""
    process, t = PROCESSES[process], time(0.7)
    points, x = (
        normal(5, *SHAPE, seed=3),
        process.corrupt(normal(3, *SHAPE), t, normal(3, *SHAPE, seed=2)),
    )
    signal, cov = matrix(process.signal.at(t)), matrix(process.cov(t))
    off = x.flatten(1)[:, None] - points.flatten(1) @ signal.T
    distance = torch.einsum("bki,ij,bkj->bk", off, torch.linalg.inv(cov), off)
    expected = torch.softmax(-distance / 2, 1) @ points.flatten(1)
    found = estimate(dataset(process, points), x, t).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_finite_data_return_the_nearest_where_noise_is_small():
    process, points = PROCESSES["vp"], normal(5, *SHAPE, seed=3)
    x = process.corrupt(points, time(0.001), normal(5, *SHAPE))
    found = estimate(dataset(process, points), x, time(0.001))
    torch.testing.assert_close(found, points, rtol=0, atol=1e-12)


@pytest.mark.parametrize("data", ["own", "spd", "points"])
@pytest.mark.parametrize("process", PROCESSES)
def test_times_of_their_own_equal_single_times(process, data):
    """(B, 1, 1, 1) times give each sample what one time would."""
    process = PROCESSES[process]
    cov = {"own": diagonal_cov(basis_of(process)), "spd": Dense(spd(N), SHAPE), "points": zero()}[
        data
    ]
    oracle = mixture(process, [cov] * 3)
    x, times = normal(4, *SHAPE), torch.tensor([0.2, 0.5, 0.9, 0.5], dtype=torch.float64)
    together = estimate(oracle, x, times.reshape(-1, 1, 1, 1))
    for row, t, found in zip(x, times, together, strict=True):
        torch.testing.assert_close(found, estimate(oracle, row[None], t)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", RANKS)
def test_signals_of_any_rank(rank):
    """The same on vectors, sequences and volumes."""
    process, shape = RANKS[rank]
    n, t = normal(*shape).numel(), time(0.4)
    spread, mean, x = spd(n), normal(*shape, seed=1), normal(2, *shape)
    signal = matrix(process.signal.at(t), shape)
    total = signal @ spread @ signal.T + matrix(process.cov(t), shape)
    gain = spread @ signal.T @ torch.linalg.inv(total)
    expected = mean.flatten() + (x.flatten(1) - signal @ mean.flatten()) @ gain.T
    found = estimate(gaussian(process, mean, Dense(spread, shape)), x, t).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_lost_coefficients_are_filled_with_what_the_others_tell():
    """Hard zeros of C_t: a lost coefficient is estimated by its regression on the others."""
    process = Process(
        Fade(Linear(0.0, 2.0), torch.linspace(0, 1, 20).reshape(4, 5), dct(4, 5), 0.2),
        Scale(Constant(0.1)),
    )
    t, spread, x = time(0.4), spd(N), normal(3, *SHAPE)
    signal = matrix(process.signal.at(t))
    assert torch.linalg.matrix_rank(signal) < N
    total = signal @ spread @ signal.T + 0.1**2 * torch.eye(N).double()
    gain = spread @ signal.T @ torch.linalg.inv(total)
    found = estimate(gaussian(process, torch.zeros(SHAPE), Dense(spread, SHAPE)), x, t)
    torch.testing.assert_close(found.flatten(1), x.flatten(1) @ gain.T, rtol=1e-8, atol=1e-8)


def test_float32_signals():
    """Float32 in, float32 out, and the same estimate."""
    process = Process(Scale(Constant(0.7)), Fixed(scaled(0.3)))
    oracle, x = gaussian(process, normal(*SHAPE, seed=1), Dense(spd(N), SHAPE)), normal(2, *SHAPE)
    found = estimate(oracle, x.float(), time(0.5))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), estimate(oracle, x, time(0.5)), rtol=1e-5, atol=1e-5)


def test_a_covariance_for_each_mean():
    with pytest.raises(ValueError, match="a mixture needs a covariance for each mean; got 3, 1"):
        Mixture(PROCESSES["vp"], normal(3, *SHAPE), [scaled(1.0)])
