"""A tracker receives figures and pictures of a training: a log, a bar, or a program with curves.

`train` calls every tracker when a run starts, after each step, and when it stops. The figures of a
step are read from the device once in 50 steps; no tracker makes the loop wait for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

from PIL import Image
from rich.console import Console

from sfumato import pictures
from sfumato.errors import RefusedType
from sfumato.progress import bar
from sfumato.training.options import TrainOptions

if TYPE_CHECKING:
    from sfumato.training.objective import Subject

Figures = Mapping[str, float | None]
"""Numbers of one step by name: `images` seen so far, `loss` (its running mean, None before the
first step not skipped), recent `images_per_second`, `lr`, the learning rate; and `skipped`, the
steps in a row up to this one that were skipped because they were not finite."""


@runtime_checkable
class Tracker(Protocol):
    """A receiver of figures and pictures; of several processes the first alone has trackers.

    >>> class Losses:
    ...     def start(self, model, options, step):
    ...         self.found = []
    ...     def log(self, step, figures):
    ...         self.found.append(figures.get("loss"))
    ...     def image(self, name, step, x): ...
    ...     def stop(self): ...
    >>> isinstance(Losses(), sf.Tracker)
    True
    """

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        """Training of `model` starts, or resumes, from `step`."""

    def log(self, step: int, figures: Figures) -> None:
        """Step `step` is done. `figures` is empty for most steps: see `Figures`."""

    def image(self, name: str, step: int, x: Image.Image) -> None:
        """A picture made after `step`: "samples", or "reverse" and "forward", paths of images."""

    def stop(self) -> None:
        """Training has ended or was interrupted, or its start failed."""


def checked(trackers: Iterable[Tracker]) -> tuple[Tracker, ...]:
    """The trackers; RefusedType where one of them is not a tracker."""
    found = tuple(trackers)
    for tracker in found:
        if isinstance(tracker, type) or not isinstance(tracker, Tracker):
            what = tracker.__name__ if isinstance(tracker, type) else type(tracker).__name__
            raise RefusedType(
                f"train needs trackers, objects with start, log, image and stop such as "
                f"sf.ProgressBar(); got {'the class ' * isinstance(tracker, type)}{what}."
            )
    return found


@final
@dataclass
class JsonLines:
    """The log of a run, `folder`/log.jsonl: one JSON object a line. Every run has one.

    An `event` is "started", "resumed" or "skipped"; the other lines are the figures of a step.

    Attributes:
        folder: where the log is; a run's own folder, or another for a second log.

    >>> log = sf.JsonLines("run")
    >>> log.log(100, {"images": 6400.0, "loss": 0.25})
    >>> print(open("run/log.jsonl").read().strip())
    {"step": 100, "images": 6400.0, "loss": 0.25}
    """

    folder: Path | str

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        self._drop_torn()
        self._write({"event": "resumed" if step else "started", "step": step})

    def log(self, step: int, figures: Figures) -> None:
        rest = dict(figures)
        if skipped := rest.pop("skipped", None):
            self._write({"event": "skipped", "step": step, "in_a_row": skipped})
        if rest:
            self._write({"step": step, **rest})

    def image(self, name: str, step: int, x: Image.Image) -> None:
        """Nothing: a log has no pictures."""

    def stop(self) -> None:
        """Nothing: each line is written at once."""

    def _drop_torn(self) -> None:
        """Drop the rest of a line within which a run was killed."""
        path = Path(self.folder) / "log.jsonl"
        if path.is_file():
            whole = path.read_bytes()
            os.truncate(path, whole.rfind(b"\n") + 1)

    def _write(self, entry: Mapping[str, object]) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with (Path(self.folder) / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(entry, allow_nan=False) + "\n")


@final
@dataclass
class Pictures:
    """The pictures of a run as files, `folder`/previews/NAME-IMAGES.png. Every run has them.

    `TrainOptions.preview_every` says how often they are made.

    Attributes:
        folder: the run's own, or another for second copies.

    >>> from PIL import Image
    >>> sf.Pictures("run").image("samples", 100, Image.new("L", (8, 8)))
    >>> Image.open("run/previews/samples-000000100.png").size
    (8, 8)
    """

    folder: Path | str
    _batch: int = field(default=1, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        self._batch = options.batch

    def log(self, step: int, figures: Figures) -> None:
        """Nothing: figures are no pictures."""

    def image(self, name: str, step: int, x: Image.Image) -> None:
        path = Path(self.folder) / "previews" / f"{name}-{step * self._batch:09d}.png"
        pictures.save(x, path)

    def stop(self) -> None:
        """Nothing: each file is written when its picture is made."""


@final
class ProgressBar:
    """A bar with the time that is left, loss and speed; where there is no terminal, plain lines.

    Args:
        console: where to show it; standard error by default.

    >>> from rich.console import Console
    >>> digits = sf.load("digits")
    >>> config = sf.Config("ddpm", digits.record, {}, sf.UNetOptions(width=8, patch=1))
    >>> options = sf.TrainOptions(images=64, batch=32, preview_every=0)
    >>> page = Console(record=True, file=open("shown.txt", "w"))
    >>> bar = sf.ProgressBar(page)
    >>> model = sf.train(sf.build(config, digits, options), digits, options, "run", [bar])
    >>> page.export_text().splitlines()[0]
    'ddpm on digits: 66,929 parameters, 2 steps of 32'
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._shown = ExitStack()
        self._note = ""
        self._batch = 1

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        count = sum(p.numel() for p in model.trainable.parameters())
        self.console.print(
            f"{model.config.method} on {model.config.record.name}: {count:,} parameters, "
            f"{options.steps:,} steps of {options.batch}"
            + (f"; resumed at step {step}" if step else "")
            + (", which is the last: nothing is left to do" if step == options.steps else "")
        )
        self._batch = options.batch
        total, done = options.steps * options.batch, step * options.batch
        shown = bar("images", total, done=done, console=self.console)
        self._advance = self._shown.enter_context(shown)

    def log(self, step: int, figures: Figures) -> None:
        if "skipped" in figures:
            self.console.print(f"step {step} is skipped: its loss or gradient is not finite")
        if (loss := figures.get("loss")) is not None:
            self._note = f"loss {loss:.4f}  {figures['images_per_second']:.0f} images/s"
        self._advance(self._batch, self._note)

    def image(self, name: str, step: int, x: Image.Image) -> None:
        """Nothing: a terminal shows no pictures."""

    def stop(self) -> None:
        self._shown.close()
