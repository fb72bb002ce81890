"""Laws of likelihoods: closed forms on Gaussian data, quadrature on mixtures, entropies.

The closed forms are those of docs/mathematics.md, "Likelihood" and "Objectives and the bound".
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from cases import PROCESSES, SHAPE, Zero, basis_of, diagonal_cov, normal, time, tiny
from sfumato.algebra import Diagonal, dct, identity, scaled
from sfumato.cli import main
from sfumato.corruption import coupling
from sfumato.corruption.families import Heat, Scale
from sfumato.corruption.learned import FromGamma
from sfumato.corruption.prior import GaussianPrior
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    CosineSNR,
    Geometric,
    Schedule,
)
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.ends import discretised
from sfumato.estimation.loss import likelihood
from sfumato.estimation.oracle import Mixture, gaussian
from sfumato.estimation.predictions import wiener, x0
from sfumato.evaluation.likelihood import bound
from sfumato.methods import METHODS
from sfumato.sampling.density import log_prob
from sfumato.sampling.flow import HEUN, RK4
from sfumato.sampling.likelihood import (
    Evidence,
    bits_per_dim,
    bound_terms,
    flow_bound,
)
from sfumato.sampling.sample import Seeds, uniform_grid

N = 20
each_process = pytest.mark.parametrize("process", PROCESSES)


def law(process: Process, cov: Diagonal, t: float, mean: Tensor | None = None) -> GaussianPrior:
    """q_t of N(mean, cov) data."""
    signal = process.signal.at(time(t))
    mean = torch.zeros(SHAPE).double() if mean is None else signal(mean)
    return GaussianPrior(mean, signal @ cov @ signal.T + process.cov(time(t)))


# The flow.


@pytest.mark.parametrize(
    ("process", "solver"), [*((name, RK4) for name in PROCESSES), ("blurring", None)]
)
def test_the_flow_s_density_is_the_gaussian(process, solver):
    """log q_t0(x) to 1e-4 relative, with the exact trace."""
    process = PROCESSES[process]
    cov = diagonal_cov(basis_of(process))
    denoiser, prior = NetworkDenoiser(process, wiener(cov), Zero()), law(process, cov, 1.0)
    x = process.corrupt(cov.sqrt()(normal(2, *SHAPE)), time(0.6), normal(2, *SHAPE, seed=4))
    grid = uniform_grid(12, 1.0, 0.6)
    found = log_prob(denoiser, prior, x, grid, solver, probes=0, tolerance=1e-5)
    torch.testing.assert_close(found, law(process, cov, 0.6).log_prob(x), rtol=1e-4, atol=0)


def test_probes_in_the_basis_have_no_variance():
    """Where the drift acts on each coefficient alone, one probe is the trace."""
    process = PROCESSES["blurring"]
    cov = diagonal_cov(basis_of(process))
    denoiser, prior = NetworkDenoiser(process, wiener(cov), Zero()), law(process, cov, 1.0)
    x, grid = normal(2, *SHAPE), uniform_grid(8, 1.0, 0.3)
    exact = log_prob(denoiser, prior, x, grid, HEUN, probes=0)
    one = log_prob(denoiser, prior, x, grid, HEUN, probes=1, randn_like=Seeds([1, 2]))
    torch.testing.assert_close(one, exact, rtol=1e-9, atol=0)


def test_probes_are_right_on_average():
    """Where it mixes coefficients, the mean over 400 probes is the trace, to five deviations."""
    process = PROCESSES["vp"]
    cov = diagonal_cov(basis_of(process))
    denoiser, prior = (
        NetworkDenoiser(process, x0, gaussian(process, torch.zeros(SHAPE), cov)),
        law(process, cov, 1.0),
    )
    x, grid = normal(1, *SHAPE), uniform_grid(4, 1.0, 0.3)
    exact = float(log_prob(denoiser, prior, x, grid, HEUN, probes=0))
    seeds = Seeds(range(400))
    many = log_prob(denoiser, prior, x.expand(400, *SHAPE), grid, HEUN, 1, seeds)
    assert float(many.std()) > 1e-3
    assert abs(float(many.mean()) - exact) < 5 * float(many.std()) / 20


@pytest.mark.parametrize("shape", [(1,), (2,)], ids=["1-d", "2-d"])
def test_the_flow_s_density_of_a_mixture(shape):
    """log q_t0 of two Gaussians at points, and its integral by quadrature is 1."""
    power = CosineSNR(8.0, -8.0)
    process = Process(Scale(Amplitude(power)), Scale(Complement(power)))
    means = torch.tensor([[-0.8] * shape[0], [0.5] * shape[0]], dtype=torch.float64)
    oracle = Mixture(process, means, [scaled(0.02), scaled(0.05)], torch.tensor([0.4, 0.6]))
    denoiser, t0 = NetworkDenoiser(process, x0, oracle), 0.25
    line = torch.linspace(-4, 4, 201 if shape == (1,) else 61, dtype=torch.float64)
    x = torch.cartesian_prod(*[line] * shape[0]).reshape(-1, *shape)
    prior = GaussianPrior(torch.zeros(shape).double(), identity())
    found = log_prob(denoiser, prior, x, uniform_grid(24, 1.0, t0), RK4, probes=0)
    gain, var = (float(op.gain) for op in (process.signal.at(time(t0)), process.cov(time(t0))))
    parts = [
        weight * scipy.stats.multivariate_normal(gain * mean, gain**2 * spread + var).pdf(x)
        for weight, mean, spread in zip((0.4, 0.6), means.numpy(), (0.02, 0.05), strict=True)
    ]
    expected = np.log(sum(parts)).reshape(-1)
    near = expected > -8
    # The prior N(0, I) is e^-8 off the law of x_1.
    np.testing.assert_allclose(found.numpy()[near], expected[near], rtol=0, atol=5e-3)
    assert float(found.exp().sum()) * float(line[1] - line[0]) ** shape[0] == pytest.approx(
        1, abs=5e-3
    )


# The bound.


def gaussian_terms(
    process: Process, cov: Diagonal, grid: Tensor, count: int, draws: int | None = None, **given
):
    denoiser = NetworkDenoiser(process, wiener(cov), Zero())
    x0 = cov.sqrt()(normal(count, *SHAPE, seed=7))
    prior = law(process, cov, 1.0)

    def nothing(denoiser, x0, eps, t, deviation, bins):
        return torch.zeros(len(x0))

    evidence = Evidence(decoder=nothing, **given)
    seeds = Seeds(range(count))
    return bound_terms(denoiser, prior, x0, grid, evidence, draws=draws, randn_like=seeds)


def chain_term(process: Process, cov: Diagonal, grid: Tensor) -> float:
    """sum_k (SNR_s - SNR_t) s / (1 + s SNR_t) / 2 over coefficients."""
    snr = [process.log_snr(t).exp().expand(SHAPE[1:]) for t in grid]
    spread = cov.gain
    total = sum(
        ((after - before) * spread / (1 + spread * before)).sum() for before, after in pairwise(snr)
    )
    return float(total) / 2


@each_process
def test_the_sum_of_steps_is_the_closed_form(process):
    """Its mean over 2,000 images, to five standard errors; and the prior term's likewise."""
    process = PROCESSES[process]
    cov, grid = diagonal_cov(basis_of(process)), uniform_grid(6, 1.0, 0.3)
    found = gaussian_terms(process, cov, grid, 2000)
    error = float(found.steps.std()) / 2000**0.5
    assert abs(float(found.steps.mean()) - chain_term(process, cov, grid)) < 5 * error
    # E KL(q(x_1 | x_0) || q_1) is the mutual information, log(M / V) / 2.
    total = law(process, cov, 1.0).cov.gain
    expected = float((total / process.cov(time(1.0)).gain).log().expand(SHAPE).sum()) / 2
    error = float(found.prior.std()) / 2000**0.5
    assert abs(float(found.prior.mean()) - expected) < 5 * error + 1e-9


