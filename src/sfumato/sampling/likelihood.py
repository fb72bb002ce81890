r"""The variational bound of every process whose reverse steps keep the marginals.

    -log p(x_0) <= KL(q(x_1 | x_0) || p_1) + sum_k KL(q(x_s | x_t, x_0) || p(x_s | x_t))
                   + E[-log p(x_0 | x_t1)],  t1 the last time above 0

In nats for each signal, of data on a grid of values. `flow_bound` has the flow's density of x_t1 in
place of the first two terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, Operator
from sfumato.corruption.coupling import Coupling, ancestral
from sfumato.corruption.prior import GaussianPrior, Prior, RandnLike
from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser
from sfumato.estimation.ends import discretised, prior_term
from sfumato.estimation.loss import variational_bound
from sfumato.limits import BINS, whole
from sfumato.sampling.density import check_model, log_prob
from sfumato.sampling.flow import Tableau
from sfumato.sampling.sample import check_grid

Decoder = Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(denoiser, x0, eps, t1, deviation, bins) -> -log p(x_0 | x_t1) in nats, (B,)."""


@final
class Evidence(NamedTuple):
    """How a method bounds the likelihood.

    Attributes:
        forward: q(x_s | x_t, x_0), a coupling that keeps the marginals.
        backward: p(x_s | x_t), of the same carry K; `forward` with x_0^ for x_0 by default.
        decoder: p(x_0 | x_t1).
        to_zero: whether the decoder reads x at t = 0, which then has noise.

    >>> evidence = sf.METHODS["ddpm"]((1, 8, 8)).evidence
    >>> evidence.forward.__name__, evidence.to_zero
    ('ancestral', False)
    """

    forward: Coupling = ancestral
    backward: Coupling | None = None
    decoder: Decoder = discretised
    to_zero: bool = False


MARKOV = Evidence()
"""The Markov chain, and a discretised Gaussian at its end."""


@final
class Terms(NamedTuple):
    """The terms of the bound in nats, (B,) each.

    >>> prior, steps, decoder = torch.tensor([[1.0], [20.0], [3.0]])
    >>> sf.likelihoods.Terms(prior, steps, decoder).total
    tensor([24.])
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x_0)."""
        return self.prior + self.steps + self.decoder


@torch.no_grad()
def bound_terms(
    denoiser: Denoiser,
    prior: Prior,
    x0: Tensor,
    grid: Tensor,
    evidence: Evidence | None = None,
    bins: int = 256,
    draws: int | None = None,
    randn_like: RandnLike = torch.randn_like,
) -> Terms:
    r"""The three terms of the bound on -log p(x_0), in nats, (B,) each.

    With one draw of x_t at each step evaluated. The fresh noise of the reverse steps may differ
    from q's, as IHDM's delta does from its sigma; the divergence includes the difference.

    Args:
        denoiser: the estimate.
        prior: the law of x_1 of the model.
        x0: (B, *shape), values -1 + 2 k / (bins - 1).
        grid: falling times of the chain, from 1; the decoder reads x at the last one above 0.
        evidence: how the method bounds; the Markov chain and a discretised Gaussian by default.
        bins: number of values that a pixel can have.
        draws: number of steps evaluated for each signal, chosen in proportion to their divergence
            for white Gaussian data of variance 1; all where None.
        randn_like: source of the noise, and of the choice of steps.

    Raises:
        ValueError: a coupling that does not keep the marginals, which gives no bound.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> x0 = sf.load("digits").batch(range(2))
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1, 8, 8), sf.operators.scaled(0.5))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> prior = sf.priors.standard(process, (1, 8, 8))
    >>> grid = sf.grids.uniform_grid(20)
    >>> terms = sf.likelihoods.bound_terms(denoiser, prior, x0, grid, bins=17)
    >>> terms.total.shape, bool(terms.steps.min() > terms.prior.max())
    (torch.Size([2]), True)

    References:
        Denoising Diffusion Probabilistic Models (J. Ho, A. Jain, P. Abbeel, 2020), Eq. 5,
        https://arxiv.org/abs/2006.11239
        Variational Diffusion Models (D. Kingma, T. Salimans, B. Poole, J. Ho, 2021),
        https://arxiv.org/abs/2107.00630
    """
    check_model(denoiser, prior, x0)
    evidence = evidence or MARKOV
    process = denoiser.process
    grid = check_grid(grid)
    if not evidence.to_zero:
        grid = grid[grid > 0]
    size = len(x0)
    one = grid[0]
    axes = (1,) * (x0.ndim - 1)
    if isinstance(prior, GaussianPrior):
        first = prior_term(process, x0, prior.mean, prior.cov)
    else:
        x1 = process.corrupt(x0, one, randn_like(x0))
        first = process.log_prob(x1, x0, one) - prior.log_prob(x1)
    steps = torch.zeros(size, dtype=torch.float64)
    for at, share in _looked_at(process, grid, evidence, draws, x0, randn_like):
        t, s = (grid[at + k].reshape(-1, *axes) for k in (0, 1))
        if bool((t == t[:1]).all()):
            t, s = t[0].reshape(()), s[0].reshape(())
        term = _divergence(denoiser, x0, t, s, randn_like(x0), evidence)
        steps += term.cpu().double() / share
    end = _decoded(denoiser, x0, grid, evidence, bins, randn_like(x0))
    return Terms(first.cpu().double(), steps, end)


