"""Non-isotropic noise as published: four parametrizations, DDIM, SMLD, both SDEs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

from cases import matrix, normal, spd, time
from sfumato.algebra import Dense
from sfumato.corruption import coupling
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.loss import loss
from sfumato.methods import METHODS
from sfumato.sampling.kernels import reverse
from sfumato.sampling.sample import sample

SHAPE = (1, 3, 4)
N = 12
SIGMA = spd(N) / spd(N).diagonal().mean()
"""The noise's covariance; nothing diagonalises it here."""
DATA = spd(N, seed=4) / 4
"""The data's."""


def root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return vectors @ values.sqrt().diag() @ vectors.T


def through(m: Tensor, x: Tensor) -> Tensor:
    return (x.flatten(1) @ m.T).reshape(x.shape)


class InputFeatures(nn.Module):
    """The posterior mean of N(0, DATA), put into the paper's words for one prediction."""

    def __init__(self, prediction: str, power: float, noise: float) -> None:
        super().__init__()
        self.prediction, self.power, self.noise = prediction, power, noise

    def clean(self, x: Tensor) -> Tensor:
        total = self.power * DATA + self.noise * SIGMA
        return through(math.sqrt(self.power) * DATA @ torch.linalg.inv(total), x)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        mean = self.clean(x)
        left = x - math.sqrt(self.power) * mean
        return {
            "noise": through(torch.linalg.inv(root(SIGMA)), left) / math.sqrt(self.noise),
            "coloured": left / math.sqrt(self.noise),
            "score": -through(torch.linalg.inv(SIGMA), left) / self.noise,
            "x0": mean,
        }[self.prediction]


PREDICTIONS = ("noise", "coloured", "score", "x0")


@pytest.mark.parametrize("name", ["ni-ddpm", "ni-smld"])
def test_the_four_parametrizations_agree_at_the_optimum(name):
    """The same estimate, the same loss and the same step, whatever the network predicts."""
    x0, eps, k = through(root(DATA), normal(3, *SHAPE)), normal(3, *SHAPE, seed=1), 400
    t, count = time(0.4), 10
    power = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[k - 1])
    variance = 1 - power
    if name == "ni-smld":
        power, variance = 1.0, (0.02 * 100 ** ((4 - 1) / (count - 1))) ** 2
    estimates, losses, steps = [], [], []
    for prediction in PREDICTIONS:
        recipe = METHODS[name](SHAPE, None, Dense(SIGMA, SHAPE), prediction=prediction)
        told = InputFeatures(prediction, power, variance)
        denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, told)
        x = math.sqrt(power) * x0 + math.sqrt(variance) * through(root(SIGMA), eps)
        estimates.append(denoiser(x, t).mean)
        torch.testing.assert_close(estimates[-1], told.clean(x), rtol=1e-8, atol=1e-8)
        losses.append(loss(denoiser, recipe.weighting, x0, t.reshape(1, 1, 1, 1), eps))
        grid = torch.tensor([0.4, 0.3], dtype=torch.float64)
        steps.append(sample(reverse(coupling.ddim(0.0)), denoiser, x, grid))
    for found in (estimates, losses, steps):
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-7, atol=1e-8)


def test_the_weighted_losses_of_the_paper():
    """(14), (16): || eps^ - eps ||^2 = || sqrt(1 - abar) L^T s + eps ||^2."""
    x0, eps, t = normal(3, *SHAPE), normal(3, *SHAPE, seed=1), time(0.4)
    power = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[399])
    x = math.sqrt(power) * x0 + math.sqrt(1 - power) * through(root(SIGMA), eps)
    guess = InputFeatures("score", power, 1 - power)(x, torch.zeros(3))
    expected = math.sqrt(1 - power) * through(root(SIGMA), guess) + eps
    recipe = METHODS["ni-ddpm"](SHAPE, None, Dense(SIGMA, SHAPE), prediction="score")
    denoiser = NetworkDenoiser(
        recipe.process, recipe.parametrization, InputFeatures("score", power, 1 - power)
    )
    found = loss(denoiser, recipe.weighting, x0, t.reshape(1, 1, 1, 1), eps)
    torch.testing.assert_close(found, expected.square().flatten(1).mean(1))


