"""What the page offers: methods with their levels, samplers, grids and operators.

All of it is read from the library's own tables and signatures, so that a new method or sampler is
on the page without a line here. A parameter is a level where the corruption depends on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple, final, get_args, get_origin, get_type_hints

import torch
from docstring_parser.google import parse

from sfumato.corruption.measurement import OPERATORS
from sfumato.corruption.process import Process
from sfumato.demo.asked import Asked, number
from sfumato.errors import Refused
from sfumato.methods import METHODS
from sfumato.methods.grids import GRIDS
from sfumato.methods.table import row
from sfumato.sampling.samplers import described
from sfumato.trajectory import corrupted

COLOURS = ("white", "power", "data")
"""Of a text parameter; a covariance's file is for the command line."""
REACH = 10.0
"""A slider goes from a default over this to the default times this."""
WIDEST = 100.0
"""Where a slider ends whose default, 0, stands for a value from the data."""
PROBED = (0.1, 0.5, 0.9)
"""Times at which two processes are compared."""


@final
class Control(NamedTuple):
    """A slider, or a list of choices.

    Attributes:
        name, help: of the parameter; a pair has two controls, `name.0` and `name.1`.
        kind: number, whole or choice.
        value: the default.
        low, high: ends of a slider.
        log: whether the slider is logarithmic.
        choices: names to choose from.
    """

    name: str
    help: str
    kind: Literal["number", "whole", "choice"]
    value: Any
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def read(self, found: object) -> Any:  # noqa: ANN401 - of the control's kind
        """A value of this control; ValueError where it is none."""
        if self.kind == "choice":
            return Asked({self.name: found}).one_of(self.name, self.choices)
        value = number(self.name, found, self.low, self.high)
        return round(value) if self.kind == "whole" else float(value)


@cache
def offered() -> dict[str, Any]:
    """Everything that does not depend on a model, as JSON holds it."""
    return {
        "methods": [about(name) for name in METHODS],
        "samplers": [
            {"name": name, "help": line, "parameters": parameters}
            for name, line, parameters in described()
        ],
        "grids": [
            {"name": name, "help": (inspect.getdoc(grid) or "").partition("\n")[0]}
            for name, grid in GRIDS.items()
        ],
    }


def about(name: str) -> dict[str, Any]:
    """A method: what it is, its C_t and Sigma_t, its paper, and the controls of its levels."""
    told = row(name)
    summary = (inspect.getdoc(METHODS[name]) or "").partition("\n")[0]
    return {
        "name": name,
        "summary": summary.partition(": ")[2].rstrip(".") or summary.rstrip("."),
        "title": summary.partition(":")[0],
        "reference": told.reference,
        "levels": [control._asdict() for control in levels(name)],
    }


@cache
def levels(name: str) -> tuple[Control, ...]:
    """Controls of those parameters of a method on which its corruption depends."""
    x0 = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    times = torch.tensor(PROBED, dtype=torch.float64)
    process = METHODS[name](x0.shape[1:]).process
    usual = corrupted(process, x0, times)
    learned = next(iter(process.parameters()), None) is not None

    def matters(control: Control) -> bool:
        if learned and control.kind == "whole":
            return False  # the size of the network that learns the levels
        for value in _others(control):
            try:
                given = parameters(name, {control.name: value})
                found = corrupted(METHODS[name](x0.shape[1:], **given).process, x0, times)
            except Refused:
                continue
            return not torch.allclose(found, usual, rtol=1e-4, atol=1e-5)
        return False

    return tuple(control for control in _controls(name) if matters(control))


def parameters(name: str, given: Mapping[str, object]) -> dict[str, Any]:
    """Parameters of a method from the values of its controls; those not given have their defaults.

    Raises:
        ValueError: a value that its control does not have, or a control that is not there.
    """
    controls = {control.name: control for control in _controls(name)}
    if unknown := sorted({*given} - {*controls}):
        raise Refused(f"{name} has no level '{unknown[0]}'.")
    found: dict[str, Any] = {}
    for key in given:
        parameter = key.partition(".")[0]
        pair = [part for part in controls if part.partition(".")[0] == parameter]
        values = [controls[part].read(given.get(part, controls[part].value)) for part in pair]
        found[parameter] = values[0] if pair == [parameter] else tuple(values)
    return found


