"""A watch shows how training goes: a bar with ETA, or plain lines, and pictures at intervals."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from sfumato import pictures, trajectory
from sfumato.model import Model
from sfumato.sampling.sample import Diverged
from sfumato.training.data import Data
from sfumato.training.options import TrainOptions

PREVIEW_STEPS = 50
SECONDS_BETWEEN_LINES = 15.0


class Watch:
    """Progress of one run (final).

    Args:
        console: where to show it; None shows nothing. A terminal gets a bar, anything else lines.
        every: steps between lines of the log.
    """

    def __init__(self, console: Console | None = None, every: int = 50) -> None:
        self.console, self.every = console, every
        self._bar: Progress | None = None
        self._mean: Tensor | None = None

    @property
    def loss(self) -> float:
        """Running mean of the loss; reads the device."""
        return float("nan") if self._mean is None else float(self._mean)

    def figures(self) -> dict[str, float | None]:
        """What a line of the log says beside the step: loss, and images per second of late.

        The loss is None before the first step that was made.
        """
        now, (step, clock) = time.perf_counter(), self._since
        self._since = (self._step, now)
        speed = (self._step - step) * self._options.batch / (now - clock)
        loss = None if self._mean is None else round(self.loss, 6)
        return {"loss": loss, "images_per_second": round(speed, 1)}

    def start(self, model: Model, options: TrainOptions, step: int) -> None:
        """Training goes on from `step`."""
        self._mean = None
        self._options, self._first, self._clock = options, step, time.perf_counter()
        self._line, self._step, self._since = self._clock, step, (step, self._clock)
        if self.console is None:
            return
        count = sum(p.numel() for p in model.denoiser.backbone.parameters())
        self.console.print(
            f"{model.config.method} on {model.config.record.name}: {count:,} parameters, "
            f"{options.steps:,} steps of {options.batch}"
            + (f"; resumed at step {step}" if step else "")
            + (", which is the last: nothing is left to do" if step == options.steps else "")
        )
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.completed}/{task.total} images"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
            )
            total = options.steps * options.batch
            self._task = self._bar.add_task(
                "", total=total, completed=step * options.batch, loss="-", speed="-"
            )
            self._bar.start()

    def step(self, step: int, value: Tensor | None) -> None:
        """One step is done, with this loss; None for one that was skipped."""
        self._step = step
        rest = min(0.98, (step - self._first) / (step - self._first + 1))
        if value is not None:
            self._mean = value if self._mean is None else rest * self._mean + (1 - rest) * value
        elif self.console is not None:
            self.console.print(f"step {step} is skipped: its loss or gradient is not finite")
        now = time.perf_counter()
        if self.console is None or now - self._line < (0.5 if self._bar else SECONDS_BETWEEN_LINES):
            return
        self._line = now
        batch = self._options.batch
        speed = (step - self._first) * batch / (now - self._clock)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step * batch, loss=f"{self.loss:.4f}", speed=f"{speed:.0f}"
            )
        else:
            left = (self._options.steps - step) * batch / speed
            self.console.print(
                f"{step * batch}/{self._options.steps * batch} images  loss {self.loss:.4f}  "
                f"{speed:.0f} images/s  ETA {left / 60:.1f} min"
            )

    def preview(self, model: Model, data: Data, out: Path, images: int) -> None:
        """Write pictures of what the averaged weights do now, always from the same seeds.

        Signals that no picture shows have none, and neither have samples that are not finite.
        """
        if not (model.config.record.pictures and pictures.drawable(model.shape)):
            return
        steps = model.few(PREVIEW_STEPS)
        classes = None
        if model.config.conditional:
            classes = [i % len(model.config.record.classes or ()) for i in range(36)]
        folder = out / "previews"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", Diverged
                )  # early weights may, and the picture shows
                images_ = model.sample(range(36), steps, classes=classes)
                few = classes and classes[:6]
                paths = trajectory.reverse(model, range(6), steps=steps, classes=few)
        except Diverged:
            if self.console is not None:
                self.console.print(f"samples at {images} images are not finite: no picture")
            return
        pictures.save(images_, folder / f"samples-{images:09d}.png")
        pictures.save(pictures.strip(list(paths)), folder / f"reverse-{images:09d}.png")
        x0 = data.batch(torch.arange(min(6, len(data))))
        shown = trajectory.forward(model.recipe.process, x0)
        pictures.save(pictures.strip(list(shown)), folder / "forward.png")
        self._since = (self._step, time.perf_counter())

    def stop(self) -> None:
        """Training has ended, or was cut."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def terminal(quiet: bool = False) -> Watch:
    """The watch of the command line: on standard error, so that output stays clean."""
    return Watch(None if quiet else Console(file=sys.stderr))
