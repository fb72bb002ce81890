r"""Latents are data: what a codec makes of images, computed once and kept in the run's folder.

    RUN/latents/HASH/    latents.npy: (n, C, *space) of float32, whitened
                         channels.safetensors: the statistics of their channels

HASH is that of the images, of how their raw values are scaled, of the autoencoder's weights, and of
the statistics where they are given; it is known before any image is encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from sfumato import files
from sfumato.codec import Channels, Codec, Coder, RunningChannels, digest, whitened
from sfumato.corruption.boundary import expect
from sfumato.errors import Refused
from sfumato.processes import here
from sfumato.record import LATENTS, Record
from sfumato.training.cache import alone
from sfumato.training.checkpoint import check_free
from sfumato.training.data import Data
from sfumato.training.lazy import header

BATCH = 100
"""Images encoded at once."""
KEY = 16
"""Digits of the hash in a folder's name."""


def encoded(
    data: Data,
    source: nn.Module | Codec,
    out: Path | str,
    name: str = "",
    device: torch.device | str | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[Data, Codec]:
    """The latents of images as data to train on, and their codec.

    Encoded in batches into an array on disk, in one pass that also measures their channels; it is
    read from there again by the same call. Memory does not grow with the number of images.

    Args:
        data: images.
        source: an autoencoder with the methods of `sfumato.latents.Coder`; or a codec, whose
            statistics are kept, such as that of a model whose training is continued.
        out: the run's folder.
        name: where `source` is from.
        device: where images are encoded; by default where the autoencoder is.
        tick: called with the number of images in each batch, once it is encoded.

    Raises:
        ValueError: `source` does not fit the images, its channels are linearly dependent, or `out`
            holds a run on other data.

    >>> size = sf.autoencoders.AutoencoderOptions(down=2)
    >>> network = sf.autoencoders.Autoencoder((1, 8, 8), size)
    >>> data, codec = sf.latents.encoded(sf.load("digits", "train[:64]"), network, "runs/latent")
    >>> z = data.batch(range(64))
    >>> z.shape, z.std().round(decimals=1)  # whitened
    (torch.Size([64, 4, 4, 4]), tensor(1.))
    """
    expect(data, Data, "latents need Data first, such as sf.load('digits')")
    given = source.channels if isinstance(source, Codec) else None
    coder = source.autoencoder if isinstance(source, Codec) else source
    if coder is None:
        raise Refused("the codec of a model of pixels has no latents. Name an autoencoder.")
    if data.record.kind == LATENTS:
        raise Refused(f"these are latents of {data.record.name} already. Encode its images.")
    record = _record(data, coder, given, latent_shape(coder, data.record))
    check_free(Path(out), record)
    folder = Path(out) / LATENTS / record.sha256[:KEY]
    # Of several processes on one machine the first encodes, and the others read.
    with alone(folder) if here().count > 1 else nullcontext():
        if not folder.is_dir():
            if device is not None:
                coder.to(device)
            try:
                with files.folder(folder) as part:
                    _fill(part, data, coder, given, record, tick)
            except ValueError:
                if not folder.is_dir():  # else another process of this run was faster
                    raise
    return _read(folder, data, coder, record, name)


def latent_shape(coder: nn.Module, record: Record) -> tuple[int, ...]:
    """The shape of the latents of images with this record.

    Raises:
        ValueError: the module is no autoencoder of such images.
    """
    try:
        like = next(coder.eval().parameters(), torch.zeros(()))
        tried = cast(Coder, coder)
        shape = tuple(tried.latent_shape)
        with torch.no_grad():
            mean, _ = tried.encode(torch.zeros(1, *record.shape).to(like))
            back = tried.decode(mean)
    except (AttributeError, RuntimeError, ValueError, TypeError) as error:
        raise Refused(
            f"the autoencoder does not take images of shape {record.shape}, those of "
            f"{record.name}: {str(error).splitlines()[0]}"
        ) from error
    found = [tuple(x.shape[1:]) for x in (mean, back)]
    if found != [shape, record.shape]:
        raise Refused(
            f"the autoencoder is of images of another shape than {record.shape}, those of "
            f"{record.name}: it makes latents of {found[0]}, and {found[1]} of them."
        )
    return shape


def _record(data: Data, coder: nn.Module, given: Channels | None, shape: tuple[int, ...]) -> Record:
    known = data.record
    images = known.sha256 or hashlib.sha256(np.ascontiguousarray(data.images).data).hexdigest()
    scale = [known.low, known.high, known.flip, *known.shape]
    statistics = None if given is None else files.digest(given._asdict())
    key = json.dumps([images, scale, digest(coder), statistics])
    return Record(
        name=known.name,
        shape=shape,
        classes=known.classes,
        count=len(data),
        split=known.split,
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        kind=LATENTS,
    )


def _fill(
    part: Path,
    data: Data,
    coder: nn.Module,
    given: Channels | None,
    record: Record,
    tick: Callable[[int], None],
) -> None:
    """Encode all images, then whiten them in place, since that needs the statistics of all."""
    shape = (record.count, *record.shape)
    array = np.lib.format.open_memmap(part / "latents.npy", "w+", np.float32, shape)
    running = RunningChannels(record.shape[0])
    like = next(coder.parameters(), torch.zeros(()))
    blocks = torch.arange(record.count).split(BATCH)
    for rows in blocks:
        with torch.no_grad():
            mean, _ = cast(Coder, coder).encode(data.batch(rows).to(like))
        running.update(mean)
        array[rows.numpy()] = mean.float().cpu().numpy()
        tick(len(rows))
    channels = given or running.channels()
    codec = Codec(data.record, coder, channels)
    largest = 0.0
    for rows in blocks:
        white = codec.whiten(torch.from_numpy(array[rows.numpy()]))
        largest = max(largest, float(white.flatten(1).square().mean(1).max().sqrt()))
        array[rows.numpy()] = white.numpy()
    array.flush()
    if given is None:
        channels = whitened(channels.mean, channels.covariance, largest)
    files.write_tensors(channels._asdict(), part / "channels.safetensors")


def _read(
    folder: Path, data: Data, coder: nn.Module, record: Record, name: str
) -> tuple[Data, Codec]:
    path = folder / "latents.npy"
    if told := files.damaged(folder):
        raise Refused(f"{told} Remove {folder} to encode again.")
    try:
        header(path)
        array = np.load(path, mmap_mode="r")
        channels = Channels(**files.read_tensors(folder / "channels.safetensors"))
    except (OSError, ValueError, TypeError) as error:
        raise Refused(f"{folder} holds no latents: {error} Remove it to encode again.") from error
    if array.shape != (record.count, *record.shape) or array.dtype != np.float32:
        raise Refused(
            f"{path} holds {array.dtype} of shape {array.shape}, not the latents of "
            f"{record.name}. Remove {folder} to encode again."
        )
    classes = data.classes(range(len(data)))
    labels = None if classes is None else classes.numpy()
    return Data(array, labels, record), Codec(data.record, coder, channels, name)
