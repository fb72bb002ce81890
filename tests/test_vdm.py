"""Laws of learned schedules and of the bound that trains them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from cases import OPTIONS, Toy, normal, time, tiny
from sfumato.corruption.learned import interior
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.ends import prior_term, reconstruction
from sfumato.estimation.loss import loss
from sfumato.evaluation.likelihood import flow_bound
from sfumato.methods.vdm import vdm
from sfumato.networks.backbones import fourier_features
from sfumato.training.data import Data, Record
from sfumato.training.denoising import draw, objective
from sfumato.training.step import gradients
from sfumato.training.train import train

IMAGE = (1, 3, 4)
BINS = 5
each_kind = pytest.mark.parametrize("bands", [0, 3, 12])


def gridded(*shape: int) -> Tensor:
    """Images whose values lie on the grid of BINS values."""
    return (normal(*shape).mul(2).round().clamp(-2, 2)) / 2


def bent(recipe):
    """The same method with the paths between its ends bent, each its own way."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(recipe.process.signal.named_parameters()):
            if not name.endswith("ends"):
                rise = 6.0 if name.endswith("heights") else 0.0
                parameter += rise + 0.7 * normal(*parameter.shape, seed=i)
    return recipe


def gamma(recipe, t: float) -> np.ndarray:
    """Minus the log-SNR of each coefficient."""
    found = recipe.process.log_snr(time(t))
    return -np.broadcast_to(found.detach().numpy(), IMAGE[1:])


@each_kind
def test_the_ends_are_where_they_are_put(bands):
    recipe = bent(vdm(IMAGE, gamma=(-6.0, 3.0), bands=bands))
    np.testing.assert_allclose(gamma(recipe, 0.0), -6.0, rtol=1e-9)
    np.testing.assert_allclose(gamma(recipe, 1.0), 3.0, rtol=1e-9)
    middle = gamma(recipe, 0.4)
    assert len(np.unique(middle.round(9))) == max(1, bands)
    assert not np.allclose(middle, -6 + 0.4 * 9, atol=0.1)


@each_kind
def test_the_loss_is_the_published_one(bands):
    """gamma' || eps - eps^ ||^2 / n with eps^ = z + F, the derivative by differences."""
    recipe = bent(vdm(IMAGE, gamma=(-6.0, 3.0), bands=bands, fourier=()))
    x0, eps, t = normal(2, *IMAGE), normal(2, *IMAGE, seed=1), 0.4
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Toy())
    at = torch.full((2, 1, 1, 1), t, dtype=torch.float64)
    found = loss(denoiser, recipe.weighting, x0, at, eps)
    slope = (gamma(recipe, t + 1e-5) - gamma(recipe, t - 1e-5)) / 2e-5
    basis = recipe.process.signal.at(time(t)).basis
    analyze = (lambda y: y) if basis is None else basis.analyze
    z = recipe.process.corrupt(x0, at, eps)
    label = recipe.parametrization(recipe.process, time(t)).label
    wrong = analyze(eps - z - Toy()(z, label.expand(2))).detach().numpy()
    expected = (slope * wrong**2).mean((1, 2, 3))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)


@each_kind
def test_the_bound_depends_on_the_ends_alone(bands):
    """On N(0, s^2) data with the exact denoiser the diffusion term is (log(1 + s^2 SNR_0) -
    log(1 + s^2 SNR_1)) / 2 a coefficient, however the path between is bent."""
    recipe = bent(vdm(IMAGE, gamma=(-6.0, 3.0), bands=bands))
    variance = 0.3

    places, shares = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(300))
    t = ((places + 1) / 2).reshape(-1, 1, 1, 1)
    # W^T W times the posterior variance of x_0, the error of the exact denoiser.
    weight = recipe.weighting(recipe.process, t, t)
    error = 1 / (1 / variance + recipe.process.log_snr(t).exp())
    terms = ((2 * weight.log_gain).exp() * error).detach().expand(-1, *IMAGE).flatten(1).mean(1)
    found = float((shares * terms).sum()) / 4  # half of the integral over [0, 1]
    expected = (math.log1p(variance * math.exp(6)) - math.log1p(variance * math.exp(-3))) / 2
    assert found == pytest.approx(expected, rel=1e-6)