@lru_cache(maxsize=8)
def corruption(name: str, shape: tuple[int, ...], given: tuple[tuple[str, Any], ...]) -> Process:
    """The process of a method at these values of its controls."""
    return METHODS[name](shape, **parameters(name, dict(given))).process


def _others(control: Control) -> Iterator[object]:
    """Values of a control that are not its default."""
    if control.kind == "choice":
        yield from (choice for choice in control.choices if choice != control.value)
        return
    for share in (0.6, 0.4, 0.8, 0.2):
        if control.log:
            value = control.low * (control.high / control.low) ** share
        else:
            value = control.low + (control.high - control.low) * share
        yield round(value) if control.kind == "whole" else value


@cache
def _controls(name: str) -> tuple[Control, ...]:
    """Controls of all parameters of a method that a slider or a choice can set."""
    method = METHODS[name]
    helps = {
        entry.arg_name: entry.description or "" for entry in parse(method.__doc__ or "").params
    }
    hints = get_type_hints(method)
    found: list[Control] = []
    for key, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            text = " ".join(helps.get(key, "").split()).rstrip(".")
            found += _control(key, text, hints[key], parameter.default)
    return tuple(found)


def _control(name: str, text: str, hint: object, default: Any) -> list[Control]:  # noqa: ANN401
    if get_origin(hint) is Literal:
        return [Control(name, text, "choice", default, choices=get_args(hint))]
    if hint is str:
        return [Control(name, text, "choice", default, choices=COLOURS)]
    if hint in (int, float) and default is not None:
        return [_slider(name, text, hint, default)]
    if hint == tuple[float, float] and default is not None:
        return [_slider(f"{name}.{i}", text, float, default[i]) for i in range(2)]
    return []


def _slider(name: str, text: str, kind: type, default: float) -> Control:
    word: Literal["number", "whole"] = "whole" if kind is int else "number"
    if default == 0:
        return Control(name, text, word, default, 0.0, WIDEST)
    if default < 0:
        return Control(name, text, word, default, 2 * default, 0.0)
    low = max(1.0, default / REACH) if kind is int else default / REACH
    return Control(name, text, word, default, low, default * REACH, log=True)


def operators(shape: tuple[int, ...]) -> dict[str, tuple[Control, ...]]:
    """Controls of each operator of `OPERATORS`, for images of `shape`."""
    height, width = shape[-2:]
    longest = float(max(height, width))
    factors = tuple(str(n) for n in range(2, min(height, width)) if not (height % n or width % n))

    def side(name: str, text: str, share: float, length: int) -> Control:
        return Control(name, text, "whole", round(share * length), 0.0, float(length))

    found: dict[str, tuple[Control, ...]] = {
        "blur": (Control("sigma", "width of the blur in pixels", "number", 2.0, 0.0, 8.0),),
        "box": (
            side("x0", "left edge", 0.3, width),
            side("y0", "top edge", 0.3, height),
            side("x1", "right edge", 0.7, width),
            side("y1", "bottom edge", 0.7, height),
        ),
        "random-mask": (Control("hidden", "share of pixels hidden", "number", 0.5, 0.0, 0.95),),
        "motion": (
            Control("length", "pixels", "number", min(9.0, longest), 1.0, longest),
            Control("angle", "degrees", "number", 30.0, -90.0, 90.0),
        ),
        "identity": (),
    }
    if factors:
        text = "pixels that are averaged, on each side"
        found["down"] = (Control("factor", text, "choice", factors[0], choices=factors),)
    return {name: found[name] for name in OPERATORS if name in found}


def spelled(name: str, controls: tuple[Control, ...], given: Mapping[str, object]) -> str:
    """An operator or a sampler as the command line names it: `NAME:key=value,key=value`."""
    values = {
        control.name: control.read(given.get(control.name, control.value)) for control in controls
    }
    told = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{name}:{told}" if told else name


def sampler_name(name: str, given: Mapping[str, object]) -> str:
    """A sampler with its numbers, as `Sampler` takes it."""
    values = {key: number(key, value) for key, value in given.items()}
    told = ",".join(f"{key}={value:g}" for key, value in values.items())
    return f"{name}:{told}" if told else name
