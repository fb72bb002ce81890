r"""A coupling ties the noise at s to the noise at t, given x_0, for s < t:

    x_s = C_s x_0 + K (x_t - C_t x_0) + L eps,        Step(carry=K, fresh=L).

It is *marginal-consistent* when V_s = K V_t K^T + L L^T: then x_s has the law q(x_s | x_0) again. A
cross-covariance Gamma = Cov(x_s, x_t | x_0) gives one: K = Gamma V_t^-1, L L^T = V_s - K V_t K^T.
Every reverse sampler of the field is one of these with x_0 replaced by its estimate. Roots are
symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

from torch import Tensor

from sfumato.algebra.operators import Diagonal, NotPositive, Operator, identity, scaled, zero
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.names import value


class Step(NamedTuple):
    """A reverse step: the share K of the noise at t that it keeps, and the fresh noise's root L.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> step = sf.couplings.ancestral(process, t, s)
    >>> step.carry.gain, step.fresh.gain
    (tensor(0.5543, dtype=torch.float64), tensor(0.7223, dtype=torch.float64))
    """

    carry: Operator
    fresh: Operator


Coupling = Callable[[Process, Tensor, Tensor], Step]
"""(process, t, s) -> Step(carry=K, fresh=L): how the noise at s is tied to that at t, given x_0.

`process` is a `Process`; `t` and `s` are times in [0, 1] of shapes () or (B, 1, ..., 1), s < t for
each sample. K and L are operators on signals of the process; L is 0 where nothing is drawn. A
coupling raises ValueError or NotImplementedError where the process allows no such step. See
docs/mathematics.md, "Couplings and consistency", and `check_coupling` for your own.

>>> def renoise(process, t, s):  # naive: K = 0, L = S_s
...     return sf.couplings.Step(sf.operators.zero(), process.noise.at(s))
>>> process = sf.METHODS["soft"]((1, 8, 8)).process
>>> sf.check_coupling(renoise, process, (1, 8, 8))  # None: V_s = K V_t K^T + L L^T
>>> renoise(process, torch.tensor(0.2).double(), torch.tensor(0.1).double()).fresh.gain
tensor(0.0502, dtype=torch.float64)
"""

_GROWING = "noise that never falls with time, V_s <= V_t"


def from_cross_covariance(process: Process, t: Tensor, s: Tensor, cross: Operator) -> Step:
    """The marginal-consistent step with cross-covariance `cross` = Cov(x_s, x_t | x_0).

    Raises:
        ValueError: no joint law has this cross-covariance, V_s - K V_t K^T is not positive.

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> same = sf.couplings.from_cross_covariance(process, t, s, process.cov(s))
    >>> torch.allclose(same.carry.gain, sf.couplings.bridge(process, t, s).carry.gain)
    True
    """
    return _tied(
        process,
        t,
        s,
        cross,
        "from_cross_covariance needs a cross-covariance that V_s and V_t allow",
    )


def ancestral(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""The posterior of the Markov process: Gamma = V_s (C_t C_s^-1)^T. Marginal-consistent.

    DDPM's sampler with the small variance, VDM's, Blurring Diffusion's, non-isotropic DDPM's.

    Raises:
        ValueError: the signal-to-noise ratio of some coefficient rises from s to t.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> carry, fresh = sf.couplings.ancestral(process, t, s)
    >>> kept = carry @ process.cov(t) @ carry.T + fresh @ fresh.T
    >>> torch.allclose(kept.gain, process.cov(s).gain)
    True

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020),
        https://arxiv.org/abs/2006.11239
    """
    process.check_markov(s, t, "ancestral")
    cross = process.cov(s) @ process.propagator(s, t).T
    return _tied(process, t, s, cross, "ancestral needs signal-to-noise ratios that fall with time")


