r"""Oracles are backbones that compute E[x_0 | x_t] exactly, for data whose law is given.

For Gaussians, mixtures of Gaussians and finite sets of points:

    M_k = C S_k C^T + V,   E[x_0 | x] = sum_k gamma_k (m_k + S_k C^T M_k^-1 (x - C m_k)),
    gamma_k ~ w_k N(x; C m_k, M_k)

They receive t as their label, so `NetworkDenoiser(process, x0, gaussian(...))` with the prediction
`x0` is an exact denoiser: for tests, for figures, and for a demonstration without training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from sfumato.algebra.operators import Operator, zero
from sfumato.algebra.place import Placed, double, seen, sent
from sfumato.corruption.process import Process
from sfumato.errors import Refused


@final
class Mixture(nn.Module):
    """E[x_0 | x_t] for data drawn from sum_k w_k N(m_k, S_k).

    Args:
        process: what corrupted the data.
        means: (K, *shape), float64.
        covs: one covariance operator for each component, in an algebra that the process can invert:
            the process's own basis, or `Dense` for any covariance of small n.
        weights: (K,) positive; equal by default.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> means = torch.tensor([[-1.0], [1.0]])
    >>> oracle = sf.oracles.Mixture(process, means, [sf.operators.zero()] * 2)
    >>> oracle(torch.tensor([[-0.5], [0.0], [0.5]]), torch.full((3,), 0.2))  # E[x_0 | x_t]
    tensor([[-0.8307],
            [ 0.0000],
            [ 0.8307]])
    """

    def __init__(
        self,
        process: Process,
        means: Tensor,
        covs: Sequence[Operator],
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if len(means) != len(covs):
            raise Refused(
                f"a mixture needs a covariance for each mean; got {len(means)}, {len(covs)}."
            )
        self.process = process
        self.means = double(means)
        self.covs = tuple(covs)
        weights = torch.ones(len(means)) if weights is None else weights
        self.weights = double(weights) / weights.sum()
        self._placed = Placed(self.weights.log()), Placed(self.means)

    def components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; C m_k, M_k) and E[x_0 | x, k], of shapes (K, B) and (K, B, *shape)."""
        signal, cov = self.process.signal.at(t), self.process.cov(t)
        logs = []
        estimates = []
        shares, means = (placed.like(x) for placed in self._placed)
        for share, mean, spread in zip(shares, means, self.covs, strict=True):
            total = signal @ spread @ signal.T + cov
            off = x - signal(mean.expand_as(x))
            pull = total.inv()(off)
            quadratic = (off * pull).flatten(1).sum(1)
            logdet = sent(total.logdet(tuple(x.shape[1:])), x)
            logs.append(share - 0.5 * (quadratic + logdet))
            estimates.append(mean + spread(signal.T(pull)))
        return torch.stack(logs), torch.stack(estimates)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        t = double(label).reshape(-1, *(1,) * (x.ndim - 1))
        t = t[:1].reshape(()) if seen((t == t[:1]).all()) else t
        logs, estimates = self.components(x, t)
        share = torch.softmax(logs, 0).reshape(*logs.shape, *(1,) * (x.ndim - 1))
        return (share * estimates).sum(0)


def gaussian(process: Process, mean: Tensor, cov: Operator) -> Mixture:
    """The exact denoiser of N(mean, cov).

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.gaussian(process, torch.zeros(1), sf.operators.identity())
    >>> oracle(torch.tensor([[1.0]]), torch.tensor([0.5]))  # C_t x_t for data N(0, 1)
    tensor([[0.2803]])
    >>> process.signal.at(torch.tensor(0.5).double()).gain
    tensor(0.2803, dtype=torch.float64)
    """
    return Mixture(process, mean.unsqueeze(0), [cov])


def dataset(process: Process, points: Tensor) -> Mixture:
    """The exact denoiser of a finite data set, (K, *shape), whose samples are its points.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.dataset(process, torch.tensor([[-1.0], [1.0]]))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> kernel = sf.kernels.reverse(sf.couplings.ddim())
    >>> x0 = sf.sample(kernel, denoiser, torch.randn(4, 1), sf.grids.uniform_grid(50))
    >>> x0.flatten().round(decimals=2)  # all are data
    tensor([ 1., -1., -1.,  1.])
    """
    return Mixture(process, points, [zero()] * len(points))
