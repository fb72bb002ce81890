"""What the page can ask for, each a call of the library: a request in, pictures out."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from sfumato import trajectory
from sfumato.corruption.measurement import measured, measurement
from sfumato.demo import options
from sfumato.demo.asked import Asked
from sfumato.demo.images import Album, sheet
from sfumato.demo.jobs import Event, Job
from sfumato.estimation.restored import RULES
from sfumato.methods import METHODS
from sfumato.methods.grids import GRIDS
from sfumato.methods.table import formulas
from sfumato.model import Model
from sfumato.names import choose
from sfumato.restoration import simulated
from sfumato.sampling.samplers import KERNELS, Sampler
from sfumato.trajectory import Moment

LAST_SEED = 2**31 - 1
MOST_STEPS = 1000
MOST_IMAGES = 16
MOMENTS = 100
"""Most moments of a sampler that are sent to the page."""
FEWEST = 10
HELD = 2**25
"""Values of x_t that the page is to keep, unless that are fewer than `FEWEST` moments."""
EXAMPLE_STEPS = 10
"""Steps of the example that a model makes for itself."""

Tell = Callable[[Event], None]


@final
class Tasks:
    """The work behind the page.

    Args:
        names: of the models that it offers.
        load: the model of a name.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], Model]) -> None:
        self.names = tuple(names)
        self.album = Album()
        self._load = load
        self._models: dict[str, Model] = {}
        self._loading = threading.Lock()

    def model(self, name: str) -> Model:
        """A model that the page offers, loaded once."""
        choose("model", name, self.names)
        with self._loading:
            if name not in self._models:
                self._models[name] = self._load(name)
            return self._models[name]

    def offered(self) -> dict[str, Any]:
        """All choices that do not depend on a model."""
        return {**options.offered(), "models": self.names, "rules": [*RULES]}

    def described(self, name: str) -> dict[str, Any]:
        """What the page has to know of a model."""
        model = self.model(name)
        config = model.config
        config.pixels.check_pictures("the page")
        _, steps = model.sampler.whole
        flow = model.recipe.flow_map
        drops = config.conditional and config.drop_classes > 0
        most = (flow.guidance or 0.0) if flow is not None else 8.0 if drops else 0.0
        return {
            "name": name,
            "method": config.method,
            "data": config.record.name,
            "shape": config.pixels.shape,
            "classes": config.record.classes if config.conditional else None,
            "guidance": most,
            "sampler": model.sampler.name,
            "steps": steps,
            "fixed": model.recipe.fixed,
            "operators": {
                key: [control._asdict() for control in controls]
                for key, controls in options.operators(model.shape).items()
            },
        }

    def forward(self, ask: Asked, job: Job) -> dict[str, Any]:
        """x_t of an image, its spectrum beside those of its parts, and a strip if asked for."""
        name = ask.one_of("method", METHODS)
        x0 = self.album.whole(ask.text("image"))
        seed = ask.whole("seed", 0, LAST_SEED)
        t = torch.tensor([ask.number("t", 0, 1)], dtype=torch.float64)
        given = tuple(sorted(ask.part("levels").items()))
        process = options.corruption(name, tuple(x0.shape[1:]), given)
        with torch.no_grad():
            x = trajectory.corrupted(process, x0, t, seed)[:, 0]
            signal = process.signal.at(t[0])(x0)
            lines = {"image": x0, "signal": signal, "noise": x - signal, "x_t": x}
            told = dict(zip(("signal", "cov"), formulas(process), strict=True))
            found = {"x": sheet(x), "spectrum": spectra(lines), "formulas": told}
            if frames := ask.whole("frames", 0, 15):
                job.check()
                found["frames"] = sheet(trajectory.forward(process, x0, frames, seed)[0])
        return found

    def sample(self, ask: Asked, job: Job, tell: Tell) -> None:
        """Samples of a model, seen on their way."""
        model = self.model(ask.text("model"))
        first = ask.whole("seed", 0, LAST_SEED - MOST_IMAGES)
        count = ask.whole("images", 1, MOST_IMAGES)
        sampler = _sampler(ask, model)
        guidance = ask.number("guidance", 0, 100)
        tell({"kind": "begin", "calls": model.network_calls(sampler, guidance)})
        trajectory.watch(
            model,
            range(first, first + count),
            lambda moment: tell(_told(moment)),
            sampler,
            _classes(ask, model, count),
            clip=ask.yes("clip"),
            guidance=guidance,
            moments=_moments(model, count),
        )

    def measure(self, ask: Asked, job: Job) -> dict[str, Any]:
        """The image that is to be restored, and its measurement."""
        model = self.model(ask.text("model"))
        truth, y, _, _ = self._measured(ask, model)
        return {"measured": sheet(y), **({} if truth is None else {"truth": sheet(truth)})}

    def restore(self, ask: Asked, job: Job, tell: Tell) -> None:
        """Samples of p(x_0 | y), seen on their way; then their mean and spread."""
        model = self.model(ask.text("model"))
        truth, y, operator, noise = self._measured(ask, model)
        first = ask.whole("seed", 0, LAST_SEED - MOST_IMAGES)
        count = ask.whole("images", 1, MOST_IMAGES)
        sampler = _sampler(ask, model)
        tell({"kind": "begin", "calls": model.network_calls(sampler)})
        drawn = trajectory.watch_restoration(
            *(model, y, operator, noise, lambda moment: tell(_told(moment))),
            range(first, first + count),
            sampler,
            _classes(ask, model, 1),
            rule=ask.one_of("rule", RULES),
            scale=ask.number("scale", 0, 100),
            moments=_moments(model, count),
        )[0]
        spread = drawn.std(0, correction=0, keepdim=True)
        mean = drawn.mean(0, keepdim=True)
        told: dict[str, Any] = {"mean": sheet(mean), "spread": sheet(2 * spread - 1)}
        if truth is not None:
            told["error"] = float((mean - truth).square().mean().sqrt())
            told["spread_mean"] = float(spread.mean())
        tell({"kind": "restored", **told})

    def _measured(self, ask: Asked, model: Model) -> tuple[Tensor | None, Tensor, Any, float]:
        """The clean image where it is known, the measurement, the operator and its noise."""
        offered = options.operators(model.shape)
        name = ask.one_of("operator", offered)
        operator = measurement(
            options.spelled(name, offered[name], ask.part("parameters")), model.shape
        )
        noise = ask.number("noise", 0, 2)
        image = ask.text("image")
        if image != "sample" and not ask.yes("clean"):
            y = self.album.fitted(image, measured(operator, model.shape))
            return None, y, operator, noise
        truth = (
            self._made(model, ask) if image == "sample" else self.album.fitted(image, model.shape)
        )
        return (
            truth,
            simulated(truth, operator, noise, ask.whole("seed", 0, LAST_SEED)),
            operator,
            noise,
        )

    def _made(self, model: Model, ask: Asked) -> Tensor:
        """An image that the model itself makes, as an example to restore."""
        seed = ask.whole("example", 0, LAST_SEED)
        steps = Sampler(steps=model.preview_steps(EXAMPLE_STEPS))
        return model.sample([seed], steps, _classes(ask, model, 1)).clamp(-1, 1)


