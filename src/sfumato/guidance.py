"""Guidance is how far, when, and from what weaker model, estimates of x_0 are moved away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from sfumato.codec import Codec
from sfumato.config import Config
from sfumato.corruption.boundary import expect
from sfumato.errors import Refused
from sfumato.estimation.classify import class_log_prob
from sfumato.estimation.contrast import Contrasted, Weak
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.guided import Guided, classifier
from sfumato.estimation.limit import Limited
from sfumato.estimation.limit import clip as limited_to_data
from sfumato.methods.flow_maps import check_mean
from sfumato.methods.recipe import Recipe

PROBES = (0.05, 0.35, 0.65, 0.95)
"""Shares of the training times at which two models' operators are compared."""


class Fitted(Protocol):
    """What `Model` is: the type of a guide."""

    config: Config
    recipe: Recipe
    denoiser: NetworkDenoiser
    codec: Codec


@final
@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, autoguidance, and the times of either: x_0^ + w (x_0^ - x_0^_weak).

    The formulas, the law and the papers are in `sfumato.denoisers.Contrasted`.

    Attributes:
        weight: w >= 0; at 0 there is no guidance, bit for bit. Programs in which 1 is no guidance
            call 1 + w the scale.
        interval: first and last of the times in [0, 1], where 0 is clean, at which it acts.
        guide: the weaker model: a smaller or less trained one of the same method and parameters,
            such as an earlier checkpoint, with or without classes; None is the same network without
            a class, which it has learned where it was trained with `drop_classes`.
        classifier: a classifier of x_t in place of a weaker model, by whose gradient each estimate
            is moved (`sfumato.guides.classifier`); w = 1 is Bayes' rule for a model without
            classes.

    Raises:
        ValueError: a negative weight, an interval that is not within [0, 1], or a classifier with
            an interval or a guide.

    >>> sf.Guidance(2.0, interval=(0.2, 0.8))
    Guidance(weight=2.0, interval=(0.2, 0.8), guide=None, classifier=None)
    >>> sf.Guidance(-1.0)
    Traceback (most recent call last):
    ...
    sfumato.errors.Refused: a weight of guidance is 0 or more; got -1.0.
    """

    weight: float
    interval: tuple[float, float] = (0.0, 1.0)
    guide: Fitted | None = None
    classifier: Fitted | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < float("inf"):
            raise Refused(f"a weight of guidance is 0 or more; got {self.weight}.")
        object.__setattr__(self, "interval", tuple(self.interval))
        if len(self.interval) != 2 or not 0.0 <= self.interval[0] <= self.interval[1] <= 1.0:
            raise Refused(
                "an interval of guidance is two times that rise within 0 and 1, such as (0.2, "
                f"0.8); got {self.interval}."
            )
        if self.classifier is not None and (self.guide or self.interval != (0.0, 1.0)):
            raise Refused(
                "guidance by a classifier takes no guide and no interval: leave them out."
            )

    def check(self, model: Fitted) -> None:
        """Raise ValueError where `model` cannot be guided so, with the reason."""
        if (flow := model.recipe.flow_map) is not None:
            if self.guide or self.classifier or self.interval != (0.0, 1.0):
                raise Refused(
                    "this model's estimates cannot be guided by another model, nor at some times: "
                    "they map to later times. Guide its teacher."
                )
            flow.check_weight(self.weight)
            return
        if self.classifier is not None:
            _check_classifier(model, self.classifier)
            return
        guide = self.guide
        if guide is None:
            _check_null_class(model.config)
            return
        ours, theirs = model.config, guide.config
        if ours.record.shape != theirs.record.shape:
            raise Refused(
                f"the guide is of signals of shape {theirs.record.shape}, this model of "
                f"{ours.record.shape}. Use a guide of the same shape."
            )
        check_mean(guide.recipe, "guides")
        model.codec.check_same(guide.codec, "the guide")
        if theirs.classifier:
            raise Refused("the guide is a classifier: give it as --classifier, classifier=...")
        if not ours.conditional and theirs.conditional and not theirs.drop_classes:
            raise Refused(
                "the guide needs classes, which this model has not. Use a guide without classes, "
                "or one trained with --drop-classes."
            )
        if ours.conditional and theirs.conditional and ours.record.classes != theirs.record.classes:
            raise Refused(
                "the guide has other classes than this model. Use a guide with the same classes, "
                "or without any."
            )
        if not alike(model, guide):
            raise Refused(
                f"the guide's network ({_spelled(theirs)}) estimates something else at some time "
                f"than this model's ({_spelled(ours)}). Use a guide of the same method, parameters "
                "and data."
            )

    def applied(self, config: Config, base: NetworkDenoiser, classes: Tensor | None) -> Denoiser:
        """`base`, the denoiser of a model, guided; for a batch of these classes."""
        if self.classifier is None or classes is None:
            return self.around(base, self._weak(config))
        place = next(iter(base.backbone.parameters()), classes)
        log_prob = class_log_prob(self.classifier.denoiser.eval(), classes.to(place.device))
        return Guided(base, classifier(log_prob, self.weight))

    def around(self, base: NetworkDenoiser, weak: Weak) -> Denoiser:
        """`base` guided away from `weak`; `base` itself where it is guided by a classifier."""
        if self.classifier is not None:
            return base
        return Contrasted(base, self.weight, weak, self.interval)

    def _weak(self, config: Config) -> Weak:
        if self.guide is None:
            return len(config.record.classes or ())
        backbone = self.guide.denoiser.eval().backbone
        return backbone if self.guide.config.conditional else _unconditional(backbone)


def asked(model: Fitted, guidance: Guidance | float) -> tuple[Guidance | None, float]:
    """The guidance, if any, that moves estimates of `model`, and the weight its network receives.

    Raises:
        ValueError, TypeError: `guidance` is none of this model.
    """
    if isinstance(guidance, int | float):
        guidance = Guidance(guidance)
    expect(guidance, Guidance, "guidance must be a weight, such as 2.0, or a Guidance")
    if model.recipe.flow_map is not None:
        guidance.check(model)
        return None, guidance.weight
    if not guidance.weight:
        return None, 0.0
    guidance.check(model)
    return guidance, 0.0


def estimating(
    config: Config,
    base: NetworkDenoiser,
    guided: Guidance | None,
    classes: Tensor | None,
    clip: bool = False,
) -> Denoiser:
    """What a sampler asks for x_0^: `base`, the denoiser of a model, guided and then clipped."""
    denoiser = base if guided is None else guided.applied(config, base, classes)
    return Limited(denoiser, limited_to_data) if clip else denoiser


def labels(
    config: Config, classes: Sequence[int] | None, count: int, guidance: Guidance | None = None
) -> Tensor | None:
    """The classes of `count` signals, (count,), for a model with this config.

    Raises:
        ValueError: they do not fit the model, or the classifier that guides it.
    """
    if config.classifier:
        raise Refused(
            "this is a classifier of x_t, which makes no images. Sample another model with it: "
            "--classifier RUN."
        )
    asked = None if guidance is None else guidance.classifier
    config = config if asked is None else asked.config
    if classes is None:
        if config.conditional:
            raise Refused("this model was trained on classes; name one for each image.")
        return None
    known = len(config.record.classes or ())
    if not config.conditional:
        raise Refused("this model has no classes; train with --conditional to sample one.")
    if len(classes) != count or not all(0 <= c < known for c in classes):
        raise Refused(f"classes must be {count} numbers from 0 to {known - 1}.")
    return torch.tensor(list(classes))


def _unconditional(backbone: nn.Module) -> Callable[..., Tensor]:
    """A network without classes, called as one with them."""

    def called(x: Tensor, label: Tensor, classes: Tensor | None = None, **cond: Any) -> Tensor:
        return backbone(x, label, **cond)

    return called


def _check_classifier(model: Fitted, found: Fitted) -> None:
    ours, theirs = model.config, found.config
    if not theirs.classifier:
        raise Refused(
            "this classifier is a model of images. Train one of x_t: sfumato train-classifier "
            f"{ours.method}."
        )
    if ours.record.shape != theirs.record.shape:
        raise Refused(
            f"the classifier is of signals of shape {theirs.record.shape}, this model of "
            f"{ours.record.shape}. Train one on the same data."
        )
    model.codec.check_same(found.codec, "the classifier")
    if ours.conditional and ours.record.classes != theirs.record.classes:
        raise Refused("the classifier has other classes than this model. Train one on its data.")
    if not alike(model, found):
        raise Refused(
            f"the classifier ({_spelled(theirs)}) is of another process or prediction than this "
            f"model ({_spelled(ours)}). Train one of the same method, parameters and data."
        )


def _check_null_class(config: Config) -> None:
    if not config.conditional:
        raise Refused(
            "guidance without a guide needs a model of classes, and this model has none. Name a "
            "weaker model as its guide: --guide RUN."
        )
    if not config.drop_classes:
        raise Refused(
            "this model was trained with the class of every image, and has not learned to sample "
            "without one. Train with --drop-classes 0.1, or name a weaker model: --guide RUN."
        )


def _spelled(config: Config) -> str:
    return " ".join([config.method, *(f"{k}={v}" for k, v in config.parameters.items())])


def alike(one: Fitted, other: Fitted) -> bool:
    """Whether two models' networks estimate the same from the same x_t, at some times."""
    like = next(iter(one.denoiser.backbone.parameters()), torch.zeros(()))
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(2, *one.config.record.shape, generator=stream, dtype=torch.float64)
    x = x.to(like.device)
    times = one.recipe.times(torch.tensor(PROBES, dtype=torch.float64))
    return all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-9)
        for t in times.to(like.device)
        for a, b in zip(_probed(one, x, t), _probed(other, x, t), strict=True)
    )


def _probed(model: Fitted, x: Tensor, t: Tensor) -> list[Tensor]:
    process = model.recipe.process
    skip, out, inp, label, of = model.recipe.parametrization(process, t)
    made = (skip, out, inp, of, process.signal.at(t), process.noise.at(t))
    return [label.double().reshape(()), *(operator(x) for operator in made)]
