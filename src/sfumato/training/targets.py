r"""What a flow map is trained towards: the x~ of paths of a teacher, of the data, or of itself.

The three ways differ in who walks a path from t to s, and in nothing else:

    progressive    the teacher, in two steps or more of any deterministic sampler, of which a
                   multistep one starts each path anew
    shortcut       the network itself, in two steps of half the length
    consistency    the teacher in one step, or the data with the same noise; then the network itself
                   from there to the end

Loss, loop, draws and checkpoints are those of any training; see `sfumato.estimation.flow_map`.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato import files
from sfumato.algebra.combine import apply
from sfumato.algebra.operators import Operator
from sfumato.algebra.place import upload
from sfumato.corruption.coupling import ddim
from sfumato.errors import Refused
from sfumato.estimation.contrast import contrasted
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.flow_map import COARSE, FLOOR, FirstEstimate, target
from sfumato.estimation.loss import Target
from sfumato.guidance import alike
from sfumato.methods.flow_maps import FlowMap, Segment, conditions
from sfumato.model import Model
from sfumato.sampling import samplers
from sfumato.sampling.kernels import Kernel, reverse
from sfumato.sampling.multistep import multistep
from sfumato.sampling.sample import Prepared

TEACHER, OWN = "teacher", "own"


@final
class Told(NamedTuple):
    """What a network may receive beside x and t, of the samples of a batch.

    Attributes:
        classes: (B,) integers, or None.
        context: of the corruption, (B, channels, *space), or None.
        weight: of the guidance, (B,), or None.
    """

    classes: Tensor | None = None
    context: Tensor | None = None
    weight: Tensor | None = None

    def of(self, rows: Tensor) -> Told:
        """What the samples `rows` receive."""
        return Told(*(None if part is None else part[rows] for part in self))


@final
class Batch(NamedTuple):
    """The samples whose paths are walked.

    Attributes:
        x0, eps: data and noise, (B, *shape).
        places: of their segments, (B,), on the CPU; -1 for ordinary samples.
        told: what their network receives.
    """

    x0: Tensor
    eps: Tensor
    places: Tensor
    told: Told


class _Path(NamedTuple):
    """A path of a denoiser, prepared, and what makes its first estimate of x_0."""

    loop: Prepared
    first: FirstEstimate
    maps: tuple[Operator, ...]

    def __call__(self, x: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(the end of the path from x, the estimate of x_0 at its start)."""
        self.first.forget()
        end = self.loop(x, cond=cond)
        return end, apply(*zip(self.maps, self.first.values, strict=True))