def test_ddim():
    """(20), (21): x_{t-1} = sqrt(abar') x_0^ + sqrt(1 - abar') L eps^."""
    recipe = METHODS["ni-ddpm"](SHAPE, None, Dense(SIGMA, SHAPE))
    powers, x = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), normal(3, *SHAPE)
    now, before = float(powers[599]), float(powers[499])
    told = InputFeatures("noise", now, 1 - now)
    grid = torch.tensor([0.6, 0.5], dtype=torch.float64)
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, told)
    found = sample(reverse(coupling.ddim(0.0)), denoiser, x, grid)
    eps = through(root(SIGMA), told(x, torch.zeros(3)))
    clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
    expected = math.sqrt(before) * clean + math.sqrt(1 - before) * eps
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_expected_denoised_sample():
    """x_0* = (x + (1 - abar) Sigma s) / sqrt(abar), with the root that Eq. 9 lacks."""
    recipe = METHODS["ni-ddpm"](SHAPE, None, Dense(SIGMA, SHAPE), prediction="score")
    power = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[599])
    told, x = InputFeatures("score", power, 1 - power), normal(3, *SHAPE)
    found = NetworkDenoiser(recipe.process, recipe.parametrization, told)(x, time(0.6)).mean
    score = told(x, torch.zeros(3))
    expected = (x + (1 - power) * through(SIGMA, score)) / math.sqrt(power)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_consistent_annealed_sampling():
    """x + eta sigma_i^2 Sigma s + beta sigma_{i+1} L z, beta^2 = 1 - (1 - eta)^2 / gamma^2."""
    recipe = METHODS["ni-smld"](SHAPE, None, Dense(SIGMA, SHAPE), prediction="score")
    high, low, eta = 0.02 * 100 ** (5 / 9), 0.02 * 100 ** (4 / 9), 0.7
    told, x, z = InputFeatures("score", 1.0, high**2), normal(3, *SHAPE), normal(3, *SHAPE, seed=2)
    grid = torch.tensor([0.6, 0.5], dtype=torch.float64)
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, told)
    found = sample(reverse(coupling.annealed(eta)), denoiser, x, grid, lambda _: z)
    beta = math.sqrt(1 - (1 - eta) ** 2 / (low / high) ** 2)
    expected = x + eta * high**2 * through(SIGMA, told(x, torch.zeros(3)))
    expected = expected + beta * low * through(root(SIGMA), z)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_marginals_of_the_sdes():
    """NIVP: mean e^{-B/2}, covariance (1 - e^{-B}) Sigma; NIVE: sigma_t^2 Sigma, by quadrature."""
    beta = lambda u: 0.1 + 19.9 * u  # noqa: E731
    level = lambda u: (0.02 * 100 ** ((10 * u - 1) / 9)) ** 2  # noqa: E731
    rate = lambda u: (level(u + 1e-6) - level(u - 1e-6)) / 2e-6  # noqa: E731
    vp = METHODS["ni-ddpm"](SHAPE, None, Dense(SIGMA, SHAPE), chain="sde").process
    ve = METHODS["ni-smld"](SHAPE, None, Dense(SIGMA, SHAPE), sde=True).process
    for t in (0.2, 0.7):
        total = scipy.integrate.quad(beta, 0, t)[0]
        signal, noise = matrix(vp.signal.at(time(t)), SHAPE), matrix(vp.noise.at(time(t)), SHAPE)
        eye = torch.eye(N, dtype=torch.float64)
        torch.testing.assert_close(signal, math.exp(-total / 2) * eye)
        torch.testing.assert_close(noise @ noise.T, -math.expm1(-total) * SIGMA)
        # dx = sqrt(d sigma^2 / dt) L dw from the first level on.
        grown = level(0.1) + scipy.integrate.quad(rate, 0.1, t)[0]
        noise = matrix(ve.noise.at(time(t)), SHAPE)
        torch.testing.assert_close(noise @ noise.T, grown * SIGMA, rtol=1e-6, atol=1e-9)
