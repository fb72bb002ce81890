"""Laws of estimates and parametrizations."""

import math

import pytest
import torch
from torch import Tensor, nn

from cases import (
    PARAMETRIZATIONS,
    PROCESSES,
    SHAPE,
    Toy,
    Zero,
    basis_of,
    diagonal_cov,
    matrix,
    normal,
    spd,
    time,
)
from sfumato.algebra import Dense, Diagonal, dct, scaled, zero
from sfumato.corruption.coupling import ddim
from sfumato.corruption.families import Fixed, Heat, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Geometric
from sfumato.estimation.denoise import Denoiser, Estimate, NetworkDenoiser
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import noise, velocity, wiener, x0
from sfumato.sampling.flow import EULER, flow
from sfumato.sampling.kernels import reverse
from sfumato.sampling.sample import sample

N = math.prod(SHAPE)
PRESERVING = ["vp"]
"""Processes of PROCESSES with C_t^2 + V_t = I."""
PAIRS = [
    (name, process)
    for name in PARAMETRIZATIONS
    for process in PROCESSES
    if name != "velocity" or process in PRESERVING
]
over_pairs = pytest.mark.parametrize(("name", "process"), PAIRS)


class Fixedly(nn.Module):
    """A backbone whose output is known beforehand."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.output


class Best(nn.Module):
    """The best output of a parametrization's network: F = out^-1 (of x_0^ - skip x), x_0^ exact."""

    def __init__(self, denoiser: Denoiser, oracle: nn.Module) -> None:
        super().__init__()
        self.parametrization, self.process = denoiser.parametrization, denoiser.process
        self.oracle = oracle

    def forward(self, inner: Tensor, label: Tensor) -> Tensor:
        t = label.reshape(-1, *(1,) * (inner.ndim - 1))
        pre = self.parametrization(self.process, t)
        x = pre.inp.inv()(inner)
        return pre.out.inv()(pre.of(self.oracle(x, label)) - pre.skip(x))


def best(process: Process, name: str) -> Denoiser:
    """The exact denoiser of one data set, told through one parametrization."""
    oracle = gaussian(process, normal(*SHAPE, seed=1), diagonal_cov(basis_of(process)))
    denoiser = NetworkDenoiser(process, PARAMETRIZATIONS[name], Zero())
    return NetworkDenoiser(process, PARAMETRIZATIONS[name], Best(denoiser, oracle))


@over_pairs
def test_target_to_estimate_to_target(name, process):
    """F -> x_0^ = of^-1 (skip x + out F) -> F = out^-1 (of x_0^ - skip x)."""
    process, x, output = PROCESSES[process], normal(3, *SHAPE), normal(3, *SHAPE, seed=1)
    denoiser, t = NetworkDenoiser(process, PARAMETRIZATIONS[name], Fixedly(output)), time(0.4)
    pre = denoiser.parametrization(process, t)
    back = pre.out.inv()(pre.of(denoiser(x, t).mean) - pre.skip(x))
    torch.testing.assert_close(back, output, rtol=1e-9, atol=1e-9)


@over_pairs
def test_what_the_network_is_asked(name, process):
    """Handed the true target the estimate is x_0: targets re-typed from the papers."""
    process, t = PROCESSES[process], time(0.4)
    x0, eps = normal(3, *SHAPE), normal(3, *SHAPE, seed=1)
    x, signal, level = process.corrupt(x0, t, eps), process.signal.at(t), process.noise.at(t)
    sigma2 = matrix(level) @ matrix(level)
    total = 0.25 * matrix(signal) @ matrix(signal) + sigma2
    deviation = torch.linalg.inv(0.25 * sigma2 @ torch.linalg.inv(total))
    values, vectors = torch.linalg.eigh((deviation + deviation.T) / 2)
    white = vectors @ values.sqrt().diag() @ vectors.T
    guess = x.flatten(1) @ (0.25 * matrix(signal) @ torch.linalg.inv(total)).T
    target = {
        "x0": x0,
        "residual": x0 - x,
        "noise": eps,
        "score": process.score(x, x0, t),
        "coloured": level(eps) / (0.1 + 0.4 * 0.8),
        "velocity": signal(eps) - level(x0),
        "wiener": ((x0.flatten(1) - guess) @ white.T).reshape(x.shape),
    }[name]
    found = NetworkDenoiser(process, PARAMETRIZATIONS[name], Fixedly(target))(x, t).mean
    torch.testing.assert_close(found, x0, rtol=1e-8, atol=1e-8)


