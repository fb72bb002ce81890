"""Stored models: folders written by `save_pretrained` or training, and the bundled ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

import torch
from torch import Tensor, nn

from sfumato import autoencoding, documents, files, hub, pretrained
from sfumato.bridge import read as incoming
from sfumato.codec import CHANNELS, WEIGHTS, Channels, Codec
from sfumato.config import Config, composed, made
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused, refusing
from sfumato.methods.lookup import Method
from sfumato.model import Model
from sfumato.names import nearest
from sfumato.networks.autoencoder import Autoencoder, AutoencoderOptions
from sfumato.networks.named import Builder

DIGITS = "[0-9]" * 8
"""Names of checkpoints: the step, in eight digits."""
BESIDE = ("facts.safetensors", "codec.safetensors")
FILES = (*BESIDE, "model.safetensors", hub.THEIRS)
"""Beside config.json, what a model or an autoencoder is read from."""

T = TypeVar("T")


@final
class Stored(NamedTuple):
    """What a model's folder holds."""

    config: Config
    stats: DataStatistics
    weights: dict[str, Tensor]
    path: Path
    """The file of the weights."""
    codec: dict[str, Tensor]
    """Weights and statistics of the codec of a model of latents; {} of pixels."""


def from_pretrained(
    path: str | Path,
    *,
    weights: str = "ema",
    backbone: nn.Module | Builder | None = None,
    method: Method | None = None,
    autoencoder: nn.Module | None = None,
    revision: str | None = None,
) -> Model:
    """The model in a folder that `save_pretrained` or training wrote, or on the Hub.

    Args:
        path: the name of a bundled model, such as "fashion-soft", or a model's folder, or a run's:
            then its latest checkpoint; or the folder of a pipeline of diffusers; or, where no such
            folder is, a name on the Hub, "user/name" or "user/name@revision". Nothing else is ever
            downloaded.
        weights: "ema" (averaged) or "raw".
        backbone: the module, or the function that makes it, where it is the user's own.
        method: the method, where it is the user's own.
        autoencoder: the module of a model of latents, where it is the user's own; its weights are
            replaced by those in the folder.
        revision: of a model on the Hub: a branch, tag or commit.

    Raises:
        ValueError: no model there; a file is missing, truncated, of another format or of wrong
            shapes; the Hub cannot be reached.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> model.shape, model.config.method
    ((1, 28, 28), 'ddpm')
    """
    stored = read(hub.at(path, revision), weights)
    model = loaded(stored, backbone, method, codec_of(stored, autoencoder))
    verify(stored)
    return model


def verify(stored: Stored) -> None:
    """Raise ValueError where the bytes of a file are not those that were written with it.

    Last, since other errors say more precisely what is wrong with a file.
    """
    names = ("config.json", "facts.safetensors", "codec.safetensors", stored.path.name)
    folder = stored.path.parent
    try:
        files.check(folder, names)
    except (ValueError, OSError):
        if folder.is_dir():  # else a run has dropped it since it was read
            raise


def from_diffusers(source: Any) -> Model:  # noqa: ANN401 - any pipeline of diffusers
    """The model of a pipeline of diffusers, with a UNet2DModel and one of its schedulers.

    Every sampler, likelihood and evaluation takes it. Its default sampler is that of the scheduler,
    which for DDIM is equal step by step, without clipping: `sample(..., clip=True)` clips.

    Args:
        source: the folder of a pipeline, or a loaded one, whose weights are copied.

    Raises:
        ValueError: no pipeline there; one of other components, or of a scheduler that is not read;
            a file is missing, truncated or pickled.

    >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    >>> blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    >>> size = {"block_out_channels": [8], "norm_num_groups": 4, "in_channels": 1, **blocks}
    >>> network = UNet2DModel(sample_size=8, out_channels=1, **size)
    >>> model = sf.from_diffusers(DDIMPipeline(network, DDIMScheduler()))
    >>> model.shape, model.sample([0], sf.Sampler("unipc", steps=2)).shape
    ((1, 8, 8), torch.Size([1, 1, 8, 8]))
    """
    if not isinstance(source, str | Path):
        return loaded(Stored(*incoming.pipeline(source), Path(type(source).__name__), {}))
    if not incoming.is_pipeline(Path(source)):
        raise Refused(f"{source} is no pipeline of diffusers: no {incoming.INDEX} there.")
    return from_pretrained(source)