@final
class Targets:
    """The x~ of a batch, by the rule of the model's flow map.

    Args:
        model: being trained; its config has a `flow_map`.
        teacher: the model whose paths are learned; None where none is.

    Raises:
        ValueError: no teacher where the map is distilled, or another one than it started from.
    """

    def __init__(self, model: Model, teacher: Model | None) -> None:
        flow = model.config.flow_map
        if flow is None:
            raise Refused("this model learns no flow map.")
        self.flow = flow
        self.model = model
        self.teacher = _teacher(model, teacher) if flow.sampler is not None else None
        self.segments = flow.segments()
        self._kernel = reverse(ddim()) if flow.sampler is None else samplers.kernel(flow.sampler)
        self._ready: dict[tuple[str, tuple[int, ...]], _Path] = {}

    def place(self) -> None:
        """Move the teacher to where the model is."""
        if self.teacher is not None:
            self.teacher.denoiser.to(self.model.place().device)

    def cond(self, places: Tensor, told: Told, *, part: bool = False) -> dict[str, Tensor]:
        """What the network receives for the segments at `places`; for `part` of their length."""
        sizes = [segment.part if part else segment.size for segment in self.segments]
        size = torch.tensor([*sizes, 0.0])[places]  # of ordinary samples, at -1, it is 0
        return self._conditions(self.flow, told, size)

    def _conditions(self, flow: FlowMap | None, told: Told, size: Tensor) -> dict[str, Tensor]:
        """What a network of `flow` receives, for steps of these sizes, (B,)."""
        weight = 0.0 if told.weight is None else told.weight
        device = self.model.place().device
        numbers = None if flow is None else flow.told(len(size), upload(size, device), weight)
        return conditions(told.classes, told.context, numbers, self.model.shape)

    def target(self, denoiser: NetworkDenoiser, batch: Batch) -> Target:
        """x_t -> x~ for `loss`, both (B, *shape); `denoiser` is of the network being trained."""

        @torch.no_grad()
        def targets(x: Tensor) -> Tensor:
            found = batch.x0.clone()
            for place in batch.places.unique().tolist():
                if place >= 0:
                    rows = (batch.places == place).nonzero().flatten()
                    there = rows.to(x.device)
                    some = Batch(
                        batch.x0[there], batch.eps[there], batch.places[rows], batch.told.of(there)
                    )
                    bound = self._bound(denoiser, some.told)
                    found[there] = self._tilde(self.segments[place], bound, x[there], some)
            return found

        return targets

    def _bound(self, denoiser: NetworkDenoiser, told: Told) -> NetworkDenoiser:
        """The denoiser of some samples of a batch, each of whose corruptions may be its own."""
        drawn = self.model.recipe.context
        if drawn is None or told.context is None:
            return denoiser
        return denoiser.with_process(drawn.process(told.context))

    def _tilde(
        self, segment: Segment, denoiser: NetworkDenoiser, x: Tensor, batch: Batch
    ) -> Tensor:
        """x~ of one segment."""
        end, near = self._first(segment, denoiser, x, batch)
        if segment.path[-1] != segment.end:
            rest = (segment.path[-1], segment.end)
            cond = self.cond(batch.places, batch.told)
            end, _ = self._path(OWN, denoiser, reverse(ddim()), rest, x)(end, cond)
        if self.flow.times[segment.end] == 0.0:
            return end
        t, s = (self._time(place) for place in (segment.path[0], segment.end))
        exact = self._kernel == reverse(ddim()) or isinstance(self._kernel, multistep)
        floor = FLOOR.get(x.dtype, COARSE) if exact else COARSE
        return target(denoiser.process, t, s, floor)(x, end, near)

    def _first(
        self, segment: Segment, denoiser: NetworkDenoiser, x: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The path that is known otherwise: its end, and x_0^ at its start."""
        if self.flow.by == "shortcut":
            cond = self.cond(batch.places, batch.told, part=True)
            return self._path(OWN, denoiser, self._kernel, segment.path, x)(x, cond)
        if self.teacher is None:
            s = self._time(segment.path[-1])
            # As a loop that ends at 0, where the process may have noise, a path ends with x_0.
            end = denoiser.process.corrupt(batch.x0, s, batch.eps) if s else batch.x0
            return end, batch.x0
        taught = self._taught(self.teacher, denoiser)
        cond = self._asked(self.teacher, batch)
        return self._path(TEACHER, taught, self._kernel, segment.path, x)(x, cond)

    def _taught(self, teacher: Model, denoiser: NetworkDenoiser) -> NetworkDenoiser:
        """The teacher's denoiser of the same samples."""
        found = teacher.denoiser
        if self.model.recipe.context is not None:
            found = found.with_process(denoiser.process)
        config = teacher.config
        if self.flow.guidance is not None and config.flow_map is None:
            return contrasted(found, len(config.record.classes or ()))
        return found

    def _asked(self, teacher: Model, batch: Batch) -> dict[str, Tensor]:
        """What the teacher's network receives."""
        known, weight = teacher.config.flow_map, batch.told.weight
        found = self._conditions(known, batch.told, torch.zeros(len(batch.x0)))
        if weight is None or known is not None:
            return found
        return {**found, "contrast": weight.reshape(-1, *(1,) * len(self.model.shape))}

    def _path(
        self,
        who: str,
        denoiser: NetworkDenoiser,
        kernel: Kernel,
        places: tuple[int, ...],
        x: Tensor,
    ) -> _Path:
        """The path over the times at `places`; kept, where corruptions are not drawn for each."""
        if (known := self._ready.get((who, places))) is not None:
            return known
        first = FirstEstimate(denoiser)
        grid = torch.tensor([self.flow.times[place] for place in places], dtype=torch.float64)
        loop = Prepared(kernel, first, x, grid)
        path = _Path(loop, first, denoiser.at(self._time(places[0])).maps)
        if self.model.recipe.context is None:
            self._ready[who, places] = path
        return path

    def _time(self, place: int) -> Tensor:
        return torch.tensor(self.flow.times[place], dtype=torch.float64)


def _teacher(model: Model, teacher: Model | None) -> Model:
    """The teacher, if it is the one that the model started from."""
    if teacher is None:
        raise Refused("this model is distilled from another: train(..., teacher=...) names it.")
    ours, theirs = model.config, teacher.config
    for name in ("method", "parameters", "time_warp", "conditional"):
        mine, found = getattr(ours, name), getattr(theirs, name)
        if mine != found:
            raise Refused(
                f"the teacher's {name} is {found}, and this model's {mine}. Distil a model of the "
                "same method."
            )
    if not alike(model, teacher):
        raise Refused(
            "the teacher's process or prediction is another than this model's at some time. Build "
            "the model with the teacher's statistics: stats=teacher.stats."
        )
    model.codec.check_same(teacher.codec, "the teacher")
    teacher.denoiser.eval()
    weights = files.plain(teacher.trainable.state_dict())
    if ours.origin is None or files.digest(dict(sorted(weights.items()))) != ours.origin.sha256:
        name = "no model" if ours.origin is None else ours.origin.name
        raise Refused(
            f"this model started from {name}, other weights than the teacher's. Build it with "
            "start=, of the same teacher."
        )
    return teacher