@each_kind
def test_prior_term_is_a_divergence(bands):
    """The KL divergence of two Gaussians, by its general formula on matrices."""
    recipe = bent(vdm(IMAGE, gamma=(-6.0, 3.0), bands=bands))
    x0 = normal(2, *IMAGE)
    alpha, var = 1 / (1 + math.exp(3.0)), 1 / (1 + math.exp(-3.0))
    square = x0.flatten(1).square().sum(1)
    expected = 0.5 * (alpha * square + 12 * var - 12 - 12 * math.log(var))
    torch.testing.assert_close(prior_term(recipe.process, x0).detach(), expected)


@each_kind
def test_reconstruction_is_a_softmax_over_the_values(bands):
    """-log p(x | z) = -log softmax_v(-(z / alpha - v)^2 e^-gamma_0 / 2) for each pixel."""
    recipe = bent(vdm(IMAGE, gamma=(-2.0, 3.0), bands=bands))
    x0, eps = gridded(2, *IMAGE), normal(2, *IMAGE, seed=1)
    found = reconstruction(recipe.process, x0, eps, BINS).detach()
    values = np.linspace(-1, 1, BINS)
    alpha, sigma = (1 / (1 + math.exp(-2.0))) ** 0.5, (1 / (1 + math.exp(2.0))) ** 0.5
    expected = []
    for image, drawn in zip(x0.numpy(), eps.numpy(), strict=True):
        total = 0.0
        for value, e in zip(image.ravel(), drawn.ravel(), strict=True):
            scores = -(((alpha * value + sigma * e) / alpha - values) ** 2) / 2 * math.exp(2.0)
            total -= scores[np.abs(values - value).argmin()] - scipy.special.logsumexp(scores)
        expected.append(total)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_bound_of_other_values_is_refused():
    recipe, x0 = vdm(IMAGE), normal(2, *IMAGE)
    with pytest.raises(ValueError, match=r"needs data of 17 evenly spaced values .* --bins 17"):
        reconstruction(recipe.process, x0, x0, 17)


def ramps(count: int) -> Data:
    """Two signals of all the values that a pixel of whole numbers 0 to count - 1 can have."""
    images = np.stack([np.arange(count), np.arange(count)[::-1]]).astype(np.uint8)[:, None]
    return Data(images, None, Record("ramps", (1, count), 0, count - 1, count=2))


@pytest.mark.parametrize("count", [256, 17, 12, 2])
def test_features_tell_the_last_bit(count):
    """Of any number of values the parity is one of the features of n = 7."""
    data = ramps(count)
    found = fourier_features(
        data.batch([0]).double(), vdm((1, count), data.stats(), fourier=(7,)).fourier
    )
    parity = np.where(np.arange(count) % 2, -1.0, 1.0)
    told = max(abs(float((wave.numpy() * parity).mean())) for wave in found)
    assert told == pytest.approx(1.0, abs=1e-4)


def test_features_are_the_published_ones():
    """sin, cos(2^f 2 pi z), f = 6, 7, of z = 2 (v + 1/2) / 256 - 1."""
    data = ramps(256)
    found = fourier_features(data.batch([0]).double(), vdm((1, 256), data.stats()).fourier)
    z = 2 * ((np.arange(256) + 0.5) / 256) - 1
    angles = [2**f * 2 * np.pi * z for f in (6, 7)]
    for wave, angle in zip(found[::2], angles, strict=True):
        np.testing.assert_allclose(wave[0, 0], np.sin(angle), atol=2e-4)
    for wave, angle in zip(found[1::2], angles, strict=True):
        np.testing.assert_allclose(wave[0, 0], np.cos(angle), atol=2e-4)


def test_the_number_of_values_is_the_datas():
    """-log p of z = x in nothing but the noise that the softmax expects, over 5 values or 17."""
    recipe = vdm((1, 5), ramps(5).stats(), gamma=(-2.0, 3.0), fourier=())
    x0 = ramps(5).batch([0])
    own = recipe.ends(recipe.process, x0, torch.zeros_like(x0))
    stated = vdm((1, 5), None, gamma=(-2.0, 3.0), fourier=(), bins=5)
    torch.testing.assert_close(own, stated.ends(stated.process, x0, torch.zeros_like(x0)))
    whole = vdm((1, 5), gamma=(-2.0, 3.0))
    with pytest.raises(ValueError, match="needs data of 256 evenly spaced values"):
        whole.ends(whole.process, x0, x0)