@each_process
def test_a_few_steps_looked_at_are_the_sum_on_average(process):
    """Two of thirty, to five standard errors, which even draws make twice as large or more."""
    process = PROCESSES[process]
    cov, grid = diagonal_cov(basis_of(process)), uniform_grid(30, 1.0, 0.3)
    steps = gaussian_terms(process, cov, grid, 2000, draws=2).steps
    expected = chain_term(process, cov, grid)
    assert abs(float(steps.mean()) - expected) < 5 * float(steps.std()) / 2000**0.5
    assert float(steps.std()) < 0.4 * expected


class Warped(Schedule):
    """gamma from -6 to 4, each coefficient bent on its own way between them."""

    def __init__(self, bends: Tensor) -> None:
        super().__init__()
        self.bends = bends

    def forward(self, t: Tensor) -> Tensor:
        return -6 + 10 * (t + self.bends * t * (1 - t))


@pytest.mark.parametrize("assumed", [1.0, 3.0], ids=["exact", "biased"])
def test_the_continuous_bound_does_not_see_the_schedule_s_interior(assumed):
    """Per coefficient too: the integral of the weighted error over t, and its closed form.

    Whatever the estimate, exact or not, as long as it knows t by the log-SNR alone.
    """
    basis, one = dct(*SHAPE[1:]), torch.ones(1, *SHAPE, dtype=torch.float64)
    cov = diagonal_cov(basis)
    ones = basis.synthesize(one)

    def continuous(bends: Tensor) -> Tensor:
        """For each coefficient, by Gauss and Legendre's rule."""
        power = FromGamma(Warped(bends))
        process = Process(Scale(Amplitude(power), basis), Scale(Complement(power), basis))
        denoiser = NetworkDenoiser(
            process, wiener(Diagonal(cov.log_gain + math.log(assumed), None, basis)), Zero()
        )
        total = torch.zeros(SHAPE, dtype=torch.float64)
        for node, share in zip(*np.polynomial.legendre.leggauss(80), strict=True):
            t = time((node + 1) / 2)
            weight = likelihood(process, t, t)
            for clean, eps in ((cov.sqrt()(ones), 0 * ones), (0 * ones, ones)):
                error = denoiser(process.corrupt(clean, t, eps), t).through(weight) - weight(clean)
                total += share / 4 * basis.analyze(error)[0].square()
        return total

    straight = continuous(torch.zeros(SHAPE[1:]).double())
    spread = torch.linspace(-0.9, 0.9, N).double().reshape(SHAPE[1:])
    torch.testing.assert_close(continuous(spread), straight, rtol=1e-6, atol=0)
    if assumed == 1.0:
        ends = [torch.log1p(cov.gain * math.exp(-gamma)) for gamma in (-6.0, 4.0)]
        torch.testing.assert_close(
            straight, ((ends[0] - ends[1]) / 2).expand(SHAPE), rtol=1e-6, atol=0
        )


