"""Laws of objectives.

Expected losses are exact: with a linear denoiser the error is linear in white z = (x_0, eps), so
the expectation is the sum of the loss over the unit vectors of z.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from cases import (
    COUPLINGS,
    PARAMETRIZATIONS,
    PROCESSES,
    SHAPE,
    STRUCTURES,
    WEIGHTINGS,
    Toy,
    Zero,
    basis_of,
    densified,
    diagonal_cov,
    matrix,
    normal,
    spd,
    time,
)
from sfumato.algebra import Dense, Diagonal, MatrixFree, Operator, pixel, scaled
from sfumato.corruption.coupling import ancestral, ancestral_large, ddim, momentum
from sfumato.corruption.families import Fade, Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    Geometric,
    Linear,
    linear_betas,
)
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.loss import (
    Weighting,
    level_times,
    loss,
    score,
    simple,
    soft_score_matching,
    stratified,
    uniform_times,
    unit_target,
    unweighted,
    variational_bound,
)
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import Parametrization, noise, residual, velocity, wiener, x0

N = math.prod(SHAPE)
EYE = torch.eye(N, dtype=torch.float64)
T, S = time(0.4), time(0.35)


def each(*times: float) -> Tensor:
    """A time for each sample, (B, 1, 1, 1)."""
    return torch.tensor(times, dtype=torch.float64).reshape(-1, 1, 1, 1)


def at(s: Tensor, weighting: Weighting) -> Weighting:
    """A weighting of two times with its earlier time chosen, as `loss` needs it."""
    return lambda process, t, _: weighting(process, t, s)


CHOSEN = {
    name: at(S, weighting) if name == "variational_bound" else weighting
    for name, weighting in WEIGHTINGS.items()
}


def batch(process: Process, t: Tensor, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """(x_0, x_t, eps)."""
    x0, eps = normal(size, *SHAPE, seed=1), normal(size, *SHAPE, seed=2)
    return x0, process.corrupt(x0, t, eps), eps


def average(x: Tensor) -> Tensor:
    """The mean square of each sample."""
    return x.square().flatten(1).mean(1)


# The same losses, as the papers write them.


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["x0", "residual", "noise", "wiener"])
def test_losses_of_the_papers(name, process):
    """Sample by sample: eps-loss, soft, score and x_0 loss under any parametrization."""
    process, t = PROCESSES[process], each(0.2, 0.3, 0.5, 0.7)
    x0, x, eps = batch(process, t)
    denoiser = NetworkDenoiser(process, PARAMETRIZATIONS[name], Toy())
    guess, signal, root = denoiser(x, t).mean, process.signal.at(t), process.noise.at(t)
    papers = {
        unweighted: guess - x0,
        soft_score_matching: signal(guess) - signal(x0),
        simple: root.inv()(x - signal(guess)) - eps,
        score: process.score(x, guess, t) - process.score(x, x0, t),
    }
    for weighting, error in papers.items():
        found = loss(denoiser, weighting, x0, t, eps)
        assert found.shape == (4,)
        torch.testing.assert_close(found, average(error), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_losses_of_the_networks_own_output(process):
    """|F - eps|^2, and Soft's |C (phi - (x_0 - x_t))|^2 with w = 1 and w = 1 / sigma^2 (S2)."""
    process, t = PROCESSES[process], each(0.2, 0.3, 0.5, 0.7)
    x0, x, eps = batch(process, t)
    output, signal = Toy()(x, t.flatten()), process.signal.at(t)
    found = loss(NetworkDenoiser(process, noise, Toy()), simple, x0, t, eps)
    torch.testing.assert_close(found, average(output - eps))
    off = signal(output - (x0 - x))
    denoiser = NetworkDenoiser(process, residual, Toy())
    torch.testing.assert_close(loss(denoiser, soft_score_matching, x0, t, eps), average(off))
    weighted = process.noise.at(t).inv()(off)
    torch.testing.assert_close(loss(denoiser, simple, x0, t, eps), average(weighted))


