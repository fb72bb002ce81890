"""Pipelines of diffusers as models: the config, weights and statistics that a `Model` is made of.

Files are read, and no code of a pipeline is run. What is read:

    DDPM, DDIM and all schedulers of the same chain     method `diffusers`
    ScoreSdeVe, KarrasVe                                `ve`
    EDMEuler, EDMDPMSolverMultistep                     `edm`
    our own, of `save_diffusers`                        the method it was written from
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from sfumato import documents, files
from sfumato.bridge.scheduler import SfumatoScheduler, unpacked
from sfumato.bridge.unet import SfumatoUNet
from sfumato.config import Backbone, Config
from sfumato.corruption.statistics import DataStatistics, default_statistics
from sfumato.errors import Refused, refusing
from sfumato.limits import BATCH, whole
from sfumato.methods import READ
from sfumato.networks.backbones import LABEL_SCALE, UNetOptions
from sfumato.networks.diffusers_unet import current
from sfumato.record import Record
from sfumato.sampling.samplers import Sampler

INDEX = "model_index.json"
"""The file of a pipeline's folder that names its components."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
DATA = 0.5
"""EDM's standard deviation of the data."""


@final
class Found(NamedTuple):
    """What a pipeline holds."""

    config: Config
    stats: DataStatistics
    weights: dict[str, Tensor]


@final
class _Scheduler(NamedTuple):
    """A method by its scheduler, and what it tells the network."""

    method: str
    parameters: Mapping[str, Any]
    told: Mapping[str, Any]
    sampler: Sampler = Sampler()


def is_pipeline(folder: Path) -> bool:
    """Whether this is the folder of a pipeline of diffusers."""
    return (folder / INDEX).is_file()


def config(folder: Path) -> Config:
    """The config of the pipeline in a folder, without its weights.

    Raises:
        ValueError: a file is missing or of another form, or the pipeline is not read here.
    """
    index = _json(folder / INDEX)
    kinds = {name: value[1] for name, value in index.items() if _is_part(value)}
    if set(kinds) != {"unet", "scheduler"}:
        raise Refused(
            f"{folder} is a pipeline of {', '.join(sorted(kinds)) or 'nothing'}; one of a unet and "
            "a scheduler is read."
        )
    unet = _json(folder / "unet" / "config.json")
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    return _config(str(folder), kinds["unet"], unet, kinds["scheduler"], scheduler)[0]


def folder(path: Path) -> Found:
    """What the pipeline in a folder holds; errors as `config`."""
    found = config(path)
    weights = path / "unet" / WEIGHTS
    if not weights.is_file():
        raise Refused(
            f"{weights} is missing: weights are read as one safetensors file, and never unpickled. "
            "Load the pipeline with diffusers, and save_pretrained it again."
        )
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    return _found(found, scheduler, files.read_tensors(weights))


def pipeline(given: Any) -> Found:  # noqa: ANN401 - any pipeline of diffusers
    """What a pipeline of diffusers holds.

    Raises:
        ValueError: it has no unet or scheduler, or is not read here.
    """
    unet, scheduler = getattr(given, "unet", None), getattr(given, "scheduler", None)
    others = {name for name in ("vae", "vqvae", "text_encoder") if getattr(given, name, None)}
    if not isinstance(unet, nn.Module) or scheduler is None or others:
        raise Refused(
            f"a pipeline of a unet and a scheduler is read; got {type(given).__name__}"
            f"{''.join(f' with {name}' for name in sorted(others))}."
        )
    name = type(given).__name__
    kinds = type(unet).__name__, type(scheduler).__name__
    told = _held(unet), _held(scheduler)
    made, _ = _config(name, kinds[0], told[0], kinds[1], told[1])
    weights = {key: value.detach().cpu() for key, value in unet.state_dict().items()}
    return _found(made, told[1], weights)


def _held(part: Any) -> dict[str, Any]:  # noqa: ANN401 - any ConfigMixin
    """The config that a component holds."""
    return {**part.config}


def _found(config: Config, scheduler: Mapping[str, Any], weights: dict[str, Tensor]) -> Found:
    shape = config.record.shape
    packed = scheduler.get("statistics")
    stats = unpacked(packed, shape) if packed else default_statistics(shape)
    theirs = config.backbone is not None and config.backbone.name == "diffusers-unet"
    ours = {name.removeprefix("net."): value for name, value in weights.items()}
    return Found(config, stats, current(weights) if theirs else ours)


def _config(
    name: str, kind: str, unet: Mapping[str, Any], of: str, scheduler: Mapping[str, Any]
) -> tuple[Config, _Scheduler]:
    with refusing(f"{name} has a wrong or missing field"):
        if of == SfumatoScheduler.__name__:
            base = Config.from_dict(scheduler["model"])
            chosen = Sampler.from_dict(scheduler.get("sampler") or {})
            known = _Scheduler(base.method, base.parameters, _step(int(LABEL_SCALE)), chosen)
            record = base.record
        else:
            known = _scheduler(of, scheduler)
            base, record = None, _record(name, kind, unet)
        told = _network(kind, unet, known)
    if base is not None:
        return replace(base, sampler=known.sampler, **told), known
    classes = record.classes is not None
    with refusing(f"{name} has a wrong or missing field"):
        parts = known.method, record, known.parameters
        made = Config(*parts, sampler=known.sampler, conditional=classes, **told)
    return made, known


