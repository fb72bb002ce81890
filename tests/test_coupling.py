"""Laws of couplings: x_s = C_s x_0 + K (x_t - C_t x_0) + L eps, against the published samplers."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch

from cases import (
    CLOSED,
    COUPLINGS,
    GENERAL,
    PROCESSES,
    RANKS,
    SHAPE,
    close,
    columns,
    impossible,
    normal,
    time,
    times,
)
from sfumato.algebra import Diagonal, dct, pixel
from sfumato.corruption.coupling import (
    Coupling,
    Step,
    ancestral,
    ancestral_large,
    annealed,
    bridge,
    cold,
    ddim,
    from_cross_covariance,
    momentum,
    naive,
    pf_momentum,
)
from sfumato.corruption.families import Fade, Family, Fixed, Heat, Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import (
    Amplitude,
    Complement,
    Constant,
    CosineSNR,
    Geometric,
    Linear,
    cosine_betas,
    linear_betas,
)

PAIRS = [(0.2, 0.1), (0.5, 0.49), (0.9, 0.4), (1.0, 0.97)]
each_process = pytest.mark.parametrize("process", PROCESSES)
each_coupling = pytest.mark.parametrize("name", COUPLINGS)
EXACT = [n for n, case in COUPLINGS.items() if case.consistency == "exact" and n != "annealed"]
each_pair = pytest.mark.parametrize(("t", "s"), PAIRS)


def of(coupling: Coupling, process: Process, t: float, s: float, shape: tuple = SHAPE) -> Step:
    """K and L L' as matrices."""
    carry, fresh = coupling(process, time(t), time(s))
    left = columns(fresh, shape)
    return Step(columns(carry, shape), left @ left.T)


def scalars(coupling: Coupling, process: Process, t: float, s: float) -> tuple[float, float]:
    """(K, L^2) of a process that treats all coefficients alike."""
    carry, fresh = coupling(process, time(t), time(s))
    return float(carry.gain), float(fresh.gain) ** 2


# Marginal consistency.

EXCESS: dict[str, Callable[..., np.ndarray]] = {
    "ancestral-large": lambda v_t, v_s, q: q @ (np.eye(len(q)) - v_s @ np.linalg.inv(v_t)),
    "momentum": lambda v_t, v_s, q: (v_t - v_s) @ (v_t - v_s) @ np.linalg.inv(v_t),
    "pf-momentum": lambda v_t, v_s, q: (v_t - v_s) @ (v_t - v_s) @ np.linalg.inv(v_t) / 4,
    "cold": lambda v_t, v_s, q: v_t - v_s,
    "ihdm": lambda v_t, v_s, q: 0.09 * np.eye(len(q)) - v_s,
}
"""K V_t K' + L L' - V_s as declared; every other coupling declares none."""


@each_pair
@each_process
@each_coupling
def test_marginals_are_kept_or_exceeded_as_declared(name, process, t, s):
    """K V_t K' + L L' = V_s + the declared excess."""
    coupling = COUPLINGS[name].coupling
    if impossible(name, process, t, s):
        with pytest.raises(ValueError, match=r"annealed\(eta=0.9\) needs"):
            coupling(PROCESSES[process], time(t), time(s))
        return
    carry, fresh = of(coupling, PROCESSES[process], t, s)
    v_t, v_s = (CLOSED[process].matrices(x)[1] for x in (t, s))
    gap = carry @ v_t @ carry.T + fresh - v_s
    if COUPLINGS[name].consistency == "exact":
        close(gap + v_s, v_s, 1e-10)
    else:
        forward = columns(PROCESSES[process].transition(time(s), time(t))[0])
        q = v_t - forward @ v_s @ forward.T
        close(gap + v_s, EXCESS[name](v_t, v_s, q) + v_s, 1e-9)


