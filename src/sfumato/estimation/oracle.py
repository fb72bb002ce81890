r"""Oracles are backbones that know the data: the exact E[x_0 | x_t].

For Gaussians, mixtures of Gaussians and finite sets of points:

    M_k = C S_k C^T + V,   E[x_0 | x] = sum_k gamma_k (m_k + S_k C^T M_k^-1 (x - C m_k)),
    gamma_k ~ w_k N(x; C m_k, M_k)

They take t as their label, so `Denoiser(process, clean, gaussian(...))` is an exact denoiser: for
tests, for figures, and for a demonstration without training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.algebra.operators import Operator, zero
from sfumato.corruption.process import Process


class Mixture(nn.Module):
    """E[x_0 | x_t] for data drawn from sum_k w_k N(m_k, S_k) (final).

    Args:
        process: what corrupted the data.
        means: (K, *shape), float64.
        covs: one covariance operator for each component, in an algebra that the process can invert:
            the process's own basis, or `Dense` for any covariance of small n.
        weights: (K,) positive; equal by default.
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
            raise ValueError(
                f"a mixture needs a covariance for each mean; got {len(means)}, {len(covs)}."
            )
        self.process, self.means, self.covs = process, means.to(torch.float64), tuple(covs)
        weights = torch.ones(len(means)) if weights is None else weights
        self.weights = weights.to(torch.float64) / weights.sum()

    def components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; C m_k, M_k) and E[x_0 | x, k], of shapes (K, B) and (K, B, *shape)."""
        signal, cov = self.process.signal.at(t), self.process.cov(t)
        logs, estimates = [], []
        for weight, mean, spread in zip(self.weights, self.means, self.covs, strict=True):
            mean = mean.to(x.dtype).to(x.device)
            total = signal @ spread @ signal.T + cov
            off = x - signal(mean.expand_as(x))
            pull = total.inv()(off)
            quadratic = (off * pull).flatten(1).sum(1)
            logdet = total.logdet(tuple(x.shape[1:])).to(x.dtype).to(x.device)
            logs.append(weight.log().to(x) - 0.5 * (quadratic + logdet))
            estimates.append(mean + spread(signal.T(pull)))
        return torch.stack(logs), torch.stack(estimates)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        t = label.cpu().to(torch.float64).reshape(-1, *(1,) * (x.ndim - 1))
        t = t[:1].reshape(()) if bool((t == t[:1]).all()) else t
        logs, estimates = self.components(x, t)
        share = torch.softmax(logs, 0).reshape(*logs.shape, *(1,) * (x.ndim - 1))
        return (share * estimates).sum(0)


def gaussian(process: Process, mean: Tensor, cov: Operator) -> Mixture:
    """The exact denoiser of N(mean, cov)."""
    return Mixture(process, mean.unsqueeze(0), [cov])


def dataset(process: Process, points: Tensor) -> Mixture:
    """The exact denoiser of a finite data set, (K, *shape): it only returns what it was given."""
    return Mixture(process, points, [zero()] * len(points))
