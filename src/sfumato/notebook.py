r"""What a notebook shows of a process, a recipe, a sampler and a model: a small table and a strip.

The strip is the corruption of one picture at times from 0 to 1, in the HTML itself. These functions
are the `_repr_html_` of their classes: everything is escaped, and where something cannot be shown,
less is, down to the plain `repr`; they raise nothing.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 32
"""Of the picture, where the process fixes no size."""
LARGEST = 256
"""Side above which no strip is drawn, since it would take seconds."""
FRAMES = 8
LONG = 160
"""Characters of a value that are shown."""

Rows = Iterable[tuple[str, object]]

# The classes import this module, so that it cannot import them: their instances are `Any` here.
# ruff: noqa: ANN401


def process(this: Any) -> str:
    """C_t and S_t as formulas, and the strip."""
    return _shown(this, "Process", lambda: _of_process(this), lambda: strip(this))


def recipe(this: Any) -> str:
    """Process, parametrization, weighting, sampler, prior and reference, and the strip."""
    return _shown(this, "Recipe", lambda: _of_recipe(this), lambda: strip(this.process))


def sampler(this: Any) -> str:
    """Kernel, steps and grid."""
    return _shown(this, "Sampler", lambda: _of_sampler(this))


def model(this: Any) -> str:
    """Method, data, network and default sampler, and the strip."""
    return _shown(
        this,
        "Model",
        lambda: _of_model(this),
        lambda: strip(this.recipe.process, this.config.pixels.shape) if _pixels(this) else "",
    )


def line(self: Any) -> str:
    """A model in one line: what its rows say first, and its sampler."""
    try:
        rows = dict(_of_model(self))
        return f"Model({rows['method']}; {rows['data']}; {rows['network']}; {rows['sampler']})"
    except Exception:  # debuggers show a model too, in any state
        return object.__repr__(self)


def strip(process: Any, shape: Sequence[int] | None = None) -> str:
    """An <img> of one picture as `process` corrupts it; "" where it takes no such picture."""
    import torch

    from sfumato import pictures

    shape = _shape(process) if shape is None else tuple(shape)
    if not pictures.drawable(shape) or max(shape) > LARGEST:
        return ""
    x0 = _picture(shape)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    times = torch.linspace(0, 1, FRAMES, dtype=torch.float64)
    with torch.no_grad():
        frames = [process.corrupt(x0, t, eps) for t in times]
    held = io.BytesIO()
    pictures.strip([torch.cat(frames)]).save(held, "PNG")
    data = base64.b64encode(held.getvalue()).decode()
    return (
        f'<img alt="x_t for t from 0 to 1" src="data:image/png;base64,{data}" '
        'style="max-width:100%"/>'
    )


def _shown(
    this: object, title: str, rows: Callable[[], Rows], picture: Callable[[], str] = str
) -> str:
    """A table, and a picture below it; `repr` where the table cannot be made."""
    try:
        cells = "".join(
            f'<tr><th style="text-align:left">{_escaped(name)}</th>'
            f'<td style="text-align:left">{_escaped(value)}</td></tr>'
            for name, value in rows()
        )
        table = f"<table>{cells}</table>"
    except Exception:  # a display must not hide the value that it displays
        return f"<pre>{_escaped(_plain(this))}</pre>"
    try:
        below = picture()
    except Exception:  # such as a process that takes no 32 x 32 pixels
        below = ""
    return f"<div><b>{_escaped(title)}</b>{table}{below}</div>"


def _plain(this: object) -> str:
    try:
        return repr(this)
    except Exception:  # see `_shown`
        return type(this).__name__


def _escaped(value: object) -> str:
    text = str(value)
    return html.escape(text if len(text) <= LONG else f"{text[: LONG - 3]}...")


def _of_process(process: Any) -> Rows:
    signal, noise = (" ".join(family.factors) for family in (process.signal, process.noise))
    yield "x_t", "C_t x_0 + S_t eps"
    yield "C_t", signal or "1"
    yield "S_t", noise or "1"
    learned = sum(p.numel() for p in process.parameters())
    if learned:
        yield "learned", f"{learned:,} numbers"


def _of_recipe(recipe: Any) -> Rows:
    yield from _of_process(recipe.process)
    yield "prediction", name(recipe.parametrization)
    yield "weighting", name(recipe.weighting)
    yield "sampler", _in_words(recipe.sampler)
    yield "prior of x_1", type(recipe.prior).__name__
    title = (recipe.reference or "").strip().partition("\n")[0]
    if title:
        yield "method", title


def _of_sampler(sampler: Any) -> Rows:
    yield "kernel", sampler.name if sampler.kernel is not None else "the model's own"
    yield "steps", sampler.steps if sampler.steps is not None else "the model's own"
    grid = sampler.grid
    if isinstance(grid, tuple):
        grid = ", ".join(f"{t:.3g}" for t in grid)
    yield "grid", "the model's own" if grid is None else name(grid)


def _of_model(model: Any) -> Rows:
    config = model.config
    record = config.pixels
    yield "method", " ".join([config.method, *(f"{k}={v}" for k, v in config.parameters.items())])
    yield "data", f"{record.name}, {' x '.join(map(str, record.shape))}"
    if config.conditional:
        yield "classes", ", ".join(record.classes or ())
    network = model.denoiser.backbone
    count = sum(p.numel() for p in network.parameters())
    yield "network", f"{type(network).__name__}, {count:,} parameters"
    yield "sampler", _in_words(model.sampler)
    yield from list(_of_process(model.recipe.process))[1:]


def _in_words(sampler: Any) -> str:
    (_, kernel), (_, steps), (_, grid) = _of_sampler(sampler)
    return f"{kernel}, {steps} steps, grid {grid}"


def name(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    found = getattr(thing, "__qualname__", None) or repr(thing)
    return found.partition(".<locals>")[0]


def _pixels(model: Any) -> bool:
    return model.config.latent is None


def _shape(process: Any) -> tuple[int, ...]:
    """(1, H, W) of the bases of C_t and S_t, or one of `SIDE` where they have none."""
    import torch

    t = torch.tensor(0.5, dtype=torch.float64)
    for family in (process.signal, process.noise):
        basis = getattr(family.at(t), "basis", None)
        if basis is not None:
            own = tuple(basis.shape)
            return own if len(own) == 3 else (1, *own)
    return 1, SIDE, SIDE


def _picture(shape: Sequence[int]) -> Tensor:
    """A disc and a few bars, in which blur, masks and noise can be told apart."""
    import torch

    channels, height, width = shape
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)
    disc = (x + 0.3) ** 2 + (y + 0.25) ** 2 < 0.3
    bars = (torch.sin(12 * x) > 0) & (y > 0.35) & (y < 0.85)
    square = (x > 0.4) & (x < 0.8) & (y > -0.8) & (y < -0.1)
    light = torch.zeros(height, width).masked_fill(disc, 1.0)
    light = light.masked_fill(bars & (x.abs() < 0.85), 0.8).masked_fill(square, 0.5)
    tint = torch.tensor([1.0, 0.75, 0.5])[:channels].reshape(-1, 1, 1)
    return (2 * light * tint - 1)[None]
