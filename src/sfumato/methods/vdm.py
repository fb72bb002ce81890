r"""Variational Diffusion Models: a learned log-SNR, the likelihood bound as the loss.

q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I), alpha_t^2 = sigmoid(-gamma_t), sigma_t^2 =
sigmoid(gamma_t), with gamma_t a monotone network of t. The loss is twice the negative bound in nats
per coordinate: -dSNR/dt || x_0^ - x_0 ||^2 and the terms at both ends. The network and the ends of
gamma minimize its mean, the interior of gamma its variance. With `bands` there is a gamma for each
band of frequencies, or for each coefficient: signal and noise in the DCT basis.

References:
    Variational Diffusion Models (Diederik P. Kingma, Tim Salimans, Ben Poole, Jonathan Ho, 2021),
    https://arxiv.org/abs/2107.00630
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.algebra.basis import dct
from sfumato.algebra.operators import identity
from sfumato.corruption.coupling import ancestral
from sfumato.corruption.families import Scale
from sfumato.corruption.learned import Bands, FromGamma, Monotone, Span
from sfumato.corruption.prior import GaussianPrior
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Amplitude, Complement
from sfumato.corruption.statistics import DataStatistics, default_statistics, space
from sfumato.errors import Refused
from sfumato.estimation.ends import prior_term, reconstruction, softmax
from sfumato.estimation.loss import likelihood
from sfumato.estimation.predictions import Parametrization, Precondition
from sfumato.estimation.predictions import noise as predicted
from sfumato.methods.recipe import Recipe
from sfumato.sampling.kernels import reverse
from sfumato.sampling.likelihood import Evidence
from sfumato.sampling.samplers import Sampler


def vdm(
    shape: tuple[int, ...],
    stats: DataStatistics | None = None,
    *,
    gamma: tuple[float, float] = (-13.3, 5.0),
    hidden: int = 64,
    bands: int = 0,
    bins: int | None = None,
    fourier: tuple[int, ...] = (7, 8),
    steps: int = 250,
) -> Recipe:
    """Variational Diffusion Models: a learned log-SNR, the likelihood bound as the loss.

    Args:
        shape: of one signal, any.
        stats: statistics of the data, for the number of values of a pixel.
        gamma: minus the log-SNR at t = 0 and 1 before training.
        hidden: number of sigmoids of the monotone network.
        bands: bands of frequencies with a schedule each; 0 for one schedule of all, the number of
            coefficients for one of each.
        bins: number of values of a pixel; by default that of the data, or 256 if unknown.
        fourier: powers n of the features sin, cos(2^n pi z) that the network receives beside x, on
            the paper's grid: z = (2 v + 1) / 256 - 1 for value v of 256. The features of n = 7 give
            the parity of v, for other numbers of values too.
        steps: steps of the sampler.
    """
    low, high = gamma
    if not low < high:
        raise Refused(f"gamma rises from t = 0 to t = 1; got {low:g}, {high:g}.")
    basis = dct(*space(shape)) if bands else None
    if basis is not None and not 0 < bands <= basis.laplacian.numel():
        raise Refused(
            f"bands are from 1 to the {basis.laplacian.numel()} coefficients; got {bands}."
        )
    count = bands or None
    path = Monotone(0.0, 1.0, hidden, count)
    span = Span(path, low, high, count)
    if basis is None:
        power = FromGamma(span)
    else:
        # Bands of equal numbers of coefficients, low frequencies first.
        rank = basis.laplacian.flatten().argsort(stable=True).argsort()
        which = (rank * bands // rank.numel()).reshape(basis.shape)
        power = FromGamma(Bands(span, which))
    process = Process(signal=Scale(Amplitude(power), basis), noise=Scale(Complement(power), basis))

    counted = (stats or default_statistics(shape)).values
    values = bins or (256 if counted is None else int(counted)) or 256
    # Value v is 2 v / (values - 1) - 1 here. A model whose statistics lack the number of values
    # is of an older version, and was trained with features of that scale.
    scale = 1.0 if counted is None else (values - 1) / 256

    def ends(process: Process, x0: Tensor, eps: Tensor) -> Tensor:
        nats = prior_term(process, x0) + reconstruction(process, x0, eps, values)
        return 2 * nats / x0[0].numel()

    return Recipe(
        process,
        shifted_noise(path),
        likelihood,
        Sampler(reverse(ancestral), steps),
        GaussianPrior(torch.zeros(shape, dtype=torch.float64), identity()),
        __doc__ or "",
        ends=ends,
        fourier=tuple(scale * 2.0**power for power in fourier),
        evidence=Evidence(decoder=softmax, to_zero=True),
    )


def shifted_noise(path: Monotone) -> Parametrization:
    """F estimates eps - x_t; the label is the position of gamma_t between its ends.

    With bands, the mean of these positions.
    """

    def parametrization(process: Process, t: Tensor) -> Precondition:
        plain = predicted(process, t)
        place = path(t.to(torch.float64))
        label = place if path.linear.ndim == 0 else place.mean(-1)
        return plain._replace(skip=identity() - process.noise.at(t), label=label)

    return parametrization