@each_process
def test_the_discrete_bound_falls_to_the_continuous_one(process):
    """The gap to log((1 + s SNR_end) / (1 + s SNR_1)) / 2 halves with twice the steps."""
    process = PROCESSES[process]
    cov = diagonal_cov(basis_of(process))
    ends = [process.log_snr(time(t)).exp().expand(SHAPE[1:]) for t in (1.0, 0.3)]
    limit = float((torch.log1p(cov.gain * ends[1]) - torch.log1p(cov.gain * ends[0])).sum()) / 2
    gaps = [chain_term(process, cov, uniform_grid(n, 1.0, 0.3)) - limit for n in (200, 400)]
    assert gaps[1] > 0
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)


@each_process
@pytest.mark.parametrize("count", [1, 4])
def test_no_bound_beats_the_entropy(count, process):
    """Prior, steps and the exact -log q(x_0 | x_t1): above h(x_0), whatever the number of steps."""
    process = PROCESSES[process]
    cov, t1 = diagonal_cov(basis_of(process)), 0.3
    found = gaussian_terms(process, cov, uniform_grid(count, 1.0, t1), 4000)
    spread = law(process, cov, t1).cov.gain
    left = cov.gain * process.cov(time(t1)).gain / spread  # Var[x_0 | x_t1]
    h = lambda v: float((0.5 * (2 * math.pi * math.e * v).log()).expand(SHAPE).sum())  # noqa: E731
    total = float((found.prior + found.steps).mean()) + h(left)
    error = float((found.prior + found.steps).std()) / 4000**0.5
    assert total > h(cov.gain) - 5 * error


def test_couplings_that_lose_the_marginals_are_refused():
    with pytest.raises(ValueError, match="keeps the marginals"):
        gaussian_terms(
            PROCESSES["ve"],
            diagonal_cov(basis_of(PROCESSES["ve"])),
            uniform_grid(3, 1.0, 0.3),
            2,
            forward=coupling.momentum,
        )