def test_models_from_before_values_were_counted_keep_their_features():
    """sin, cos(2^n pi x), whatever `bins` says."""
    before = ramps(17).stats()._replace(values=None)
    assert vdm((1, 17), before).fourier == vdm((1, 17), before, bins=17).fourier == (128.0, 256.0)


def test_data_that_the_bound_does_not_fit_leave_no_run(tmp_path):
    model, data = tiny("vdm", parameters={"bins": 256})
    with pytest.raises(ValueError, match="needs data of 256 evenly spaced values"):
        train(model, data, OPTIONS, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_likelihood_keeps_no_graph_of_a_learned_schedule():
    model, data = tiny("vdm", parameters={"bins": 17, "hidden": 4, "fourier": ()})
    x0 = data.batch(torch.arange(2))
    found = flow_bound(model, x0, bins=17, tolerance=0.1), model.log_prob(x0, tolerance=0.1)
    assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize("bands", [0, 64])
def test_interior_lowers_the_variance_and_ends_the_mean(bands):
    """After a step of training the gradients are those of mean(loss^2) and mean(loss + ends)."""
    options = replace(OPTIONS, batch=8, accumulate=2)
    model, data = tiny("vdm", options, parameters={"bins": 17, "bands": bands, "hidden": 4})
    recipe, process = model.recipe, model.recipe.process

    from accelerate import Accelerator

    denoiser, drawn = model.denoiser, draw(3, data, options, model)
    raw = data.raw(drawn.rows)
    _, good = gradients(3, drawn, Accelerator(cpu=True), objective(model), data, options, raw)
    assert bool(good)
    kept = {name: parameter.grad for name, parameter in process.named_parameters()}
    rows, t, eps, *_ = drawn
    x0 = data.batch(rows)
    each = loss(denoiser, recipe.weighting, x0, t, eps)
    inner = interior(process)
    mean = (each + recipe.ends(process, x0, eps)).mean()
    others = [p for p in process.parameters() if all(p is not q for q in inner)]
    for value, parameters in (((each**2).mean(), inner), (mean, others)):
        expected = torch.autograd.grad(value, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, expected, strict=True):
            (name,) = [n for n, p in process.named_parameters() if p is parameter]
            torch.testing.assert_close(kept[name], gradient, rtol=1e-4, atol=1e-6)


def test_training_the_interior_lowers_the_variance():
    """On Gaussian data with the exact denoiser, descent makes the terms of the bound equal."""
    recipe = vdm(IMAGE, gamma=(-6.0, 3.0), hidden=8)
    paths = interior(recipe.process)
    optimizer = torch.optim.Adam(paths, lr=0.05)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def terms() -> Tensor:
        weight = recipe.weighting(recipe.process, t, t)
        snr = recipe.process.log_snr(t).exp()
        return (2 * weight.log_gain).exp() / (1 / 0.3 + snr)

    before = terms().detach()
    for _ in range(100):
        optimizer.zero_grad()
        (terms() ** 2).mean().backward()
        optimizer.step()
    after = terms().detach()
    assert float(after.var()) < 0.1 * float(before.var())
    assert float(after.mean()) == pytest.approx(float(before.mean()), rel=2e-3)


def test_bands_and_gamma_are_checked():
    with pytest.raises(ValueError, match="bands are from 1 to the 12 coefficients; got 13"):
        vdm(IMAGE, bands=13)
    with pytest.raises(ValueError, match="gamma rises"):
        vdm(IMAGE, gamma=(3.0, -3.0))


def test_a_learned_path_is_shared():
    """Signal and noise have one schedule: the same parameters."""
    process = vdm(IMAGE).process
    names = {id(p): n for n, p in process.named_parameters(remove_duplicate=False)}
    signal = {id(p) for p in process.signal.parameters()}
    assert signal == {id(p) for p in process.noise.parameters()} == set(names)