@pytest.mark.parametrize("process", ["vp", "ve", "blurring", "soft", "haar"])
def test_scalar_weights_between_losses(process):
    """With V = v I: soft / v = simple, v * score = simple, v^2 * score = soft."""
    process, t = PROCESSES[process], each(0.2, 0.3, 0.5, 0.7)
    x0, _, eps = batch(process, t)
    v = process.cov(t).gain.flatten()
    denoiser = NetworkDenoiser(process, residual, Toy())
    of = {w: loss(denoiser, w, x0, t, eps) for w in (soft_score_matching, simple, score)}
    torch.testing.assert_close(of[soft_score_matching] / v, of[simple])
    torch.testing.assert_close(of[score] * v, of[simple])
    torch.testing.assert_close(of[score] * v**2, of[soft_score_matching])


def test_the_v_loss():
    """unit_target under `velocity`: |F - (C eps - S x_0)|^2 = (1 + SNR) |x_0^ - x_0|^2."""
    process, t = PROCESSES["vp"], each(0.2, 0.3, 0.5, 0.7)
    x0, x, eps = batch(process, t)
    denoiser = NetworkDenoiser(process, velocity, Toy())
    found = loss(denoiser, unit_target(denoiser.parametrization), x0, t, eps)
    true = process.signal.at(t)(eps) - process.noise.at(t)(x0)
    torch.testing.assert_close(found, average(Toy()(x, t.flatten()) - true))
    snr = process.log_snr(t).exp().flatten()
    torch.testing.assert_close(found, (1 + snr) * loss(denoiser, unweighted, x0, t, eps))


@pytest.mark.parametrize("sigma", [0.02, 0.5, 40.0])
def test_the_edm_loss(sigma):
    """unit under `wiener(.25)`, C = I: weight (sigma^2 + .25) / (sigma / 2)^2."""
    process, t = Process(Scale(Constant(1.0)), Scale(Constant(sigma))), time(0.5)
    x0, x, eps = batch(process, t)
    denoiser = NetworkDenoiser(process, wiener(scaled(0.25)), Toy())
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * average(denoiser(x, t).mean - x0)
    found = loss(denoiser, unit_target(denoiser.parametrization), x0, t, eps)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_unit_is_the_error_of_the_output(name):
    """unit: |F - F*|^2 with F* the output that makes the estimate right."""
    process, t = PROCESSES["vp"], time(0.4)
    x0, x, eps = batch(process, t)
    parametrization = PARAMETRIZATIONS[name]
    denoiser = NetworkDenoiser(process, parametrization, Toy())
    pre = parametrization(process, t)
    right = pre.out.inv()(pre.of(x0) - pre.skip(x))
    error = Toy()(pre.inp(x), t.expand(4)) - right
    torch.testing.assert_close(
        loss(denoiser, unit_target(parametrization), x0, t, eps), average(error)
    )


# Bounds.

CONSISTENT = ["ancestral", "ddim-half", "ddim-one", "bridge", "naive", "annealed"]


@pytest.mark.parametrize("process", PROCESSES)
def test_the_ancestral_bound_is_a_difference_of_snr(process):
    """W^T W = C_s^T V_s^-1 C_s - C_t^T V_t^-1 C_t."""
    process = PROCESSES[process]
    weight = matrix(variational_bound(ancestral)(process, T, S))
    c_t, c_s = matrix(process.signal.at(T)), matrix(process.signal.at(S))
    v_t, v_s = matrix(process.cov(T)), matrix(process.cov(S))
    expected = c_s.T @ torch.linalg.inv(v_s) @ c_s - c_t.T @ torch.linalg.inv(v_t) @ c_t
    torch.testing.assert_close(weight.T @ weight, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("process", "structure"), STRUCTURES)
