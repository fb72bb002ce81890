"""A trained autoencoder: its config, its weights, and the folder that holds both.

config.json             the data's record, the network's size and what it was trained by
model.safetensors       its weights

Folders of diffusers' own `AutoencoderKL` are read too: its config.json, and the weights in
diffusion_pytorch_model.safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from sfumato import documents, fields, files
from sfumato.errors import Refused, refusing
from sfumato.networks.autoencoder import Autoencoder, AutoencoderOptions
from sfumato.networks.diffusers_unet import current
from sfumato.record import Record

FORMAT = 1
AUTOENCODER = "autoencoder"
"""In `kind` of a config, which other models do not have."""
THEIRS = "AutoencoderKL"
"""In `_class_name` of diffusers' config."""


@final
@dataclass(frozen=True)
class AutoencoderConfig:
    """What an autoencoder is, and what it is trained by.

    Attributes:
        record: the data's record.
        network: its size.
        kl: weight of the divergence of q(z | x) from N(0, I).
        perceptual: weight of the distance in a classifier's features.
        features: SHA-256 of that classifier's weights; None without it.

    Raises:
        ValueError: data that are no images, a weight below 0, tokens that are not those of the
            data, or features of tokens.

    >>> record = sf.load("digits").record
    >>> config = sf.autoencoders.AutoencoderConfig(record, kl=1e-4)
    >>> config.network.channels, config.network.down
    (4, 4)
    """

    record: Record
    network: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    kl: float = 1e-6
    perceptual: float = 0.0
    features: str | None = None

    def __post_init__(self) -> None:
        self.record.check_pictures("an autoencoder")
        fields.check(self)
        for name in ("kl", "perceptual"):
            if not 0 <= (found := getattr(self, name)) < math.inf:
                raise Refused(f"{name} must be 0 or more and finite; got {found}.")
        levels = self.network.levels
        if levels and levels != self.record.values:
            raise Refused(
                f"{self.record.name} has {self.record.values} levels; an autoencoder of {levels} "
                "has other tokens."
            )
        if levels and self.perceptual:
            raise Refused(
                "an autoencoder of tokens learns their logits, which have no features. Leave "
                "perceptual at 0."
            )
        if bool(self.perceptual) != bool(self.features):
            raise Refused("perceptual needs the hash of its features, and features a weight.")

    @property
    def method(self) -> str:
        """Its kind, for people."""
        return AUTOENCODER

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts = {"record": self.record.to_dict(), "network": asdict(self.network)}
        told = {"kl": self.kl, "perceptual": self.perceptual, "features": self.features}
        return json.loads(json.dumps({"format": FORMAT, "kind": AUTOENCODER, **parts, **told}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """From what JSON held; ValueError for anything but an autoencoder in this format."""
        values = dict(values) if isinstance(values, Mapping) else {}
        if (kind := values.pop("kind", None)) != AUTOENCODER:
            found = f"a model of kind {kind}" if kind else "another model"
            raise Refused(f"this is no autoencoder, but {found}.")
        if (known := values.pop("format", None)) != FORMAT:
            raise Refused(
                f"the autoencoder has format {known}; this version of sfumato reads {FORMAT}."
            )
        with refusing("a field of the autoencoder is wrong or missing"):
            network = AutoencoderOptions(**values.pop("network"))
            return cls(Record.from_dict(values.pop("record")), network, **values)


@final
class TrainedAutoencoder:
    """An autoencoder with what it was trained on and by: what training changes and writes.

    Args:
        config: what it is.
        network: the autoencoder; by default a new one, with random weights.

    >>> config = sf.autoencoders.AutoencoderConfig(sf.load("digits").record)
    >>> trained = sf.autoencoders.TrainedAutoencoder(config)
    >>> trained.reconstruct(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: AutoencoderConfig, network: Autoencoder | None = None) -> None:
        self.config = config
        self.network = network or Autoencoder(config.record.shape, config.network)
        # Faster for convolutions on nearly every device.
        convert_conv2d_weight_memory_format(self.network, torch.channels_last)

    @property
    def trainable(self) -> nn.Module:
        """All that training changes."""
        return self.network

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.config.record.shape

    def to(self, device: torch.device | str) -> TrainedAutoencoder:
        """Move the network to `device`, in place."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def reconstruct(self, x: Tensor, batch: int = 256) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] encoded to the mean and decoded: float32, on the CPU."""
        self.network.eval()
        device = next(self.network.parameters()).device
        parts = (part.to(device) for part in x.split(batch))
        return torch.cat([self.network.decode(self.network.encode(p).mean).cpu() for p in parts])

    def write(
        self, part: Path, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None = None
    ) -> None:
        """Fill the folder `part` with its files; `weights` are the averaged ones."""
        (part / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        files.write_tensors(files.plain(weights), part / "model.safetensors")
        if raw is not None:
            files.write_tensors(files.plain(raw), part / "raw.safetensors")


def read(folder: Path, shape: tuple[int, ...] | None = None) -> TrainedAutoencoder:
    """The autoencoder in a folder.

    Args:
        folder: with a config.json of ours or of diffusers' AutoencoderKL.
        shape: of the images; by default those it was trained on.

    Raises:
        ValueError: there is none, a file is missing, truncated or does not fit, or the autoencoder
            is of images of another shape.
    """
    path = folder / "config.json"
    found = documents.read_json(path)
    theirs = isinstance(found, dict) and "_class_name" in found
    try:
        config = _converted(found, folder, shape) if theirs else AutoencoderConfig.from_dict(found)
    except Refused as error:
        raise Refused(f"{path}: {error}") from error
    if shape is not None and config.record.shape != tuple(shape):
        raise Refused(
            f"the autoencoder at {folder} is of images of shape {config.record.shape}; these have "
            f"{tuple(shape)}. Train one on them: sfumato train-autoencoder."
        )
    weights = folder / f"{'diffusion_pytorch_' if theirs else ''}model.safetensors"
    tensors = files.read_tensors(weights)
    if theirs:
        tensors = current(tensors)
    make = partial(Autoencoder, config.record.shape, config.network)
    trained = TrainedAutoencoder(config, files.built(make, weights, tensors))
    files.check(folder, ("config.json", weights.name))
    trained.network.eval()
    return trained


def _converted(
    found: Mapping[str, Any], folder: Path, shape: tuple[int, ...] | None
) -> AutoencoderConfig:
    """Our config of one of diffusers'."""
    if (kind := found["_class_name"]) != THEIRS:
        raise Refused(f"{kind} of diffusers is not read; {THEIRS} is.")
    with refusing(f"a field of {THEIRS} is wrong or missing"):
        widths = tuple(found["block_out_channels"])
        channels, side = found["in_channels"], found.get("sample_size", 32)
        _check_layers(found, len(widths))
        width = math.gcd(*widths)
        network = AutoencoderOptions(
            channels=found["latent_channels"],
            down=2 ** (len(widths) - 1),
            width=width,
            multipliers=tuple(each // width for each in widths),
            blocks=found["layers_per_block"],
            attention=found.get("mid_block_add_attention", True),
            groups=found["norm_num_groups"],
            quant=found.get("use_quant_conv", True),
        )
    size = (side, side) if shape is None else tuple(shape[1:])
    return AutoencoderConfig(Record(str(folder), (channels, *size)), network)


def _check_layers(found: Mapping[str, Any], count: int) -> None:
    """Raise ValueError for layers of an AutoencoderKL that `Autoencoder` does not have."""
    quant = found.get("use_quant_conv", True)
    wanted = {
        "out_channels": found["in_channels"],
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "act_fn": "silu",
        "use_post_quant_conv": quant,
    }
    for name, value in wanted.items():
        if (there := found.get(name, value)) != value:
            raise Refused(f"an {THEIRS} whose {name} is {there} is not read; {value} is.")