@each_process
@pytest.mark.parametrize("name", [n for n, c in COUPLINGS.items() if c.consistency == "first"])
def test_first_order_couplings_exceed_by_the_square_of_the_step(name, process):
    """Halving t - s quarters the excess."""
    excess = []
    for h in (2e-3, 1e-3):
        carry, fresh = of(COUPLINGS[name].coupling, PROCESSES[process], 0.2, 0.2 - h)
        v_t, v_s = (CLOSED[process].matrices(x)[1] for x in (0.2, 0.2 - h))
        excess.append(np.trace(carry @ v_t @ carry.T + fresh - v_s))
    assert excess[1] > 0
    assert excess[0] / excess[1] == pytest.approx(4, rel=0.05)


@each_process
@each_coupling
def test_each_sample_has_its_own_times(name, process):
    """(process, (t_b), (s_b)) is (process, t_b, s_b) on sample b."""
    pairs = [pair for pair in PAIRS if not impossible(name, process, *pair)]
    t, s = (times(*x, rank=3) for x in zip(*pairs, strict=True))
    carry, fresh = COUPLINGS[name].coupling(PROCESSES[process], t, s)
    x = normal(len(pairs), *SHAPE)
    for b, (one, other) in enumerate(pairs):
        alone = COUPLINGS[name].coupling(PROCESSES[process], time(one), time(other))
        torch.testing.assert_close(carry(x)[b], alone.carry(x)[b])
        torch.testing.assert_close(fresh(x)[b], alone.fresh(x)[b], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rank", RANKS)
@each_coupling
def test_signals_of_any_rank(name, rank):
    """K and L act on vectors, waves and volumes; consistent ones keep V_s there too."""
    process, shape = RANKS[rank]
    carry, fresh = of(COUPLINGS[name].coupling, process, 0.4, 0.3, shape)
    v_t, v_s = (columns(process.cov(time(x)), shape) for x in (0.4, 0.3))
    if COUPLINGS[name].consistency == "exact":
        close(carry @ v_t @ carry.T + fresh, v_s, 1e-10)
    else:
        forward = columns(process.transition(time(0.3), time(0.4))[0], shape)
        declared = EXCESS[name](v_t, v_s, v_t - forward @ v_s @ forward.T)
        close(carry @ v_t @ carry.T + fresh, declared + v_s, 1e-9)


# Brute force.


def conditioned(c_s, v_s, c_t, v_t) -> tuple[np.ndarray, np.ndarray]:
    """Law of x_s given x_t and x_0 = 0 in the chain x_s = S_s e, x_t = A x_s + Q^1/2 e'.

    The joint covariance is M M' for the stacked linear maps of (e, e'), conditioned block by block.
    """
    n = len(v_s)
    forward = c_t @ np.linalg.inv(c_s)
    fresh = v_t - forward @ v_s @ forward.T
    values, vectors = np.linalg.eigh((fresh + fresh.T) / 2)
    root = vectors * np.sqrt(values.clip(0))
    first = np.linalg.cholesky(v_s)
    joint = np.block([[first, np.zeros((n, n))], [forward @ first, root]])
    joint = joint @ joint.T
    gain = np.linalg.solve(joint[n:, n:], joint[n:, :n]).T
    return gain, joint[:n, :n] - gain @ joint[n:, :n]


@each_process
@pytest.mark.parametrize(("t", "s"), [(0.2, 0.1), (0.31, 0.3), (0.5, 0.25)])
def test_ancestral_conditions_the_markov_chain(process, t, s):
    """q(x_s | x_t, x_0) of the joint Gaussian."""
    carry, fresh = of(ancestral, PROCESSES[process], t, s)
    gain, cov = conditioned(*CLOSED[process].matrices(s), *CLOSED[process].matrices(t))
    close(carry, gain, 1e-9)
    close(fresh, cov, 1e-8)


@each_process
@pytest.mark.parametrize("name", ["ancestral", "ddim", "bridge"])
def test_two_steps_are_one(name, process):
    """t -> r -> s = t -> s: K_sr K_rt = K_st, L_sr^2 + K_sr L_rt^2 K_sr' = L_st^2."""
    coupling, model = COUPLINGS[name].coupling, PROCESSES[process]
    first, second = of(coupling, model, 0.6, 0.4), of(coupling, model, 0.4, 0.3)
    whole = of(coupling, model, 0.6, 0.3)
    close(second.carry @ first.carry, whole.carry)
    close(second.fresh + second.carry @ first.fresh @ second.carry.T, whole.fresh, 1e-10)


# Published samplers, re-typed.


@pytest.mark.parametrize("make", [linear_betas, cosine_betas])
@pytest.mark.parametrize("k", [1, 2, 500, 999, 1000])
def test_ancestral_is_ddpm(make, k):
    """Mean sqrt(abar_s) beta / (1 - abar) x_0 + sqrt(alpha) (1 - abar_s) / (1 - abar) x_t."""
    betas = np.linspace(1e-4, 0.02, 1000)
    if make is cosine_betas:
        f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    bar = np.r_[1.0, np.cumprod(1 - betas)]
    beta, now, before = betas[k - 1], bar[k], bar[k - 1]
    power = make()
    process = Process(Scale(Amplitude(power)), Scale(Complement(power)))
    carry, variance = scalars(ancestral, process, k / 1000, (k - 1) / 1000)
    of_x0 = math.sqrt(before) - carry * math.sqrt(now)
    assert carry == pytest.approx(math.sqrt(1 - beta) * (1 - before) / (1 - now), rel=1e-9)
    assert of_x0 == pytest.approx(math.sqrt(before) * beta / (1 - now), rel=1e-9)
    assert variance == pytest.approx(beta * (1 - before) / (1 - now), rel=1e-9)
    _, large = scalars(ancestral_large, process, k / 1000, (k - 1) / 1000)
    assert large == pytest.approx(beta, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.5, 0.02), (0.1, 0.0)])
