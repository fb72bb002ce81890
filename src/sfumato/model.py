"""A model is what training leaves and every command uses: recipe, facts, denoiser, record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from sfumato import files
from sfumato.corruption.facts import Facts, typical
from sfumato.estimation.denoise import Denoiser
from sfumato.methods.lookup import Method, method
from sfumato.methods.recipe import Recipe
from sfumato.networks.backbones import UNet, UNetOptions
from sfumato.record import Record
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import Seeds, sample

FORMAT = 1


@dataclass(frozen=True)
class Config:
    """All that rebuilds a model but its weights and facts: what `config.json` holds (final).

    Attributes:
        method: a name in METHODS, or `file.py:function` for the user's own.
        parameters: the method's keyword arguments that differ from its defaults.
        record: the data's record.
        network: the backbone's options; None for a module of the user's.
        conditional: whether the backbone is told classes.
        sha256: of the user's own method file.
    """

    method: str
    record: Record
    parameters: Mapping[str, Any] = field(default_factory=dict)
    network: UNetOptions | None = field(default_factory=UNetOptions)
    conditional: bool = False
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From what JSON held; ValueError for another format or a field out of place."""
        values = dict(values)
        if (found := values.pop("format", None)) != FORMAT:
            raise ValueError(
                f"the checkpoint has format {found}; this version of sfumato reads format {FORMAT}."
            )
        try:
            network = values.pop("network")
            record = Record.from_dict(values.pop("record"))
            return cls(
                record=record, network=None if network is None else UNetOptions(**network), **values
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint's config.json has a wrong or missing field: {error}."
            ) from error


