"""A report of a training: figures measured during it, and the trackers that receive them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import final

from torch import Tensor

from sfumato.notes import Note
from sfumato.training.data import Data
from sfumato.training.objective import Objective
from sfumato.training.options import TrainOptions
from sfumato.training.trackers import Figures, Tracker

EVERY = 50
"""Steps between two readings of the figures: each makes the host wait for the device."""
FORGET = 0.98
"""Weight of the past in the running mean of the loss; less at first."""


@final
class Report:
    """Sends figures and pictures of one training to `trackers`.

    Args:
        trackers: the receivers, in this order.
        objective: what is trained.
        data: what it is trained on.
        options: how.
    """

    def __init__(
        self, trackers: Sequence[Tracker], objective: Objective, data: Data, options: TrainOptions
    ) -> None:
        self.trackers = [*trackers]
        self.objective = objective
        self.data = data
        self.options = options
        self._mean: Tensor | None = None

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Within, training runs from `step`; the trackers are stopped however it ends."""
        self._first = step
        self._read_at = (step, time.perf_counter())
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.stop)
                tracker.start(self.objective.subject, self.options, step)
            self._read_at = (step, time.perf_counter())
            yield

    def step(self, step: int, value: Tensor, skipped: int, rate: float) -> None:
        """One step is done.

        Args:
            step: how many are done.
            value: its mean loss, (), on the device.
            skipped: steps in a row, up to this one, that were skipped.
            rate: the learning rate.
        """
        figures: dict[str, float | None] = {}
        if skipped:
            figures["skipped"] = skipped
        else:
            past = min(FORGET, (step - self._first) / (step - self._first + 1))
            self._mean = value if self._mean is None else past * self._mean + (1 - past) * value
        if step % EVERY == 0 or step == self.options.steps:
            figures |= self._read(step, rate)
        self._send(lambda tracker: tracker.log(step, figures))

    def preview(self, step: int) -> None:
        """Send previews to the trackers; their time is not counted in the speed."""
        try:
            found = self.objective.previews(self.data, step * self.options.batch)
        except Exception as error:  # whatever it is, the checkpoint of this step comes next
            self._tell(f"no previews of step {step}: {error}")
            found = {}
        for name, picture in found.items():
            self._send(lambda tracker, name=name, x=picture: tracker.image(name, step, x))
        self._read_at = (step, time.perf_counter())

    def _send(self, call: Callable[[Tracker], None]) -> None:
        """Call each tracker; one that fails is called no more, and training goes on."""
        for tracker in [*self.trackers]:
            try:
                call(tracker)
            except Exception as error:  # a user's or a service's code may raise anything
                self.trackers.remove(tracker)
                told = str(error) or type(error).__name__
                self._tell(f"{type(tracker).__name__} failed and receives no more: {told}")

    def _tell(self, sentence: str) -> None:
        warnings.warn(" ".join(sentence.split()), Note, stacklevel=3)

    def _read(self, step: int, rate: float) -> Figures:
        now = time.perf_counter()
        before, clock = self._read_at
        self._read_at = (step, now)
        return {
            "images": step * self.options.batch,
            "loss": None if self._mean is None else round(float(self._mean), 6),
            "images_per_second": round((step - before) * self.options.batch / (now - clock), 1),
            "lr": rate,
        }