def test_ddim_is_ddim(eta, t, s):
    """c1 = eta sqrt((1 - abar_t / abar_s)(1 - abar_s) / (1 - abar_t)), c2^2 = v_s - c1^2."""
    bar = np.r_[1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))]
    now, before = bar[round(1000 * t)], bar[round(1000 * s)]
    c1 = eta * math.sqrt((1 - now / before) * (1 - before) / (1 - now))
    c2 = math.sqrt(1 - before - c1**2)
    power = linear_betas()
    process = Process(Scale(Amplitude(power)), Scale(Complement(power)))
    carry, variance = scalars(ddim(eta), process, t, s)
    assert carry * math.sqrt(1 - now) == pytest.approx(c2, rel=1e-9, abs=1e-12)
    assert variance == pytest.approx(c1**2, rel=1e-9, abs=1e-24)


@each_pair
def test_ancestral_is_vdm(t, s):
    """z_s = a_s / a_t (z_t - sigma_t c eps) + sqrt(v_s c) xi, c = -expm1(gamma_s - gamma_t)"""
    gamma = {x: math.log((1 - p) / p) for x in (t, s) for p in [CLOSED["vp"].gain(x)[0, 0] ** 2]}
    a_t, a_s = (1 / math.sqrt(1 + math.exp(gamma[x])) for x in (t, s))
    c = -math.expm1(gamma[s] - gamma[t])
    carry, variance = scalars(ancestral, PROCESSES["vp"], t, s)
    # sigma_t eps = z_t - a_t x_0, so that z_t is left with 1 - c and x_0 with a_t c.
    assert carry == pytest.approx(a_s / a_t * (1 - c), rel=1e-8)
    assert a_s - carry * a_t == pytest.approx(a_s / a_t * a_t * c, rel=1e-8)
    assert variance == pytest.approx((1 - a_s**2) * c, rel=1e-8)