def _moments(model: Model, count: int) -> int:
    """How many moments of `count` images the page can keep."""
    return max(FEWEST, min(MOMENTS, HELD // (count * math.prod(model.config.pixels.shape))))


def _sampler(ask: Asked, model: Model) -> Sampler:
    spec = None
    if not ask.missing("sampler"):
        spec = options.sampler_name(ask.one_of("sampler", KERNELS), ask.part("numbers"))
    steps = ask.whole("steps", 1, MOST_STEPS)
    return model.chosen(Sampler(spec, steps, ask.one_of("grid", GRIDS)))


def _classes(ask: Asked, model: Model, count: int) -> list[int] | None:
    if not model.config.conditional:
        return None
    known = len(model.config.record.classes or ())
    return [ask.whole("class", 0, known - 1)] * count


def _told(moment: Moment) -> Event:
    lines = {"x_t": moment.x}
    told: dict[str, Any] = {
        "kind": "moment",
        "done": moment.done,
        "steps": moment.steps,
        "t": moment.time,
        "x": sheet(moment.x),
    }
    if moment.estimate is not None:
        lines["estimate"] = moment.estimate
        told["estimate"] = sheet(moment.estimate)
    return {**told, "spectrum": spectra(lines)}


def spectra(lines: dict[str, Tensor]) -> dict[str, Any]:
    """The spectrum of each of some images (n, C, H, W), by name."""
    found = {name: trajectory.spectrum(x) for name, x in lines.items()}
    frequency = next(iter(found.values()))[0]
    return {
        "frequency": [round(float(f), 5) for f in frequency],
        "lines": {name: [float(f"{p:.4g}") for p in power] for name, (_, power) in found.items()},
    }
