r"""diffusers' `UNet2DModel` as a backbone: what it is told, and what its output means here.

    step      told the step k - 1 of a chain, where our label is t = k / length
    level     told the label itself: EDM's log(sigma) / 4
    sigma     told sigma in units of [0, 1] and given x in [0, 1]; it returns the score there

The last is that of score SDEs with variance explosion; its score is turned into a prediction of
noise.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
    2020), https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from sfumato import limits
from sfumato.errors import Refused, refusing
from sfumato.limits import whole
from sfumato.networks.backbones import check_inputs

WHOLE = 4096.0
"""Steps are rounded to 1 / WHOLE: of a label in float32 they would not be whole numbers."""
CURRENT = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention's weights in older files of diffusers, and now."""


def diffusers_unet(
    shape: Sequence[int],
    classes: int | None = None,
    context: int = 0,
    *,
    unet: Mapping[str, Any],
    told: Literal["step", "level", "sigma"] = "step",
    length: int = 1000,
    sigma: Sequence[float] = (0.01, 1348.0),
    sign: float = 1.0,
) -> nn.Module:
    """The UNet2DModel of a pipeline of diffusers.

    Args:
        shape: (C, H, W) of the images.
        classes: the number of classes, or None for an unconditional network.
        context: none is received.
        unet: the config of the UNet2DModel.
        told: what it receives as its timestep, see the module.
        length: number of steps of the chain, for `step`.
        sigma: smallest and largest noise in units of [0, 1], geometric between, for `sigma`.
        sign: factor of its output.

    Raises:
        ValueError: the config is not that of a UNet2DModel for such images.
    """
    if context:
        raise Refused(f"a UNet2DModel receives no context; this method has {context} channels.")
    limits.check_signal(shape)
    with refusing("this is no config of a UNet2DModel"):
        _check_sizes(unet)
        net = unet_2d(unet)
    found = net.config["in_channels"], net.config["out_channels"], net.config["num_class_embeds"]
    if found != (shape[0], shape[0], classes):
        raise Refused(
            f"a UNet2DModel with (in_channels, out_channels, num_class_embeds) = {found} is not "
            f"read; for these images they are {(shape[0], shape[0], classes)}."
        )
    return DiffusersUNet(tuple(shape), net, told, length, (sigma[0], sigma[1]), sign)


def _check_sizes(unet: Mapping[str, Any]) -> None:
    """Raise ValueError for more layers, levels or channels than any network has."""
    whole("layers_per_block", unet.get("layers_per_block", 1), 1, limits.LAYERS)
    widths = unet.get("block_out_channels", (1,))
    whole("the number of block_out_channels", len(widths), 1, limits.LEVELS)
    for width in widths:
        whole("each of block_out_channels", width, 1, limits.WIDTH)
    for name, value in unet.items():
        if isinstance(value, int):
            whole(name, int(value), 0, limits.BATCH)


@final
class DiffusersUNet(nn.Module):
    """A UNet2DModel as F(x, label, classes); see `diffusers_unet`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        net: UNet2DModel,
        told: str,
        length: int,
        sigma: tuple[float, float],
        sign: float,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.net = net
        self.told, self.length, self.sigma, self.sign = told, length, sigma, sign

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """F(x, label): (B, C, H, W) -> (B, C, H, W)."""
        check_inputs(x, label, self.shape)
        if self.told == "sigma":
            return self._score(x, label, classes)
        step = label
        if self.told == "step":
            step = ((label.float() * self.length - 1) * WHOLE).round() / WHOLE
        out = self._ask(x, step, classes)
        return out if self.sign == 1 else self.sign * out

    def _score(self, x: Tensor, label: Tensor, classes: Tensor | None) -> Tensor:
        """The noise in x / (1 + (2 sigma)^2)^1/2, of its score at (x + 1) / 2."""
        low, high = self.sigma
        sigma = low * (high / low) ** label.float()
        wide = sigma.reshape(-1, *(1 for _ in self.shape))
        shown = (x * (1 + (2 * wide) ** 2).sqrt() + 1) / 2
        return (-wide * self._ask(shown, sigma, classes)).to(x.dtype)

    def _ask(self, x: Tensor, step: Tensor, classes: Tensor | None) -> Tensor:
        return self.net(x, step, classes, return_dict=False)[0]


def unet_2d(config: Mapping[str, Any]) -> UNet2DModel:
    """A UNet2DModel of its config; fields that it does not have are ignored, as by diffusers."""
    # Fields with an underscore say which others to leave at their defaults.
    made = UNet2DModel.from_config({key: config[key] for key in config if key[0] != "_"})
    return made[0] if isinstance(made, tuple) else made


def current(weights: Mapping[str, Tensor], prefix: str = "net.") -> dict[str, Tensor]:
    """Weights of diffusers by today's names, behind `prefix`."""
    return {prefix + _renamed(name): value for name, value in weights.items()}


def _renamed(name: str) -> str:
    if ".attentions." not in name:
        return name
    parts = name.split(".")
    parts[-2] = CURRENT.get(parts[-2], parts[-2])
    return ".".join(parts)