@each_pair
def test_ancestral_is_blurring_diffusion(t, s):
    """p = (1/v_s + a^2/q)^-1, mean (a v_s / v_t) u_t + (c_s q / v_t) u_0, in scipy's DCT."""
    case = CLOSED["blurring"]
    c_t, c_s, v_t, v_s = case.gain(t), case.gain(s), case.variance(t), case.variance(s)
    a = c_t / c_s
    q = v_t - a**2 * v_s
    variance = 1 / (1 / v_s + a**2 / q)
    x_t, x0, xi = normal(2, *SHAPE), normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)

    def coefficients(x: torch.Tensor) -> np.ndarray:
        return scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho")

    u = a * v_s / v_t * coefficients(x_t) + c_s * q / v_t * coefficients(x0)
    u = u + np.sqrt(variance) * coefficients(xi)
    expected = scipy.fft.idctn(u, axes=(-2, -1), norm="ortho")
    close(stepped(ancestral, PROCESSES["blurring"], t, s, x_t, x0, xi), expected, 1e-8)


def stepped(coupling, process, t, s, x_t, x0, xi) -> np.ndarray:
    """C_s x_0 + K (x_t - C_t x_0) + L xi."""
    carry, fresh = coupling(process, time(t), time(s))
    clean_t, clean_s = process.signal.at(time(t)), process.signal.at(time(s))
    return (clean_s(x0) + carry(x_t - clean_t(x0)) + fresh(xi)).numpy()


@pytest.mark.parametrize("k", [1, 400, 1000])
def test_ancestral_is_non_isotropic_ddpm(k):
    """Mean as DDPM's, x_{t-1} = mean + sqrt(beta~) L z: L L' is beta~ Sigma."""
    colour = Diagonal(normal(4, 5), None, dct(4, 5))
    power = linear_betas()
    process = Process(Scale(Amplitude(power)), Fixed(colour) @ Scale(Complement(power)))
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.r_[1.0, np.cumprod(1 - betas)]
    carry, fresh = of(ancestral, process, k / 1000, (k - 1) / 1000)
    rest = (1 - bar[k - 1]) / (1 - bar[k])
    sigma = columns(colour) @ columns(colour)
    close(carry, math.sqrt(1 - betas[k - 1]) * rest * np.eye(20), 1e-9)
    close(fresh, betas[k - 1] * rest * sigma, 1e-9)


def soft() -> tuple[Process, Callable[[np.ndarray, float], np.ndarray], Callable[[float], float]]:
    """A soft process with its C_t and sigma_t typed once more."""
    process = Process(Heat(Linear(0.0, 2.0), dct(4, 5)), Scale(Linear(0.1, 0.5)))

    def blur(x: np.ndarray, t: float) -> np.ndarray:
        k, m = np.meshgrid(np.arange(4) / 4, np.arange(5) / 5, indexing="ij")
        gain = np.exp(-(np.pi**2) * (k**2 + m**2) * (2 * t) ** 2 / 2)
        u = gain * scipy.fft.dctn(x, axes=(-2, -1), norm="ortho")
        return scipy.fft.idctn(u, axes=(-2, -1), norm="ortho")

    return process, blur, lambda t: 0.1 + 0.4 * t


@each_pair
def test_momentum_is_algorithm_2(t, s):
    """y = C_t x0^, e = y - x_t, z = x_t - (ds2 / s2_t) e + sqrt(-ds2) eta, z + dy."""
    process, blur, sigma = soft()
    x_t, x0, eta = normal(2, *SHAPE), normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
    y_t = blur(x0.numpy(), t)
    noise = y_t - x_t.numpy()
    change = sigma(s) ** 2 - sigma(t) ** 2
    z = x_t.numpy() - change / sigma(t) ** 2 * noise + math.sqrt(-change) * eta.numpy()
    expected = z + (blur(x0.numpy(), s) - y_t)
    close(stepped(momentum, process, t, s, x_t, x0, eta), expected, 1e-10)


@each_pair
def test_pf_momentum_is_equation_18(t, s):
    """x_t + (C_s - C_t) x0^ - (s2_s - s2_t) / (2 s2_t) (C_t x0^ - x_t), no noise."""
    process, blur, sigma = soft()
    x_t, x0, eta = normal(2, *SHAPE), normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
    change = (sigma(s) ** 2 - sigma(t) ** 2) / sigma(t) ** 2
    pull = blur(x0.numpy(), t) - x_t.numpy()
    expected = x_t.numpy() + blur(x0.numpy(), s) - blur(x0.numpy(), t) - change / 2 * pull
    close(stepped(pf_momentum, process, t, s, x_t, x0, eta), expected, 1e-10)


