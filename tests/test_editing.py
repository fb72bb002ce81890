"""Laws of editing: the flow along a rising grid, its inverse, and what is done at x_1."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.spatial
import torch
from torch import Tensor, nn

import sfumato as sf
from cases import (
    PROCESSES,
    SHAPE,
    Bimodal,
    N,
    basis_of,
    diagonal_cov,
    exact,
    marginal,
    normal,
    spd,
    time,
)
from sfumato import editing
from sfumato.algebra import Dense, Diagonal, Operator
from sfumato.corruption import coupling
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import measure
from sfumato.errors import Refused
from sfumato.estimation.denoise import flow_velocity
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import x0 as predicted_x0
from sfumato.methods.recipe import Recipe
from sfumato.sampling import sample as loop
from sfumato.sampling.flow import HEUN, RK4, dopri5, flow
from sfumato.sampling.kernels import Kernel, reverse
from sfumato.sampling.sample import sample, uniform_grid
from sfumato.sampling.samplers import KERNELS, Sampler

DDIM = reverse(coupling.ddim())
ORDERS: dict[str, tuple[Kernel, int]] = {
    "ddim": (DDIM, 1),
    "heun": (flow(HEUN), 2),
    "rk4": (flow(RK4), 4),
}
FIRST = 0.3
"""Where encoding begins: after the knee of the noise of `soft`, where no order holds."""
each_process = pytest.mark.parametrize("process", PROCESSES)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def carried(process: Process, x: Tensor, mean: Tensor, cov: Diagonal, t: float, s: float) -> Tensor:
    """The flow of N(mean, cov), retyped: C_s m + M_s^1/2 M_t^-1/2 (x - C_t m)."""
    basis = basis_of(process)
    u, centre = basis.analyze(x), basis.analyze(mean)
    now, then = (process.signal.at(time(a)).gain for a in (t, s))
    ratio = (marginal(process, cov, s) / marginal(process, cov, t)).sqrt()
    return basis.synthesize(then * centre + ratio * (u - now * centre))


@pytest.mark.parametrize("name", ORDERS)
@each_process
def test_encoding_tends_to_the_exact_flow_at_the_order_of_the_kernel(process, name):
    process = PROCESSES[process]
    kernel, order = ORDERS[name]
    mean, cov = normal(*SHAPE, seed=7), diagonal_cov(basis_of(process))
    x = normal(3, *SHAPE)
    expected = carried(process, x, mean, cov, FIRST, 1.0)
    scale = expected.abs().max()
    denoiser = exact(process, mean, cov)
    errors = []
    for steps in (40, 80):
        found = sample(kernel, denoiser, x, uniform_grid(steps, 1.0, FIRST).flip(0))
        errors.append(float((found - expected).abs().max() / scale))
    assert errors[1] < 0.05
    assert errors[1] < 1e-9 or np.log2(errors[0] / errors[1]) > order - 0.35


@each_process
def test_the_adaptive_solver_agrees_with_scipy_and_with_the_quantiles(process):
    """Of data that are not Gaussian: one coefficient has two modes."""
    process = PROCESSES[process]
    data = Bimodal(process)
    denoiser = sf.NetworkDenoiser(process, predicted_x0, data.oracle())
    x = 0.3 * normal(1, *SHAPE)
    found = sample(dopri5(1e-7, 1e-7), denoiser, x, times(FIRST, 1.0))

    def rate(t: float, y: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(y).reshape(1, *SHAPE)
        return flow_velocity(denoiser, now, time(t)).detach().numpy().ravel()

    start = x.numpy().ravel()
    other = scipy.integrate.solve_ivp(rate, (FIRST, 1.0), start, "DOP853", rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(found.numpy().ravel(), other.y[:, -1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, data.flow(x, FIRST, 1.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lifts", [0, 1, 6])
@each_process
def test_a_grid_from_0_begins_with_the_signal_whose_estimate_is_given(process, lifts, monkeypatch):
    """Up to (V_t / M_t)^(k + 1) of each coefficient after k iterations."""
    monkeypatch.setattr(loop, "LIFTS", lifts)
    process = PROCESSES[process]
    basis = basis_of(process)
    mean, cov = normal(*SHAPE, seed=7), diagonal_cov(basis)
    denoiser, x0, t = exact(process, mean, cov), normal(2, *SHAPE), 0.05
    lifted = sample(DDIM, denoiser, x0, times(0.0, t))
    left = basis.analyze(x0 - denoiser(lifted, time(t)).mean)
    share = process.noise.at(time(t)).gain ** 2 / marginal(process, cov, t)
    expected = share ** (lifts + 1) * basis.analyze(x0 - mean)
    torch.testing.assert_close(left, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "soft", "blurring", "coloured"])
def test_a_round_trip_returns_the_signal_under_a_general_covariance(process):
    """To 1e-3 at 100 steps of Heun, of the signal's deviation 1."""
    process = PROCESSES[process]
    denoiser = exact(process, normal(*SHAPE, seed=7), Dense(spd(N), SHAPE))
    x0, grid = normal(2, *SHAPE), uniform_grid(100)
    x1 = sample(flow(HEUN), denoiser, x0, grid.flip(0))
    back = sample(flow(HEUN), denoiser, x1, grid)
    assert float((back - x0).abs().max()) < 1e-3