@pytest.mark.parametrize("name", CONSISTENT)
def test_bounds_are_divergences(name, process, structure):
    """|W (x_0^ - x_0)|^2 / 2 = KL(q(x_s | x_t, x_0) || q(x_s | x_t, x_0^)), below the soft knee."""
    process, coupling = PROCESSES[process], COUPLINGS[name].coupling
    process = densified(process) if structure == "none" else process
    t, s = time(0.2), time(0.12)
    (x0, guess), x = normal(2, N, seed=1), normal(N, seed=2)
    carry, fresh = (matrix(op) for op in coupling(process, t, s))
    c_t, c_s = matrix(process.signal.at(t)), matrix(process.signal.at(s))
    steps = [
        MultivariateNormal(c_s @ y + carry @ (x - c_t @ y), fresh @ fresh.T) for y in (x0, guess)
    ]
    off = variational_bound(coupling)(process, t, s)((guess - x0).reshape(1, *SHAPE))
    torch.testing.assert_close(off.square().sum() / 2, kl_divergence(*steps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("structure", ["basis", "none"])
@pytest.mark.parametrize(
    "name", [n for n, case in COUPLINGS.items() if case.consistency != "exact"]
)
def test_bounds_of_inconsistent_couplings_are_refused(name, structure):
    process = PROCESSES["vp"] if structure == "basis" else densified(PROCESSES["vp"])
    sentence = f"keeps the marginals, V_s = K V_t K.T . L L.T; {name.replace('-', '_')} does not"
    with pytest.raises(ValueError, match=sentence):
        variational_bound(COUPLINGS[name].coupling)(process, T, S)


@pytest.mark.parametrize("process", ["vp", "soft"])
def test_bounds_of_deterministic_steps_are_refused(process):
    """ddim(0) keeps the marginals, but between two point masses the divergence is infinite."""
    with pytest.raises(ValueError, match=r"divergence is infinite; ddim draws none\. Use"):
        variational_bound(ddim(0.0))(PROCESSES[process], T, S)


def test_a_bound_needs_noise_at_its_earlier_time():
    process = Process(Scale(Amplitude(linear_betas())), Scale(Complement(linear_betas())))
    with pytest.raises(ValueError, match="end above a time without noise"):
        variational_bound(ancestral)(process, time(0.1), time(0.0))


def test_a_bound_is_free_where_nothing_was_lost():
    """DC under constant noise: L = 0 and C_s - K C_t = 0, a step that costs nothing."""
    weight = variational_bound(ancestral)(PROCESSES["soft"], T, S)
    assert weight.gain[..., 0, 0] == 0
    assert (weight.gain.flatten()[1:] > 0).all()


@pytest.mark.parametrize("name", ["loss", "batch"])
def test_a_bound_of_no_step_is_refused(name):
    """At s = t the weight is 0 and would train nothing."""
    process, times = PROCESSES["vp"], each(0.3, 0.4)
    x0, _, eps = batch(process, T)
    with pytest.raises(ValueError, match=r"bound compares two times, s before t.*Wrap it: lambda"):
        if name == "loss":
            loss(NetworkDenoiser(process, x0, Toy()), variational_bound(ancestral), x0, T, eps)
        else:
            variational_bound(ancestral)(process, times, torch.full_like(times, 0.3))


def test_each_sample_may_have_its_own_step():
    """(B, 1, 1, 1) times t and s give each sample the loss that one step would."""
    process, times = PROCESSES["coloured"], each(0.3, 0.7)
    x0, _, eps = batch(process, T, 2)
    denoiser = NetworkDenoiser(process, residual, Toy())

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        return variational_bound(ancestral)(process, t, t - 0.05)

    together = loss(denoiser, weighting, x0, times, eps)
    for i, t in enumerate((time(0.3), time(0.7))):
        one = loss(denoiser, weighting, x0[i : i + 1], t, eps[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], one)


def negative_log_likelihood(process: Process, weighting: Weighting, steps: int) -> float:
    """Nats a value: the bound summed over a grid for data N(0, 1), with the exact denoiser.

    The prior is exact, E KL(q(x_1 | x_0) || q_1) = log(M_1 / v_1) / 2, and so is the decoder, the
    posterior N(., v_0 / M_0); what is left is the error of the steps.
    """

    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:, None]
    power, v = process.signal.at(grid).gain ** 2 + 0 * grid, process.cov(grid).gain
    m, late = power + v, slice(None, -1)
    weights = weighting(process, grid[:-1], grid[1:]).gain
    errors = (weights**2 * v[late] / m[late]).sum()
    prior, decoder = (m[0] / v[0]).log(), (2 * math.pi * math.e * v[-1] / m[-1]).log()
    return float(prior + errors + decoder) / 2


def unguarded(coupling) -> Weighting:
    """The formula of `bound` for any coupling, right or wrong."""

    def weighting(process: Process, t: Tensor, s: Tensor) -> Operator:
        carry, fresh = coupling(process, t, s)
        return fresh.inv() @ (process.signal.at(s) - carry @ process.signal.at(t))

    return weighting


ENTROPY = math.log(2 * math.pi * math.e) / 2
SOFTLY = Process(
    Mapping(lambda t: Diagonal(-(t**2))),
    Scale(Geometric(0.05, 0.5)),
)
"""One soft coefficient: c = exp(-t^2), sigma from .05 to .5."""


@pytest.mark.parametrize("process", ["vp", "ve", "softly"])
@pytest.mark.parametrize("name", CONSISTENT)
def test_no_bound_beats_the_entropy(name, process):
    """With the exact denoiser of N(0, 1) a bound is at least (log 2 pi e) / 2 = 1.419 nats."""
    process, coupling = {**PROCESSES, "softly": SOFTLY}[process], COUPLINGS[name].coupling
    coarse, fine = (
        negative_log_likelihood(process, variational_bound(coupling), n) for n in (40, 80)
    )
    assert coarse > ENTROPY
    assert fine > ENTROPY


def test_what_momentum_would_claim():
    """Inconsistent couplings would claim less than the entropy, momentum 1.09 / 1.29 nats."""
    assert ENTROPY == pytest.approx(1.419, abs=5e-4)
    claims = [negative_log_likelihood(SOFTLY, unguarded(momentum), n) for n in (10, 20)]
    assert claims == pytest.approx([1.09, 1.29], abs=5e-3)
    assert negative_log_likelihood(PROCESSES["ve"], unguarded(ancestral_large), 20) < ENTROPY


def test_the_ancestral_bound_tightens():
    """Its gap to the entropy falls as 1 / T."""
    gaps = [
        negative_log_likelihood(PROCESSES["ve"], variational_bound(ancestral), n) - ENTROPY
        for n in (100, 200)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.03)


# Floors and minimisers on Gaussian data.


def expected_loss(denoiser: Denoiser, weighting: Weighting, t: Tensor, cov: Tensor) -> Tensor:
    """E loss over x_0 ~ N(0, cov) and eps, exactly, for denoisers linear in x."""
    root, none = torch.linalg.cholesky(cov).T.reshape(N, *SHAPE), torch.zeros(N, *SHAPE).double()
    unit_noise = EYE.reshape(N, *SHAPE)
    x0, eps = torch.cat([root, none]), torch.cat([none, unit_noise])
    return loss(denoiser, weighting, x0, t, eps).sum()


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_floors(process):
    """tr(W Cov[x_0 | x_t] W^T) / n is what the exact denoiser leaves, for every weighting."""
    process, t, spread = PROCESSES[process], T, spd(N)
    signal, cov = matrix(process.signal.at(t)), matrix(process.cov(t))
    total = signal @ spread @ signal.T + cov
    left = spread - spread @ signal.T @ torch.linalg.inv(total) @ signal @ spread
    inverse = torch.linalg.inv(cov)
    floors = {
        "unweighted": left.trace(),
        "soft_score_matching": (signal @ left @ signal.T).trace(),
        "simple": (inverse @ signal @ left @ signal.T).trace(),
        "score": (inverse - torch.linalg.inv(total)).trace(),
    }
    oracle = gaussian(densified(process), torch.zeros(SHAPE), Dense(spread, SHAPE))
    for name, floor in floors.items():
        found = expected_loss(NetworkDenoiser(process, x0, oracle), WEIGHTINGS[name], t, spread)
        torch.testing.assert_close(found, floor / N, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_floors_per_coefficient(process):
    """s v / M, c^2 s v / M, c^2 s / M, 1 / v - 1 / M, each averaged over coefficients."""
    process, t = PROCESSES[process], T
    cov = diagonal_cov(basis_of(process))
    denoiser = NetworkDenoiser(process, wiener(cov), Zero())
    c, v, s = process.signal.at(t).gain, process.cov(t).gain, cov.gain
    m = c**2 * s + v
    floors = {
        "unweighted": s * v / m,
        "soft_score_matching": c**2 * s * v / m,
        "simple": c**2 * s / m,
        "score": 1 / v - 1 / m,
        "variational_bound": s * v / m * (process.log_snr(S).exp() - process.log_snr(t).exp()),
    }
    for name, floor in floors.items():
        found = expected_loss(denoiser, CHOSEN[name], t, matrix(cov))
        torch.testing.assert_close(found, floor.mean(), rtol=1e-9, atol=1e-12)


class Matrix(nn.Module):
    """F(x) = A x for a matrix of parameters."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(start)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T).reshape(x.shape)


def solution(process: Process, parametrization: Parametrization, cov: Tensor, t: Tensor) -> Tensor:
    """The output matrix under which the estimate is the Wiener filter S C^T (C S C^T + V)^-1."""
    pre, signal = parametrization(process, t), matrix(process.signal.at(t))
    gain = cov @ signal.T @ torch.linalg.inv(signal @ cov @ signal.T + matrix(process.cov(t)))
    target = matrix(pre.of) @ gain - matrix(pre.skip)
    return torch.linalg.inv(matrix(pre.out)) @ target @ torch.linalg.inv(matrix(pre.inp))


@pytest.mark.parametrize("name", ["x0", "residual", "noise", "wiener"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", ["ve", "blurring", "coloured"])
def test_the_minimiser_is_the_wiener_filter(process, weighting, name):
    """The exact expected loss has a vanishing gradient there, and nowhere near."""
    process, t, cov = PROCESSES[process], T, spd(N)
    parametrization = PARAMETRIZATIONS[name]
    backbone = Matrix(solution(process, parametrization, cov, t))
    denoiser = NetworkDenoiser(process, parametrization, backbone)

    def gradient() -> Tensor:
        total = expected_loss(denoiser, CHOSEN[weighting], t, cov)
        return torch.autograd.grad(total, backbone.matrix)[0].norm()

    best = gradient()
    with torch.no_grad():
        backbone.matrix += 1e-3 * normal(N, N, seed=7)
    assert best < 1e-6 * gradient()


# Corruptions that lose coefficients for good.

MASK = Process(
    Fade(Linear(0.0, 2.0), torch.linspace(0, 1, N).reshape(4, 5), pixel(4, 5), 0.4),
    Scale(Constant(0.3)),
)


@pytest.mark.parametrize("name", ["x0", "residual", "noise", "wiener"])
@pytest.mark.parametrize("weighting", ["soft_score_matching", "simple", "score"])
def test_lost_coefficients_are_not_asked_for(weighting, name):
    """Hard zeros of C_t: finite, the right minimiser on the living, no gradient on the dead."""
    t = time(0.5)
    gain = MASK.signal.at(t).gain.flatten()
    dead, s = gain == 0, matrix(diagonal_cov(pixel(4, 5))).diagonal()
    assert 0 < dead.sum() < N
    pre = PARAMETRIZATIONS[name](MASK, t)
    wanted = pre.of.gain.expand(4, 5).flatten() * gain * s / (gain**2 * s + 0.09)
    wanted = (wanted - pre.skip.gain.expand(4, 5).flatten()) / pre.out.gain.expand(4, 5).flatten()
    wanted = wanted / pre.inp.gain.expand(4, 5).flatten()

    class Gains(nn.Module):
        def __init__(self, start: Tensor) -> None:
            super().__init__()
            self.gains = nn.Parameter(start)

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return x * self.gains.reshape(4, 5)

    def gradient(start: Tensor) -> Tensor:
        backbone = Gains(start)
        denoiser = NetworkDenoiser(MASK, PARAMETRIZATIONS[name], backbone)
        total = expected_loss(denoiser, WEIGHTINGS[weighting], t, torch.diag(s))
        assert torch.isfinite(total)
        return torch.autograd.grad(total, backbone.gains)[0]

    # A sum of parabolas, one for each gain: two gradients tell where they end.
    first, second = gradient(torch.zeros(N).double()), gradient(torch.ones(N).double())
    assert (first[dead] == 0).all()
    assert (second[dead] == 0).all()
    found = first / (first - second)
    torch.testing.assert_close(found[~dead], wanted[~dead], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["soft_score_matching", "simple", "score"])
def test_a_singular_noise_is_refused(name):
    """Score matching needs every image to reach every other; a blur without noise does not."""
    process = Process(PROCESSES["soft"].signal, Scale(Linear(0.0, 1.0)))
    x0, _, eps = batch(process, T)
    denoiser = NetworkDenoiser(process, residual, Toy())
    times = each(0.5, 0.0, 0.1, 0.2)
    sentence = (
        f"{name} needs Sigma_t to reach every coefficient.*Give the noise a floor, or use the"
    )
    with pytest.raises(ValueError, match=sentence):
        loss(denoiser, WEIGHTINGS[name], x0, times, eps)
    assert torch.isfinite(loss(denoiser, unweighted, x0, times, eps)).all()


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_finite_on_their_grid(name, process):
    """Every W_t on 1000 levels, and its square, which is what a loss multiplies by."""
    t = torch.arange(2, 1001, dtype=torch.float64).reshape(-1, 1, 1, 1) / 1000
    gain = WEIGHTINGS[name](PROCESSES[process], t, t - 1 / 1000).gain
    assert torch.isfinite(gain.square()).all()
    assert gain.abs().max() > 0


# Times.


@pytest.mark.parametrize("times", [uniform_times, level_times(1000)])
@pytest.mark.parametrize("first", [0.0, 0.3, 1 - 2**-53])
def test_training_never_asks_for_the_clean_end(times, first):
    """Numbers in [0, 1) become times in (0, 1]: at 0 there may be no noise to learn."""
    u = stratified(torch.full((64,), first, dtype=torch.float64))
    for t in (times(u), times(torch.tensor([first], dtype=torch.float64))):
        assert (t > 0).all()
        assert (t <= 1).all()


def test_uniform_and_levels():
    u = torch.linspace(0, 1, 10001, dtype=torch.float64)[:-1]
    torch.testing.assert_close(uniform_times(u).sort().values, 1 - u.flip(0))
    found = level_times(4)(u).unique(return_counts=True)
    assert found[0].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found[1].tolist() == [2500] * 4


@pytest.mark.parametrize("first", [0.0, 0.1, 0.77])
def test_stratified_numbers_are_evenly_spread(first):
    """VDM's low-discrepancy numbers: 1 / B apart in [0, 1), all moved by the first."""
    u = torch.cat([torch.tensor([first]).double(), normal(7)])
    found = stratified(u).sort().values
    torch.testing.assert_close(
        found, first % 0.125 + torch.arange(8).double() / 8, atol=1e-7, rtol=0
    )


def test_bound_refuses_a_silent_step_where_nothing_commutes():
    """A deterministic step with a matrix-free C_t, too: its divergence is infinite, not zero."""
    signal = Mapping(lambda t: MatrixFree(lambda x: (1 - t / 2) * x + t / 3 * x.roll(1, -1)))
    process = Process(signal, Scale(Linear(0.1, 0.5)))
    with pytest.raises(ValueError, match="infinite; ddim draws none"):
        variational_bound(ddim(0.0))(process, torch.tensor(0.5), torch.tensor(0.4))


@pytest.mark.parametrize("t", [0.5, 1.0])
def test_the_rate_of_a_summed_signal(t):
    """W^T W = -dSNR/dt = -2 c c' / v of c = (1 - t) + t a, also at t = 1, where 1 - t is 0."""
    gains = torch.linspace(0.1, 0.9, 20, dtype=torch.float64).reshape(4, 5)
    camera = Diagonal(gains.log(), None, pixel(4, 5))
    signal = Mapping(lambda u: scaled(1 - u) + scaled(u) @ camera)
    weight = WEIGHTINGS["likelihood"](Process(signal, Scale(Constant(0.3))), time(t), time(t))
    expected = -2 * ((1 - t) + t * gains) * (gains - 1) / 0.09
    torch.testing.assert_close(weight.gain**2, expected)