@each_pair
def test_naive_is_algorithm_1_and_cold_is_cold(t, s):
    """C_s x0^ + sigma_s eta; x_t - C_t x0^ + C_s x0^."""
    process, blur, sigma = soft()
    x_t, x0, eta = normal(2, *SHAPE), normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
    clean = blur(x0.numpy(), s)
    close(stepped(naive, process, t, s, x_t, x0, eta), clean + sigma(s) * eta.numpy(), 1e-12)
    expected = x_t.numpy() - blur(x0.numpy(), t) + clean
    close(stepped(cold, process, t, s, x_t, x0, eta), expected, 1e-12)


@each_pair
def test_bridge_is_the_brownian_bridge(t, s):
    """N(c_s u_0 + (v_s / v_t)(u_t - c_t u_0), v_s (v_t - v_s) / v_t)."""
    process, _, sigma = soft()
    v_t, v_s = sigma(t) ** 2, sigma(s) ** 2
    carry, fresh = of(bridge, process, t, s)
    close(carry, v_s / v_t * np.eye(20), 1e-12)
    close(fresh, v_s * (v_t - v_s) / v_t * np.eye(20), 1e-10)


@each_process
@each_pair
def test_ddim_without_noise_is_gddim(process, t, s):
    """K = sqrt(v_s / v_t) for each coefficient, L = 0."""
    v_t, v_s = (CLOSED[process].matrices(x)[1] for x in (t, s))
    carry, fresh = of(ddim(0.0), PROCESSES[process], t, s)
    close(carry @ v_t @ carry, v_s, 1e-10)
    assert np.linalg.eigvalsh(carry).min() > 0 and not fresh.any()


@pytest.mark.parametrize("eta", [0.2, 0.6, 1.0])
def test_annealed_is_consistent_annealed_sampling(eta):
    """x + eta residual + beta sigma_s z, beta^2 = 1 - (1 - eta)^2 (sigma_t / sigma_s)^2."""
    process = Process(Scale(Constant(1.0)), Scale(Geometric(0.1, 10.0)))
    t, s = 0.5, 0.49
    gamma = 100 ** (s - t)
    sigma_s = 0.1 * 100**s
    carry, variance = scalars(annealed(eta), process, t, s)
    assert carry == pytest.approx(1 - eta, abs=1e-15)
    beta2 = 1 - (1 - eta) ** 2 / gamma**2
    assert variance == pytest.approx(beta2 * sigma_s**2, rel=1e-10)


# Couplings that are one another.


@each_process
@each_pair
def test_ddim_with_eta_one_is_ancestral(process, t, s):
    """Wherever operators commute."""
    one, other = of(ddim(1.0), PROCESSES[process], t, s), of(ancestral, PROCESSES[process], t, s)
    close(one.carry, other.carry, 1e-10)
    close(one.fresh, other.fresh, 1e-10)


@each_pair
def test_momentum_without_blur_is_reverse_diffusion(t, s):
    """C = I: x + (v_t - v_s) score + sqrt(v_t - v_s) z, the VE predictor."""
    process = PROCESSES["ve"]
    x_t, x0, z = normal(2, *SHAPE), normal(2, *SHAPE, seed=1), normal(2, *SHAPE, seed=2)
    v_t, v_s = (CLOSED["ve"].variance(x)[0, 0] for x in (t, s))
    score = (x0.numpy() - x_t.numpy()) / v_t
    expected = x_t.numpy() + (v_t - v_s) * score + math.sqrt(v_t - v_s) * z.numpy()
    close(stepped(momentum, process, t, s, x_t, x0, z), expected, 1e-10)


@pytest.mark.parametrize("coupling", [momentum, pf_momentum])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_momentum_with_constant_or_no_noise_is_cold(coupling, level):
    """K = I, L = 0 where v_s = v_t, v = 0 among them."""
    process = Process(Heat(Linear(0.0, 2.0), dct(4, 5)), Scale(Constant(level)))
    carry, fresh = of(coupling, process, 0.5, 0.4)
    close(carry, np.eye(20), 1e-15)
    assert not fresh.any()