@torch.no_grad()
def flow_bound(
    denoiser: Denoiser,
    prior: Prior,
    x0: Tensor,
    grid: Tensor,
    evidence: Evidence | None = None,
    bins: int = 256,
    solver: Tableau | None = None,
    probes: int = 1,
    randn_like: RandnLike = torch.randn_like,
    tolerance: float = 1e-4,
) -> Tensor:
    r"""The bound on -log p(x_0) with the flow's density in place of the chain's, in nats, (B,).

    E[log q(x_t1 | x_0) - log p_t1(x_t1) - log p(x_0 | x_t1)]: the noise of x_t1 dequantises the
    values in place of uniform noise, and the decoder is that of `bound_terms`. For data with many
    equal values, such as black backgrounds, the bound by uniform noise is much higher.

    Args:
        solver, probes, tolerance: as `log_prob`.
        denoiser, prior, x0, grid, evidence, bins, randn_like: as `bound_terms`.

    >>> process = sf.METHODS["ddpm"]((1, 8, 8)).process
    >>> x0 = sf.load("digits").batch(range(2))
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1, 8, 8), sf.operators.scaled(0.5))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> prior = sf.priors.standard(process, (1, 8, 8))
    >>> grid, solver = sf.grids.uniform_grid(5, last=0.01), sf.kernels.HEUN
    >>> sf.likelihoods.flow_bound(denoiser, prior, x0, grid, bins=17, solver=solver).shape
    torch.Size([2])

    References:
        Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs (K. Zheng, C. Lu,
        J. Chen, J. Zhu, 2023), https://arxiv.org/abs/2305.03935
    """
    check_model(denoiser, prior, x0)
    evidence = evidence or MARKOV
    process = denoiser.process
    grid = check_grid(grid)
    if not evidence.to_zero:
        grid = grid[grid > 0]
    eps = randn_like(x0)
    last = grid[-1]
    x = process.corrupt(x0, last, eps)
    way = grid if solver is not None else grid[[0, -1]]
    density = log_prob(denoiser, prior, x, way, solver, probes, randn_like, tolerance)
    filled = process.log_prob(x, x0, last).cpu().double()
    return filled - density + _decoded(denoiser, x0, grid, evidence, bins, eps)


@torch.no_grad()
def _decoded(
    denoiser: Denoiser, x0: Tensor, grid: Tensor, evidence: Evidence, bins: int, eps: Tensor
) -> Tensor:
    check_bins(bins)
    deviation = _deviation(denoiser.process, grid, evidence, x0)
    return evidence.decoder(denoiser, x0, eps, grid[-1], deviation, bins).cpu().double()


def check_bins(bins: int) -> None:
    """Raise ValueError unless `bins` is a number of values that pixels can have: 2 or more."""
    whole("bins", bins, 2, BINS)


def bits_per_dim(nats: Tensor, values: int) -> Tensor:
    """Nats per signal of `values` values as bits per value.

    >>> sf.likelihoods.bits_per_dim(torch.tensor([100.0]), 64)
    tensor([2.2542])
    """
    return nats / (values * math.log(2))


