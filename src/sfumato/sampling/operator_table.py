"""The operators of each step of a loop, made in blocks of steps and cast once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal, Operator
from sfumato.algebra.place import home, sent

# Steps whose operators are held in memory at once: bounds what a long grid of large images needs.
BLOCK = 64


@final
class OperatorTable:
    """Operators for each step of a grid, made in blocks by one call over the block's times.

    Args:
        make: (t, s) -> operators and labels, for times (N, 1, ..., 1) or (), in tuples and
            NamedTuples of any depth. Tensors in them are labels, a value for each time, or choices
            (of bool), which are read once a block and are Python's bool in a step; whatever else
            they hold is the same at all times.
        x: the signal they will act on; gives rank, dtype and device.
        grid: falling times.
    """

    def __init__(self, make: Callable[[Tensor, Tensor], Any], x: Tensor, grid: Tensor) -> None:
        self._make = make
        self._x = x
        self._grid = grid.to(torch.float64)
        self._start = 0
        self._rows = []

    def __getitem__(self, i: int) -> Any:  # noqa: ANN401 - what `make` returns
        if not self._start <= i < self._start + len(self._rows):
            self._start = i - i % BLOCK
            stop = min(self._start + BLOCK, len(self._grid) - 1)
            self._rows = self._block(self._grid[self._start : stop + 1])
        return self._rows[i - self._start]

    def _block(self, grid: Tensor) -> list[Any]:
        grid = grid.to(home(self._x.device))
        times = grid.reshape(-1, *(1,) * (self._x.ndim - 1))
        # Operators that are not gains (such as matrix-free ones), or gains that differ from sample
        # to sample and so have no free axis for times, are made one time at a time. With one sample
        # none differs.
        if len(self._x) > 1 and not all(map(self._one, _leaves(self._make(grid[0], grid[1])))):
            return [self._make(t, s) for t, s in pairwise(grid)]
        made = self._make(times[:-1], times[1:])
        if not all(isinstance(leaf, Diagonal | Tensor) for leaf in _leaves(made)):
            return [self._make(t, s) for t, s in pairwise(grid)]
        return _unbind(made, len(grid) - 1, self._x)

    def _one(self, leaf: Operator | Tensor) -> bool:
        """Whether `leaf`, made for one time, is gains or a label that all samples share."""
        if not isinstance(leaf, Diagonal | Tensor):
            return False
        values = leaf.log_gain if isinstance(leaf, Diagonal) else leaf
        return values.ndim < self._x.ndim or len(values) == 1


def _leaves(tree: Any) -> Sequence[Operator | Tensor]:  # noqa: ANN401
    """The operators and labels in a tree of tuples."""
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree] if isinstance(tree, Operator | Tensor) else []


def _unbind(tree: Any, count: int, x: Tensor) -> list[Any]:  # noqa: ANN401
    """A tree of operators over `count` times as `count` trees of operators."""
    if isinstance(tree, tuple):
        rows = zip(*(_unbind(part, count, x) for part in tree), strict=True) if tree else [()]
        made = getattr(type(tree), "_make", tuple)  # a NamedTuple keeps its class
        return [made(row) for row in rows] if tree else [tree] * count
    if isinstance(tree, Diagonal):
        return tree.unbind(x) if _batched(tree.log_gain, count, x) else [tree] * count
    if isinstance(tree, Tensor) and tree.dtype == torch.bool:
        return tree.flatten().tolist() if _batched(tree, count, x) else [tree] * count
    if isinstance(tree, Tensor):
        label = sent(tree, x)
        return list(label.flatten(1)) if _batched(tree, count, x) else [label] * count
    return [tree] * count


def _batched(value: Tensor, count: int, x: Tensor) -> bool:
    return value.ndim == x.ndim and len(value) == count
