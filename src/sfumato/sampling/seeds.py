"""Seeds give every image a stream of normal numbers of its own, whatever the batch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.algebra.place import CPU, sent
from sfumato.corruption.prior import RandnLike
from sfumato.errors import Refused, RefusedType

AHEAD = 16
"""Most tensors of noise drawn at once on a device."""
LARGEST = 2**18
"""Most numbers drawn at once for an image."""


def numbers_of(seeds: Iterable[int]) -> list[int]:
    """Seeds as a list; TypeError where they are no sequence of whole numbers."""
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError:
        raise RefusedType(
            f"seeds are whole numbers, one for each signal, such as seeds=range(4); got {seeds!r}."
        ) from None


@final
class Seeds:
    """Standard normal numbers with a stream for each image.

    The image of a seed is the same at any batch size.

    Args:
        seeds: one integer >= 0 for each row of the tensors to come.

    >>> both = sf.Seeds([0, 1])(torch.empty(2, 3))
    >>> torch.equal(sf.Seeds([1])(torch.empty(1, 3)), both[1:])
    True
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        numbers = numbers_of(seeds)
        if any(seed < 0 for seed in numbers):
            raise Refused(f"seeds must be 0 or more; got {min(numbers)}.")
        self._numbers = numbers
        self._generators = [torch.Generator().manual_seed(seed) for seed in numbers]

    def __len__(self) -> int:
        return len(self._generators)

    def __call__(self, x: Tensor) -> Tensor:
        """Numbers for `x` (B, ...), row i from stream i, in the dtype and on the device of `x`."""
        if len(x) != len(self._generators):
            raise Refused(f"{len(self._generators)} seeds do not fit a batch of {len(x)}.")
        # Drawn in single precision whatever `x` is: in double the numbers would differ.
        rows = [
            torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in self._generators
        ]
        return sent(torch.stack(rows), x)

    def on(self, device: torch.device) -> RandnLike:
        """Streams of these seeds for a loop on `device`: these on the CPU, else of the device.

        Noise is thus not copied to a device, and differs from that of the CPU.
        """
        return self if device == CPU else Streams(self._numbers, device)


@final
class Streams:
    """Standard normal numbers with a stream for each image on its own device.

    Several tensors are drawn ahead, as many as their size allows, as each image needs its own call.

    Args:
        seeds: as those of `Seeds`.
        device: where they are drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._ahead: dict[torch.Size, list[Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Numbers for `x` (B, ...), row i from stream i, in the dtype of `x`."""
        ahead = self._ahead.setdefault(x.shape, [])
        if not ahead:
            count = max(1, min(AHEAD, LARGEST // x[0].numel()))
            shape = (count, *x.shape[1:])
            place = x.device
            rows = [
                torch.randn(shape, generator=g, dtype=torch.float32, device=place)
                for g in self._generators
            ]
            ahead.extend(torch.stack(rows, 1).unbind())
        return ahead.pop(0).to(x.dtype)
