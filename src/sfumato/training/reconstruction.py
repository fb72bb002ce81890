r"""The objective of an autoencoder: images from a z drawn from q(z | x), and q(z | x) near N(0, I).

    |x~ - x|_1 / n + kl KL(q(z | x) || N(0, I)) / n + perceptual d(x~, x)

for each image of n values; d compares features of a classifier at each of its resolutions. Tokens
have their cross entropy in nats in place of the distances.

References:
    Auto-Encoding Variational Bayes (D. Kingma, M. Welling, 2013), https://arxiv.org/abs/1312.6114
    High-Resolution Image Synthesis with Latent Diffusion Models (R. Rombach, A. Blattmann, D.
    Lorenz, P. Esser, B. Ommer, 2021), appendix G, https://arxiv.org/abs/2112.10752
    The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (R. Zhang, P. Isola, A.
    Efros, E. Shechtman, O. Wang, 2018), https://arxiv.org/abs/1801.03924
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato import pictures
from sfumato.algebra.place import CPU
from sfumato.autoencoding import AutoencoderConfig, TrainedAutoencoder
from sfumato.corruption.boundary import expect
from sfumato.errors import Refused
from sfumato.networks.autoencoder import Coded
from sfumato.networks.classifier import Classifier
from sfumato.training import draws
from sfumato.training.data import Data
from sfumato.training.objective import Losses, Objective
from sfumato.training.options import TrainOptions
from sfumato.training.trackers import Tracker
from sfumato.training.train import fit

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 18
"""Images of a preview."""
COLUMNS = 6
"""Pairs of an image and its reconstruction in a row of a preview."""


def train_autoencoder(
    config: AutoencoderConfig,
    data: Data,
    options: TrainOptions,
    out: Path | str,
    trackers: Iterable[Tracker] = (),
    device: str | None = None,
    features: Classifier | None = None,
) -> TrainedAutoencoder:
    """Train an autoencoder on `data` into the run folder `out`; the same call again resumes.

    Args:
        config: what it is, and the weights of its loss.
        data, options, out, trackers, device: as in `train`.
        features: the classifier that `config.perceptual` weighs the features of.

    Returns:
        The autoencoder with averaged weights, also the last of `out`/checkpoints.

    Raises:
        ValueError, TrainingDiverged: as `train`; or `features` without a weight, or the reverse.

    >>> digits = sf.load("digits")
    >>> size = sf.autoencoders.AutoencoderOptions(channels=2, down=2, width=8)
    >>> config = sf.autoencoders.AutoencoderConfig(digits.record, size)
    >>> options = sf.TrainOptions(images=32, batch=32, preview_every=0)
    >>> trained = sf.autoencoders.train_autoencoder(config, digits, options, "runs/small")
    >>> trained.network.latent_shape
    (2, 4, 4)
    """
    expect(config, AutoencoderConfig, "train_autoencoder needs an AutoencoderConfig first")
    expect(data, Data, "train_autoencoder needs Data after the config, such as sf.load('digits')")
    expect(options, TrainOptions, "train_autoencoder needs TrainOptions after the data")
    with draws.seeded(options.seed):
        trained = TrainedAutoencoder(config)
    fit(Reconstruction(trained, features), data, options, out, trackers, device)
    trained.network.eval()
    return trained


@final
class Drawn(NamedTuple):
    """What one step draws: rows of the data, on the CPU, and the noise of each z."""

    rows: Tensor
    noise: Tensor


@final
class Reconstruction(Objective[Drawn]):
    """Images from their latents.

    Args:
        trained: what is trained.
        features: a classifier, for the distance of features; None where that has no weight.
        network: the autoencoder, as prepared; by default as it is.
    """

    def __init__(
        self,
        trained: TrainedAutoencoder,
        features: Classifier | None = None,
        network: nn.Module | None = None,
    ) -> None:
        self.subject = self.trained = trained
        self.network = trained.network if network is None else network
        self.features = None if features is None else features.eval().requires_grad_(False)

    def through(self, network: nn.Module) -> Reconstruction:
        if self.features is not None:
            self.features.to(next(network.parameters()).device)
        return Reconstruction(self.trained, self.features, network)

    def check(self, data: Data) -> None:
        if (self.features is None) != (not self.trained.config.perceptual):
            raise Refused("perceptual needs a weight and a classifier's features, or neither.")

    def draw(
        self,
        step: int,
        data: Data,
        options: TrainOptions,
        device: torch.device = CPU,
        process: int = 0,
        processes: int = 1,
    ) -> Drawn:
        mine = draws.share(options, process, processes)
        shape = self.trained.network.latent_shape
        found, cut = draws.parts(
            step, options, mine, device, lambda n, normal: normal(torch.empty(n, *shape))
        )
        rows = draws.rows(step, data, options)[mine.start : mine.stop]
        return Drawn(rows, torch.cat(found)[cut])

    def losses(self, drawn: Drawn, chosen: slice, x0: Tensor) -> Losses:
        config = self.trained.config
        coded: Coded = self.network(x0, drawn.noise[chosen])
        count = math.prod(self.trained.shape)
        each = self._error(coded.output, x0) + config.kl * divergence(coded) / count
        if self.features is not None:
            each = each + config.perceptual * perceptual(self.features, coded.output, x0)
        return Losses(each)

    def previews(self, data: Data, images: int) -> dict[str, Image.Image]:
        if not pictures.drawable(self.trained.shape):
            return {}
        x0 = data.batch(range(min(SHOWN, len(data))))
        pairs = torch.stack([x0, self.trained.reconstruct(x0)], 1).flatten(0, 1)
        return {"reconstructions": pictures.grid(pairs, 2 * COLUMNS)}

    def _error(self, output: Tensor, x0: Tensor) -> Tensor:
        """The distance of images, or the cross entropy of tokens, a value, (B,)."""
        if self.trained.config.network.levels:
            tokens = self.trained.network.tokens(x0)
            error = F.cross_entropy(output.float(), tokens, reduction="none")
        else:
            error = (output - x0).abs()
        return error.flatten(1).mean(1)


def divergence(coded: Coded) -> Tensor:
    """KL(q(z | x) || N(0, I)) in nats of each image, (B,)."""
    mean, log_var, _ = coded
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)


def perceptual(features: Classifier, a: Tensor, b: Tensor) -> Tensor:
    """The distance of images a and b (B, C, H, W) in a classifier's features, (B,).

    Over its resolutions the mean, over their positions the mean of |f_a - f_b|^2, where f are the
    features at a position over their norm.
    """
    found = 0.0
    pairs = list(zip(features.maps(a), features.maps(b), strict=True))
    for one, other in pairs:
        units = (F.normalize(part, dim=1, eps=1e-6) for part in (one, other))
        apart = torch.sub(*units).square().sum(1)
        found = found + apart.flatten(1).mean(1) / len(pairs)
    return torch.as_tensor(found)
