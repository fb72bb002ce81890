"""deepinv's operators as ours and our denoisers as theirs, by stand-ins with their interface."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sfumato as sf
from cases import normal
from sfumato.algebra import identity
from sfumato.config import Config

SHAPE = (1, 4, 5)


class GaussianNoise(nn.Module):
    def __init__(self, sigma):
        super().__init__()
        self.register_buffer("sigma", torch.tensor(sigma))


class PoissonNoise(nn.Module):
    gain = 1.0


class Physics(nn.Module):
    """A matrix in single precision on batches (B, *shape), as `deepinv.physics` has them."""

    def __init__(self, matrix, shape=SHAPE, out=None, noise=None):
        super().__init__()
        self.register_buffer("matrix", matrix.float())
        self.img_size, self.noise_model = shape, noise
        self.out = (1, 1, len(matrix)) if out is None else out

    def A(self, x):
        return (x.flatten(1) @ self.matrix.T).reshape(-1, *self.out)

    def A_adjoint(self, y):
        return (y.flatten(1) @ self.matrix).reshape(-1, *self.img_size)


WIDE = normal(7, 20, seed=1).float().double()
SQUARE = normal(20, 20, seed=2).float().double() / 20


def test_an_operator_is_the_dense_matrix_and_its_transpose():
    found = sf.from_deepinv(Physics(WIDE, noise=GaussianNoise(0.05)))
    assert repr(found.operator) == "MatrixFree(Physics)"
    assert found.shape == SHAPE and found.noise == pytest.approx(0.1)
    torch.testing.assert_close(found.operator.matrix(SHAPE), WIDE, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.operator.T.matrix((1, 1, 7)), WIDE.T, rtol=0, atol=1e-6)
    x = normal(2, 3, *SHAPE, seed=3)
    expected = (x.flatten(2) @ WIDE.T).reshape(2 * 3, 7)
    torch.testing.assert_close(
        found.operator(x.flatten(0, 1)).flatten(1), expected, rtol=0, atol=1e-5
    )
    assert found.operator(x.flatten(0, 1)).dtype == torch.float64


def test_a_measurement_of_theirs_is_one_of_images_from_minus_one_to_one():
    found = sf.from_deepinv(Physics(WIDE))
    theirs = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    y, ours = (x.flatten(1) @ WIDE.float().T for x in (theirs, 2 * theirs - 1))
    y, ours = y.reshape(3, 1, 1, 7), ours.reshape(3, 1, 1, 7)
    torch.testing.assert_close(found.read(y), ours, rtol=0, atol=1e-5)
    with pytest.raises(sf.Refused, match="got y of shape"):
        found.read(y[..., :3])


def test_the_family_goes_from_identity_to_the_operator():
    family = sf.from_deepinv(Physics(SQUARE, out=SHAPE)).family()
    eye = torch.eye(20, dtype=torch.float64)
    for t in (0.0, 0.3, 1.0):
        found = family.at(torch.tensor(t, dtype=torch.float64)).matrix(SHAPE)
        torch.testing.assert_close(found, (1 - t) * eye + t * SQUARE, rtol=0, atol=1e-6)


def test_an_operator_that_changes_the_shape_corrupts_by_its_backprojection():
    family = sf.from_deepinv(Physics(WIDE)).family(sf.schedules.Linear(0.0, 0.5))
    normal_matrix = WIDE.T @ WIDE / torch.linalg.matrix_norm(WIDE, 2) ** 2
    eye = torch.eye(20, dtype=torch.float64)
    found = family.at(torch.tensor(1.0, dtype=torch.float64)).matrix(SHAPE)
    torch.testing.assert_close(found, (eye + normal_matrix) / 2, rtol=0, atol=1e-3)


def test_a_process_of_a_physics_trains_and_samples():
    process = sf.Process(
        sf.from_deepinv(Physics(SQUARE, out=SHAPE)).family(),
        sf.families.Scale(sf.schedules.Geometric(0.05, 0.3)),
    )
    x0, t = normal(4, *SHAPE).float(), torch.rand(4, 1, 1, 1)
    backbone = nn.Module()
    backbone.forward = lambda x, label: x
    denoiser = sf.NetworkDenoiser(process, sf.predictions.residual, backbone)
    found = sf.loss(denoiser, sf.weightings.simple, x0, t, torch.randn_like(x0))
    assert found.shape == (4,) and bool(found.isfinite().all())
    kernel = sf.kernels.reverse(sf.couplings.momentum)
    x = sf.sample(kernel, denoiser, x0, sf.grids.uniform_grid(3))
    assert x.shape == x0.shape and bool(x.isfinite().all())


@pytest.mark.parametrize(
    ("physics", "sentence"),
    [
        (type("Phase", (), {"A": lambda self, x: x.abs(), "img_size": SHAPE})(), "no A_adjoint"),
        (Physics(WIDE, None), r"shape=\(C, H, W\)"),
        (Physics(WIDE, (1, 3, 3)), "does not take real signals of shape"),
        (Physics(WIDE, noise=PoissonNoise()), "needs Gaussian noise"),
        (Physics(WIDE, noise=GaussianNoise([0.1, 0.2])), "needs Gaussian noise"),
    ],
)
def test_what_is_no_operator_is_refused_in_one_line(physics, sentence):
    with pytest.raises(sf.Refused, match=sentence) as error:
        sf.from_deepinv(physics)
    assert "\n" not in str(error.value)


def fails(y):
    raise ValueError("no such signal\nat all")


@pytest.mark.parametrize(
    ("apply", "sentence"),
    [
        (fails, "does not take real signals of shape .*: no such signal$"),
        (torch.square, "is not linear"),
        (lambda y: y + 1, "is not linear"),
        (lambda y: [y], "measures list"),
        (lambda y: y.to(torch.complex64), "measures complex numbers"),
        (lambda y: 2 * y, "transpose"),
    ],
)
def test_what_is_not_linear_is_refused_in_one_line(apply, sentence):
    physics = Physics(WIDE)
    linear = physics.A
    physics.A = lambda x: apply(linear(x))
    with pytest.raises(sf.Refused, match=sentence) as error:
        sf.from_deepinv(physics)
    assert "\n" not in str(error.value)


def model_of(method):
    """A model without training, whose network is not asked for anything."""
    return sf.Model(Config(method, sf.Record("none", (1, 8, 8))), backbone=nn.Identity())


def exact(model):
    """The denoiser of data N(0, I), which is N(1/2, 1/4) in [0, 1]."""
    process, zero = model.recipe.process, torch.zeros(model.shape, dtype=torch.float64)
    return sf.NetworkDenoiser(
        process, sf.predictions.x0, sf.oracles.gaussian(process, zero, identity())
    )


@pytest.mark.parametrize("method", ["ddpm", "ve", "edm"])
def test_a_denoiser_is_the_posterior_mean_of_white_noise(method):
    """For data N(1/2, 1/4) it is 1/2 + (x - 1/2) / (1 + 4 sigma^2), one sigma for each image."""
    model = model_of(method)
    denoiser = sf.to_deepinv_denoiser(model)
    denoiser.denoiser = exact(model)
    x = torch.rand(3, *model.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.1, torch.tensor(0.7), torch.tensor([0.02, 0.5, 3.0])):
        level = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
        expected = 0.5 + (x - 0.5) / (1 + 4 * level**2)
        torch.testing.assert_close(denoiser(x, sigma, physics=None), expected, rtol=0, atol=1e-5)


def test_a_denoiser_is_differentiable():
    denoiser = sf.to_deepinv_denoiser(model := model_of("ddpm"))
    denoiser.denoiser = exact(model)
    x = torch.rand(2, *model.shape, requires_grad=True)
    (slope,) = torch.autograd.grad(denoiser(x, 0.5).sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, 0.5), rtol=0, atol=1e-5)


def test_a_denoiser_refuses_what_its_model_does_not_know():
    with pytest.raises(sf.Refused, match="soft corrupts otherwise"):
        sf.to_deepinv_denoiser(model_of("soft"))
    denoiser = sf.to_deepinv_denoiser(model_of("ddpm"))
    x = torch.zeros(2, 1, 8, 8)
    for sigma, sentence in ((1e4, "denoises sigma from 0"), (-0.1, "from 0"), ([1, 1, 1], "got 3")):
        with pytest.raises(sf.Refused, match=sentence):
            denoiser(x, sigma)