def ancestral_large(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""`ancestral` with the forward kernel's variance, L L^T = V_{t|s}: DDPM's "fixedlarge" beta_t.

    Excess V_{t|s} - L L^T of `ancestral`; exact for unit-variance data under a variance-preserving
    process (docs/mathematics.md, "Predictions for Gaussian data").

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> sf.couplings.ancestral_large(process, t, s).fresh.gain
    tensor(0.7728, dtype=torch.float64)
    >>> sf.couplings.ancestral(process, t, s).fresh.gain
    tensor(0.7223, dtype=torch.float64)
    """
    _, fresh = process.transition(s, t)
    return Step(ancestral(process, t, s).carry, fresh.sqrt())


@final
@value
class ddim:
    r"""DDIM: L = eta L_ancestral, K = (V_s - L L^T)^1/2 S_t^-1. Marginal-consistent.

    eta = 0 is deterministic, Gamma = S_s S_t^T, and needs no inverse of C_t (gDDIM for blur);
    eta = 1 is `ancestral` where operators commute.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> sf.couplings.ddim(eta=0.0)(process, t, s).fresh.is_zero
    True
    >>> sf.couplings.ddim(eta=1.0)(process, t, s).fresh.gain  # that of ancestral
    tensor(0.7223, dtype=torch.float64)

    References:
        Denoising Diffusion Implicit Models (J. Song, C. Meng, S. Ermon, 2020),
        https://arxiv.org/abs/2010.02502
        gDDIM: Generalized Denoising Diffusion Implicit Models (Q. Zhang, M. Tao, Y. Chen, 2022),
        https://arxiv.org/abs/2206.05564
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise Refused(f"ddim needs eta in [0, 1]; got {self.eta:g}.")

    def __call__(self, process: Process, t: Tensor, s: Tensor) -> Step:
        eta = self.eta
        back = process.noise.at(t).inv()
        if eta == 0:
            return Step(process.noise.at(s) @ back, zero())
        carry, fresh = ancestral(process, t, s)
        # V_s - eta^2 L L^T of `ancestral`, written without a difference.
        kept = scaled(eta**2) @ carry @ process.cov(t) @ carry.T
        total = scaled(1 - eta**2) @ process.cov(s) + kept
        return Step(total.sqrt() @ back, scaled(eta) @ fresh)


def bridge(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""The exact Brownian bridge around C_t x_0: Gamma = V_s. Marginal-consistent.

    `momentum`'s mean with the variance that keeps the marginals, V_s (V_t - V_s) / V_t.

    Raises:
        ValueError: the noise falls somewhere between s and t.

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> carry, fresh = sf.couplings.bridge(process, t, s)
    >>> torch.allclose(carry.gain, process.cov(s).gain / process.cov(t).gain)
    True
    """
    return _tied(process, t, s, process.cov(s), f"bridge needs {_GROWING}")


def momentum(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""Soft Diffusion's Momentum Sampler as published: K = V_s V_t^-1, L L^T = V_t - V_s.

    Not marginal-consistent: excess (V_t - V_s)^2 V_t^-1, of second order in the step. With C = I it
    is the reverse-diffusion predictor of VE; where the noise is constant it deblurs
    deterministically, as `cold` does; K = I where there is none.

    Raises:
        ValueError: the noise falls somewhere between s and t.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.2, 0.1]).double()
    >>> carry, fresh = sf.couplings.momentum(process, t, s)
    >>> torch.allclose(fresh.gain**2, process.cov(t).gain - process.cov(s).gain)
    True

    References:
        Soft Diffusion: Score Matching for General Corruptions (G. Daras, M. Delbracio, H. Talebi,
        A. Dimakis, P. Milanfar, 2022), Algorithm 2, https://arxiv.org/abs/2209.05442
    """
    left = process.cov(t) - process.cov(s)
    return Step(_pulled(process, t, s), _root(left, t, s, f"momentum needs {_GROWING}"))


def pf_momentum(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""Soft Diffusion's Probability-Flow Momentum: K = (I + V_s V_t^-1) / 2, L = 0.

    The Euler step of its Eq. 18, marginal-consistent to first order. See `momentum` for the
    reference.

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.2, 0.1]).double()
    >>> carry, fresh = sf.couplings.pf_momentum(process, t, s)
    >>> fresh.is_zero, carry.gain
    (True, tensor(0.5792, dtype=torch.float64))
    """
    return Step(scaled(0.5) @ (identity() + _pulled(process, t, s)), zero())


@final
@value
class annealed:
    r"""Consistent annealed sampling: K = (1 - eta) I, L L^T = V_s - (1 - eta)^2 V_t.

    Marginal-consistent. The step raises ValueError unless (1 - eta)^2 V_t <= V_s.

    >>> process = sf.METHODS["ve"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.5, 0.45]).double()
    >>> sf.couplings.annealed(eta=0.5)(process, t, s).carry.gain
    tensor(0.5000, dtype=torch.float64)

    References:
        Adversarial Score Matching and Improved Sampling for Image Generation (A.
        Jolicoeur-Martineau, R. Piché-Taillefer, R. Tachet des Combes, I. Mitliagkas, 2020),
        https://arxiv.org/abs/2009.05475
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise Refused(f"annealed needs eta in (0, 1]; got {self.eta:g}.")

    def __call__(self, process: Process, t: Tensor, s: Tensor) -> Step:
        eta = self.eta
        left = process.cov(s) - scaled((1 - eta) ** 2) @ process.cov(t)
        needs = f"annealed(eta={eta:g}) needs (1 - eta)^2 V_t <= V_s, a larger eta or shorter steps"
        return Step(scaled(1 - eta), _root(left, t, s, needs))


