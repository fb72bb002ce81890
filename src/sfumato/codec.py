r"""A codec carries images to the signals that a model diffuses, and back.

    z = W (mean(x) - m)        x = decoder(W^-1 z + m)        W = S^-1/2

mean(x) is that of an autoencoder's encoder, m and S are mean and covariance of its channels over
images and positions, and W is the symmetric root: z has mean 0 and covariance I over the channels,
where one number for all of them would leave their correlations. A model of pixels has the codec
that changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, final

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from sfumato import files
from sfumato.algebra.place import sent
from sfumato.config import Config, Latent
from sfumato.corruption.boundary import shaped
from sfumato.errors import Refused
from sfumato.networks.autoencoder import Autoencoder
from sfumato.sampling.sample import FAR

if TYPE_CHECKING:
    from sfumato.record import Record

FLAT = 1e-8
"""Least variance of a direction of the channels, as a share of the largest."""
BATCH = 64
WEIGHTS, CHANNELS = "autoencoder.", "channels."
"""Prefixes of the names in `codec.safetensors`."""


class Coder(Protocol):
    """What a codec calls of an autoencoder, which is an `nn.Module`.

    >>> class Halved(torch.nn.Module):
    ...     latent_shape = (1, 8, 8)
    ...     def encode(self, x):
    ...         return x / 2, torch.zeros_like(x)
    ...     def decode(self, z):
    ...         return 2 * z
    >>> data, codec = sf.latents.encoded(sf.load("digits"), Halved(), "runs/halved")
    >>> data.record.kind, codec.shape
    ('latents', (1, 8, 8))
    """

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one latent, (C, *space)."""
        ...

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents of images (B, *shape) in [-1, 1]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, *shape) in about [-1, 1] from latents (B, *latent_shape)."""
        ...


@final
class Channels(NamedTuple):
    """Statistics of the channels of latents, over images and positions.

    Attributes:
        mean: (C,), float64.
        covariance: (C, C), float64.
        whitening: its symmetric inverse root, (C, C), float64.
        largest: the largest root mean square of the whitened latents of one image, ().

    >>> channels = sf.latents.whitened(torch.zeros(2), torch.diag(torch.tensor([4.0, 1.0])))
    >>> channels.whitening
    tensor([[0.5000, 0.0000],
            [0.0000, 1.0000]])
    """

    mean: Tensor
    covariance: Tensor
    whitening: Tensor
    largest: Tensor


@final
class RunningChannels:
    """Mean and covariance of channels, batch by batch, by the formula of `RunningMoments`.

    Args:
        count: of the channels.

    >>> running = sf.latents.RunningChannels(2)
    >>> running.update(torch.randn(100, 2, 4, 4) * 3)
    >>> running.channels().covariance.diagonal().sqrt().round()
    tensor([3., 3.], dtype=torch.float64)
    """

    def __init__(self, count: int) -> None:
        self.count = 0
        self.mean = torch.zeros(count, dtype=torch.float64)
        self._scatter = torch.zeros(count, count, dtype=torch.float64)

    def update(self, z: Tensor) -> None:
        """Add latents (B, C, *space).

        Raises:
            ValueError: values that are not finite.
        """
        rows = z.detach().cpu().double().transpose(0, 1).flatten(1)
        if not bool(rows.isfinite().all()):
            raise Refused("the autoencoder makes latents that are not finite. Use another one.")
        mean = rows.mean(1)
        step = mean - self.mean
        size = rows.shape[1]
        total = self.count + size
        off = rows - mean[:, None]
        self._scatter += off @ off.T + torch.outer(step, step) * (self.count * size / total)
        self.mean += step * (size / total)
        self.count = total

    def channels(self) -> Channels:
        """The statistics; `largest` is 1, for the caller to replace.

        Raises:
            ValueError: the channels are linearly dependent.
        """
        return whitened(self.mean, self._scatter / max(self.count, 1))


def whitened(mean: Tensor, covariance: Tensor, largest: float = 1.0) -> Channels:
    """The statistics with this mean (C,) and covariance (C, C).

    Raises:
        ValueError: the covariance has no inverse.

    >>> covariance = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> root = sf.latents.whitened(torch.zeros(2), covariance).whitening
    >>> (root @ covariance @ root).round(decimals=4).abs()
    tensor([[1., 0.],
            [0., 1.]])
    """
    values, vectors = torch.linalg.eigh(covariance)
    if not bool(values[0] > FLAT * values[-1]) or not bool(values[-1] > 0):
        raise Refused(
            f"the autoencoder does not use all of its {len(mean)} channels: variances of their "
            f"directions are from {float(values[0]):.2g} to {float(values[-1]):.2g}. Train it with "
            "fewer --channels, or for longer."
        )
    root = vectors @ (values**-0.5)[:, None].mul(vectors.T)
    return Channels(mean, covariance, root, torch.tensor(largest))


@final
class Codec:
    """Images to signals and back.

    Args:
        record: of the images.
        autoencoder: a module with the methods of `Coder`; None for a model of pixels, whose signals
            are the images. It is set to evaluation, and its weights are not trained.
        channels: statistics of its latents.
        name: where the autoencoder is from, for `config.json`.

    Raises:
        ValueError: an autoencoder without statistics, or with those of another number of channels.

    >>> codec = sf.from_pretrained("fashion-ddpm").codec  # of pixels: images are the signals
    >>> codec.shape, codec.decode(torch.zeros(2, 1, 28, 28)).shape
    ((1, 28, 28), torch.Size([2, 1, 28, 28]))
    """

    def __init__(
        self,
        record: Record,
        autoencoder: nn.Module | None = None,
        channels: Channels | None = None,
        name: str = "",
    ) -> None:
        self.record = record
        self.autoencoder = autoencoder
        self.channels = channels
        self.name = name
        if (autoencoder is None) != (channels is None):
            raise Refused("a codec has both an autoencoder and the statistics of its channels.")
        if autoencoder is not None and channels is not None:
            autoencoder.eval().requires_grad_(False)
            # As `Model` does with its network, and so that a stored codec computes the same bits.
            convert_conv2d_weight_memory_format(autoencoder, torch.channels_last)
            square = channels.covariance.shape == channels.whitening.shape == 2 * self.shape[:1]
            if self.shape[:1] != channels.mean.shape or not square:
                raise Refused(
                    f"the statistics are of {len(channels.mean)} channels; the autoencoder's "
                    f"latents have shape {self.shape}."
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one signal."""
        if self.autoencoder is None:
            return self.record.shape
        return tuple(self._coder.latent_shape)

    @property
    def far(self) -> float:
        """The root mean square above which a signal has diverged."""
        return FAR if self.channels is None else FAR * float(self.channels.largest)

    def encode(self, x: Tensor, batch: int = BATCH) -> Tensor:
        """The signals (B, *self.shape) of images (B, *shape) in [-1, 1]; no randomness.

        `batch` images are encoded at once, where the autoencoder is.
        """
        shaped("x", x, self.record.shape)
        return x if self.autoencoder is None else self._each(self._white, x, batch)

    def decode(self, z: Tensor, batch: int = BATCH) -> Tensor:
        """The images (..., *shape), in about [-1, 1], of signals (..., *self.shape)."""
        if self.autoencoder is None:
            return z
        lead = z.shape[: z.ndim - len(self.shape)]
        flat = z.reshape(-1, *self.shape)
        return self._each(self._image, flat, batch).reshape(*lead, *self.record.shape)

    def _white(self, x: Tensor) -> Tensor:
        return self.whiten(self._coder.encode(x)[0])

    def whiten(self, z: Tensor) -> Tensor:
        """The encoder's means (B, C, *space) in coordinates of mean 0 and covariance I."""
        mean, _, whitening, _ = self._known
        return _mixed(whitening, z - _column(mean, z))

    def _image(self, z: Tensor) -> Tensor:
        mean, covariance, whitening, _ = self._known
        return self._coder.decode(_mixed(covariance @ whitening, z) + _column(mean, z))

    @torch.no_grad()
    def _each(self, act: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
        """`act` on `batch` rows at once, where the autoencoder is; the result is where x is."""
        like = next(cast(nn.Module, self.autoencoder).parameters(), x)
        parts = [act(sent(some, like)).to(x) for some in x.split(batch)]
        return torch.cat(parts)

    @property
    def _coder(self) -> Coder:
        return cast(Coder, self.autoencoder)

    @property
    def _known(self) -> Channels:
        return cast(Channels, self.channels)

    def to(self, device: torch.device | str) -> Codec:
        """Move the autoencoder to `device`, in place."""
        if self.autoencoder is not None:
            self.autoencoder.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Weights and statistics by name: the content of `codec.safetensors`; {} of pixels."""
        if self.autoencoder is None:
            return {}
        weights = sorted(self.autoencoder.state_dict().items())
        known = self._known._asdict()
        return {
            **{CHANNELS + name: value for name, value in known.items()},
            **{WEIGHTS + name: value for name, value in weights},
        }

    @functools.cached_property
    def sha256(self) -> str:
        """Of weights and statistics, in hex; the same of two codecs with the same latents.

        "" of pixels.
        """
        return identity(self.tensors())

    @property
    def tokens(self) -> bool:
        """Whether decoding gives the whole numbers that the data hold."""
        made = self.autoencoder
        return isinstance(made, Autoencoder) and made.options.levels > 0

    @property
    def about(self) -> Latent | None:
        """What `config.json` says of it; None of pixels."""
        if self.autoencoder is None:
            return None
        made = self.autoencoder
        options = asdict(made.options) if isinstance(made, Autoencoder) else None
        return Latent(self.name, self.sha256, self.record, options)

    def check_pixels(self, what: str) -> None:
        """Raise ValueError where the signals are latents, for which `what` is not defined."""
        if self.autoencoder is not None:
            raise Refused(
                f"{what} needs a model of pixels; this one is of latents of shape {self.shape}, of "
                "which a decoder makes images. Use a model trained without --latent."
            )

    def check_same(self, other: Codec, what: str) -> None:
        """Raise ValueError where `other`, the codec of `what`, has other latents than this one."""
        self.check_identity(other.sha256, what)

    def check_identity(self, sha256: str, what: str) -> None:
        """As `check_same`, of a codec with this hash."""
        if self.sha256 == sha256:
            return
        if self.sha256 and sha256:
            raise Refused(
                f"{what} is of latents of another codec than this model's. Give the folder of one "
                "of the two models as --latent to train the other."
            )
        kinds = ["latents" if known else "pixels" for known in (sha256, self.sha256)]
        raise Refused(f"{what} is of {kinds[0]}, this model of {kinds[1]}. Use one of the same.")


def identity(tensors: Mapping[str, Tensor]) -> str:
    """The hash of a codec with these `Codec.tensors`; "" without any."""
    # The largest latent is of the data; it changes no latent.
    kept = {name: x for name, x in sorted(tensors.items()) if name != f"{CHANNELS}largest"}
    return files.digest(kept) if kept else ""


def fitting(config: Config, codec: Codec | None) -> Codec:
    """The codec of a model with this config; by default that of pixels.

    Raises:
        ValueError: it is missing, is of another autoencoder or of other shapes, or there is one too
            many.
    """
    wanted = config.latent
    if wanted is None:
        if codec is not None and codec.sha256:
            raise Refused("this model is of pixels, and takes no codec of latents.")
        return Codec(config.record)
    if codec is None or codec.autoencoder is None:
        raise Refused(
            f"this model is of latents of {wanted.name or 'an autoencoder'}: give their codec, "
            "codec=..."
        )
    if codec.shape != config.record.shape:
        raise Refused(
            f"the codec has latents of shape {codec.shape}; those of this model have "
            f"{config.record.shape}."
        )
    if codec.sha256 != wanted.sha256:
        raise Refused(
            "the model's latents are of another codec: the weights of this one's autoencoder, or "
            "its statistics, have another hash than the model's config says."
        )
    return codec


def digest(autoencoder: nn.Module) -> str:
    """SHA-256 of an autoencoder's weights, in hex."""
    return files.digest(dict(sorted(files.plain(autoencoder.state_dict()).items())))


def _mixed(matrix: Tensor, z: Tensor) -> Tensor:
    """A matrix (C, C) on the channels of z (B, C, *space)."""
    return (sent(matrix, z) @ z.flatten(2)).reshape(z.shape)


def _column(values: Tensor, z: Tensor) -> Tensor:
    """A value for each channel of z."""
    return sent(values, z).reshape(-1, *(1,) * (z.ndim - 2))
