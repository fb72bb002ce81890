"""Laws of processes: q(x_t | x_0) = N(C_t x_0, V_t) and its Markov kernels."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from cases import (
    CLOSED,
    GENERAL,
    PROCESSES,
    RANKS,
    SHAPE,
    close,
    columns,
    normal,
    rotation,
    spd,
    time,
    times,
    transform,
)
from sfumato.algebra import Dense, Diagonal, dct, haar, hartley, pixel
from sfumato.corruption import coupling
from sfumato.corruption.families import Fade, Fixed, Heat, Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement, Constant, CosineSNR, Linear

TIMES = [0.0, 0.13, 0.5, 0.97, 1.0]
each = pytest.mark.parametrize("name", PROCESSES)
each_rank = pytest.mark.parametrize("rank", RANKS)
at_times = pytest.mark.parametrize("t", TIMES)


def moments(process: Process, t: torch.Tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """C_t and S_t, column by column, from what `corrupt` does to unit images and unit noise."""
    signal = columns(lambda unit: process.corrupt(unit, t, torch.zeros_like(unit)), shape)
    return signal, columns(lambda unit: process.corrupt(torch.zeros_like(unit), t, unit), shape)


# Moments, density, score.


@each
@at_times
def test_corruption_has_the_moments_it_states(name, t):
    """x_t = C_t x_0 + S_t eps with C_t and V_t = S_t S_t' of the published formulas."""
    signal, noise = moments(PROCESSES[name], time(t), SHAPE)
    clean, cov = CLOSED[name].matrices(t)
    close(signal, clean)
    close(noise @ noise.T, cov)
    close(noise, noise.T)
    close(columns(PROCESSES[name].cov(time(t))), cov)


