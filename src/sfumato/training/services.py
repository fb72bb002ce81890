"""Trackers of other programs: TensorBoard, Weights & Biases, trackio, and what accelerate knows.

They receive what the run's own log receives. In the first three, each an extra of the package, a
resumed run is the same run.
"""

from __future__ import annotations

import importlib
import json
import sys
import uuid
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from sfumato.errors import Refused

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from PIL import Image

    from sfumato.training.objective import Subject
    from sfumato.training.options import TrainOptions
    from sfumato.training.trackers import Figures, Tracker

PROJECT = "sfumato"
"""The project, in programs that group runs by project."""


@final
class TensorBoard:
    """Curves and pictures in `folder`/tensorboard, for `tensorboard --logdir`.

    Args:
        folder: the run's.

    Raises:
        Refused: the package tensorboard is not installed.

    >>> sf.trackers.TensorBoard("runs/small").folder.as_posix()
    'runs/small/tensorboard'

    References:
        TensorBoard, https://www.tensorflow.org/tensorboard, written by `torch.utils.tensorboard`
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / "tensorboard"
        self._module = _package("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        # Steps after the checkpoint that a run resumes from are written again.
        purge = step + 1 if step else None
        self._writer = self._module.SummaryWriter(str(self.folder), purge_step=purge)
        told = json.dumps(_about(model, options), indent=4)
        self._writer.add_text("run", "\n".join(f"    {line}" for line in told.splitlines()), step)

    def log(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def image(self, name: str, step: int, x: Image.Image) -> None:
        import numpy as np

        self._writer.add_image(name, np.asarray(x.convert("RGB")), step, dataformats="HWC")

    def stop(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@final
class Wandb:
    """A run of Weights & Biases in the project "sfumato", named as the run's folder.

    Account, server and whether it works offline are wandb's own settings (WANDB_API_KEY,
    WANDB_MODE=offline). Curves are drawn against `step`, and steps that a run repeats after an
    interruption are drawn again.

    Args:
        folder: the run's; wandb's files are in its folder `wandb`.

    Raises:
        Refused: the package wandb is not installed.

    >>> issubclass(sf.trackers.Wandb, sf.Tracker)  # for `trackers` of sf.train
    True

    References:
        Weights & Biases, https://docs.wandb.ai
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._module = _package("wandb", "wandb")
        self._run: Any = None

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        self._run = self._module.init(
            project=PROJECT,
            name=self.folder.name,
            dir=str(self.folder),
            id=self._id(step),
            resume="allow",
            config=_about(model, options),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Figures) -> None:
        if found := {name: value for name, value in figures.items() if value is not None}:
            self._run.log({"step": step, **found})

    def image(self, name: str, step: int, x: Image.Image) -> None:
        self._run.log({"step": step, name: self._module.Image(x)})

    def stop(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _id(self, step: int) -> str:
        """The run's id in wandb: stored in the run's folder, new where a run starts."""
        path = self.folder / "wandb" / "run-id"
        if step and path.is_file():
            return path.read_text().strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found := uuid.uuid4().hex)
        return found


@final
class Trackio:
    """A run of trackio in the project "sfumato", named as the run's folder.

    trackio stores it on this machine, under TRACKIO_DIR, or where its own settings say
    (TRACKIO_SPACE_ID, TRACKIO_SERVER_URL); `trackio show` draws it.

    Args:
        folder: the run's.

    Raises:
        Refused: the package trackio is not installed.

    >>> issubclass(sf.trackers.Trackio, sf.Tracker)  # for `trackers` of sf.train
    True

    References:
        Trackio, https://github.com/gradio-app/trackio
    """

    def __init__(self, folder: Path | str) -> None:
        self.name = Path(folder).name
        self._module = _package("trackio", "trackio")
        self._run: Any = None

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        with redirect_stdout(sys.stderr):  # it prints what it does
            self._run = self._module.init(
                project=PROJECT,
                name=self.name,
                config=_about(model, options),
                resume="allow" if step else "never",
                embed=False,
            )

    def log(self, step: int, figures: Figures) -> None:
        if found := {name: value for name, value in figures.items() if value is not None}:
            self._run.log(found, step=step)

    def image(self, name: str, step: int, x: Image.Image) -> None:
        self._run.log({name: self._module.Image(x)}, step=step)

    def stop(self) -> None:
        if self._run is not None:
            with redirect_stdout(sys.stderr):
                self._module.finish()
            self._run = None


@final
class Accelerate:
    """A tracker of accelerate: MLflow, Comet, Aim, ClearML, DVCLive, SwanLab, or your own.

    Its program is told the config once, flat, and the figures; pictures too where the tracker has
    `log_images`. A resumed run is a new run there, unless the tracker was made to go on with one.

    Args:
        tracker: of `accelerate.tracking`, not started yet, such as MLflowTracker("sfumato").

    Raises:
        Refused: it is one of the programs above, whose own tracker goes on with a resumed run.

    References:
        Accelerate, https://github.com/huggingface/accelerate

    >>> from accelerate.tracking import GeneralTracker
    >>> class Printed(GeneralTracker):
    ...     name, requires_logging_directory = "printed", False
    ...     tracker = property(lambda self: None)
    ...     def store_init_configuration(self, values): ...
    ...     def log(self, values, step=None, **given):
    ...         print(step, sorted(values))
    >>> tracker = sf.trackers.Accelerate(Printed())
    >>> tracker.log(50, {"loss": 0.3, "images": 3200})
    50 ['images', 'loss']
    """

    def __init__(self, tracker: GeneralTracker) -> None:
        if (name := getattr(tracker, "name", None)) in SERVICES:
            made = SERVICES[name].__name__
            raise Refused(
                f"accelerate's tracker of {name} begins a new run where one resumes: use "
                f"sf.trackers.{made}(folder)."
            )
        self.tracker = tracker
        self._started = False

    def start(self, model: Subject, options: TrainOptions, step: int) -> None:
        self.tracker.start()
        self._started = True
        self.tracker.store_init_configuration(_flat(_about(model, options)))

    def log(self, step: int, figures: Figures) -> None:
        if found := {name: value for name, value in figures.items() if value is not None}:
            self.tracker.log(found, step=step)

    def image(self, name: str, step: int, x: Image.Image) -> None:
        draw = getattr(self.tracker, "log_images", None)  # not all of them have it
        if draw is not None:
            draw({name: [x.convert("RGB")]}, step=step)

    def stop(self) -> None:
        if self._started:
            self.tracker.finish()
            self._started = False


SERVICES: dict[str, type[TensorBoard] | type[Wandb] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}
"""Trackers by their names on the command line, which are those of their extras too."""


def service(name: str, folder: Path | str) -> Tracker:
    """The tracker `name` of SERVICES for the run in `folder`."""
    return SERVICES[name](folder)


def _package(module: str, extra: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Refused(
            f"the tracker {extra} needs its package ({error}). Install it: pip install "
            f"'sfumato[{extra}]'."
        ) from error


def _about(model: Subject, options: TrainOptions) -> dict[str, Any]:
    """The content of the run's `run.json`, for display."""
    return {"model": model.config.to_dict(), "options": asdict(options)}


def _flat(told: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """A nested table with dotted names, and lists as JSON: accelerate's trackers take scalars."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{start}{name}.")
        else:
            found[start + name] = json.dumps(value) if isinstance(value, list | tuple) else value
    return found