@pytest.mark.parametrize("name", KERNELS)
def test_only_deterministic_kernels_run_backwards(name):
    process = PROCESSES["vp"]
    kernel = Sampler(name).kernel
    denoiser = exact(process, normal(*SHAPE), diagonal_cov(basis_of(process)))
    rising = uniform_grid(2, 0.5, 0.2).flip(0)
    if name in ("ddim", "euler", "heun", "rk4", "dopri5"):
        assert sample(kernel, denoiser, normal(1, *SHAPE), rising).isfinite().all()
        return
    with pytest.raises(ValueError, match="only a deterministic sampler can be run backwards: ddim"):
        sample(kernel, denoiser, normal(1, *SHAPE), rising)


def test_ddim_with_fresh_noise_does_not_run_backwards():
    process = PROCESSES["vp"]
    denoiser = exact(process, normal(*SHAPE), diagonal_cov(basis_of(process)))
    with pytest.raises(ValueError, match="deterministic"):
        sample(reverse(coupling.ddim(0.5)), denoiser, normal(1, *SHAPE), times(0.2, 1))


# A model whose estimates are exact: its backbone is a Gaussian's posterior mean for each class.


class Exact(nn.Module):
    """E[x_0 | x_t, class] of a Gaussian for each class."""

    def __init__(self, process: Process, means: Tensor, covs: list[Operator]) -> None:
        super().__init__()
        pairs = zip(means, covs, strict=True)
        self.laws = nn.ModuleList(gaussian(process, mean, cov) for mean, cov in pairs)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        x = x.double()
        every = torch.stack([law(x, label.double()) for law in self.laws])
        rows = torch.zeros(len(x), dtype=torch.int64) if classes is None else classes
        return every[rows, torch.arange(len(x))]


def made(process: Process, means: Tensor, covs: list[Operator]) -> sf.Model:
    """A model of one class for each mean, or without classes where there is one."""
    several = len(means) > 1
    names = tuple(f"class {i}" for i in range(len(means))) if several else None

    def method(shape, stats=None) -> Recipe:
        return Recipe(
            process,
            predicted_x0,
            sf.weightings.unweighted,
            Sampler("ancestral", 10),
            sf.priors.fitted(stats, process),
            "none",
        )

    record = sf.Record("x", SHAPE, -1.0, 1.0, names, 4096)
    data = torch.cat(
        [
            mean + cov.sqrt()(normal(2048, *SHAPE, seed=5))
            for mean, cov in zip(means, covs, strict=True)
        ]
    )
    config = sf.Config("own.py:method", record, network=None, conditional=several)
    stats = measure([data], SHAPE)
    backbone = Exact(process, means, covs)
    model = sf.Model(config, stats, backbone, method)
    return model


@pytest.fixture(params=["vp", "soft", "blurring", "coloured"])
def pair(request) -> tuple[sf.Model, Tensor, list[Diagonal]]:
    """A model of two classes, their means and covariances."""
    process = PROCESSES[request.param]
    cov = diagonal_cov(basis_of(process))
    covs = [cov, Diagonal(cov.log_gain - 1 + torch.rand(cov.log_gain.shape), None, cov.basis)]
    means = 0.5 * normal(2, *SHAPE, seed=3)
    return made(process, means, covs), means, covs