def _record(name: str, kind: str, unet: Mapping[str, Any]) -> Record:
    """The record of data that are known by their shape alone."""
    size = unet.get("sample_size")
    if size is None:
        raise Refused(f"{name} does not say the size of its images, sample_size of its {kind}.")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    count = unet.get("num_class_embeds")
    if count:
        whole("num_class_embeds", count, 1, BATCH)
    classes = tuple(map(str, range(count))) if count else None
    return Record(name, (unet.get("in_channels", 3), *sides), 0.0, 255.0, classes)


def _network(kind: str, unet: Mapping[str, Any], known: _Scheduler) -> dict[str, Any]:
    """The fields of a config for the backbone."""
    if kind == SfumatoUNet.__name__:
        if known.told != _step(int(LABEL_SCALE)):
            raise Refused(f"a {kind} is told 1000 steps, not what this scheduler tells.")
        if other := unet.get("backbone"):
            return {"network": None, "backbone": Backbone(**other)}
        return {"network": UNetOptions(**(unet.get("network") or {})), "backbone": None}
    if kind != "UNet2DModel":
        raise Refused(f"{kind} of diffusers is not read; UNet2DModel is.")
    plain = {key: value for key, value in unet.items() if key[0] != "_"}
    options = {"unet": json.loads(json.dumps(plain)), **known.told}
    return {"network": None, "backbone": Backbone("diffusers-unet", options)}


def _step(length: int) -> dict[str, Any]:
    return {"told": "step", "length": length}


def _scheduler(kind: str, config: Mapping[str, Any]) -> _Scheduler:
    """What a scheduler of diffusers is here."""
    if kind in ("ScoreSdeVeScheduler", "KarrasVeScheduler"):
        return _exploding(kind, config)
    if kind.startswith("EDM"):
        return _edm(kind, config)
    if "beta_schedule" not in config and "trained_betas" not in config:
        raise Refused(
            f"{kind} of diffusers is not read; schedulers of a chain of variances are, and "
            "ScoreSdeVeScheduler, KarrasVeScheduler, EDMEulerScheduler."
        )
    return _chain(kind, config)


def _chain(kind: str, config: Mapping[str, Any]) -> _Scheduler:
    if config.get("rescale_betas_zero_snr"):
        raise Refused(
            "rescale_betas_zero_snr leaves no signal at the last step, where noise determines no "
            "image; pipelines without it are read."
        )
    found = {name: config[name] for name in CHAIN if config.get(name) is not None}
    if "trained_betas" in found:
        found["trained_betas"] = tuple(map(float, found["trained_betas"]))
        found["num_train_timesteps"] = len(found["trained_betas"])
    found["variance_type"] = "none"
    if kind.startswith("DDPM"):
        variance = config.get("variance_type", "fixed_small").removesuffix("_log")
        if variance.startswith("learned"):
            raise Refused(
                "a network that returns its variance beside its mean is not read; fixed ones are."
            )
        found |= {"variance_type": variance, "steps": found.get("num_train_timesteps", 1000)}
    if kind not in ("DDIMScheduler", "DDIMParallelScheduler"):
        found.pop("set_alpha_to_one", None)
    usual = {
        key: value.default for key, value in inspect.signature(READ["diffusers"]).parameters.items()
    }
    told = _step(found.get("num_train_timesteps", 1000))
    changed = {key: value for key, value in found.items() if value != usual[key]}
    return _Scheduler("diffusers", changed, told)


CHAIN = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "timestep_spacing", "steps_offset", "set_alpha_to_one"),
)
"""Fields of a scheduler's config that are parameters of the method."""


def _exploding(kind: str, config: Mapping[str, Any]) -> _Scheduler:
    """Noise in units of [0, 1], which are half of those of [-1, 1]."""
    if kind == "KarrasVeScheduler":
        sigma = (config.get("sigma_min", 0.02) / 2, config.get("sigma_max", 100.0) / 2)
        told = {"told": "sigma", "sigma": list(sigma)}
        return _Scheduler("ve", {"sigma": sigma}, told, Sampler("heun", 50, "karras"))
    sigma = (config.get("sigma_min", 0.01), config.get("sigma_max", 1348.0))
    snr = config.get("snr", 0.15) if config.get("correct_steps", 1) else 0.0
    steps = config.get("num_train_timesteps", 2000)
    given = {"sigma": sigma, "snr": snr, "steps": steps}
    return _Scheduler("ve", given, {"told": "sigma", "sigma": list(sigma)})


def _edm(kind: str, config: Mapping[str, Any]) -> _Scheduler:
    if (found := config.get("sigma_data", DATA)) != DATA:
        raise Refused(f"{kind} with sigma_data {found} is not read; {DATA} is.")
    sign = {"epsilon": 1.0, "v_prediction": -1.0}.get(config.get("prediction_type", "epsilon"))
    if sign is None:
        raise Refused(f"{kind} predicts epsilon or v_prediction here.")
    sigma = (config.get("sigma_min", 0.002), config.get("sigma_max", 80.0))
    given = {"sigma": sigma, "rho": config.get("rho", 7.0)}
    return _Scheduler("edm", given, {"told": "level", "sign": sign})


def _is_part(value: object) -> bool:
    """Whether an entry of an index is a component: [library, class], both named."""
    return isinstance(value, list) and len(value) == 2 and None not in value


def _json(path: Path) -> dict[str, Any]:
    return documents.read_table(path)
