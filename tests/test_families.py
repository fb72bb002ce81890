"""Laws of schedules and families: levels and operators that time drives."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import scipy.ndimage
import torch

from cases import FAMILIES, SCHEDULES, SHAPE, columns, normal, time
from sfumato.algebra import Basis, Diagonal, dct, haar, hartley, pixel, scaled
from sfumato.corruption.families import Fade, Family, Fixed, Heat, Mapping, Scale
from sfumato.corruption.learned import Monotone
from sfumato.corruption.schedules import (
    Amplitude,
    Betas,
    Complement,
    Constant,
    CosineSNR,
    Geometric,
    Linear,
    Schedule,
    Sigmoid,
    Table,
    cosine_betas,
    linear_betas,
)

TIMES = [0.1103, 0.3707, 0.5203, 0.7604, 0.9302]  # away from the ends of ramps and of DDPM's steps
BATCH = torch.tensor(TIMES, dtype=torch.float64).reshape(-1, 1, 1, 1)
GRID = torch.linspace(0, 1, 201, dtype=torch.float64)

each_schedule = pytest.mark.parametrize("name", SCHEDULES)
each_family = pytest.mark.parametrize("name", FAMILIES)


def gains(family: Family, t: float) -> np.ndarray:
    """The gains on coefficients; only for diagonal families."""
    operator = family.at(time(t))
    assert isinstance(operator, Diagonal)
    return operator.gain.detach().numpy()


# Schedules.


def improved_ddpm(steps: int) -> np.ndarray:
    """alpha_bar of the cosine schedule as published: f(t) = cos^2((t + .008) / 1.008 pi / 2)."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return np.cumprod(1 - np.array(betas))


ENDS = {
    "constant": (0.3, 0.3),
    "linear": (0.1, 2.0),
    "geometric": (0.1, 3.0),
    "geometric-until": (0.02, 0.2),
    "geometric-zero": (0.0, 8.0),
    "sigmoid": (0.1, 2.0),
    "table": (0.1, 3.0),
    "cubic": (0.1, 3.0),
    "monotone": (-8.0, 8.0),
    "span": (-8.0, 8.0),
    "from-gamma": (-math.log1p(math.exp(-8)), -8 - math.log1p(math.exp(-8))),
    "cosine-snr": (-math.log1p(math.exp(-10)), -10 - math.log1p(math.exp(-10))),
    "sine": (0.0, 3.0),
    "linear-beta": (0.0, -10.05),
    "linear-betas": (0.0, math.log(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[-1])),
    "cosine-betas": (0.0, math.log(improved_ddpm(1000)[-1])),
}

MIDDLES = {
    "sine": (0.5, 1.5),
    "linear-beta": (0.5, -0.25 * 19.9 / 2 - 0.05),
    "linear": (0.5, 1.05),
    "geometric": (0.5, math.sqrt(0.3)),
    "geometric-until": (0.125, math.sqrt(0.02 * 0.2)),
    "geometric-zero": (0.5, 8 * (math.sqrt(8 / 0.3) - 1) / (8 / 0.3 - 1)),
    "sigmoid": (
        0.25,
        0.1 + 1.9 * (1 / (1 + math.exp(1.5)) - 1 / (1 + math.exp(3))) / math.tanh(1.5),
    ),
    "table": (0.6, 0.5 + 0.5 * 2.5),
    "linear-betas": (0.5, math.log(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[499])),
    "cosine-betas": (0.5, math.log(improved_ddpm(1000)[499])),
}


def test_rate_keeps_its_digits_where_the_gain_underflows():
    """C' C^-1 = -Laplacian b b' exactly, at gains of 10^-2197: heat on 64 px at 23 px of blur."""
    family = Heat(Linear(0.0, 23.0), dct(64, 64))
    for t in (0.3, 0.6, 1.0):
        at = torch.tensor(t, dtype=torch.float64)
        ratio = (family.rate(at) @ family.at(at).inv()).gain
        torch.testing.assert_close(ratio, -dct(64, 64).laplacian * 23.0**2 * t)