def test_a_change_of_class_is_the_affine_map_between_two_gaussians(pair):
    """The mean becomes the other's where x_1 is the same: both maps, one after the other."""
    model, means, covs = pair
    process = model.recipe.process
    x0 = (means[0] + covs[0].sqrt()(normal(2, *SHAPE))).float()
    x1 = sf.encode(model, x0, [0, 0])
    found = sf.decode(model, x1, [1, 1])
    up = carried(process, x0.double(), means[0], covs[0], 1e-6, 1.0)
    expected = carried(process, up, means[1], covs[1], 1.0, 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(sf.decode(model, x1, [0, 0]), x0, rtol=0, atol=1e-3)


def test_decoding_is_sampling_from_a_given_start(pair):
    model, _, _ = pair
    sampler = Sampler("heun", 6)
    drawn = model.sample([4, 5, 6], sampler, [0, 1, 0], batch=2)
    assert torch.equal(
        sf.decode(model, model.start([4, 5, 6], [0, 1, 0]), [0, 1, 0], sampler), drawn
    )


def test_an_interpolation_goes_from_image_to_image_between_their_norms():
    process = PROCESSES["soft"]
    cov = diagonal_cov(basis_of(process))
    model = made(process, normal(1, *SHAPE, seed=3), [cov])
    a, b = normal(2, *SHAPE).float()
    frames = sf.interpolate(model, a, b, 5)
    torch.testing.assert_close(frames[[0, -1]], torch.stack([a, b]), rtol=0, atol=2e-3)
    white = editing.Whitening(model)(sf.encode(model, frames))
    norms = white.flatten(1).norm(dim=1)
    assert torch.all(norms.diff().sign() == norms.diff()[0].sign())
    torch.testing.assert_close(norms.diff(), norms.diff().mean().expand(4), rtol=0.02, atol=1e-3)


def test_data_at_time_1_are_white_after_whitening(pair):
    """Of all classes together: the mean is 0 and each coefficient has variance 1."""
    process = PROCESSES["blurring"]
    cov = diagonal_cov(basis_of(process))
    mean = normal(1, *SHAPE, seed=3)
    model = made(process, mean, [cov])
    x0 = mean + cov.sqrt()(normal(20_000, *SHAPE))
    x1 = process.corrupt(x0, 1.0, normal(20_000, *SHAPE, seed=1))
    white = editing.Whitening(model)(x1).flatten(1)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(N).double(), rtol=0, atol=0.08)
    assert float(white.mean(0).abs().max()) < 0.1
    torch.testing.assert_close(
        editing.Whitening(model).inverse(white.reshape(x1.shape)), x1, rtol=1e-9, atol=1e-9
    )


def test_a_path_on_the_sphere_is_that_of_scipy():
    a, b = normal(2, 7)
    units = (a / a.norm(), b / b.norm())
    expected = scipy.spatial.geometric_slerp(*(u.numpy() for u in units), np.linspace(0, 1, 6))
    found = editing.sphere(a, b, 6)
    lengths = torch.linspace(0, 1, 6).double() * (b.norm() - a.norm()) + a.norm()
    np.testing.assert_allclose(found.numpy(), lengths[:, None].numpy() * expected, rtol=1e-7)
    torch.testing.assert_close(editing.sphere(a, a, 3), a.expand(3, 7))
    for other, sentence in ((-a, "opposite"), (0 * a, "no direction")):
        with pytest.raises(Refused, match=sentence):
            editing.sphere(a, other, 3)


def test_edits_are_refused_where_the_flow_cannot_be_inverted():
    record = sf.Record("x", (1, 8, 8), -1.0, 1.0, None, 2)
    small = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
    x = torch.zeros(1, 1, 8, 8)
    for method, parameters, sentence in (
        ("soft-mask", {"wander": True}, "draws a corruption for each image"),
        ("cold", {}, "has no noise"),
    ):
        with pytest.raises(Refused, match=sentence):
            sf.encode(sf.Model(sf.Config(method, record, parameters, small)), x)
    model = sf.Model(sf.Config("ddpm", record, {}, small))
    for call, sentence in (
        (lambda: sf.encode(model, x, sampler="ancestral"), "only a deterministic sampler"),
        (lambda: sf.encode(model, x[..., :7]), "shape"),
        (lambda: sf.encode(model, x, [0]), "has no classes"),
        (lambda: sf.interpolate(model, x[0], x[0], 1), "2 images or more"),
    ):
        with pytest.raises(Refused, match=sentence):
            call()
