r"""An identity of a run is everything that the weights in its folder depend on so far.

It excludes how often they are saved, how a model is sampled, the place of data or initial weights
with the same hash, and what only later steps depend on, such as a larger number of images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from sfumato import documents
from sfumato.errors import WRONG, Refused, reason
from sfumato.training.objective import Described
from sfumato.training.options import TrainOptions

IDLE = (
    *("model.sampler.kernel", "model.sampler.steps", "model.sampler.grid", "model.origin.name"),
    *("model.latent.name", "model.latent.sha256"),
    *("options.checkpoint_every", "options.preview_every", "options.keep", "options.workers"),
    "options.snapshots",
    "options.timeout",
)
"""Fields that no weight depends on, beside those that the hash of the data covers."""

ROUNDING = ("options.compile", "options.checkpointing")
"""Fields that change values by rounding alone, as the number of threads does."""

PLAN = ("options.images", "options.warmup", "options.decay")
"""Fields that weights depend on through the learning rate of each step alone."""

PLACE = (
    *("model.record.name", "model.record.split"),
    *("model.latent.record.name", "model.latent.record.split"),
)
"""Fields for the place of the data, which their hash identifies."""


@final
@dataclass(frozen=True)
class Identity:
    """The config of what is trained, and how it is trained: what `run.json` holds."""

    config: Described
    options: TrainOptions

    @classmethod
    def read(cls, record: Path, kind: type[Described]) -> Identity:
        """From the `run.json` of a run of this kind of config; ValueError where it is none.

        Fields that an older version did not have are at their defaults.
        """
        try:
            found = documents.read_table(record)
            return cls(kind.from_dict(found["model"]), TrainOptions(**found["options"]))
        except WRONG as error:
            raise Refused(
                f"{record} is not the record of such a run: {reason(error)}. Choose another --out."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"model": self.config.to_dict(), "options": asdict(self.options)}

    def digest(self) -> str:
        """SHA-256, in hex, of all but how often it is saved and where its data are."""
        flat = _flat(self.to_dict())
        told = {name: value for name, value in flat.items() if name not in {*IDLE, *PLACE}}
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def check(self, found: Identity, step: int, out: Path) -> None:
        """Check that this run would have, at `step`, the weights that `found` has in `out`.

        Raises:
            ValueError: it would not; the sentence says why, and what to do.
        """
        mine, theirs = _flat(self.to_dict()), _flat(found.to_dict())
        aside = {*IDLE, *ROUNDING}
        if (
            mine["model.record.sha256"]
            and mine["model.record.sha256"] == theirs["model.record.sha256"]
        ):
            aside |= {*PLACE}
        flow = getattr(self.config, "flow_map", None)
        if flow is not None and flow.by != "progressive":
            aside |= {"model.flow_map.steps"}  # only the default of its samplers
        if all(self.options.pace(k) == found.options.pace(k) for k in range(step)):
            aside |= {*PLAN}
        elif self.options.images != found.options.images:
            self._check_plan(found.options, out)
        for name in sorted({*mine, *theirs} - aside):
            if mine.get(name) != theirs.get(name):
                raise Refused(
                    f"{out} belongs to another run: there {name} is {theirs.get(name)}, "
                    f"here {mine.get(name)}. Choose another --out, or ask for the same."
                )
        if step > self.options.steps:
            raise Refused(
                f"{out} has seen {step * self.options.batch} images already, more than "
                f"{self.options.images}. Ask for at least as many, or choose another --out."
            )

    def _check_plan(self, planned: TrainOptions, out: Path) -> None:
        """Raise ValueError where another number of images changes learning rates of past steps."""
        mine = self.options
        if (mine.decay, mine.warmup) != (planned.decay, planned.warmup):
            return
        start = f"{out} was planned for {planned.images} images"
        if mine.decay == "cosine":
            raise Refused(
                f"{start}, at which --decay cosine ends: {mine.images} are another run. Train on "
                f"from its weights, --from {out} --out NEW, or plan with --decay none."
            )
        raise Refused(
            f"{start}, and {mine.images} have another warm-up than the {planned.rise} steps it "
            f"had. Keep those with --warmup {planned.rise / mine.steps:g}."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves
