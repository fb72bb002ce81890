"""A config rebuilds a model, except for weights and statistics: the content of `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, final, get_origin, get_type_hints

from torch import nn

from sfumato import fields, limits
from sfumato.corruption.statistics import DataStatistics
from sfumato.errors import Refused, refusing
from sfumato.limits import short
from sfumato.methods import lookup
from sfumato.methods.flow_maps import FlowMap, with_flow_map
from sfumato.methods.lookup import Method
from sfumato.methods.recipe import Recipe, with_time_warp
from sfumato.names import choose, renamed
from sfumato.networks.backbones import UNetOptions
from sfumato.networks.classifier import TimedClassifier
from sfumato.networks.named import BACKBONES, Builder, featured
from sfumato.networks.ranks import network
from sfumato.record import Record
from sfumato.sampling.samplers import Sampler

FORMAT = 1
PARAMETER = 10**6
"""The largest whole number that a parameter of a method may be, such as a number of levels."""


@final
@dataclass(frozen=True)
class Origin:
    """The weights that training started from.

    Attributes:
        name: as given to `--from`.
        sha256: of the weights, in hex.
    """

    name: str
    sha256: str

    def __post_init__(self) -> None:
        fields.check(self)


@final
@dataclass(frozen=True)
class Latent:
    """The autoencoder whose latents a model is of.

    Attributes:
        name: as given to `--latent`.
        sha256: of its weights and of the statistics of its latents, in hex.
        record: of the images.
        network: its options; None for a user-defined module.

    >>> record = sf.load("digits").record
    >>> sf.latents.Latent("runs/autoencoder", "0" * 64, record).to_dict()["name"]
    'runs/autoencoder'
    """

    name: str
    sha256: str
    record: Record
    network: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        fields.check(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "record": self.record.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Latent:
        """From what JSON held."""
        return cls(**{**values, "record": Record.from_dict(values["record"])})


@final
@dataclass(frozen=True)
class Backbone:
    """A backbone other than the U-Net, by its name.

    Attributes:
        name: in `BACKBONES`, or `file.py:function` for the user's own.
        options: its keyword arguments that differ from its defaults.
        sha256: of the user's own file.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    def __post_init__(self) -> None:
        fields.check(self)

    @property
    def own(self) -> bool:
        """Whether it is code in a file of the user's, which only the user may name."""
        return self.sha256 is not None or lookup.names_code(self.name)


@final
@dataclass(frozen=True)
class Config:
    """What a model is, as `config.json` holds it.

    Attributes:
        method: a name in METHODS, or `file.py:function` for the user's own.
        parameters: the method's keyword arguments that differ from its defaults.
        record: the data's record.
        network: the U-Net's options; None for another backbone.
        conditional: whether the backbone receives classes.
        sha256: of the user's own method file.
        sampler: the default sampler; what it leaves unset is the method's.
        time_warp: the method's own times at evenly spaced times, from 0 to 1, where its levels
            were selected.
        origin: the weights that training started from; None for weights drawn from the seed.
        drop_classes: the share of training images whose class the backbone does not receive, from
            0 to 1, so that a conditional model also learns the data without classes.
        classifier: whether the backbone is a classifier of x_t, which guides other models and makes
            no images; its classes are those of the data, `conditional`.
        flow_map: what maps the backbone learns, where it was distilled or trained to need few
            steps.
        latent: the autoencoder, where the data are its latents; `record` describes these.
        backbone: another backbone than the U-Net; with neither it is a module of the user's.

    Raises:
        ValueError: `drop_classes` is no share, or there are no classes to drop or to tell apart.

    >>> record = sf.load("digits").record
    >>> size = sf.UNetOptions(width=8, patch=1)
    >>> config = sf.Config("soft", record, {"prediction": "wiener"}, size)
    >>> sf.Model(config).recipe.sampler.name
    'momentum'
    >>> sf.Config.from_dict(config.to_dict()) == config
    True
    """

    method: str
    record: Record
    parameters: Mapping[str, Any] = field(default_factory=dict)
    network: UNetOptions | None = field(default_factory=UNetOptions)
    conditional: bool = False
    sha256: str | None = None
    sampler: Sampler = field(default_factory=Sampler)
    time_warp: tuple[float, ...] | None = None
    origin: Origin | None = None
    drop_classes: float = 0.0
    classifier: bool = False
    flow_map: FlowMap | None = None
    latent: Latent | None = None
    backbone: Backbone | None = None

    def __post_init__(self) -> None:
        fields.check(self)
        if self.backbone is not None:
            object.__setattr__(self, "network", None)
            if self.classifier:
                raise Refused("a classifier has a network of its own: leave out the backbone.")
        if not 0.0 <= self.drop_classes <= 1.0:
            raise Refused(
                f"drop_classes is a share of the images, from 0 to 1; got {self.drop_classes}."
            )
        if self.drop_classes and not self.conditional:
            raise Refused(
                f"drop_classes {self.drop_classes:g} needs a model of classes. Train with "
                "--conditional, or without --drop-classes."
            )
        if self.classifier and (self.drop_classes or not self.conditional):
            raise Refused("a classifier needs the class of every image: conditional=True alone.")
        if self.classifier and self.flow_map is not None:
            raise Refused("a classifier learns no flow map: leave one of the two out.")
        if self.classifier and not self.record.classes:
            raise Refused(f"{self.record.name} has no classes for a classifier to tell apart.")

    @property
    def own(self) -> bool:
        """Whether the method is code in a file of the user's, which only the user may name."""
        return self.sha256 is not None or ":" in str(self.method)

    @property
    def own_backbone(self) -> bool:
        """Whether the backbone is the user's own module, or code in a file of the user's."""
        return self.network is None and (self.backbone is None or self.backbone.own)

    @property
    def pixels(self) -> Record:
        """The record of what the model makes: of the images where the data are latents."""
        return self.record if self.latent is None else self.latent.record

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts: dict[str, Any] = {"record": self.record.to_dict(), "sampler": self.sampler.to_dict()}
        parts["latent"] = None if self.latent is None else self.latent.to_dict()
        plain = asdict(replace(self, sampler=Sampler())) | parts
        found = {"format": FORMAT, **json.loads(json.dumps(plain))}
        # Left out at their defaults, so that models of older versions are unchanged.
        for name in (
            "time_warp",
            "origin",
            "drop_classes",
            "classifier",
            "flow_map",
            "latent",
            "backbone",
        ):
            if not found[name]:
                del found[name]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From what JSON held; ValueError for another format or an unknown field."""
        if not isinstance(values, Mapping):
            raise Refused("the checkpoint's config.json holds no table.")
        if values.get("kind") == "autoencoder":
            raise Refused(
                "this is an autoencoder, which makes no images by itself. Train a model of its "
                "latents, and sample that."
            )
        with refusing("the checkpoint's config.json has a wrong field"):
            values = renamed(values)
        if (found := values.pop("format", None)) != FORMAT:
            raise Refused(
                f"the checkpoint has format {short(found)}; this version of sfumato reads format "
                f"{FORMAT}."
            )
        with refusing("the checkpoint's config.json has a wrong or missing field"):
            network = values.pop("network")
            record = Record.from_dict(values.pop("record"))
            warp = values.pop("time_warp", None)
            origin = values.pop("origin", None)
            flow = values.pop("flow_map", None)
            latent = values.pop("latent", None)
            backbone = values.pop("backbone", None)
            return cls(
                record=record,
                network=None if network is None else UNetOptions(**network),
                time_warp=None if warp is None else tuple(warp),
                sampler=Sampler.from_dict(values.pop("sampler", {})),
                origin=None if origin is None else Origin(**origin),
                flow_map=None if flow is None else FlowMap(**flow),
                latent=None if latent is None else Latent.from_dict(latent),
                backbone=None if backbone is None else Backbone(**backbone),
                **values,
            )


def composed(config: Config, stats: DataStatistics, method: Method | None = None) -> Recipe:
    """The recipe of a model of `config`, on data with these statistics.

    Args:
        config: what the model is.
        stats: of its data.
        method: the method, where it is the user's own.

    Raises:
        ValueError: no such method, or parameters that it does not take.
    """
    own = method is not None and not lookup.listed(config.method, method)
    if method is None:
        method = method_of(config)
    shape = config.record.shape
    if own:
        try:
            recipe = method(shape, stats, **config.parameters)
        except (TypeError, IndexError, KeyError) as error:
            raise Refused(f"method {config.method}: {error}.") from error
    else:
        with refusing(f"method {config.method}"):
            recipe = method(shape, stats, **_parameters(method, config.parameters))
    if not isinstance(recipe, Recipe):
        raise Refused(
            f"method {config.method} returned {type(recipe).__name__}; a method returns a Recipe."
        )
    warp, flow = config.time_warp, config.flow_map
    recipe = recipe if warp is None else with_time_warp(recipe, warp)
    return recipe if flow is None else with_flow_map(recipe, flow)


def _parameters(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a method of the library, with lists of JSON as tuples.

    Raises:
        ValueError: one is not of its annotation, or a count is too large.
    """
    hints = get_type_hints(method)
    found = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}
    for name, value in found.items():
        hint = str if get_origin(hints.get(name)) is Literal else hints.get(name, object)
        if not fields.fits(value, hint):
            raise Refused(f"{name} cannot be {limits.short(fields.repr_of(value))}.")
        if isinstance(value, int):
            limits.whole(name, int(value), -PARAMETER, PARAMETER)
    return found


def method_of(config: Config) -> Method:
    """The method that `config` names; ValueError where it is code in a file of the user's."""
    if config.own:
        raise Refused(
            f"this model's method is {config.method}, code in a file, which no checkpoint may run "
            "by itself. If you trust that file, name it: --method FILE.py:NAME, or method=... in "
            "Python."
        )
    return lookup.known(config.method)


def made(config: Config, recipe: Recipe, given: nn.Module | Builder | None = None) -> nn.Module:
    """A new backbone of `config`, for a model of this recipe.

    Args:
        config: what the model is.
        recipe: of its method.
        given: the user's own module, which is returned; or the function that makes it.

    Raises:
        ValueError: the user's own is missing, is no module, or does not take these options.
    """
    if isinstance(given, nn.Module):
        return given
    if config.backbone is None and (config.network is None or given is not None):
        raise Refused("this model's backbone is your own module. Pass it as `backbone`.")
    shape, classes = config.record.shape, len(config.record.classes or ())
    if config.classifier and config.network is not None:
        return TimedClassifier(shape, config.network, classes)
    known = classes if config.conditional else None
    drawn, flow = recipe.context, recipe.flow_map
    context = (drawn.channels if drawn else 0) + (flow.channels if flow else 0)
    which = config.backbone or config.network or UNetOptions()
    return new(which, shape, known, context, recipe.fourier, given)


def new(
    which: Backbone | UNetOptions,
    shape: tuple[int, ...],
    classes: int | None = None,
    context: int = 0,
    fourier: Sequence[float] = (),
    given: Builder | None = None,
) -> nn.Module:
    """A backbone by its name, or the U-Net of these options.

    Args:
        which: its name and options.
        shape: of a signal.
        classes: their number; None for an unconditional one.
        context: channels received beside the signal.
        fourier: frequencies of its features of the signal.
        given: the function that makes it, where it is the user's own.

    Raises:
        ValueError: as `made`.
    """
    if isinstance(which, UNetOptions):
        return network(shape, which, classes, context, fourier)

    def build(channels: int) -> nn.Module:
        return _built(which, given, shape, classes, channels)

    return featured(build, shape[0], context, fourier)


def _built(
    spec: Backbone,
    given: Builder | None,
    shape: tuple[int, ...],
    classes: int | None,
    context: int,
) -> nn.Module:
    """The module of a named backbone."""
    if given is None and spec.own:
        raise Refused(
            f"this model's backbone is {spec.name}, code in a file, which no checkpoint may run by "
            "itself. If you trust that file, name it: --backbone FILE.py:NAME, or backbone=... in "
            "Python."
        )
    if given is None:
        build = choose("backbone", spec.name, BACKBONES)
        with refusing(f"backbone {spec.name}"):
            found = build(shape, classes, context, **spec.options)
    else:
        try:
            found = given(shape, classes, context, **spec.options)
        except (TypeError, IndexError, KeyError) as error:
            raise Refused(f"backbone {spec.name}: {error}.") from error
    if not isinstance(found, nn.Module):
        raise Refused(
            f"backbone {spec.name} returned {type(found).__name__}; a backbone is a torch module."
        )
    return found