def uniform_numbers(x: Tensor, randn_like: RandnLike) -> Tensor:
    """Numbers uniform in (0, 1) like `x`, float64 on the CPU, from a stream of normal ones."""
    return torch.special.ndtr(randn_like(x).cpu().double())


def _looked_at(
    process: Process,
    grid: Tensor,
    evidence: Evidence,
    draws: int | None,
    x0: Tensor,
    randn_like: RandnLike,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Steps of the chain for each signal, and the expected count of each: (B,) or () both.

    One from each stratum of equal divergence, most of which is in the last steps of a chain.
    """
    count = len(grid) - 1
    if draws is None or draws >= count:
        for k in range(count):
            yield torch.tensor(k), torch.ones((), dtype=torch.float64)
        return
    costs = torch.stack([_cost(process, t, s, evidence) for t, s in pairwise(grid)])
    # A tenth is spread evenly, which bounds the weight of a step whose divergence is larger.
    shares = 0.9 * costs / costs.sum() + 0.1 / count if costs.sum() > 0 else costs + 1 / count
    edges = shares.cumsum(0)
    for j in range(draws):
        u = uniform_numbers(x0.flatten(1)[:, :1], randn_like).flatten()
        at = torch.searchsorted(edges, (j + u) / draws).clamp(max=count - 1)
        yield at, shares[at] * draws


def _cost(process: Process, t: Tensor, s: Tensor, evidence: Evidence) -> Tensor:
    """Twice the divergence of a step per coefficient, for white Gaussian data of variance 1."""
    weight = variational_bound(evidence.forward)(process, t, s)
    snr = process.log_snr(t)
    if snr is None or not isinstance(weight, Diagonal):
        return torch.ones((), dtype=torch.float64)
    return (weight.gain.detach().square() / (1 + snr.detach().exp())).mean().cpu()


def _divergence(
    denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, evidence: Evidence
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) at one x_t, (B,)."""
    process = denoiser.process
    rest = torch.zeros((), dtype=torch.float64)
    weight = variational_bound(evidence.forward)(process, t, s)
    if evidence.backward is not None:
        q, p = evidence.forward(process, t, s), evidence.backward(process, t, s)
        ratio = p.fresh.inv() @ q.fresh
        weight = ratio @ weight
        rest = _spread(ratio, x0)
    estimate = denoiser(process.corrupt(x0, t, eps), t)
    error = estimate.through(weight) - weight(x0)
    return error.square().flatten(1).sum(1) / 2 + rest.to(x0.device)


def _spread(ratio: Operator, x0: Tensor) -> Tensor:
    """sum (r^2 - 1 - log r^2) / 2 over coefficients: the divergence by different variances."""
    if not isinstance(ratio, Diagonal):
        raise Refused("the bound's variances must be diagonal in one basis.")
    log = (2 * ratio.log_gain).expand(torch.broadcast_shapes(ratio.log_gain.shape, x0.shape[1:]))
    return (log.exp() - 1 - log).reshape(-1, math.prod(x0.shape[1:])).sum(1) / 2


def _deviation(process: Process, grid: Tensor, evidence: Evidence, x0: Tensor) -> Tensor:
    """Of p(x_0 | x_t1) for each pixel: the fresh noise of the last step that has any.

    With the forward kernel's variance that is the step from t1 to 0, DDPM's sqrt(beta_1); with the
    posterior's, which is 0 there, the step before it, as in the code of DDPM. Where the decoder
    reads x at t = 0, or no step draws, the noise at t1.
    """
    back = evidence.backward or evidence.forward
    last = grid[-1]
    if not evidence.to_zero:
        for t, s in ((last, torch.zeros_like(last)), *pairwise(grid[-2:])):
            found = _rms(back(process, t, s).fresh, x0)
            if found > 0:
                return found
    return _rms(process.noise.at(last), x0)


def _rms(operator: Operator, x0: Tensor) -> Tensor:
    if not isinstance(operator, Diagonal):
        raise Refused("the bound's decoder needs noise that is diagonal in one basis.")
    return operator.gain.detach().square().expand(x0.shape[1:]).mean().sqrt()