def test_momentum_carries_what_is_noisy_and_keeps_what_is_not():
    """Coefficient by coefficient: v_s / v_t where there is noise, 1 where there never is."""
    silent = torch.tensor([1.0, 0.0, 2.0]).double()
    noise = Fixed(Diagonal(silent.log(), None, pixel(3))) @ Scale(Linear(0.5, 1.0))
    process = Process(Scale(Constant(1.0)), noise)
    carry, fresh = of(momentum, process, 1.0, 0.5, (3,))
    close(carry, np.diag([0.5625, 1.0, 0.5625]), 1e-14)
    close(fresh, np.diag([0.4375, 0.0, 1.75]), 1e-13)


@pytest.mark.parametrize("name", EXACT)
def test_the_last_step_to_clean_draws_nothing(name):
    """v_s = 0: K V_t K' + L L' = 0 for consistent couplings, x_s = C_s x_0."""
    power = CosineSNR(10.0, -10.0)
    process = Process(Scale(Amplitude(power)), Scale(Linear(0.0, 1.0)))
    assert scalars(COUPLINGS[name].coupling, process, 0.1, 0.0) == (0.0, 0.0)


@each_process
def test_given_makes_the_coupling_of_a_cross_covariance(process):
    """Gamma = rho S_s S_t: K = rho S_s S_t^-1, L L' = (1 - rho^2) V_s."""
    model, t, s = PROCESSES[process], time(0.5), time(0.4)
    cross = Fixed(model.noise.at(s) @ model.noise.at(t)) @ Scale(Constant(0.6))
    carry, fresh = from_cross_covariance(model, t, s, cross.at(t))
    v_t, v_s = (CLOSED[process].matrices(x)[1] for x in (0.5, 0.4))
    left = columns(fresh)
    close(left @ left.T, 0.64 * v_s, 1e-10)
    close(columns(carry) @ v_t @ columns(carry).T, 0.36 * v_s, 1e-10)


# Digits.


@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("sigma", [1e-3, 1.0, 50.0])
def test_fresh_variances_keep_their_digits(gap, sigma):
    """p = v_s (-expm1(l_t - l_s)) to 1e-8 relative, for log-SNR gaps of 1e-6."""
    v_s, v_t = sigma**2, sigma**2 * math.exp(gap)
    level = Mapping(lambda t: Scale(Linear(math.sqrt(v_s), math.sqrt(v_t))).at(t))
    process = Process(Scale(Constant(0.5)), level)
    exact = v_s * -math.expm1(-gap)
    for coupling in (ancestral, bridge):
        assert scalars(coupling, process, 1.0, 0.0)[1] == pytest.approx(exact, rel=2e-9)
    assert scalars(momentum, process, 1.0, 0.0)[1] == pytest.approx(exact * v_t / v_s, rel=2e-9)


def test_heavy_blur_makes_finite_steps():
    """Gains of 10^-2197: K = a v_s / v_t and L stay finite and consistent."""
    process = Process(Heat(Linear(0.0, 23.0), dct(64, 64)), Scale(Linear(0.01, 0.1)))
    v_t, v_s = 0.1**2, (0.01 + 0.09 * 0.9) ** 2
    for coupling in (ancestral, ddim(0.5), ddim(1.0), momentum, bridge):
        carry, fresh = coupling(process, time(1.0), time(0.9))
        kept = (carry.gain**2 * v_t + fresh.gain**2) + torch.zeros(64, 64).double()
        assert torch.isfinite(kept).all()
        if coupling is not momentum:
            close(kept, np.full((64, 64), v_s), 1e-9)


# Where nothing is diagonal.