@each
def test_corruption_takes_a_time_for_each_sample(name):
    """x_b = C_{t_b} x_b + S_{t_b} eps_b, and float32 images stay float32."""
    process = PROCESSES[name]
    x0, eps = normal(5, *SHAPE), normal(5, *SHAPE, seed=1)
    t = times(*TIMES, rank=3)
    together = process.corrupt(x0, t, eps)
    for i, one in enumerate(TIMES):
        alone = process.corrupt(x0[i : i + 1], time(one), eps[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    low = process.corrupt(x0.float(), t, eps.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, together.float(), rtol=1e-5, atol=1e-5)


@each
@at_times
def test_log_prob_is_scipys(name, t):
    """log N(x_t; C_t x_0, V_t)."""
    clean, cov = CLOSED[name].matrices(t)
    x, x0 = normal(3, *SHAPE), normal(3, *SHAPE, seed=1)
    found = PROCESSES[name].log_prob(x, x0, time(t))
    expected = [
        multivariate_normal(clean @ b.ravel(), cov).logpdf(a.ravel())
        for a, b in zip(x.numpy(), x0.numpy(), strict=True)
    ]
    assert found.shape == (3,)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@each
@at_times
def test_score_is_the_gradient_of_log_prob(name, t):
    """autograd of log q(x_t | x_0) in x_t = V_t^-1 (C_t x_0 - x_t)."""
    process, x0 = PROCESSES[name], normal(3, *SHAPE, seed=1)
    x = normal(3, *SHAPE).requires_grad_()
    found = process.score(x, x0, time(t)).detach()
    slope = torch.autograd.grad(process.log_prob(x, x0, time(t)).sum(), x)[0]
    close(found, slope.numpy(), 1e-9)
    clean, cov = CLOSED[name].matrices(t)
    off = x0.flatten(1).numpy() @ clean.T - x.detach().flatten(1).numpy()
    close(found.flatten(1), np.linalg.solve(cov, off.T).T, 1e-9)


@each
def test_densities_take_a_time_for_each_sample(name):
    process, x, x0 = PROCESSES[name], normal(5, *SHAPE), normal(5, *SHAPE, seed=1)
    t = times(*TIMES, rank=3)
    logs, scores = process.log_prob(x, x0, t), process.score(x, x0, t)
    for i, one in enumerate(TIMES):
        part = slice(i, i + 1)
        close(logs[part], process.log_prob(x[part], x0[part], time(one)).numpy())
        close(scores[part], process.score(x[part], x0[part], time(one)).numpy())


@each_rank
def test_signals_of_any_rank(rank):
    """Vectors, waves and volumes: moments, density and per-sample times."""
    process, shape = RANKS[rank]
    t = times(0.2, 0.7, rank=len(shape))
    x, x0 = normal(2, *shape), normal(2, *shape, seed=1)
    for i, one in enumerate((0.2, 0.7)):
        signal, noise = moments(process, time(one), shape)
        law = multivariate_normal(signal @ x0[i].numpy().ravel(), noise @ noise.T)
        np.testing.assert_allclose(
            process.log_prob(x, x0, t)[i], law.logpdf(x[i].numpy().ravel()), rtol=1e-9
        )
        expected = np.linalg.solve(law.cov, law.mean - x[i].numpy().ravel())
        close(process.score(x, x0, t)[i].flatten(), expected, 1e-9)


def test_blur_of_a_wave_is_the_closed_form():
    """1-D: exp(-omega^2 b^2 / 2) on each DCT coefficient, for every channel."""
    process, shape = RANKS["1-d"]
    d, width = transform(dct(9)), 3.0 * (10**0.4 - 1) / 9
    blur = d.T @ np.diag(np.exp(-((np.pi * np.arange(9) / 9) ** 2) * width**2 / 2)) @ d
    close(moments(process, time(0.4), shape)[0], np.kron(np.eye(2), blur))


# Signal-to-noise ratios.


@each
@at_times
def test_log_snr(name, t):
    """2 log c - log v for each coefficient."""
    case = CLOSED[name]
    with np.errstate(divide="ignore"):
        expected = 2 * np.log(case.gain(t)) - np.log(case.variance(t))
    found = PROCESSES[name].log_snr(time(t)) + torch.zeros(4, 5).double()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_log_snr_of_blurring_diffusion_ends_where_published():
    """At t = 1: -10 for the mean, -10 + 2 ln d_min = -23.81551 for dead waves."""
    power = CosineSNR(10, -10)
    blur = Heat(Constant(20.0), dct(32, 32), floor=0.001)
    process = Process(blur @ Scale(Amplitude(power)), Scale(Complement(power)))
    snr = process.log_snr(time(1.0))
    assert float(snr[0, 0]) == pytest.approx(-10, abs=1e-9)
    assert float(snr[-1, -1]) == pytest.approx(-23.81551, abs=1e-5)


def test_log_snr_at_its_limits():
    """+inf without noise, -inf without signal, None where nothing diagonalises both."""
    ended = Fade(Linear(0.0, 2.0), torch.zeros(2), pixel(2), 0.5)
    snr = Process(ended, Scale(Linear(0.0, 1.0))).log_snr
    assert snr(time(0.0)).tolist() == [math.inf] * 2
    assert snr(time(0.9)).tolist() == [-math.inf] * 2
    assert GENERAL["crossed"].process.log_snr(time(0.5)) is None


# Markov kernels.


@each
@pytest.mark.parametrize(("r", "s", "t"), [(0.05, 0.1, 0.2), (0.2, 0.5, 0.6), (0.5, 0.9, 1.0)])
def test_transitions_lead_from_one_marginal_to_the_next(name, r, s, t):
    """C_{t|s} C_s = C_t, V_t = C_{t|s} V_s C_{t|s}' + V_{t|s}, and t|r composes t|s with s|r."""
    laws = {pair: PROCESSES[name].transition(*map(time, pair)) for pair in ((r, s), (s, t), (r, t))}
    step = {pair: tuple(map(columns, law)) for pair, law in laws.items()}
    for (early, late), (forward, fresh) in step.items():
        (c, v), (c_late, v_late) = CLOSED[name].matrices(early), CLOSED[name].matrices(late)
        close(forward @ c, c_late, 1e-9)
        close(forward @ v @ forward.T + fresh, v_late, 1e-9)
        assert np.linalg.eigvalsh(fresh).min() > -1e-12
    (a, q), (a2, q2) = step[s, t], step[r, s]
    close(step[r, t][0], a @ a2)
    close(step[r, t][1], q + a @ q2 @ a.T, 1e-9)


@each
def test_transitions_are_ratios_of_gains(name):
    """a = c_t / c_s, q = v_t (1 - e^(l_t - l_s))."""
    case, (s, t) = CLOSED[name], (0.3, 0.4)
    forward, fresh = PROCESSES[name].transition(time(s), time(t))
    q = transform(case.basis)
    ratio = case.gain(t) / case.gain(s)
    snr = case.gain(t) ** 2 / case.variance(t) / (case.gain(s) ** 2 / case.variance(s))
    close(q @ columns(forward) @ q.T, np.diag(ratio.ravel()))
    close(q @ columns(fresh) @ q.T, np.diag((case.variance(t) * (1 - snr)).ravel()), 1e-9)


@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2])
def test_transition_variances_keep_their_digits(gap):
    """q = v_t (-expm1(l_t - l_s)) to 1e-8 for log-SNR gaps of 1e-6."""
    process = Process(Scale(Constant(1.0)), Mapping(lambda t: Scale(Linear(1.0, 2.0)).at(t)))
    s = 0.5
    t = (1 + s) * math.exp(gap / 2) - 1
    _, fresh = process.transition(time(s), time(t))
    exact = (t - s) * (2 + t + s)
    assert float(fresh.gain) == pytest.approx(exact, rel=1e-8)