class Model:
    """A method fitted to data (final).

    Args:
        config: what the model is.
        facts: what was measured of the data; typical ones where nothing was.
        backbone: any module f(x, label, **cond); by default the U-Net of `config.network`.
        build: the method, where `config.method` is the user's own.
    """

    def __init__(
        self,
        config: Config,
        facts: Facts | None = None,
        backbone: nn.Module | None = None,
        build: Method | None = None,
    ) -> None:
        if build is None:
            if config.sha256 is not None:
                raise ValueError(
                    f"this model's method is {config.method}, a file of yours that no checkpoint "
                    "may run by itself. Pass it: --method FILE.py:NAME, or build=... in Python."
                )
            build, _ = method(config.method)
        self.config, self.build = config, build
        self.facts = facts or typical(self.shape)
        try:
            self.recipe: Recipe = build(self.shape, self.facts, **config.parameters)
        except TypeError as error:
            raise ValueError(f"method {config.method}: {error}.") from error
        if backbone is None:
            if config.network is None:
                raise ValueError(
                    "this model's backbone is a module of yours. Pass it as `backbone`."
                )
            classes = len(config.record.classes or ()) if config.conditional else None
            backbone = UNet(self.shape, config.network, classes)
        # Faster for convolutions on nearly every device; other modules do not notice.
        convert_conv2d_weight_memory_format(backbone, torch.channels_last)
        self.denoiser = Denoiser(self.recipe.process, self.recipe.parametrization, backbone)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one signal."""
        return self.config.record.shape

    def to(self, device: torch.device | str) -> Model:
        """Move the backbone to `device`, in place; the algebra stays where time is, on the CPU."""
        self.denoiser.backbone.to(device)
        return self

    def sample(
        self,
        seeds: Sequence[int],
        steps: int | None = None,
        kernel: Kernel | None = None,
        classes: Sequence[int] | None = None,
        batch: int = 64,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw one signal for each seed; seed i gives signal i at any `batch`.

        Args:
            seeds: integers >= 0.
            steps: steps of the sampler (the recipe's by default), of one network call for most
                kernels.
            kernel: the recipe's by default.
            classes: one class for each seed, for a conditional model.
            batch: signals in memory at once.
            callback: (steps done in this batch, x) after each step.

        Returns:
            (len(seeds), *shape) in about [-1, 1], float32, on the CPU.
        """
        if not len(seeds):
            raise ValueError("sampling needs one seed or more; got none.")
        if batch < 1:
            raise ValueError(f"batch must be 1 or more; got {batch}.")
        grid = self.recipe.grid(self.recipe.steps if steps is None else steps)
        labels = self._labels(classes, len(seeds))
        device = self._place().device
        done = []
        for start in range(0, len(seeds), batch):
            chosen = seeds[start : start + batch]
            randn_like = Seeds(chosen)
            x = self._start(len(chosen), randn_like)
            denoiser = self.denoiser.eval()
            if labels is not None:
                denoiser = denoiser.given(classes=labels[start : start + batch].to(device))
            x = sample(kernel or self.recipe.kernel, denoiser, x, grid, randn_like, callback)
            done.append(x.float().cpu())
        return torch.cat(done)

    def start(self, seeds: Sequence[int]) -> Tensor:
        """x_1 for each seed, where `sample` starts; (len(seeds), *shape), float32, on the CPU."""
        return self._start(len(seeds), Seeds(seeds)).float().cpu()

    @torch.no_grad()
    def denoise(self, x: Tensor, t: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """The estimate of x_0 from x_t (B, *shape) at t, () or (B, 1, ..., 1) in (0, 1]."""
        labels = self._labels(classes, len(x))
        denoiser = self.denoiser.eval()
        if labels is not None:
            denoiser = denoiser.given(classes=labels.to(x.device))
        return denoiser(x, t).mean

    @torch.no_grad()
    def score(self, x: Tensor, t: Tensor, classes: Sequence[int] | None = None) -> Tensor:
        """The estimated gradient of log q_t at x_t (B, *shape): V_t^-1 (C_t x_0^ - x_t)."""
        return self.recipe.process.score(x, self.denoise(x, t, classes), t)

    def _place(self) -> Tensor:
        """A tensor with the dtype and device of the backbone."""
        return next(iter(self.denoiser.backbone.parameters()), torch.zeros(()))

    def _start(self, count: int, randn_like: Seeds) -> Tensor:
        like = self._place().new_empty(count, *self.shape)
        return self.recipe.prior.sample(like, randn_like).detach()

    def _labels(self, classes: Sequence[int] | None, count: int) -> Tensor | None:
        if classes is None:
            if self.config.conditional:
                raise ValueError("this model was trained on classes; name one for each image.")
            return None
        known = len(self.config.record.classes or ())
        if not self.config.conditional:
            raise ValueError("this model knows no classes; train with --conditional to sample one.")
        if len(classes) != count or not all(0 <= c < known for c in classes):
            raise ValueError(f"classes must be {count} numbers from 0 to {known - 1}.")
        return torch.tensor(list(classes))

    def save_pretrained(self, path: str | Path, raw: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder: `config.json`, `model.safetensors`, `facts.safetensors`, all or nothing.

        Args:
            path: a folder that does not exist yet.
            raw: weights without averaging, kept as `raw.safetensors`.
        """
        if Path(path).exists():
            raise ValueError(f"{path} exists; a model is written to a new folder.")
        with files.folder(path) as part:
            self.write(part, self.denoiser.backbone.state_dict(), raw)

    def write(
        self, part: Path, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None = None
    ) -> None:
        """Fill the folder `part` with this model's files."""
        (part / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        save_file(plain(self.facts._asdict()), part / "facts.safetensors")
        save_file(plain(weights), part / "model.safetensors")
        if raw is not None:
            save_file(plain(raw), part / "raw.safetensors")


def from_pretrained(
    path: str | Path,
    *,
    weights: str = "ema",
    backbone: nn.Module | None = None,
    build: Method | None = None,
) -> Model:
    """The model in a folder that `save_pretrained` or training wrote.

    Args:
        path: a model's folder, or a run's: then its latest checkpoint.
        weights: "ema" (averaged) or "raw".
        backbone: the module, where it is the user's own.
        build: the method, where it is the user's own.

    Raises:
        ValueError: no model there; a file is missing, truncated, of another format or of wrong
            shapes.
    """
    folder = locate(Path(path))
    model = Model(read_config(folder), read_facts(folder), backbone, build)
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights are 'ema' or 'raw'; got '{weights}'.")
    name = "model.safetensors" if weights == "ema" else "raw.safetensors"
    load_weights(model.denoiser.backbone, folder / name)
    model.denoiser.eval()
    return model


def locate(path: Path) -> Path:
    """The model's folder at `path`, or the latest checkpoint of the run at `path`."""
    if (path / "config.json").is_file():
        return path
    checkpoints = sorted((path / "checkpoints").glob("[0-9]*")) if path.is_dir() else []
    if checkpoints:
        return checkpoints[-1]
    raise ValueError(f"no model at {path}: no config.json there, and no checkpoints/ of a run.")


def read_config(folder: Path) -> Config:
    """The config in a model's folder; ValueError where it cannot be read."""
    try:
        return Config.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}.") from error


def read_facts(folder: Path) -> Facts:
    """The facts in a model's folder; ValueError where they cannot be read."""
    path = folder / "facts.safetensors"
    try:
        return Facts(**read_tensors(path))
    except TypeError as error:
        raise ValueError(f"{path} does not hold the facts of a data set: {error}.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is missing, truncated or not one."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}.") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights at `path` into `module`; ValueError where names or shapes differ."""
    tensors, wanted = read_tensors(path), module.state_dict()
    if odd := sorted(set(tensors) ^ set(wanted)):
        raise ValueError(f"{path} does not fit the network: '{odd[0]}' is on one side only.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{path} does not fit the network: '{name}' has shape {tuple(tensor.shape)}, the "
                f"network {tuple(wanted[name].shape)}."
            )
    module.load_state_dict(tensors)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, none a view of another."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