@over_pairs
def test_parametrizations_agree_at_the_optimum(name, process):
    """The exact denoiser is the same estimate, step and flow, however the network is asked."""
    kernels = [reverse(ddim(0.0)), *([flow(EULER)] if process in ("vp", "blurring") else [])]
    process, grid = PROCESSES[process], torch.tensor([0.6, 0.4, 0.0])
    told, direct = best(process, name), best(process, "x0")
    x = normal(3, *SHAPE)
    for t in (time(0.05), time(0.5), torch.tensor([0.1, 0.4, 0.7]).double().reshape(3, 1, 1, 1)):
        found, expected = told(x, t).mean, direct(x, t).mean
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    for kernel in kernels:
        found, expected = (sample(kernel, denoiser, x, grid) for denoiser in (told, direct))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@over_pairs
def test_times_of_their_own_equal_single_times(name, process):
    """(B, 1, 1, 1) times give each sample what one time would."""
    denoiser = NetworkDenoiser(PROCESSES[process], PARAMETRIZATIONS[name], Toy())
    x, times = normal(3, *SHAPE), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = denoiser(x, times.reshape(3, 1, 1, 1)).mean
    for row, t, found in zip(x, times, together, strict=True):
        torch.testing.assert_close(found, denoiser(row[None], t).mean[0])


@over_pairs
def test_labels_tell_times_apart(name, process):
    """The label is injective on a grid of 1000 times, in float32 too."""
    times = torch.linspace(0.001, 1, 1000, dtype=torch.float64).reshape(-1, 1, 1, 1)
    label = PARAMETRIZATIONS[name](PROCESSES[process], times).label
    assert label.numel() == 1000
    assert len(label.float().unique()) == 1000


@pytest.mark.parametrize("process", PROCESSES)
def test_wiener_is_whitened(process):
    """For data N(0, S), input and target have unit variance, and F = 0 is exact."""
    process = PROCESSES[process]
    cov, t = diagonal_cov(basis_of(process)), time(0.4)
    pre = wiener(cov)(process, t)
    signal, spread, level = matrix(process.signal.at(t)), matrix(cov), matrix(process.cov(t))
    total = signal @ spread @ signal.T + level
    gain = spread @ signal.T @ torch.linalg.inv(total)
    left = spread - gain @ signal @ spread  # Cov[x_0 | x_t]
    eye = torch.eye(N, dtype=torch.float64)
    inp, back = matrix(pre.inp), torch.linalg.inv(matrix(pre.out))
    torch.testing.assert_close(inp @ total @ inp.T, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(back @ left @ back.T, eye, rtol=0, atol=1e-7)
    torch.testing.assert_close(matrix(pre.skip), gain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 30.0])
