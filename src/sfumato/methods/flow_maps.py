"""A model of flow maps: between which times its network maps, and how it is sampled.

See `sfumato.estimation.flow_map` for what a flow map is, and for the papers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, final

import torch
from torch import Tensor

from sfumato import fields
from sfumato.algebra.operators import Diagonal, Operator
from sfumato.algebra.place import seen
from sfumato.corruption.coupling import ddim, naive
from sfumato.corruption.process import Process
from sfumato.errors import Refused, refusing
from sfumato.estimation.loss import Weighting
from sfumato.estimation.predictions import Parametrization, Precondition
from sfumato.limits import STEPS, whole
from sfumato.names import choose
from sfumato.sampling.kernels import Kernel, reverse
from sfumato.sampling.samplers import Sampler

if TYPE_CHECKING:
    from sfumato.methods.recipe import Recipe

WAYS = ("progressive", "consistency", "shortcut")
EXACT = 1e-6
"""Largest difference between equal times."""


@final
class Segment(NamedTuple):
    """A part of the paths on which a map is learned.

    Attributes:
        path: places among the times that the path known otherwise visits: its first is t, where
            the map starts; a consistency model's own map goes on from the last.
        end: place of s, where the map ends.
        size: of the step, as the network receives it; 0 where it receives none.
        part: the size of the network's own steps along the path, for shortcuts.
    """

    path: tuple[int, ...]
    end: int
    size: float = 0.0
    part: float = 0.0


@final
@dataclass(frozen=True)
class FlowMap:
    """What maps a network learns.

    Attributes:
        by: progressive, consistency or shortcut.
        times: falling times on which the maps start and end: progressive, the steps of the teacher;
            consistency, any of which can be a step's; shortcut, 2^k shortest steps.
        steps: of the sampler; progressive: no other number, each over equally many of the times.
        sampler: of the teacher between two times; None where there is no teacher: for shortcuts,
            and for consistency models of data alone.
        guidance: largest weight of the guidance that the teacher had, from 0, and that the network
            receives; None where it was not guided.

    Raises:
        ValueError: times that do not fall, numbers of steps that do not fit them, or guidance or a
            sampler where there is no teacher.

    References:
        On Distillation of Guided Diffusion Models (C. Meng, R. Rombach, R. Gao, D. P. Kingma, S.
        Ermon, J. Ho, T. Salimans, 2023), https://arxiv.org/abs/2210.03142 (the weight as an input)
    """

    by: Literal["progressive", "consistency", "shortcut"]
    times: tuple[float, ...]
    steps: int = 1
    sampler: str | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        choose("way to learn a flow map", self.by, WAYS)
        with refusing("the times of a flow map"):
            object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        fields.check(self)
        whole("the number of times", len(self.times), 1, STEPS + 1)
        count = len(self.times) - 1
        if count < 1 or sorted({*self.times}, reverse=True) != [*self.times]:
            raise Refused("a flow map needs two times or more that fall.")
        if self.by == "progressive" and (self.steps < 1 or count % self.steps):
            raise Refused(
                f"{count} steps of a teacher are not {self.steps} steps of a student: give the "
                "teacher a multiple, such as twice as many."
            )
        if self.by == "shortcut" and (count < 2 or count & (count - 1)):
            raise Refused(
                f"shortcuts need 2, 4, 8, 16, ... shortest steps, each size twice the one before; "
                f"got {count}."
            )
        if self.by == "progressive" and self.sampler is None:
            raise Refused("progressive distillation needs the name of its teacher's sampler.")
        if self.by == "shortcut" and self.sampler is not None:
            raise Refused("shortcuts are learned from steps of their own: leave the sampler out.")
        if self.guidance is not None and self.sampler is None:
            raise Refused(
                "guidance is learned from a teacher's paths, by progressive or consistency; a "
                f"{self.by} model without one would not depend on the weight. Leave it out."
            )
        if self.guidance is not None and not 0 < self.guidance < 1e6:
            raise Refused(
                "the largest weight of guidance to distil is a positive number; got "
                f"{self.guidance}."
            )

    @property
    def channels(self) -> int:
        """Of the numbers that the network receives beside x: the step's size, and the weight."""
        return (self.by == "shortcut") + (self.guidance is not None)

    def segments(self) -> list[Segment]:
        """All parts of the paths, those of each size together, the longest size last."""
        count = len(self.times) - 1
        if self.by == "progressive":
            span = count // self.steps
            starts = range(0, count, span)
            return [Segment(tuple(range(i, i + span + 1)), i + span) for i in starts]
        if self.by == "consistency":
            return [Segment((i, i + 1), count) for i in range(count)]
        found = []
        for span in self._spans():
            half = span // 2
            for i in range(0, count, span):
                path = (i, i + half, i + span)
                found.append(Segment(path, i + span, self._size(span), self._size(half)))
        return found

    def drawn(self, u: Tensor, size: float) -> Tensor:
        """Places of segments of uniform numbers `u` (B,), those of shortcuts of one size.

        A place of -1 is an ordinary sample, trained as without a flow map: half of them, for
        shortcuts, those of u < 1/2. `size` is uniform in [0, 1).
        """
        count = len(self.times) - 1
        first = 0
        if self.by == "shortcut":
            spans = self._spans()
            which = int(size * len(spans))
            first = sum(count // span for span in spans[:which])
            known = count // spans[which]
            plain = u < 0.5
            u = (2 * u - 1).clamp(min=0.0)
        else:
            known = len(self.segments())
            plain = torch.zeros_like(u, dtype=torch.bool)
        place = first + (u * known).long().clamp(max=known - 1)
        return torch.where(plain, -1, place)

    def starts(self, places: Tensor) -> Tensor:
        """Times t at which the segments at `places` (B,) start, float64."""
        known = [self.times[segment.path[0]] for segment in self.segments()]
        return torch.tensor(known, dtype=torch.float64, device=places.device)[places]

    def _spans(self) -> list[int]:
        return [2**k for k in range(1, (len(self.times) - 1).bit_length())]

    def _size(self, span: int) -> float:
        """A step of `span` of the shortest, as the network receives it: in (0, 1]; 0 for one."""
        return (span.bit_length() - 1) / ((len(self.times) - 1).bit_length() - 1)

    def grid(self, steps: int) -> list[int]:
        """Places of the times of a sampler of `steps` steps; ValueError where there is none."""
        count = len(self.times) - 1
        if self.by == "progressive" and steps != self.steps:
            raise Refused(
                f"this model was distilled to {_steps(self.steps)} and takes no other number; got "
                f"{steps}. Use --steps {self.steps}, or a model of the mean of x_0, such as its "
                "teacher."
            )
        if self.by == "shortcut" and count % steps:
            known = ", ".join(str(2**k) for k in range(count.bit_length()))
            raise Refused(f"this model takes {known} steps, or more; got {steps}.")
        if steps > count:
            raise Refused(
                f"this model was trained on {count} levels and takes at most as many steps; got "
                f"{steps}."
            )
        return [round(i * count / steps) for i in range(steps + 1)]

    def maps(self, steps: int) -> bool:
        """Whether a sampler of `steps` steps uses maps: shortcuts also have an ordinary x_0^."""
        return self.by != "shortcut" or steps < len(self.times) - 1

    def told(self, count: int, size: Tensor | float, weight: Tensor | float) -> Tensor | None:
        """What the network receives for `count` signals, (count, channels), float32.

        `size` is the step's, `weight` that of the guidance: one for all, or (count,). None where
        there are no channels.
        """
        rows = [size] if self.by == "shortcut" else []
        if self.guidance is not None:
            rows.append(weight / self.guidance)
        device = next((row.device for row in rows if isinstance(row, Tensor)), None)
        made = [torch.as_tensor(row, device=device).float().expand(count) for row in rows]
        return torch.stack(made, 1) if made else None

    def size_of(self, steps: int) -> float:
        """The size that the network receives in a sampler of `steps` steps."""
        if self.by != "shortcut" or not self.maps(steps):
            return 0.0
        return self._size((len(self.times) - 1) // steps)

    def check_weight(self, weight: float) -> None:
        """Raise ValueError where the network does not take this weight of guidance."""
        if self.guidance is None and weight:
            raise Refused(
                "this model maps to later times, and its estimates cannot be guided. For a model "
                "that takes the weight distil one of classes with --guidance 4, or guide its "
                "teacher."
            )
        if self.guidance is not None and not weight <= self.guidance:
            raise Refused(
                f"this model takes a weight of guidance from 0 to {self.guidance:g}; got "
                f"{weight:g}."
            )

    def check_kernel(self, kernel: Kernel) -> None:
        """Raise ValueError for a kernel that is none of maps from one time to the next."""
        several = self.by == "consistency" and kernel == reverse(naive)
        if not several and kernel != reverse(ddim()):
            known = "naive, or ddim" if self.by == "consistency" else "ddim"
            raise Refused(
                f"this model maps from each of its times to a later one, which is {known}; got "
                f"{kernel.name}. Use {known}, or a model of the mean of x_0, such as its teacher."
            )


def with_flow_map(recipe: Recipe, flow: FlowMap) -> Recipe:
    """The method whose network learns `flow`.

    A consistency model maps to the end of the path alone. In several steps it is sampled by
    `naive`, which corrupts that end again to a later time, so that exact maps give exact samples;
    with `ddim`, which would need the map to that time, they vary too much. In one step the two are
    the same.

    Raises:
        ValueError: a method that learns its process.
    """
    if next(iter(recipe.process.parameters()), None) is not None:
        raise Refused("this method learns its process, which no flow map can follow.")

    def grid(steps: int) -> Tensor:
        if not flow.maps(steps):
            return recipe.grid(steps)
        return torch.tensor([flow.times[i] for i in flow.grid(steps)], dtype=torch.float64)

    kernel = reverse(naive if flow.by == "consistency" else ddim())
    sampler = Sampler(kernel, flow.steps, grid)
    weighting = floored(recipe.weighting)
    mapped = replace(recipe, sampler=sampler, weighting=weighting, flow_map=flow)
    if flow.by == "shortcut":
        return mapped
    starts = [flow.times[segment.path[0]] for segment in flow.segments()]
    known = at_times(recipe.parametrization, starts, flow.times[-1])

    def times(u: Tensor) -> Tensor:
        return flow.starts(flow.drawn(u, 0.0))

    fixed = flow.by == "progressive"
    return replace(mapped, parametrization=known, times=times, levels=None, fixed=fixed)


def floored(weighting: Weighting) -> Weighting:
    """A weighting of at least 1 in each coefficient: that of the noise becomes truncated SNR.

    x~ enters x_s also where the noise outweighs the signal at t, where an objective of the noise
    has no weight (`Progressive Distillation`, section 4, for one coefficient).
    """

    @functools.wraps(weighting)
    def at_least(process: Process, t: Tensor, s: Tensor) -> Operator:
        weight = weighting(process, t, s)
        if not isinstance(weight, Diagonal):
            return weight
        return Diagonal(weight.log_gain.clamp(min=0.0), weight.sign, weight.basis)

    return at_least


def conditions(
    classes: Tensor | None,
    context: Tensor | None,
    numbers: Tensor | None,
    shape: tuple[int, ...],
) -> dict[str, Tensor]:
    """What a network receives beside x (B, *shape) and t, by name.

    Args:
        classes: (B,) integers, or None.
        context: of the corruption, (B, channels, *space), or None.
        numbers: (B, k), as constant channels after the context, or None.
        shape: of one signal.
    """
    if numbers is not None:
        space = shape[1:]
        planes = numbers.reshape(*numbers.shape, *(1 for _ in space)).expand(-1, -1, *space)
        context = planes if context is None else torch.cat([context, planes.to(context)], 1)
    told = {"classes": classes, "context": context}
    return {name: value for name, value in told.items() if value is not None}


def check_mean(recipe: Recipe, what: str) -> None:
    """Raise ValueError where the network's estimate is not the mean of x_0 given x_t."""
    if recipe.flow_map is not None:
        raise Refused(
            f"{what} need estimates of the mean of x_0 given x_t, and this model learns maps to "
            "later times in place of that. Use a model of the mean, such as its teacher."
        )


def at_times(
    parametrization: Parametrization, times: Sequence[float], end: float
) -> Parametrization:
    """The same at `times` alone; ValueError at others.

    Loops over these times that end at `end`, above 0, prepare the estimate there as well.
    """
    known = torch.tensor([*times, end], dtype=torch.float64)

    @functools.wraps(parametrization)
    def limited(process: Process, t: Tensor) -> Precondition:
        off = (t.reshape(-1, 1) - known.to(t.device)).abs().amin(1)
        if seen(off > EXACT):
            raise Refused(
                f"this model maps from its {len(times)} times alone, and is not defined between "
                "them. Use --sampler ddim, or a model of the mean of x_0, such as its teacher."
            )
        return parametrization(process, t)

    return limited


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"