def test_ihdm_s_divergence():
    """KL(N(a, sigma^2) || N(b, delta^2)) per level: |a - b|^2 / 2 delta^2 + the constants."""
    blur = Geometric(0.3, 3.0, zero_at_start=True)
    basis = basis_of(PROCESSES["soft"])
    process, cov = Process(Heat(blur, basis), Scale(Constant(0.02))), diagonal_cov(basis)
    denoiser, x0 = NetworkDenoiser(process, wiener(cov), Zero()), normal(3, *SHAPE)
    grid, delta = torch.tensor([1.0, 0.6], dtype=torch.float64), 0.025
    evidence = Evidence(coupling.naive, coupling.ihdm(delta))
    eps = normal(3, *SHAPE, seed=5)
    found = bound_terms(
        denoiser,
        law(process, cov, 1.0),
        x0.clamp(-1, 1).mul(8).round() / 8,
        grid,
        evidence,
        bins=17,
        randn_like=lambda x: eps,
    )
    x0 = x0.clamp(-1, 1).mul(8).round() / 8
    guess = denoiser(process.corrupt(x0, grid[0], eps), grid[0]).mean
    off = process.signal.at(grid[1])(x0 - guess).flatten(1).square().sum(1)
    ratio = (0.02 / delta) ** 2
    expected = off / (2 * delta**2) + N * (ratio - 1 - math.log(ratio)) / 2
    torch.testing.assert_close(found.steps, expected)


def test_the_decoder_is_a_discretised_gaussian():
    """Each cell's probability by scipy, the first and last open; they sum to 1."""
    process = PROCESSES["ve"]
    cov = diagonal_cov(basis_of(process))
    denoiser, bins, t = NetworkDenoiser(process, wiener(cov), Zero()), 5, time(0.2)
    eps, scale = normal(1, *SHAPE, seed=3), 0.25
    image = torch.randint(0, 5, (1, *SHAPE), generator=torch.Generator().manual_seed(0))
    x0 = image.double() / 2 - 1
    found = discretised(denoiser, x0, eps, t, torch.tensor(scale).double(), bins)
    mean = denoiser(process.corrupt(x0, t, eps), t).mean.numpy()
    edges = np.array([-np.inf, -0.75, -0.25, 0.25, 0.75, np.inf])
    cells = np.diff(scipy.stats.norm.cdf(edges.reshape(-1, *(1,) * 4), mean, scale), axis=0)
    np.testing.assert_allclose(cells.sum(0), 1)
    expected = -np.log(np.take_along_axis(cells, image.numpy()[None], 0)).sum()
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_decoder_of_ddpm_has_the_variance_of_its_recipe(variance):
    """Log-variances as in the code of DDPM: the first of the posterior's replaced by the second's.

    sqrt(beta_1) = .0100 for the large variance, .00738 for the small one.
    """
    beta = np.linspace(1e-4, 0.02, 1000)
    left = np.cumprod(1 - beta)
    posterior = beta * (1 - np.append(1.0, left[:-1])) / (1 - left)
    expected = math.sqrt(beta[0] if variance == "large" else np.append(posterior[1], 0)[0])
    recipe, seen = METHODS["ddpm"](SHAPE, variance=variance), []

    def decoder(denoiser, x0, eps, t, deviation, bins):
        seen.append((float(t), float(deviation)))
        return discretised(denoiser, x0, eps, t, deviation, bins)

    evidence = recipe.evidence._replace(decoder=decoder)
    denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, Zero())
    x0, grid = torch.zeros(1, *SHAPE), recipe.grid(1000)[[0, 500, -3, -2, -1]]
    bound_terms(denoiser, recipe.prior, x0, grid, evidence, 3, draws=1)
    flow_bound(denoiser, recipe.prior, x0, grid, evidence, 3, solver=HEUN, probes=0)
    assert [t for t, _ in seen] == pytest.approx([1e-3, 1e-3])
    assert [found for _, found in seen] == pytest.approx([expected] * 2, rel=1e-9)
    assert round(expected, 5) == {"small": 0.00738, "large": 0.01}[variance]


def test_the_flow_with_a_decoder_is_below_the_chain():
    """With the exact denoiser the flow's density is q_t1, the best that any chain could reach."""
    process = PROCESSES["vp"]
    cov = diagonal_cov(basis_of(process))
    denoiser, prior = NetworkDenoiser(process, wiener(cov), Zero()), law(process, cov, 1.0)
    x0 = cov.sqrt()(normal(100, *SHAPE)).clamp(-1, 1).mul(8).round() / 8
    grid = uniform_grid(8, 1.0, 0.3)
    chain = bound_terms(denoiser, prior, x0, grid, bins=17, randn_like=Seeds(range(100)))
    flowing = flow_bound(
        denoiser, prior, x0, grid, bins=17, solver=HEUN, probes=0, randn_like=Seeds(range(100))
    )
    assert float(flowing.mean()) < float(chain.total.mean())
    # By hand: E[log q(x_t1 | x_0) - log q_t1(x_t1)] and the same decoder.
    eps = Seeds(range(100))(x0)
    x = process.corrupt(x0, grid[-1], eps)
    ends = process.log_prob(x, x0, grid[-1]) - law(process, cov, 0.3).log_prob(x)
    deviation = coupling.ancestral(process, grid[-1], time(0.0)).fresh.gain
    deviation = deviation.expand(SHAPE).square().mean().sqrt()
    decoder = discretised(denoiser, x0, eps, grid[-1], deviation, 17)
    torch.testing.assert_close(flowing, ends + decoder, rtol=1e-2, atol=1e-2)