DENSE: dict[str, Callable[..., Step]] = {
    "ddim": lambda c_t, v_t, c_s, v_s: Step(root(v_s) @ np.linalg.inv(root(v_t)), 0 * v_s),
    "bridge": lambda c_t, v_t, c_s, v_s: Step(
        v_s @ np.linalg.inv(v_t), v_s - v_s @ np.linalg.inv(v_t) @ v_s
    ),
    "momentum": lambda c_t, v_t, c_s, v_s: Step(v_s @ np.linalg.inv(v_t), v_t - v_s),
    "pf-momentum": lambda c_t, v_t, c_s, v_s: Step(
        (np.eye(len(v_s)) + v_s @ np.linalg.inv(v_t)) / 2, 0 * v_s
    ),
    "naive": lambda c_t, v_t, c_s, v_s: Step(0 * v_s, v_s),
    "annealed": lambda c_t, v_t, c_s, v_s: Step(0.1 * np.eye(len(v_s)), v_s - 0.01 * v_t),
    "cold": lambda c_t, v_t, c_s, v_s: Step(np.eye(len(v_s)), 0 * v_s),
    "ancestral": lambda c_t, v_t, c_s, v_s: Step(*conditioned(c_s, v_s, c_t, v_t)),
    "ancestral-large": lambda c_t, v_t, c_s, v_s: Step(
        conditioned(c_s, v_s, c_t, v_t)[0],
        v_t - c_t @ np.linalg.inv(c_s) @ v_s @ (c_t @ np.linalg.inv(c_s)).T,
    ),
}
"""(K, L L') by numpy and scipy."""


def root(v: np.ndarray) -> np.ndarray:
    return scipy.linalg.sqrtm(v).real


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize(("t", "s"), [(0.5, 0.4), (1.0, 0.8)])
def test_couplings_of_matrices(name, t, s):
    """Random C_t and V_t that do not commute, as matrices: K and L L'."""
    expected = DENSE[name](*GENERAL["matrices"].matrices(t), *GENERAL["matrices"].matrices(s))
    found = of(COUPLINGS[name].coupling, GENERAL["matrices"].process, t, s, (6,))
    close(found.carry, expected.carry, 1e-9)
    close(found.fresh, expected.fresh, 1e-9)


def test_ddim_of_matrices_keeps_the_marginals():
    """eta in (0, 1]: K V_t K' + L L' = V_s with L L' = eta^2 that of ancestral."""
    (_, v_t), (_, v_s) = (GENERAL["matrices"].matrices(x) for x in (0.6, 0.5))
    markov = of(ancestral, GENERAL["matrices"].process, 0.6, 0.5, (6,))
    for eta in (0.5, 1.0):
        carry, fresh = of(ddim(eta), GENERAL["matrices"].process, 0.6, 0.5, (6,))
        close(carry @ v_t @ carry.T + fresh, v_s, 1e-9)
        close(fresh, eta**2 * markov.fresh, 1e-9)


@pytest.mark.parametrize("kind", ["crossed", "matrix-free"])
@pytest.mark.parametrize("name", ["ddim", "bridge", "momentum", "pf-momentum", "naive", "cold"])
def test_couplings_without_an_inverse_of_the_signal(name, kind):
    """Blur and noise without a common basis, or any linear callable: K and L L'."""
    process, closed, shape = GENERAL[kind]
    expected = DENSE[name](*closed(0.6), *closed(0.5))
    found = of(COUPLINGS[name].coupling, process, 0.6, 0.5, shape)
    close(found.carry, expected.carry, 1e-9)
    close(found.fresh, expected.fresh, 1e-9)


# Refusals.


def test_ancestral_refuses_a_matrix_free_signal():
    for coupling in (ancestral, ancestral_large, ddim(0.5)):
        with pytest.raises(NotImplementedError) as error:
            coupling(GENERAL["matrix-free"].process, time(0.6), time(0.5))
        assert str(error.value) == (
            "MatrixFree has no inverse, which ancestral and noise-prediction need. "
            "Use naive, ddim or momentum, and the residual parametrization."
        )


def test_ancestral_refuses_what_no_basis_diagonalises():
    """Blur in one basis, noise in another: no root of the fresh variance, and a way out."""
    with pytest.raises(NotImplementedError, match=r"has no symmetric root.*naive, pf_momentum"):
        ancestral(GENERAL["crossed"].process, time(0.6), time(0.5))


