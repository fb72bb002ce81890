r"""A model as a pipeline of diffusers: a folder that its `DiffusionPipeline` loads.

White noise of one level for all pixels is a chain of DDPM in other units: with r = (c^2 + s^2)^1/2
the signal z = x / r has abar = c^2 / r^2, whatever c and s are. Where the network receives z and
predicts noise, velocity or x_0, diffusers' own scheduler samples it. Any other process has a
scheduler of ours.

A U-Net without patches is a `UNet2DModel` exactly. Its levels are enlarged by repetition alone: the
convolution that follows there is the identity. It is told 1000 t, where a pipeline tells it
1000 t - 1: (sin, cos) of the one is a rotation of that of the other, and the rotation is a factor
of the first layer's weights.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, final

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from sfumato.algebra.operators import Diagonal, Operator
from sfumato.bridge.scheduler import SfumatoScheduler, packed
from sfumato.bridge.unet import SfumatoUNet
from sfumato.config import Config
from sfumato.corruption.coupling import ancestral, ancestral_large
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.methods.recipe import Recipe
from sfumato.networks.backbones import LABEL_SCALE, UNet
from sfumato.networks.diffusers_unet import DiffusersUNet, unet_2d
from sfumato.sampling.kernels import Kernel, analytic_variance, moves, reverse
from sfumato.sampling.samplers import Sampler, spelled

CLOSE = 1e-6
"""Relative difference of gains up to which a chain of diffusers is this process."""
NEEDS = "diffusers' pipelines"
VARIANCES: dict[Kernel, Literal["fixed_small", "fixed_large"]] = {
    reverse(ancestral): "fixed_small",
    reverse(ancestral_large): "fixed_large",
}


class Exported(Protocol):
    """What is written of a `Model`."""

    config: Config
    stats: DataStatistics
    recipe: Recipe
    sampler: Sampler
    denoiser: NetworkDenoiser


@final
class Parts(NamedTuple):
    """The components of a pipeline."""

    unet: ModelMixin
    scheduler: DDPMScheduler | DDIMScheduler | SfumatoScheduler

    @property
    def alone(self) -> bool:
        """Whether diffusers loads them without this library."""
        return not isinstance(self.unet, SfumatoUNet) and not isinstance(
            self.scheduler, SfumatoScheduler
        )


def write(model: Exported, part: Path) -> Parts:
    """Fill the folder `part` with the pipeline of a model.

    Raises:
        ValueError: it cannot be exported; the sentence says why.
    """
    parts = components(model)
    by_ddim = isinstance(parts.scheduler, DDIMScheduler)
    pipeline = (DDIMPipeline if by_ddim else DDPMPipeline)(*parts)  # pyright: ignore[reportArgumentType]: a scheduler of ours
    pipeline.save_pretrained(part, safe_serialization=True)
    return parts


def components(model: Exported) -> Parts:
    """The network and the scheduler of a model, as diffusers has them.

    Raises:
        ValueError: it cannot be exported; the sentence says why.
    """
    _check(model)
    unet = unet_of(model.denoiser.backbone, model.config.record.shape)
    scheduler = chain_of(model)
    return Parts(
        wrapped(model) if unet is None else unet,
        general(model) if scheduler is None else scheduler,
    )


def _check(model: Exported) -> None:
    config, shape = model.config, model.config.record.shape
    refused = {
        "a model of classes, and no class is given by them": config.conditional,
        "a corruption that is drawn for each image": model.recipe.context is not None,
        "a flow map, which receives where it steps to": config.flow_map is not None,
        "a model of latents, whose autoencoder they do not have": config.latent is not None,
        f"signals of shape {shape}, and theirs are images": len(shape) != 3,
    }
    for what, found in refused.items():
        if found:
            raise Refused(f"{NEEDS} cannot hold this model: it is {what}. Use save_pretrained.")


def chain_of(model: Exported) -> DDPMScheduler | DDIMScheduler | None:
    """diffusers' scheduler of a model with white noise; None where it has none."""
    backbone = model.denoiser.backbone
    told = isinstance(backbone, DiffusersUNet)
    if told and backbone.told != "step":
        return None
    count = backbone.length if told else int(LABEL_SCALE)
    times = torch.arange(1, count + 1, dtype=torch.float64) / count
    power, kind = _chain(model.recipe, times)
    if power is None or kind is None:
        return None
    betas = 1 - power / torch.cat([torch.ones(1).double(), power[:-1]])
    if not bool(((betas > 0) & (betas < 1)).all()):
        return None
    how: dict[str, Any] = {
        "num_train_timesteps": count,
        "trained_betas": betas.tolist(),
        "prediction_type": kind,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    variance = VARIANCES.get(model.sampler.whole[0])
    return (
        DDIMScheduler(**how) if variance is None else DDPMScheduler(variance_type=variance, **how)
    )


def _chain(recipe: Recipe, times: Tensor) -> tuple[Tensor | None, str | None]:
    """abar at the times (n,), and diffusers' name of what the network predicts; None for no chain.

    The network must be told the time, and receive z = x / r.
    """
    t = times.reshape(-1, 1, 1, 1)
    process = recipe.process
    try:
        with torch.no_grad():
            skip, out, inp, label, of = recipe.parametrization(process, t)
            parts = process.signal.at(t), process.noise.at(t), skip, out, inp, of
            gains = [_gain(part, len(times)) for part in parts]
    except Refused:  # a prediction that is not defined at all times
        return None, None
    if any(gain is None for gain in gains) or not torch.allclose(label.reshape(-1), times):
        return None, None
    c, s, skip_, out_, inp_, of_ = (gain for gain in gains if gain is not None)
    r = (c**2 + s**2).sqrt()
    found = (skip_ * r / of_, out_ / of_)  # x_0^ = found[0] z + found[1] F
    a, b = c / r, s / r
    kinds = {
        "epsilon": (1 / a, -b / a),
        "v_prediction": (a, -b),
        "sample": (torch.zeros_like(a), torch.ones_like(a)),
    }
    if not torch.allclose(inp_ * r, torch.ones_like(r), rtol=CLOSE):
        return None, None
    for kind, wanted in kinds.items():
        if all(torch.allclose(x, y, rtol=CLOSE) for x, y in zip(found, wanted, strict=True)):
            return a**2, kind
    return None, None


def _gain(part: Operator, count: int) -> Tensor | None:
    """The gains (n,) of an operator that is a multiple of the identity at each of n times."""
    if not isinstance(part, Diagonal) or part.basis is not None:
        return None
    gain = part.gain
    return gain.reshape(-1).expand(count) if gain.numel() in (1, count) else None


def general(model: Exported) -> SfumatoScheduler:
    """Our scheduler of a model; ValueError where only code could describe it."""
    if model.config.own:
        raise Refused(
            f"the method {model.config.method} is code in a file, which no scheduler's config may "
            "name. Only methods of the library, or with white noise, are exported."
        )
    if next(iter(model.recipe.process.parameters()), None) is not None:
        raise Refused(
            f"the levels of {model.config.method} are learned, and a scheduler has no weights. Use "
            "save_pretrained."
        )
    kernel, steps = model.sampler.whole
    alone = isinstance(kernel, reverse | moves | analytic_variance) and spelled(kernel)
    name = spelled(kernel) if alone else "ddim"
    grid = model.config.sampler.grid
    about = Sampler(name, steps, None if callable(grid) else grid).to_dict()
    return SfumatoScheduler(model.config.to_dict(), packed(model.stats), about)


def unet_of(backbone: nn.Module, shape: tuple[int, ...]) -> UNet2DModel | None:
    """diffusers' own network with the output of ours at each timestep; None where it has none."""
    if isinstance(backbone, DiffusersUNet):
        return backbone.net if backbone.told == "step" and backbone.sign == 1 else None
    if not isinstance(backbone, UNet) or backbone.fourier or backbone.context:
        return None
    levels = len(backbone.options.multipliers)
    if backbone.options.patch != 1 or any(side % 2 ** (levels - 1) for side in shape[1:]):
        return None
    config = {key: value for key, value in backbone.net.config.items() if key[0] != "_"}
    net = unet_2d(config | {"sample_size": list(shape[1:])})
    weights = dict(backbone.net.state_dict())
    for name, value in net.state_dict().items():
        if ".upsamplers." in name:
            weights[name] = _identity(value)
    first = "time_embedding.linear_1.weight"
    weights[first] = _shifted(weights[first])
    net.load_state_dict(weights)
    return net.eval()


def _identity(value: Tensor) -> Tensor:
    """The weights or the bias of a convolution that changes nothing."""
    return nn.init.dirac_(torch.empty_like(value)) if value.ndim > 1 else torch.zeros_like(value)


def _shifted(weight: Tensor) -> Tensor:
    """Weights (n, width) on (cos, sin) of a step k - 1 that equal `weight` on those of k."""
    half = weight.shape[1] // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float64) / half
    angle = exponent.exp()
    of_cos, of_sin = weight.double().split(half, 1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.cat([of_cos * cos + of_sin * sin, of_sin * cos - of_cos * sin], 1)
    return turned.to(weight)


def wrapped(model: Exported) -> SfumatoUNet:
    """The backbone of a model in a class of ours; ValueError for the user's own."""
    config = model.config
    if config.backbone is None and config.network is None:
        raise Refused("the backbone is a module of your own, which no folder can describe.")
    if config.backbone is not None and config.backbone.own:
        raise Refused(
            f"the backbone {config.backbone.name} is code in a file, which no pipeline may name."
        )
    shape = config.record.shape
    unet = SfumatoUNet(
        shape[0],
        list(shape[1:]),
        None if config.network is None else asdict(config.network),
        None if config.backbone is None else asdict(config.backbone),
        list(model.recipe.fourier),
    )
    unet.net.load_state_dict(model.denoiser.backbone.state_dict())
    return unet.eval()