def test_dead_coefficients_stay_dead():
    """Where c_s = 0 the forward gain is 0 and all of V_t is fresh."""
    onset = torch.tensor([0.0, 0.6])
    process = Process(Fade(Linear(0.0, 1.0), onset, pixel(2), 0.2), Scale(Linear(0.1, 0.3)))
    forward, fresh = process.transition(time(0.5), time(0.7))
    assert float(forward.gain[0]) == 0.0 and 0 < float(forward.gain[1]) < 1
    assert float(fresh.gain[0]) == pytest.approx(0.24**2)


def rising(kind: str) -> tuple[Process, str]:
    """Processes whose signal-to-noise ratio rises, and what the sentence must name."""
    noise = Scale(Constant(1.0))
    grows = Scale(Linear(0.1, 1.0))
    index = torch.arange(20.0).reshape(4, 5)
    flat = Fixed(Diagonal(torch.zeros(5).double(), None, dct(5)))
    late = Fade(Linear(2.4, 0.0), (index == 13).double(), pixel(4, 5), 0.5)
    return {
        "all": (Process(grows, noise), "every coefficient rises from 0.303 to 0.41"),
        "noise": (
            Process(noise, flat @ Scale(Linear(2, 1))),
            "coefficient (0,) rises from 0.444 to 0.51",
        ),
        "one": (Process(late, noise), "coefficient (2, 3) rises from 0.428 to 1"),
        "volume": (
            Process(Heat(Linear(3.0, 0.1), dct(3, 4, 2)), noise),
            "coefficient (0, 0, 1) rises from 0.00266 to 0.0199",
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["all", "noise", "one", "volume"])
@pytest.mark.parametrize("who", ["ancestral", "transition"])
def test_rising_signal_to_noise_is_refused(kind, who):
    """The sentence names the coefficient, both ratios, both times, and what to use."""
    process, found = rising(kind)
    with pytest.raises(ValueError) as error:
        if who == "ancestral":
            coupling.ancestral(process, time(0.6), time(0.5))
        else:
            process.transition(time(0.5), time(0.6))
    assert str(error.value) == (
        f"{who} needs the signal-to-noise ratio of every coefficient to fall with time; "
        f"{found} between t=0.50 and t=0.60. Use ddim or bridge."
    )


def test_the_sentence_names_the_times_of_the_sample_that_rises():
    t, early = times(0.3, 0.5, 0.9, rank=3), times(0.1, 0.4, 0.6, rank=3)
    level = Scale(Linear(0.0, 1.0))
    turns = Process(Mapping(lambda t: level.at((t - 0.5).abs())), Scale(Constant(1.0)))
    pattern = r"every coefficient rises from 0\.01 to 0\.16 between t=0\.60 and t=0\.90\."
    with pytest.raises(ValueError, match=pattern):
        turns.transition(early, t)


@each
def test_rounding_is_not_a_rise(name):
    """Two times that differ by nothing, or hardly, make no refusal; backwards in time does."""
    process = PROCESSES[name]
    for t in (0.3, 0.7):
        process.check_markov(time(t), time(t), "a test")
        process.check_markov(time(t), time(t * (1 + 1e-15)), "a test")
    with pytest.raises(ValueError, match="a test needs the signal-to-noise ratio"):
        process.check_markov(time(0.7), time(0.3), "a test")


@pytest.mark.parametrize("size", [1e-11, 1e-9, 1e-6])
@pytest.mark.parametrize("start", [1.0, 1e-4])
def test_the_smallest_rise_beyond_rounding_is_refused_by_name(size, start):
    """What the check lets pass, the root of V_s - K V_t K' takes, or names ancestral as well."""

    def rises_by(share: float) -> Process:
        return Process(Scale(Linear(start, start * (1 + share))), Scale(Constant(1.0)))

    with pytest.raises(ValueError, match=r"ancestral needs .*signal-to-noise ratio"):
        coupling.ancestral(rises_by(size), time(1.0), time(0.0))
    for rounding in (0.0, 1e-15):
        coupling.ancestral(rises_by(rounding), time(1.0), time(0.0))


# Singular noise.


def singular() -> dict[str, Process]:
    hole = torch.tensor([1.0, 0.0, 1.0]).double()
    q = rotation(3)
    return {
        "no noise": Process(Scale(Constant(1.0)), Scale(Constant(0.0))),
        "a silent coefficient": Process(
            Scale(Constant(1.0)), Fixed(Diagonal(hole.log(), None, dct(3)))
        ),
        "a matrix": Process(Scale(Constant(1.0)), Fixed(Dense(torch.diag(hole), (3,)))),
        "a product": Process(
            Scale(Constant(1.0)),
            Fixed(Diagonal(hole.log(), None, dct(3)) @ Diagonal(q[0], None, pixel(3))),
        ),
    }


@pytest.mark.parametrize("kind", singular())
@pytest.mark.parametrize("asked", ["score", "log_prob"])
def test_singular_noise_has_no_density(kind, asked):
    process, x = singular()[kind], torch.zeros(2, 3).double()
    with pytest.raises(ValueError, match=r"Sigma_t is singular .* give the noise a floor\."):
        getattr(process, asked)(x, x, time(0.5))


def test_noise_that_starts_at_zero_is_refused_there_only():
    process, x = Process(Scale(Constant(1.0)), Scale(Linear(0.0, 1.0))), torch.zeros(2, 3).double()
    assert torch.isfinite(process.log_prob(x, x, time(0.1))).all()
    with pytest.raises(ValueError, match="Start the times above 0"):
        process.log_prob(x, x, times(0.5, 0.0, rank=1))


# Matrices, bases that do not commute, and linear maps without any structure.


general = pytest.mark.parametrize("kind", GENERAL)


@general
@at_times
def test_moments_without_a_shared_basis(kind, t):
    """C_t and V_t S_t = S_t' as matrices."""
    process, closed, shape = GENERAL[kind]
    clean, cov = closed(t)
    signal, noise = moments(process, time(t), shape)
    close(signal, clean)
    close(noise, noise.T)
    close(noise @ noise.T, cov)


@general
def test_densities_without_a_shared_basis(kind):
    """log N(x_t; C_t x_0, V_t) and its gradient need V_t^-1 only."""
    process, closed, shape = GENERAL[kind]
    clean, cov = closed(0.4)
    x, x0 = normal(2, *shape), normal(2, *shape, seed=1)
    off = x0.flatten(1).numpy() @ clean.T - x.flatten(1).numpy()
    expected = multivariate_normal(np.zeros(len(cov)), cov).logpdf(off)
    np.testing.assert_allclose(process.log_prob(x, x0, time(0.4)), expected, rtol=1e-9)
    close(process.score(x, x0, time(0.4)).flatten(1), np.linalg.solve(cov, off.T).T, 1e-9)


def test_transitions_of_matrices():
    """A = C_t C_s^-1, Q = V_t - A V_s A'."""
    (c_s, v_s), (c_t, v_t) = map(GENERAL["matrices"].matrices, (0.3, 0.7))
    forward, fresh = GENERAL["matrices"].process.transition(time(0.3), time(0.7))
    a = c_t @ np.linalg.inv(c_s)
    close(columns(forward, (6,)), a, 1e-10)
    close(columns(fresh, (6,)), v_t - a @ v_s @ a.T, 1e-10)


def test_matrices_whose_information_rises_are_refused():
    """C_t' V_t^-1 C_t <= C_s' V_s^-1 C_s must hold in every direction."""
    late = Process(GENERAL["matrices"].process.signal, Fixed(Dense(spd(6), (6,))))
    with pytest.raises(ValueError) as error:
        coupling.ancestral(late, time(0.3), time(0.2))
    assert re.fullmatch(
        r"ancestral needs the signal-to-noise ratio of every direction to fall with time; between "
        r"t=0\.20 and t=0\.30 the forward variance has a negative eigenvalue: one is -[\d.]+\. "
        r"Use ddim or bridge\.",
        str(error.value),
    )
    with pytest.raises(ValueError, match="transition needs the signal-to-noise ratio"):
        late.transition(time(0.2), time(0.3))


def test_bases_of_every_kind_make_processes():
    """Heat in Haar and Hartley, noise of any colour: moments are V diag V'."""
    for basis in (haar(6), hartley(6), dct(6)):
        colour = Diagonal(normal(6), None, basis)
        process = Process(Heat(Linear(0.0, 2.0), basis), Fixed(colour) @ Scale(Linear(0.1, 1.0)))
        q = transform(basis)
        gain = np.exp(-basis.laplacian.numpy() / 2)
        signal, noise = moments(process, time(0.5), (6,))
        close(signal, q.T @ np.diag(gain) @ q)
        close(noise, q.T @ np.diag(0.55 * np.exp(normal(6).numpy())) @ q)