def falling(level: Family | None = None) -> Process:
    """Noise that falls with time, on one coefficient of twenty unless told otherwise."""
    index = torch.arange(20.0).reshape(4, 5)
    quieter = Fade(Linear(0.0, 1.0), 0.3 + 9 * (index != 7).double(), pixel(4, 5), 0.5)
    return Process(Scale(Constant(1.0)), level or quieter)


@pytest.mark.parametrize(("who", "coupling"), [("momentum", momentum), ("bridge", bridge)])
def test_noise_that_falls_is_refused(who, coupling):
    """V_s <= V_t: the sentence names the coefficient, both times, and what to use."""
    with pytest.raises(ValueError) as error:
        coupling(falling(), time(0.6), time(0.5))
    assert re.fullmatch(
        rf"{who} needs noise that never falls with time, V_s <= V_t; between t=0\.50 and t=0\.60 "
        r"the variance of the fresh noise has a negative gain: coefficient \(1, 2\) is -[\d.]+\. "
        r"Use ddim or naive\.",
        str(error.value),
    )


@pytest.mark.parametrize("coupling", [momentum, bridge])
def test_the_sentence_names_the_times_of_the_sample_that_falls(coupling):
    t, s = times(0.2, 0.25, 0.7, rank=3), times(0.1, 0.2, 0.4, rank=3)
    with pytest.raises(ValueError, match=r"between t=0\.40 and t=0\.70 .* \(1, 2\)"):
        coupling(falling(), t, s)
    with pytest.raises(ValueError, match=r"between t=0\.40 and t=0\.70 .* every coefficient is"):
        coupling(falling(Scale(Linear(1.0, 0.5))), time(0.7), time(0.4))


def test_what_is_refused_can_be_sampled_as_the_sentence_says():
    """ddim and naive keep the marginals of noise that falls."""
    process = falling()
    v_t, v_s = (columns(process.cov(time(x))) for x in (0.6, 0.5))
    for coupling in (ddim(), naive):
        carry, fresh = of(coupling, process, 0.6, 0.5)
        close(carry @ v_t @ carry.T + fresh, v_s, 1e-12)


def test_matrices_whose_noise_falls_are_refused():
    backwards = Process(
        GENERAL["matrices"].process.signal,
        Mapping(lambda t: GENERAL["matrices"].process.noise.at(1 - t)),
    )
    with pytest.raises(ValueError, match=r"momentum needs .* negative eigenvalue: one is -.* Use"):
        momentum(backwards, time(0.6), time(0.5))


def test_annealed_steps_that_are_too_long_are_refused():
    with pytest.raises(ValueError) as error:
        annealed(0.1)(PROCESSES["ve"], time(0.9), time(0.5))
    assert re.fullmatch(
        r"annealed\(eta=0\.1\) needs \(1 - eta\)\^2 V_t <= V_s, a larger eta or shorter steps; "
        r"between t=0\.50 and t=0\.90 the variance of the fresh noise has a negative gain: every "
        r"coefficient is -[\d.]+\. Use ddim or naive\.",
        str(error.value),
    )


def test_from_cross_covariance_refuses_what_no_joint_law_has():
    """|Gamma| <= S_s S_t."""
    process, t, s = PROCESSES["soft"], time(0.6), time(0.5)
    with pytest.raises(
        ValueError, match=r"from_cross_covariance needs a cross-covariance that V_s and V_t allow"
    ):
        from_cross_covariance(process, t, s, process.cov(t) + process.cov(t))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ddim(-0.1), r"ddim needs eta in \[0, 1\]; got -0.1"),
        (lambda: ddim(1.5), r"ddim needs eta in \[0, 1\]; got 1.5"),
        (lambda: annealed(0.0), r"annealed needs eta in \(0, 1\]; got 0"),
        (lambda: annealed(math.nan), r"annealed needs eta in \(0, 1\]; got nan"),
    ],
)
def test_wrong_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
