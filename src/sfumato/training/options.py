"""Options are how to train, whatever the method: the schema of the command line, free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from sfumato import limits
from sfumato.errors import Refused
from sfumato.limits import finite, whole
from sfumato.names import choose

DECAYS = ("cosine", "none")
PRECISIONS = ("auto", "float32", "bfloat16")
STEPS = 10**8
"""Too many: the name of a checkpoint has eight digits."""
LONGEST = 0.2886
"""Length of an average at most: 12^(-1/2), the deviation of equal weights, rounded down."""
COUNTS = {
    "images": limits.IMAGES,
    "batch": limits.BATCH,
    "accumulate": limits.BATCH,
    "checkpoint_every": limits.LARGEST,
    "keep": limits.LARGEST,
    "snapshots": limits.LARGEST,
    "timeout": 10**8,
}
"""Options that are counts from 1, and the most of each."""


def check_length(length: float) -> None:
    """Raise ValueError unless an average can have this length."""
    finite("the length of an average", length)
    if not 0 < length <= LONGEST:
        raise Refused(
            f"the length of an average lies above 0 and up to {LONGEST}, where all steps weigh "
            f"alike; got {length:g}."
        )


@final
@dataclass(frozen=True)
class TrainOptions:
    """How to train, whatever the method.

    Attributes:
        images: training images seen in all; with decay none, a larger number continues a run.
        batch: images in one step, over all processes.
        learning_rate: of AdamW at its peak.
        warmup: share of the steps in which the learning rate rises from 0; from 1 on, the images.
        decay: "cosine" lets it fall to 0 at the end, "none" keeps it.
        weight_decay: of AdamW; 0 is Adam.
        beta2: decay of AdamW's averages of squared gradients; that of gradients is 0.9.
        clip: largest norm of the gradient; 0 for no limit.
        ema: decay of the averaged weights, ramped as min(ema, n / (n + 9)) after n steps.
        averages: lengths of further averages, shares of the run from 0 to 0.28, whose snapshots
            are kept; with two, such as 0.05,0.1, `sfumato average` makes one of any length.
        snapshots: of these averages kept in all, each as large as the weights for each length.
        accumulate: parts in which each step's batch is computed, to save memory.
        precision: of the backbone; "auto" is bfloat16 on GPUs that have it, else float32.
        compile: compile the backbone with torch.compile.
        checkpointing: recompute the activations of the backbone's blocks for the gradient, instead
            of keeping them: less memory, more time.
        seed: of data order, times, noise and initial weights.
        checkpoint_every: images between checkpoints.
        preview_every: images between pictures of samples; 0 for none.
        keep: checkpoints kept.
        workers: processes that read images ahead; by default as many as there are cores, up to 8,
            for data that do not fit in memory, and none for others.
        timeout: seconds that each of several processes waits for the others before it gives up;
            more than the first one needs for its pictures.

    >>> options = sf.TrainOptions(images=6400, batch=64)
    >>> options.steps, options.rise, [options.pace(step) for step in (0, 4)]
    (100, 5, [0.2, 1.0])
    """

    images: int = 180_000
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.05
    decay: Literal["cosine", "none"] = "cosine"
    weight_decay: float = 0.01
    beta2: float = 0.99
    clip: float = 1.0
    ema: float = 0.9995
    averages: tuple[float, ...] = ()
    snapshots: int = 32
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    checkpointing: bool = False
    seed: int = 0
    checkpoint_every: int = 20_000
    preview_every: int = 40_000
    keep: int = 2
    workers: int | None = None
    timeout: int = 600

    def __post_init__(self) -> None:
        if not isinstance(self.averages, list | tuple):
            raise Refused(f"averages are a list of lengths; got {limits.short(self.averages)}.")
        object.__setattr__(self, "averages", tuple(self.averages))  # JSON has lists
        for name, most in COUNTS.items():
            whole(name, getattr(self, name), 1, most)
        for name, known in (("decay", DECAYS), ("precision", PRECISIONS)):
            choose(name, getattr(self, name), known)
        finite("training", self.ema, self.beta2)
        finite("learning_rate", self.learning_rate)
        if not self.learning_rate > 0:
            raise Refused(f"learning_rate must be positive and finite; got {self.learning_rate:g}.")
        for name in ("seed", "preview_every"):
            whole(name, getattr(self, name), 0)
        for name in ("weight_decay", "clip", "warmup"):
            finite(name, found := getattr(self, name))
            if found < 0:
                raise Refused(f"{name} must be 0 or more and finite; got {found}.")
        if self.workers is not None:
            whole("workers", self.workers, 0, limits.WORKERS)
        if self.steps >= STEPS:
            raise Refused(f"{self.steps:,} steps are more than {STEPS - 1:,}; use a larger batch.")
        for name in ("ema", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise Refused(f"{name} must lie in [0, 1); got {getattr(self, name):g}.")
        for length in self.averages:
            check_length(length)
        if len({*self.averages}) < len(self.averages):
            raise Refused(f"averages are of different lengths; got {self.averages}.")
        if self.batch % self.accumulate:
            raise Refused(f"batch {self.batch} does not split into {self.accumulate} equal parts.")

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return math.ceil(self.images / self.batch)

    @property
    def rise(self) -> int:
        """Steps in which the learning rate rises."""
        steps = self.warmup * self.steps if self.warmup < 1 else self.warmup / self.batch
        return max(1, round(steps))

    def pace(self, step: int) -> float:
        """Learning rate of `step` over its peak: a linear rise, then half a cosine (or 1)."""
        if step < self.rise:
            return (step + 1) / self.rise
        if self.decay == "none":
            return 1.0
        fallen = (step - self.rise) / max(1, self.steps - self.rise)
        return 0.5 * (1 + math.cos(math.pi * fallen))
