r"""An objective is all that the training loop does not know: what is trained, and by what loss.

The loop asks it what the rows of a step's batch draw, what each of them loses, and which pictures
show how far training is. Order of the data, gradients, averages, checkpoints and the log are the
loop's own, and the same for each objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar, final

from sfumato.algebra.place import CPU

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from sfumato.record import Record
    from sfumato.training.data import Data
    from sfumato.training.options import TrainOptions


class Described(Protocol):
    """What rebuilds a subject, except for its weights, as `config.json` and `run.json` hold it."""

    @property
    def method(self) -> str:
        """Its kind in a word, for people."""
        ...

    @property
    def record(self) -> Record:
        """Of the data."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        ...

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what JSON held; ValueError where it holds something else."""
        ...


class Subject(Protocol):
    """What is trained, such as a `Model`: a network, and what else its folder holds."""

    @property
    def config(self) -> Described: ...

    @property
    def trainable(self) -> nn.Module:
        """All that training changes."""
        ...

    def to(self, device: torch.device | str) -> object:
        """Move it to `device`, in place."""
        ...

    def write(
        self, part: Path, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None = None
    ) -> None:
        """Fill the folder `part` with its files; `weights` are the averaged ones."""
        ...


class Rows(Protocol):
    """What a step draws for rows of the data; an objective's own draws are further fields."""

    @property
    def rows(self) -> Tensor:
        """Of the data, (B,), on the CPU."""
        ...


@final
class Losses(NamedTuple):
    """What each sample of a batch loses.

    Attributes:
        each: (B,); the network is trained on its mean.
        bound: (B,), whose mean square `Objective.inner` are trained on; None without such.
    """

    each: Tensor
    bound: Tensor | None = None


D = TypeVar("D", bound=Rows)


class Objective(ABC, Generic[D]):
    """What is trained, and by what loss (abstract).

    Attributes:
        subject: what is trained.
        network: its network, which `losses` calls; the loop prepares it for a device and processes.
        beside: what else is trained, whose gradients the loop averages over processes.
        inner: of those, what `Losses.bound` trains.
    """

    subject: Subject
    network: nn.Module
    beside: tuple[nn.Parameter, ...] = ()
    inner: tuple[nn.Parameter, ...] = ()

    @abstractmethod
    def through(self, network: nn.Module) -> Self:
        """This objective with `network`, as prepared, in place of its own."""

    @abstractmethod
    def check(self, data: Data) -> None:
        """Raise ValueError for what cannot be trained, before anything is written."""

    @abstractmethod
    def draw(
        self,
        step: int,
        data: Data,
        options: TrainOptions,
        device: torch.device = CPU,
        process: int = 0,
        processes: int = 1,
    ) -> D:
        """The draws of `step` for one of `processes`: the same rows for any number of them.

        They depend on the seed, the number of the step and the place in the global batch alone.
        """

    @abstractmethod
    def losses(self, drawn: D, chosen: slice, x0: Tensor) -> Losses:
        """What the samples `chosen` of those drawn lose; `x0` (B, *shape) are their data."""

    @abstractmethod
    def previews(self, data: Data, images: int) -> dict[str, Image.Image]:
        """Pictures by name, of the weights as they are, after `images` images of training."""