def loaded(
    stored: Stored,
    backbone: nn.Module | Builder | None = None,
    method: Method | None = None,
    codec: Codec | None = None,
) -> Model:
    """The model of these files; arguments as those of `Model`."""
    if backbone is None:
        _check_network(stored, method)
    model = Model(stored.config, stored.stats, backbone, method, codec)
    files.load_weights(model.trainable, stored.path, stored.weights)
    model.denoiser.eval()
    return model


def _check_network(stored: Stored, method: Method | None) -> None:
    """Compare the network of a config with its weights before memory is taken for it.

    Raises:
        ValueError: names or shapes of weights differ.
    """
    recipe = composed(stored.config, stored.stats, method)
    prefix = "" if next(iter(recipe.process.parameters()), None) is None else "backbone."
    with torch.device("meta"):
        network = made(stored.config, recipe)
    held = files.plain(stored.weights)
    given = {name.removeprefix(prefix): x for name, x in held.items() if name.startswith(prefix)}
    files.check_weights(network.state_dict(), stored.path, given)


def read_autoencoder(path: str | Path, shape: tuple[int, ...] | None = None) -> Autoencoder:
    """The autoencoder in a folder that `train_autoencoder` or diffusers wrote.

    Args:
        path: a folder of diffusers' `AutoencoderKL`, or an autoencoder's, or a run's: then its
            latest checkpoint.
        shape: of the images, (C, H, W); by default those it was trained on.

    Raises:
        ValueError: no autoencoder there; a file is missing, truncated or does not fit; or it is of
            images of another shape.

    >>> digits = sf.load("digits")
    >>> size = sf.autoencoders.AutoencoderOptions(channels=2, down=2, width=8)
    >>> config = sf.autoencoders.AutoencoderConfig(digits.record, size)
    >>> options = sf.TrainOptions(images=32, batch=32, preview_every=0)
    >>> trained = sf.autoencoders.train_autoencoder(config, digits, options, "runs/small")
    >>> sf.autoencoders.read_autoencoder("runs/small").latent_shape
    (2, 4, 4)
    """
    return newest(path, lambda folder: autoencoding.read(folder, shape)).network


def read_source(path: str | Path, shape: tuple[int, ...]) -> Autoencoder | Codec:
    """What `--latent` names: the codec of a model of latents, or else an autoencoder.

    Args:
        path: of a run or a folder of either.
        shape: of the images.

    Raises:
        ValueError: neither is there, or it is of images of another shape.
    """
    if newest(path, _is_autoencoder):
        return read_autoencoder(path, shape)
    stored = read(path)
    codec = codec_of(stored)
    if codec is None:
        raise Refused(
            f"{path} is a model of pixels, and has no autoencoder. Train one: sfumato "
            "train-autoencoder."
        )
    verify(stored)
    return codec


def _is_autoencoder(folder: Path) -> bool:
    """Whether a folder's config is not that of a model of a method."""
    return "method" not in documents.read_table(folder / "config.json")


def read(path: str | Path, weights: str = "ema") -> Stored:
    """The files of the model at `path`, as `from_pretrained` finds it; no code of a method is run.

    Raises:
        ValueError: as `from_pretrained`.
    """
    if weights not in ("ema", "raw"):
        raise Refused(f"weights are 'ema' or 'raw'; got '{weights}'.")
    name = "model.safetensors" if weights == "ema" else "raw.safetensors"

    def stored(folder: Path) -> Stored:
        if incoming.is_pipeline(folder):
            return Stored(*incoming.folder(folder), folder / "unet" / incoming.WEIGHTS, {})
        file = folder / name
        config = read_config(folder)
        held = {} if config.latent is None else files.read_tensors(folder / "codec.safetensors")
        return Stored(
            config, read_stats(folder, config.record.shape), files.read_tensors(file), file, held
        )

    return newest(path, stored, (*BESIDE, name))