def test_bits():
    assert float(bits_per_dim(torch.tensor(784 * 3 * math.log(2)), 784)) == pytest.approx(3)


# Models and the command line.


@pytest.mark.parametrize("method", ["ddpm", "vdm", "ihdm", "soft", "ni-ddpm"])
def test_methods_print_their_terms(method):
    parameters = {"ihdm": {"count": 4}, "vdm": {"bins": 17}}.get(method, {})
    model, data = tiny(method, parameters=parameters)
    found = bound(model, data.batch([0, 1, 2]), 4, bins=17, draws=2, randn_like=Seeds([0, 1, 2]))
    assert all(bool(term.isfinite().all()) and term.shape == (3,) for term in found)
    again = bound(model, data.batch([1]), 4, bins=17, draws=2, randn_like=Seeds([1]))
    torch.testing.assert_close(again.total, found.total[1:2], rtol=1e-4, atol=1e-3)


def test_the_command_line_prints_and_records(tmp_path, monkeypatch, capsys):
    from sfumato.training.train import TrainOptions, train

    options = TrainOptions(images=32, batch=16, preview_every=0)
    model, data = tiny("ddpm", options)
    train(model, data, options, tmp_path / "run", device="cpu")
    monkeypatch.chdir(tmp_path)
    words = "likelihood run --n 3 --draws 2 --tolerance 0.1 --out a.json".split()
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "bits/dim" in shown and "decoder" in shown and "standard error" in shown
    record = json.loads((tmp_path / "a.json").read_text())
    bits = record["bits_per_dim"]
    parts = sum(bits[name]["mean"] for name in ("prior", "steps", "decoder"))
    assert bits["bound"]["mean"] == pytest.approx(parts, rel=1e-9)
    above = bits["bound"]["mean"] - bits["flow"]["mean"]
    assert bits["gap"]["mean"] == pytest.approx(above, rel=1e-6)
    assert record["bins"] == 17 and record["steps"] == 1000
    assert main(words) == 2
    assert "a.json exists" in capsys.readouterr().err
    assert main([*words[:2], "--n", "9999999", "--quiet"]) == 2
    assert "Use a smaller --n" in capsys.readouterr().err


def test_a_cut_measurement_goes_on_from_its_batches(tmp_path, monkeypatch, capsys):
    """Killed in its second batch, it measures the rest alone, and the record is that of one go."""
    from sfumato.evaluation import likelihood

    model, _ = tiny("ddpm")
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    measured: list[int] = []
    one = likelihood.bound

    def counted(model, x0, *rest):
        measured.append(len(x0))
        if len(measured) == 2:
            raise KeyboardInterrupt
        return one(model, x0, *rest)

    monkeypatch.setattr(likelihood, "bound", counted)
    words = "likelihood model --by bound --n 5 --batch 2 --draws 2 --quiet --out".split()
    assert main([*words, "cut.json"]) == 130
    assert not Path("cut.json").exists()
    (kept,) = Path("cut.json.blocks").glob("*/*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-9])
    assert main([*words, "cut.json"]) == 2
    assert "cannot be read as arrays" in (said := capsys.readouterr().err) and "Remove it" in said
    kept.write_bytes(whole)
    assert main([*words, "cut.json"]) == 0
    assert measured == [2, 2, 2, 1]
    assert not Path("cut.json.blocks").exists()
    assert main([*words, "one.json"]) == 0
    assert measured[4:] == [2, 2, 1]
    assert json.loads(Path("cut.json").read_text()) == json.loads(Path("one.json").read_text())


def test_likelihoods_of_conditional_models_are_refused():
    model, data = tiny("soft-mask", parameters={"wander": True})
    with pytest.raises(ValueError, match="without classes or corruptions drawn for each image"):
        bound(model, data.batch([0]), bins=17)
    assert METHODS["vdm"]((1, 8, 8)).evidence.to_zero