def test_wiener_is_edm(sigma):
    """1.10 for C = I: c_skip, c_out and c_in of EDM's networks with sigma_data = 1/2."""
    pre = wiener(scaled(0.25))(Process(Scale(Constant(1.0)), Scale(Constant(sigma))), time(0.3))
    total = sigma**2 + 0.5**2
    expected = 0.5**2 / total, sigma * 0.5 / total**0.5, 1 / total**0.5
    found = [float(op.gain) for op in (pre.skip, pre.out, pre.inp)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_wiener_asks_prior_deviations_of_what_is_gone():
    """Where the process removed a coefficient entirely, skip = 0 and out is the prior deviation."""
    hidden = Diagonal(torch.tensor([0.0, -math.inf]).double(), None, dct(2))
    pre = wiener(scaled(0.09))(Process(Fixed(hidden), Scale(Constant(0.4))), time(0.5))
    torch.testing.assert_close(pre.out.gain[1], time(0.3))
    assert pre.skip.gain[1] == 0


@pytest.mark.parametrize("process", [name for name in PROCESSES if name not in PRESERVING])
def test_velocity_is_refused_where_variance_is_not_preserved(process):
    sentence = "velocity parametrization needs C_t.2 . V_t = I, a variance-preserving process. Use"
    with pytest.raises(ValueError, match=sentence):
        NetworkDenoiser(PROCESSES[process], velocity, Toy())(normal(2, *SHAPE), time(0.5))


@pytest.mark.parametrize("log_gain", [-2000.0, -700.0, -3.0])
def test_estimates_pass_through_gains_that_underflow(log_gain):
    """op of^-1 is a difference of logs: C = e^-2000 takes one of C x_0 to C_s x_0 exactly."""
    basis, value = dct(4, 5), normal(2, *SHAPE)
    slope = torch.linspace(0, 1, 20, dtype=torch.float64).reshape(4, 5)
    of = Diagonal(log_gain + slope, None, basis)
    op = Diagonal(log_gain + 2 * slope + 0.3, None, basis)
    found = Estimate((value,), (of.inv(),)).through(op)
    expected = basis.synthesize((slope + 0.3).exp() * basis.analyze(value))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_noise_prediction_survives_a_blur_that_underflows():
    """A ddim step at gains below 10^-200 stays finite under noise prediction, and is right."""
    process = Process(Heat(Geometric(0.3, 30.0), dct(4, 5)), Scale(Constant(0.1)))
    x, t, s = normal(2, *SHAPE), time(0.9), time(0.899)
    assert float(process.signal.at(t).gain.min()) < 1e-200
    eps = Toy()(x, t.expand(2))
    step = sample(
        reverse(ddim(0.0)), NetworkDenoiser(process, noise, Toy()), x, torch.stack([t, s])
    )
    ratio = Diagonal(process.signal.at(s).log_gain - process.signal.at(t).log_gain, None, dct(4, 5))
    expected = ratio(x - 0.1 * eps) + 0.1 * eps
    torch.testing.assert_close(step, expected, rtol=1e-7, atol=1e-7)


def test_shares_of_an_estimate_are_summed():
    """x_0^ = sum of M value, and so for any operator asked through."""
    values = normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    maps = scaled(2.0), Dense(spd(N), SHAPE)
    estimate = Estimate(values, maps)
    expected = 2 * values[0] + maps[1](values[1])
    torch.testing.assert_close(estimate.mean, expected)
    op = Dense(spd(N, seed=2), SHAPE)
    torch.testing.assert_close(estimate.through(op), op(expected))


class Recorder(nn.Module):
    """A backbone that keeps what it was told."""

    def forward(self, x: Tensor, label: Tensor, **cond: object) -> Tensor:
        self.label, self.cond = label, cond
        return x


@pytest.mark.parametrize(
    "t", [time(0.25), torch.full((3, 1, 1, 1), 0.25).double()], ids=["one", "each"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backbones_get_one_label_a_sample(t, dtype):
    """label (B,) in the dtype of x; conditions as they are given in the call."""
    backbone = Recorder()
    denoiser = NetworkDenoiser(PROCESSES["vp"], x0, backbone)
    out = denoiser(normal(3, *SHAPE).to(dtype), t, style=1, kind=2).mean
    assert out.dtype == backbone.label.dtype == dtype
    assert backbone.label.tolist() == [0.25] * 3
    assert backbone.cond == {"style": 1, "kind": 2}
    denoiser(normal(3, *SHAPE), t)
    assert backbone.cond == {}


def test_nothing_is_estimated_of_what_is_gone():
    """Under a hard zero of C_t a noise prediction says nothing of a coefficient: x_0^ = 0."""
    process = Process(Fixed(zero()), Scale(Constant(1.0)))
    mean = NetworkDenoiser(process, noise, Toy())(normal(2, *SHAPE), time(0.5)).mean
    assert torch.equal(mean, torch.zeros(2, *SHAPE, dtype=torch.float64))