@each_schedule
def test_schedules_meet_their_ends(name):
    for t, expected in zip((0.0, 1.0), ENDS[name], strict=True):
        assert SCHEDULES[name](time(t)).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", MIDDLES)
def test_schedules_take_their_published_values(name):
    """One value inside, from the formula: equal ratios, logistic ramps, cumulative products."""
    t, expected = MIDDLES[name]
    assert float(SCHEDULES[name](time(t))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("until", [1.0, 0.25])
def test_a_formula_says_when_a_level_stops_rising(until):
    """The text that tables show, read as arithmetic, is the level."""
    level = Geometric(0.02, 0.2, until=until)
    text = level.formula.replace(" 10^", " * 10 ** ")
    for t in (0.0, 0.1, 0.25, 0.6, 1.0):
        shown = eval(text, {"t": t, "min": min})
        assert shown == pytest.approx(float(level(time(t))), rel=1e-9)


@each_schedule
def test_schedules_are_monotone(name):
    """Levels never turn back between their two ends."""
    levels = SCHEDULES[name](GRID).detach()
    start, end = ENDS[name]
    assert (levels.diff() * (1 if end >= start else -1) >= -1e-14).all()


@each_schedule
@pytest.mark.parametrize("shape", [(), (5,), (5, 1, 1, 1)])
def test_schedules_keep_the_shape_of_time(name, shape):
    """f(t)_b = f(t_b), float64."""
    t = BATCH.flatten()[: math.prod(shape)].reshape(shape)
    levels = SCHEDULES[name](t).detach()
    assert levels.shape == t.shape and levels.dtype == torch.float64
    for level, one in zip(levels.flatten(), t.flatten(), strict=True):
        torch.testing.assert_close(level, SCHEDULES[name](one).detach())


@each_schedule
def test_schedules_are_differentiable_in_time(name):
    """df/dt by autograd = central difference."""
    t = BATCH.clone().requires_grad_()
    level = SCHEDULES[name](t)
    slope = torch.zeros(()).double()
    if level.requires_grad and name != "constant":
        slope = torch.autograd.grad(level.sum(), t)[0]
    with torch.no_grad():
        expected = (SCHEDULES[name](t + 1e-6) - SCHEDULES[name](t - 1e-6)) / 2e-6
    torch.testing.assert_close(slope.expand_as(t), expected, rtol=1e-6, atol=1e-7)


def test_linear_betas_are_ddpms():
    """abar_k = prod (1 - beta), beta = linspace(1e-4, .02, 1000); abar_1000 = 4.035829765e-5."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    np.testing.assert_allclose(linear_betas()(t).exp(), abar, rtol=1e-12)
    assert float(linear_betas()(time(1.0)).exp()) == pytest.approx(4.035829765e-5, rel=1e-9)


def test_betas_meet_the_log_snr_of_ddpm():
    """log abar - log(1 - abar) at the last step is -10.11767."""
    log_power = linear_betas()
    snr = 2 * Amplitude(log_power)(time(1.0)).log() - 2 * Complement(log_power)(time(1.0)).log()
    assert float(snr) == pytest.approx(-10.11767, abs=5e-6)


@pytest.mark.parametrize("steps", [10, 1000])
def test_cosine_betas_are_improved_ddpms(steps):
    """beta_i = min(1 - f((i + 1) / T) / f(i / T), .999)."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    np.testing.assert_allclose(cosine_betas(steps)(t).exp(), improved_ddpm(steps), rtol=1e-10)


@pytest.mark.parametrize(("largest", "smallest"), [(20, -20), (10, -10), (13.3, -5), (2, -30)])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_cosine_snr_is_a_logarithm_of_a_tangent(largest, smallest, t):
    """log(abar / (1 - abar)) = -2 log tan(A t + B), from `largest` to `smallest`."""
    offset = mpmath.atan(mpmath.exp(-mpmath.mpf(largest) / 2))
    slope = mpmath.atan(mpmath.exp(-mpmath.mpf(smallest) / 2)) - offset
    expected = float(-2 * mpmath.log(mpmath.tan(slope * t + offset)))
    log_power = CosineSNR(largest, smallest)(time(t))
    found = float(log_power - torch.log(-torch.expm1(log_power)))
    assert found == pytest.approx(expected, abs=2e-9)
    if t in (0.0, 1.0):
        assert found == pytest.approx(smallest if t else largest, abs=2e-9)


@pytest.mark.parametrize("log_power", [CosineSNR(), linear_betas(), Linear(0.0, -14.0)])
def test_amplitude_and_complement_preserve_variance(log_power):
    """c^2 + sigma^2 = 1, and sigma^2 = 1 - abar to full relative accuracy."""
    signal, noise = Amplitude(log_power)(GRID), Complement(log_power)(GRID)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(GRID))
    exact = [float(-mpmath.expm1(float(x))) for x in log_power(GRID)]
    np.testing.assert_allclose(noise**2, exact, rtol=1e-14)


