r"""Objectives of x_t: a network of corrupted images learns x_0, their class, or a flow map.

They share what a step draws, times, noise, contexts and classes, and differ in the loss of each
sample. Times and noise are drawn on the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import torch
from torch import Tensor, nn

from sfumato.algebra.place import CPU, home, upload
from sfumato.corruption.boundary import FAR
from sfumato.corruption.learned import interior
from sfumato.corruption.prior import RandnLike
from sfumato.errors import Refused
from sfumato.estimation.classify import class_loss
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.loss import loss, stratified
from sfumato.model import Model
from sfumato.sampling.samplers import Sampler
from sfumato.training import draws
from sfumato.training.data import Data
from sfumato.training.objective import Losses, Objective
from sfumato.training.options import TrainOptions
from sfumato.training.previews import forward, previews
from sfumato.training.targets import Batch, Targets, Told

if TYPE_CHECKING:
    from PIL import Image

SHORT = 50
"""Steps of sampling, and images, tried without the network, so that errors come first."""


@final
class Drawn(NamedTuple):
    """What one step draws, for the rows of the global batch that one process has."""

    rows: Tensor
    """Of the data, (B,), on the CPU."""
    t: Tensor
    """Times, (B, 1, ..., 1)."""
    eps: Tensor
    """Noise, (B, *shape)."""
    context: Tensor | None
    """Context of each image, for methods that draw one."""
    classes: Tensor | None
    """Of each image, (B,) int64, on the CPU, for conditional models; their number means none."""
    places: Tensor | None = None
    """Of the segments of a flow map, (B,) int64, on the CPU."""
    weight: Tensor | None = None
    """Of the guidance that a flow map receives, (B,), on the CPU."""

    def of(self, chosen: slice) -> Drawn:
        """What was drawn for some of the rows."""
        found = (None if part is None else part[chosen] for part in self)
        return Drawn(*cast("tuple[Tensor, ...]", tuple(found)))


def draw(
    step: int,
    data: Data,
    options: TrainOptions,
    model: Model,
    device: torch.device = CPU,
    process: int = 0,
    processes: int = 1,
) -> Drawn:
    """The draws of `step` on `device` for one of `processes`: the same rows for any number of them.

    They depend on the seed, the number of the step and the place in the global batch alone.
    """
    mine = draws.share(options, process, processes)
    # The places of a flow map's segments are read by the host, which would wait for a device.
    place = home(device) if model.recipe.flow_map is None else CPU
    stream = draws.stream(place, options.seed, "times", step)
    u = torch.rand(options.batch, generator=stream, dtype=torch.float64, device=place)
    u = stratified(u)
    t, places = _times(step, u, options, model)
    t = t[mine.start : mine.stop]
    eps, context = _noise(step, options, model, mine, device)
    rows = draws.rows(step, data, options)[mine.start : mine.stop]
    classes = _classes(step, data, options, model, rows, mine)
    if places is not None:
        t = upload(t, home(device))
        places = places[mine.start : mine.stop]
    weight = _weights(step, options, model, mine)
    t = t.reshape(-1, *(1,) * len(model.shape))
    return Drawn(rows, t, eps, context, classes, places, weight)


def objective(model: Model, teacher: Model | None = None) -> Corrupted:
    """What `model` is trained on, by its config.

    Args:
        model: as `build` made it.
        teacher: the model that a flow map is distilled from.

    Raises:
        ValueError: a flow map that is distilled, without the teacher it started from.
    """
    flow = model.config.flow_map
    if teacher is not None and (flow is None or flow.sampler is None):
        raise Refused("this model learns from no teacher: leave teacher=... out.")
    if model.config.classifier:
        return Classification(model)
    if flow is not None:
        return Mapping(model, Targets(model, teacher))
    return Denoising(model)


class Corrupted(Objective[Drawn]):
    """An objective of x_t (abstract).

    Args:
        model: what is trained.
        network: its backbone, as prepared; by default as it is.
    """

    def __init__(self, model: Model, network: nn.Module | None = None) -> None:
        self.subject = self.model = model
        self.network = model.denoiser.backbone if network is None else network
        recipe = model.recipe
        self.denoiser = NetworkDenoiser(recipe.process, recipe.parametrization, self.network)
        self.beside = tuple(recipe.process.parameters())
        self.inner = tuple(interior(recipe.process))
        self.far = FAR if model.config.latent is None else math.inf

    @abstractmethod
    def each(
        self, denoiser: NetworkDenoiser, drawn: Drawn, x0: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        """The loss of each sample, (B,).

        Args:
            denoiser: of the samples, each of whose corruptions may be its own.
            drawn: for these samples.
            x0: their data.
            cond: what the network receives beside x and t.
        """

    def draw(
        self,
        step: int,
        data: Data,
        options: TrainOptions,
        device: torch.device = CPU,
        process: int = 0,
        processes: int = 1,
    ) -> Drawn:
        return draw(step, data, options, self.model, device, process, processes)

    def losses(self, drawn: Drawn, chosen: slice, x0: Tensor) -> Losses:
        mine = drawn.of(chosen)
        recipe = self.model.recipe
        denoiser = self.denoiser
        cond: dict[str, Any] = {}
        if mine.classes is not None:
            cond["classes"] = upload(mine.classes, x0.device)
        if recipe.context is not None and mine.context is not None:
            cond["context"] = mine.context
            denoiser = denoiser.with_process(recipe.context.process(mine.context))
        bound = self.each(denoiser, mine, x0, cond)
        if recipe.ends is None:
            return Losses(bound, bound)
        return Losses(bound + recipe.ends(denoiser.process, x0, mine.eps), bound)


@final
class Denoising(Corrupted):
    """x_0 from x_t, by the method's own weighting."""

    def through(self, network: nn.Module) -> Denoising:
        return Denoising(self.model, network)

    def check(self, data: Data) -> None:
        _check_sampling(self.model)
        _try_ends(self.model, data)

    def each(
        self, denoiser: NetworkDenoiser, drawn: Drawn, x0: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        weighting, far = self.model.recipe.weighting, self.far
        return loss(denoiser, weighting, x0, drawn.t, drawn.eps, far=far, **cond)

    def previews(self, data: Data, images: int) -> dict[str, Image.Image]:
        return previews(self.model, data, images)


@final
class Mapping(Corrupted):
    """A flow map: x~ of a teacher's path, of the data's or of its own, from x_t.

    Args:
        model, network: as in `Corrupted`.
        targets: the targets.
    """

    def __init__(self, model: Model, targets: Targets, network: nn.Module | None = None) -> None:
        super().__init__(model, network)
        self.targets = targets

    def through(self, network: nn.Module) -> Mapping:
        self.targets.place()
        return Mapping(self.model, self.targets, network)

    def check(self, data: Data) -> None:
        _check_sampling(self.model)
        _try_ends(self.model, data)

    def each(
        self, denoiser: NetworkDenoiser, drawn: Drawn, x0: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        places = cast(Tensor, drawn.places)
        weight = None if drawn.weight is None else upload(drawn.weight, x0.device)
        told = Told(cond.get("classes"), cond.get("context"), weight)
        target = self.targets.target(denoiser, Batch(x0, drawn.eps, places, told))
        cond = self.targets.cond(places, told)
        weighting, far = self.model.recipe.weighting, self.far
        return loss(denoiser, weighting, x0, drawn.t, drawn.eps, target=target, far=far, **cond)

    def previews(self, data: Data, images: int) -> dict[str, Image.Image]:
        return previews(self.model, data, images)


@final
class Classification(Corrupted):
    """The class of x_0 from x_t."""

    def through(self, network: nn.Module) -> Classification:
        return Classification(self.model, network)

    def check(self, data: Data) -> None:
        method = self.model.config.method
        if self.model.recipe.context is not None:
            raise Refused(
                f"{method} draws its corruption for each image, which a classifier of x_t does not "
                "receive. Choose another method."
            )
        if self.model.trainable is not self.model.denoiser.backbone:
            raise Refused(
                f"the process of {method} is learned with its network, and a classifier cannot "
                "share it. Choose another method."
            )
        _try_ends(self.model, data)

    def each(
        self, denoiser: NetworkDenoiser, drawn: Drawn, x0: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        return class_loss(denoiser, x0, drawn.t, drawn.eps, cond["classes"])

    def previews(self, data: Data, images: int) -> dict[str, Image.Image]:
        return forward(self.model, data)


def _check_sampling(model: Model) -> None:
    """Raise ValueError where the model could not be sampled, or its objective has no weight."""
    model.network_calls(Sampler(steps=model.preview_steps(SHORT)))
    _check_weighting(model)


@torch.no_grad()
def _check_weighting(model: Model) -> None:
    """Raise ValueError where the objective has no weight at some training time.

    A step on another device than the CPU reads no values, and would not detect it.
    """
    u = torch.arange(64, dtype=torch.float64) / 64
    t = model.recipe.times(u).reshape(-1, *(1,) * len(model.shape))
    model.recipe.weighting(model.recipe.process, t, t)


@torch.no_grad()
def _try_ends(model: Model, data: Data) -> None:
    """Compute the ends of a bound for some images, so that errors of unsuitable data come first."""
    if model.recipe.ends is not None:
        model.codec.check_pixels(f"{model.config.method}, whose bound is of whole numbers,")
        x0 = data.batch(range(min(len(data), SHORT)))
        model.recipe.ends(model.recipe.process, x0, torch.zeros_like(x0))


def _times(
    step: int, u: Tensor, options: TrainOptions, model: Model
) -> tuple[Tensor, Tensor | None]:
    """Times of the global batch from stratified numbers, and places of the segments of a map."""
    flow = model.recipe.flow_map
    if flow is None:
        return model.recipe.times(u), None
    stream = draws.stream(CPU, options.seed, "sizes", step)
    size = torch.rand((), generator=stream, dtype=torch.float64)
    places = flow.drawn(u, float(size))
    plain = model.recipe.times((2 * u) % 1.0)
    return torch.where(places < 0, plain, flow.starts(places)), places


def _weights(step: int, options: TrainOptions, model: Model, mine: range) -> Tensor | None:
    """Weights of guidance, uniform, for a flow map that receives them."""
    flow = model.recipe.flow_map
    if flow is None or flow.guidance is None:
        return None
    u = torch.rand(options.batch, generator=draws.stream(CPU, options.seed, "weights", step))
    return (flow.guidance * u)[mine.start : mine.stop]


def _noise(
    step: int, options: TrainOptions, model: Model, mine: range, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Noise and contexts of the rows `mine` of the global batch."""
    drawn = model.recipe.context

    def part(count: int, normal: RandnLike) -> tuple[Tensor, Tensor | None]:
        eps = normal(torch.empty(count, *model.shape, device=device))
        return eps, None if drawn is None else drawn.draw(eps, normal)

    found, cut = draws.parts(step, options, mine, device, part)
    contexts = [context for _, context in found if context is not None]
    return torch.cat([eps for eps, _ in found])[cut], torch.cat(contexts)[cut] if contexts else None


def _classes(
    step: int, data: Data, options: TrainOptions, model: Model, rows: Tensor, mine: range
) -> Tensor | None:
    """Classes of `rows`, which are at places `mine` of the global batch, some of them dropped."""
    classes = data.classes(rows) if model.config.conditional else None
    if classes is None or not model.config.drop_classes:
        return classes
    stream = draws.stream(CPU, options.seed, "classes", step)
    u = torch.rand(options.batch, generator=stream, dtype=torch.float64)[mine.start : mine.stop]
    none = len(model.config.record.classes or ())
    return torch.where(u < model.config.drop_classes, none, classes)