@final
@value
class analytic_variance:
    r"""K of `coupling`, and the fresh noise with which N(m, cov) data keep their law exactly.

    With the exact denoiser of such data, whose gain is G = cov C_t^T M_t^-1, a step takes x_t to
    B x_t + L eps, B = C_s G + K (I - C_t G); L L^T = M_s - B M_t B^T makes the law of x_s that of
    q_s, M = C cov C^T + V. Not marginal-consistent given x_0: the excess replaces the variance that
    an estimate of x_0 lacks (docs/mathematics.md, "Predictions for Gaussian data"). The optimal
    variance of Analytic-DPM, for each coefficient and any process, from the data's spectrum.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> cov = sf.statistics.default_statistics((1, 8, 8)).cov()
    >>> coupling = sf.couplings.analytic_variance(sf.couplings.ancestral, cov)
    >>> t, s = torch.tensor([0.5, 0.4]).double()
    >>> coupling(process, t, s).fresh.gain.shape  # for each coefficient its own
    torch.Size([1, 8, 8])

    References:
        Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion
        Probabilistic Models (F. Bao, C. Li, J. Zhu, B. Zhang, 2022),
        https://arxiv.org/abs/2201.06503
    """

    coupling: Coupling
    cov: Operator

    def __call__(self, process: Process, t: Tensor, s: Tensor) -> Step:
        cov = self.cov
        carry, _ = self.coupling(process, t, s)
        clean_t, clean_s = process.signal.at(t), process.signal.at(s)
        total_t = clean_t @ cov @ clean_t.T + process.cov(t)
        total_s = clean_s @ cov @ clean_s.T + process.cov(s)
        gain = cov @ clean_t.T @ total_t.inv()
        # I - C_t G = V_t M_t^-1, without a difference.
        step = clean_s @ gain + carry @ process.cov(t) @ total_t.inv()
        needs = "analytic_variance needs a carry K that keeps no more than the data's variance"
        return Step(carry, _root(total_s - step @ total_t @ step.T, t, s, needs))


def naive(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""Independent noise, Soft Diffusion's Naive Sampler (Algorithm 1): Gamma = 0, K = 0, L = S_s.

    Marginal-consistent given x_0, but with an estimate of x_0 it tends to half the data's variance
    (docs/mathematics.md, "Predictions for Gaussian data").

    >>> process = sf.METHODS["soft"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.2, 0.1]).double()
    >>> carry, fresh = sf.couplings.naive(process, t, s)
    >>> carry.is_zero, bool(fresh.gain == process.noise.at(s).gain)
    (True, True)
    """
    return Step(zero(), process.noise.at(s))


@final
@value
class ihdm:
    r"""IHDM's step: noise of deviation `delta` in place of S_s, K = 0, L = delta I.

    Marginal-consistent only where delta I = S_s; IHDM's delta = 1.25 sigma replaces the variance
    that an estimate of the less blurred image lacks.

    >>> process = sf.METHODS["ihdm"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.2, 0.1]).double()
    >>> sf.couplings.ihdm(delta=0.0125)(process, t, s).fresh.gain
    tensor(0.0125, dtype=torch.float64)

    References:
        Generative Modelling with Inverse Heat Dissipation (S. Rissanen, M. Heinonen, A. Solin,
        2022), https://arxiv.org/abs/2206.13397
    """

    delta: float

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise Refused(f"ihdm needs a deviation of 0 or more; got {self.delta:g}.")

    def __call__(self, process: Process, t: Tensor, s: Tensor) -> Step:
        return Step(zero(), scaled(self.delta))


def cold(process: Process, t: Tensor, s: Tensor) -> Step:
    r"""x_s = x_t + (C_s - C_t) x_0: K = I, L = 0. Consistent only where V_s = V_t.

    Where the noise changes with time, x_s keeps that at t, and samples tend to a wrong law however
    many steps there are.

    >>> process = sf.METHODS["cold"]((1, 8, 8)).process
    >>> t, s = torch.tensor([0.2, 0.1]).double()
    >>> carry, fresh = sf.couplings.cold(process, t, s)
    >>> carry(torch.tensor([2.0])), fresh.is_zero
    (tensor([2.]), True)

    References:
        Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise (A. Bansal et al., 2022),
        Algorithm 2, https://arxiv.org/abs/2208.09392
    """
    return Step(identity(), zero())


def _tied(process: Process, t: Tensor, s: Tensor, cross: Operator, needs: str) -> Step:
    """K = Gamma V_t^-1, L L^T = V_s - K V_t K^T."""
    cov_t = process.cov(t)
    carry = cross @ cov_t.inv()
    return Step(carry, _root(process.cov(s) - carry @ cov_t @ carry.T, t, s, needs))


def _pulled(process: Process, t: Tensor, s: Tensor) -> Operator:
    """V_s V_t^-1, and I on coefficients without noise, where V_t^-1 is the pseudo-inverse 0."""
    cov_t = process.cov(t)
    back = cov_t.inv()
    ratio = process.cov(s) @ back
    return ratio + (identity() - cov_t @ back) if isinstance(cov_t, Diagonal) else ratio


def _root(left: Operator, t: Tensor, s: Tensor, needs: str) -> Operator:
    """The root of the fresh noise's variance `left`; ValueError, with `needs`, if there is none."""
    try:
        return left.sqrt()
    except NotPositive as error:
        early, late = (float(x.flatten()[error.sample % x.numel()]) for x in (s, t))
        raise Refused(
            f"{needs}; between t={early:.2f} and t={late:.2f} the variance of the fresh noise has "
            f"a negative {error.found}. Use ddim or naive."
        ) from error