def toy_loss(schedule: Schedule) -> torch.Tensor:
    """How far a level is from 2 t^3, a path it can follow."""
    return (schedule(GRID) - 2 * GRID**3).square().mean()


def test_a_learned_schedule_trains():
    """Gradients reach every parameter; steps reduce a loss, keep both ends and stay monotone."""
    schedule = Monotone(0.0, 2.0, hidden=16)
    toy_loss(schedule).backward()
    for parameter in schedule.parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0
    before = toy_loss(schedule).detach()
    losses = []
    for _ in range(40):
        loss = toy_loss(schedule)
        slopes = torch.autograd.grad(loss, list(schedule.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(schedule.parameters(), slopes, strict=True):
                parameter -= 0.1 * slope.sign()
        losses.append(loss.detach())
    assert losses[1] < before and losses[-1] < 0.2 * before
    levels = schedule(GRID).detach()
    assert levels[0] == 0.0 and float(levels[-1]) == pytest.approx(2.0, rel=1e-14)
    assert (levels.diff() > 0).all()


def test_a_learned_schedule_is_monotone_for_any_parameters():
    schedule = Monotone(3.0, -1.0, hidden=16)
    for seed in range(5):
        with torch.no_grad():
            for i, parameter in enumerate(schedule.parameters()):
                parameter.copy_(2 * normal(*parameter.shape, seed=10 * seed + i))
        levels = schedule(GRID).detach()
        assert (levels.diff() <= 0).all()
        assert float(levels[0]) == 3.0 and float(levels[-1]) == pytest.approx(-1.0)


# Families.

CLEAN = ["heat-dct", "heat-hartley", "heat-floor", "fade-pixel", "fade-haar", "fade-ended"]
FALLING = [*CLEAN, "vp-signal", "product"]
RISING = ["scale", "vp-noise", "linear-from-zero"]
DIAGONAL = [name for name, family in FAMILIES.items() if isinstance(family.at(time(0.3)), Diagonal)]


@pytest.mark.parametrize("name", CLEAN)
def test_families_start_clean(name):
    """C_0 = I."""
    np.testing.assert_allclose(columns(FAMILIES[name].at(time(0.0))), np.eye(20), atol=1e-15)


@pytest.mark.parametrize("name", FALLING + RISING)
def test_gains_are_monotone_in_time(name):
    """Every coefficient's gain falls (signals) or rises (noise) with time, from 0 to 1."""
    path = np.stack([gains(FAMILIES[name], float(t)) for t in GRID[::5]])
    steps = np.diff(path, axis=0)
    assert (steps <= 1e-15).all() if name in FALLING else (steps >= 0).all()
    assert (path >= 0).all() and abs(path[-1] - path[0]).max() > 0.5


@each_family
def test_each_sample_has_its_own_time(name):
    """at((t_1 .. t_B)) x = (at(t_1) x_1 .. at(t_B) x_B)."""
    family, x = FAMILIES[name], normal(len(TIMES), *SHAPE)
    together = family.at(BATCH)(x)
    assert together.shape == x.shape
    for t, row, alone in zip(TIMES, together, x, strict=True):
        expected = family.at(time(t))(alone.unsqueeze(0))[0]
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-13)


@each_family
def test_float32_times_are_read_in_float64(name):
    """Times given in float32 lose nothing after their own rounding."""
    t = torch.tensor(0.37)
    expected = columns(FAMILIES[name].at(t.double()))
    np.testing.assert_allclose(columns(FAMILIES[name].at(t)), expected, rtol=0, atol=1e-12)


def test_a_product_is_a_product():
    """(A @ B).at(t) = A_t B_t."""
    a, b = FAMILIES["heat-dct"], FAMILIES["fade-haar"]
    x, y = (columns(family.at(time(0.2))) for family in (a, b))
    np.testing.assert_allclose(columns((a @ b).at(time(0.2))), x @ y, atol=1e-14)
    np.testing.assert_allclose(columns((b @ a).at(time(0.2))), y @ x, atol=1e-14)
    assert abs(x @ y - y @ x).max() > 1e-3


@pytest.mark.parametrize("basis", [dct(4, 5), hartley(4, 5), haar(7), dct(2, 3, 4)])
def test_heat_is_a_semigroup(basis):
    """Widths add in squares: H(a) H(b) = H(sqrt(a^2 + b^2))."""
    a, b = 0.7, 1.9
    one = time(1.0)
    both = Heat(Constant(a), basis) @ Heat(Constant(b), basis)
    joint = Heat(Constant(math.hypot(a, b)), basis)
    torch.testing.assert_close(both.at(one).log_gain, joint.at(one).log_gain)


@pytest.mark.parametrize("width", [1.5, 2.0, 3.0])
@pytest.mark.parametrize(("make", "mode"), [(dct, "reflect"), (hartley, "wrap")])
def test_heat_is_gaussian_blur(width, make, mode):
    """A sampled kernel aliases by 2 exp(-pi^2 b^2 / 2) at most."""
    x = normal(40, seed=2)
    blurred = Heat(Constant(width), make(40)).at(time(1.0))(x).numpy()
    expected = scipy.ndimage.gaussian_filter1d(x.numpy(), width, mode=mode, truncate=9)
    aliasing = 2 * math.exp(-((math.pi * width) ** 2) / 2) + 1e-13
    assert np.linalg.norm(blurred - expected) < aliasing * float(x.norm())
    assert np.linalg.norm(blurred - x.numpy()) > 0.5 * float(x.norm())


@pytest.mark.parametrize(
    ("n", "width", "expected"),
    [(28, 20, 0.0806), (32, 24, 0.0623), (128, 64, 0.291), (256, 128, 0.291), (64, 23, 0.5287)],
)
def test_heat_leaves_the_published_fraction_of_the_lowest_wave(n, width, expected):
    """exp(-(pi / n)^2 b^2 / 2) at IHDM's and Soft Diffusion's last levels."""
    found = gains(Heat(Constant(width), dct(n)), 1.0)[1]
    assert found == pytest.approx(expected, abs=10.0 ** -len(str(expected)[2:]))


def test_heat_has_a_floor():
    """(1 - d) exp(-lambda b^2 / 2) + d, Blurring Diffusion's d_t."""
    basis = dct(4, 5)
    expected = 0.999 * np.exp(-basis.laplacian.numpy() * 9 / 2) + 0.001
    np.testing.assert_allclose(gains(FAMILIES["heat-floor"], 1.0), expected, rtol=1e-12)


def test_blur_under_the_smallest_float_is_still_a_number():
    """exp(-lambda 23^2 / 2) is 10^-2197 in the corner of 64 x 64 pixels."""
    heat = Heat(Linear(0.0, 23.0), dct(64, 64))
    corner = heat.at(time(1.0)).log_gain[-1, -1]
    assert float(corner) / math.log(10) == pytest.approx(-2197, abs=1)
    ratio = heat.at(time(1.0)) @ heat.at(time(0.999)).inv()
    tau = (23**2 - (23 * 0.999) ** 2) / 2
    expected = math.exp(-2 * (math.pi * 63 / 64) ** 2 * tau)
    assert float(ratio.gain[-1, -1]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("basis", [pixel(4, 5), haar(4, 5)])
def test_fade_ramps(basis):
    """gain = sin^2(pi/2 clip((onset + width - level) / width, 0, 1))."""
    onset = torch.linspace(0, 1, 20).double().reshape(4, 5)
    family = Fade(Linear(0.0, 1.6), onset, basis, 0.4)
    for t in (0.0, 0.3, 0.7, 1.0):
        left = np.clip((onset.numpy() + 0.4 - 1.6 * t) / 0.4, 0, 1)
        np.testing.assert_allclose(gains(family, t), np.sin(np.pi / 2 * left) ** 2, atol=1e-14)
    assert (gains(family, 1.0) == 0).all() and (gains(family, 0.0) == 1).all()


# Rates.


@each_family
@pytest.mark.parametrize("t", TIMES)
def test_rates_are_derivatives(name, t):
    """A'_t x = (A_{t+h} x - A_{t-h} x) / 2h."""
    family, h = FAMILIES[name], 1e-5
    late, early = columns(family.at(time(t + h))), columns(family.at(time(t - h)))
    expected = (late - early) / (2 * h)
    size = max(1.0, abs(expected).max())
    found = columns(family.rate(time(t)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * size)


@each_family
def test_rates_of_batches_are_rates_of_each(name):
    """rate((t_1 .. t_B)) acts on its own sample."""
    family, x = FAMILIES[name], normal(len(TIMES), *SHAPE)
    together = family.rate(BATCH)(x)
    for t, row, alone in zip(TIMES, together, x, strict=True):
        expected = family.rate(time(t))(alone.unsqueeze(0))[0]
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", DIAGONAL)
def test_rates_are_exact_for_diagonal_families(name):
    """To 1e-10: central differences extrapolated twice (Richardson), error h^6."""
    family, t = FAMILIES[name], TIMES[2]
    steps = [1e-3, 5e-4, 2.5e-4]
    first = [(gains(family, t + h) - gains(family, t - h)) / (2 * h) for h in steps]
    second = [(4 * fine - coarse) / 3 for coarse, fine in pairwise(first)]
    expected = (16 * second[1] - second[0]) / 15
    found = np.broadcast_to(family.rate(time(t)).gain.detach().numpy(), expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@each_family
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_rates_at_the_ends_are_one_sided_derivatives(name, t):
    """(-3 A_0 + 4 A_h - A_2h) / 2h, and its mirror at t = 1."""
    family, h = FAMILIES[name], 1e-4 if t == 0 else -1e-4
    path = [columns(family.at(time(t + i * h))) for i in range(3)]
    expected = (-3 * path[0] + 4 * path[1] - path[2]) / (2 * h)
    size = max(1.0, abs(expected).max())
    found = columns(family.rate(time(t)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * size)


def dead(make: str) -> tuple[Family, float, float]:
    """Families at a hard zero of their gain: (family, t, derivative on the side that is alive)."""
    one = torch.zeros(1).double()
    return {
        "linear at 0": (Scale(Linear(0.0, 2.0)), 0.0, 2.0),
        "linear at 1": (Scale(Linear(3.0, 0.0)), 1.0, -3.0),
        "fade long ended": (Fade(Linear(0.0, 2.0), one, pixel(1), 0.5), 0.9, 0.0),
        "fade just ended": (Fade(Linear(0.0, 2.0), one, pixel(1), 0.5), 0.25, 0.0),
        "squared": (Scale(Linear(1.0, 0.0)) @ Scale(Linear(1.0, 0.0)), 1.0, 0.0),
        "zero always": (Fixed(scaled(0.0)), 0.5, 0.0),
    }[make]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        "linear at 0",
        "linear at 1",
        "fade long ended",
        "fade just ended",
        "squared",
        "zero always",
    ],
)
def test_rates_are_finite_at_hard_zeros(make, batch):
    """The one-sided derivative of the gain, where its logarithm has none."""
    family, t, expected = dead(make)
    at = torch.full((2, 1), t).double() if batch else time(t)
    assert (family.at(at).gain == 0).all()
    rate = family.rate(at)(torch.ones(2, 1).double())
    torch.testing.assert_close(rate, torch.full((2, 1), expected).double(), rtol=0, atol=1e-7)


def test_learned_levels_make_no_nan_at_zero():
    """Gradients of learned schedules stay finite where a gain or its rate is a hard zero."""
    times = torch.tensor([0.0, 0.5, 1.0]).double().reshape(3, 1)
    x = torch.ones(3, 5, dtype=torch.float64)
    falling = Scale(Complement(Monotone(0.0, -3.0)))
    for make in (
        lambda level: falling,
        lambda level: Scale(level),
        lambda level: Heat(level, dct(5)),
        lambda level: Fade(level, torch.linspace(0, 0.5, 5), pixel(5), 0.2),
    ):
        family = make(Monotone(0.0, 2.0))
        (family.at(times)(x).sum() + family.rate(times)(x).sum()).backward()
        for parameter in family.parameters():
            assert torch.isfinite(parameter.grad).all()


# Refusals and words.


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Geometric(0.0, 1.0), "Geometric needs two positive levels; got 0 and 1"),
        (lambda: Geometric(1.0, 2.0, until=0), r"`until` in \(0, 1\]; got 0"),
        (lambda: Geometric(2.0, 2.0, zero_at_start=True), "two different levels; got 2 twice"),
        (lambda: Sigmoid(0, 1, slope=-1), "positive slope; got -1"),
        (lambda: Table([0, 1], [1.0]), r"one level for each of two or more times; got .*\(2,\)"),
        (lambda: Table([0, 0.7, 0.6, 1], [1.0] * 4), "times that rise from 0 to 1"),
        (lambda: Table([0.1, 1], [1.0] * 2), "times that rise from 0 to 1"),
        (lambda: CosineSNR(-1, 1), "largest > smallest; got -1, 1"),
        (lambda: Betas([0.1, 1.0]), "strictly between 0 and 1"),
        (lambda: Heat(Constant(1), dct(4), floor=1.0), r"floor in \[0, 1\); got 1"),
        (lambda: Heat(Constant(1), pixel(4)), r"pixel\(4\) has no frequencies"),
        (lambda: Fade(Constant(1), torch.zeros(4), pixel(4), 0.0), "positive width; got 0"),
        (lambda: Fade(Constant(1), torch.zeros(5), pixel(4), 1), r"one onset .* pixel\(4\); got"),
    ],
)
def test_wrong_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_times_without_signal_axes_are_refused():
    """Times (B,) would meet the columns of an image."""
    with pytest.raises(ValueError, match="one for each signal"):
        Scale(Linear(1.0, 2.0)).at(torch.zeros(5))


def test_a_family_must_stay_diagonal_to_have_an_exact_rate():
    flips = iter([scaled(1.0), FAMILIES["non-commuting"].at(time(0.5))])
    with pytest.raises(TypeError, match=r"Mapping.at returned a Diagonal at one time only"):
        Mapping(lambda t: next(flips)).rate(time(0.5))


def test_families_say_what_they_are():
    """repr shows schedules, bases and floors."""
    words = repr(Heat(Geometric(0.3, 8.0), dct(4, 5), floor=0.5) @ Fixed(scaled(2.0)))
    for part in ("Heat", "dct(4, 5), floor=0.5", "Geometric(0.3, 8, until=1)", "multiple of I"):
        assert part in words


def basis_kept(family: Family) -> Basis | None:
    operator = family.at(time(0.5))
    return operator.basis if isinstance(operator, Diagonal) else None


def test_families_of_one_basis_stay_in_it():
    assert basis_kept(FAMILIES["product"]) == dct(4, 5)
    assert basis_kept(FAMILIES["non-commuting"]) is None