def codec_of(stored: Stored, autoencoder: nn.Module | None = None) -> Codec | None:
    """The codec of a model of latents; None of pixels.

    Args:
        stored: the model's files.
        autoencoder: the module, where it is the user's own.

    Raises:
        ValueError: the module is missing, or the file does not fit it.
    """
    latent = stored.config.latent
    if latent is None:
        return None
    if autoencoder is None and latent.network is None:
        raise Refused("this model's autoencoder is your own module. Pass it as `autoencoder`.")
    path = stored.path.parent / "codec.safetensors"
    weights, known = (
        {name.removeprefix(start): x for name, x in stored.codec.items() if name.startswith(start)}
        for start in (WEIGHTS, CHANNELS)
    )
    if autoencoder is None:
        with refusing("the config of this model's autoencoder"):
            size = AutoencoderOptions(**(latent.network or {}))
        make = partial(Autoencoder, latent.record.shape, size)
        autoencoder = files.built(make, path, weights)
    else:
        files.load_weights(autoencoder, path, weights)
    if set(known) != set(Channels._fields):
        raise Refused(f"{path} does not hold the statistics of a codec.")
    return Codec(latent.record, autoencoder, Channels(**known), latent.name)


def newest(path: str | Path, read: Callable[[Path], T], names: Sequence[str] = FILES) -> T:
    """What `read` finds in the folder of the model at `path`, of files of these `names`.

    A run in progress deletes old checkpoints atomically: where one was deleted while it was read,
    the newer one is read instead.

    Raises:
        ValueError: no model there, or what `read` raises.
    """
    while True:
        folder = locate(path, names)
        try:
            return read(folder)
        except (ValueError, OSError):
            if os.path.lexists(folder):
                raise


def locate(path: str | Path, names: Sequence[str] = FILES) -> Path:
    """The folder of a bundled model by its name, of a model, or of a run's last checkpoint.

    A name takes precedence over a path: `./fashion-soft` is a folder of your own. What is neither
    may be on the Hub; then files of these `names` are fetched.
    """
    if str(path) in pretrained.models():
        return pretrained.path(str(path))
    folder = Path(path)
    if (folder / "config.json").is_file() or incoming.is_pipeline(folder):
        return folder
    checkpoints = sorted((folder / "checkpoints").glob(DIGITS)) if folder.is_dir() else []
    if checkpoints:
        return checkpoints[-1]
    if hub.asked(path):
        return hub.fetch(str(path), names)
    other = f"; of one on the Hub, {path}@main" if hub.named(path) else ""
    told = nearest("model", str(path), pretrained.models(), f"name a run's folder{other}.")
    raise Refused(
        f"no model at {path}: no bundled model has that name, and it is no folder of a model or of "
        f"a run; {told.partition('; ')[2]}"
    )


def read_config(folder: Path) -> Config:
    """The config in a model's folder; ValueError where it cannot be read."""
    if incoming.is_pipeline(folder):
        return incoming.config(folder)
    return Config.from_dict(documents.read_json(folder / "config.json"))


def read_stats(folder: Path, shape: tuple[int, ...] | None = None) -> DataStatistics:
    """The statistics in a model's folder; ValueError where they are none, or not of this shape."""
    path = folder / "facts.safetensors"
    try:
        found = DataStatistics(**files.read_tensors(path))
    except TypeError as error:
        raise Refused(f"{path} does not hold the statistics of a data set: {error}.") from error
    sides = tuple(found.mean.shape)
    whole = found.spectrum.shape == sides and found.low.ndim == 1 + len(sides)
    if not whole or (shape is not None and sides != shape):
        raise Refused(
            f"{path} holds statistics of shape {sides}; the model's signals have {shape}."
        )
    return found
