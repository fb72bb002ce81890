r"""The only loop: from x at the first time of a grid to x at its last, by any kernel."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sfumato.corruption.boundary import alike, expect
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.process import Process
from sfumato.estimation.denoise import Denoiser, Parametrization
from sfumato.notes import Note
from sfumato.sampling.kernels import Kernel

Callback = Callable[[int, Tensor], None]
"""(steps done, x) -> None, after every step."""


@torch.no_grad()
def sample(
    kernel: Kernel,
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
) -> Tensor:
    """Run `kernel` along `grid`, starting from `x` ~ the law of x at grid[0].

    A grid that ends at 0 ends with the estimate x_0^ made at the time before it.

    Args:
        x: (B, *shape).
        grid: falling times in [0, 1], at least two.
        randn_like: where noise comes from; `Seeds` gives every image its own stream.
        callback: called after each step with the number of steps done and x.

    Returns:
        x at grid[-1], (B, *shape).

    Raises:
        TypeError: arguments of other kinds, or in another order.
        ValueError: the grid does not fall, or leaves [0, 1].
    """
    return prepare(kernel, denoiser, x, grid)(x, randn_like, callback)


class Prepared:
    """The loop with every operator that it needs made: `prepare` (final).

    It serves any x of the shape, dtype and device that it was made for.
    """

    def __init__(self, kernel: Kernel, denoiser: Denoiser, x: Tensor, grid: Tensor) -> None:
        expect(kernel, Kernel, "sampling needs a kernel first, such as sf.reverse(sf.ddim())")
        expect(denoiser, Denoiser, "sampling needs a Denoiser after the kernel")
        alike(x=x)
        grid = check_grid(grid)
        ends_clean = float(grid[-1]) == 0.0
        inner = grid[:-1] if ends_clean else grid
        self._kernel, self._steps = kernel, len(inner) - 1
        self._state = kernel.init(denoiser, x, inner)
        self._end = kernel.end(denoiser, inner) if ends_clean else None

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        randn_like: RandnLike = torch.randn_like,
        callback: Callback | None = None,
    ) -> Tensor:
        """As `sample`."""
        state = self._state
        for i in range(self._steps):
            x, state = self._kernel.step(state, x, i, randn_like)
            if callback is not None:
                callback(i + 1, x)
        if self._end is not None:
            x = self._end(x, randn_like)
            if callback is not None:
                callback(self._steps + 1, x)
        return x


@torch.no_grad()
def prepare(kernel: Kernel, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Prepared:
    """`sample` without the running: for many batches like `x`, whose values are not read.

    Raises:
        ValueError: as `sample`.
    """
    return Prepared(kernel, denoiser, x, grid)


def network_calls(
    kernel: Kernel,
    process: Process,
    parametrization: Parametrization,
    shape: Sequence[int],
    grid: Tensor,
) -> int:
    """How often `kernel` asks the network of one signal along `grid`; nothing is computed by one.

    Raises:
        ValueError: this kernel cannot sample this process, whatever a network says.
    """
    count = _Count()
    sample(kernel, Denoiser(process, parametrization, count), torch.zeros(1, *shape), grid)
    return count.calls


class _Count(nn.Module):
    """A backbone that answers 0 and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, label: Tensor, **cond: object) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x)


def check_grid(grid: Tensor) -> Tensor:
    """The grid in float64 on the CPU, if it falls within [0, 1]; else ValueError."""
    try:
        grid = torch.as_tensor(grid).cpu().to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"a grid is falling times, such as sf.even(steps=20); got {type(grid).__name__}."
        ) from None
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid needs two times or more; got shape {tuple(grid.shape)}.")
    if float(grid.max()) > 1 or float(grid.min()) < 0:
        raise ValueError(f"a grid lies in [0, 1]; got {grid.min():g} to {grid.max():g}.")
    rises = (~(grid.diff() < 0)).nonzero()  # so that NaN is no time either
    if len(rises):
        i = int(rises[0])
        raise ValueError(
            f"grid must fall from 1 to 0; got {grid[i]:g} before {grid[i + 1]:g} at index {i + 1}."
        )
    return grid


def diverged(x: Tensor) -> Tensor:
    """Which signals a sampler lost: of root mean square above 2, or not finite.

    For x (n, *shape) of data in [-1, 1], whose root mean square is 1 at most; (n,) of bool.
    """
    return ~(x.flatten(1).square().mean(1) <= 4)


def divergence(kernel: str, lost: int, steps: int) -> str:
    """What to say of `lost` signals that `diverged`."""
    return (
        f"{kernel} diverged in {lost} of the samples at {steps} steps. Use another --kernel, such "
        "as ddim, or many more --steps."
    )


def numbers_of(seeds: Iterable[int]) -> list[int]:
    """Seeds as a list; TypeError where they are no sequence of whole numbers."""
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError:
        raise TypeError(
            f"seeds are whole numbers, one for each signal, such as seeds=range(4); got {seeds!r}."
        ) from None


class Diverged(ValueError, Note):
    """Samples that are no signals in [-1, 1]: warned of, and raised where some are not finite."""


def check_converged(x: Tensor, kernel: str, steps: int, learned: nn.Module) -> None:
    """Warn where signals x (n, *shape) `diverged`.

    Args:
        kernel: what drew them, in `steps` steps.
        learned: the weights that it drew them with.

    Raises:
        Diverged: some signals are not finite; where the weights are not, it says so.
    """
    if not (lost := int(diverged(x).sum())):
        return
    if not finite(learned):
        raise Diverged(
            "the weights of this model are not finite numbers: its training diverged. Sample an "
            "earlier checkpoint, or train again with a lower --learning-rate."
        )
    sentence = divergence(kernel, lost, steps)
    if not bool(x.isfinite().all()):
        raise Diverged(sentence)
    warnings.warn(Diverged(sentence), stacklevel=3)


def finite(module: nn.Module) -> bool:
    """Whether all parameters and buffers of `module` are finite; reads the device."""
    return all(bool(value.isfinite().all()) for value in module.state_dict().values())


class Seeds:
    """Standard normal numbers with a stream for each image (final).

    The image of a seed is the same at any batch size.

    Args:
        seeds: one integer >= 0 for each row of the tensors to come.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        numbers = numbers_of(seeds)
        if any(seed < 0 for seed in numbers):
            raise ValueError(f"seeds must be 0 or more; got {min(numbers)}.")
        self._generators = [torch.Generator().manual_seed(seed) for seed in numbers]

    def __len__(self) -> int:
        return len(self._generators)

    def __call__(self, x: Tensor) -> Tensor:
        """Numbers for `x` (B, ...), row i from stream i, in the dtype and on the device of `x`."""
        if len(x) != len(self._generators):
            raise ValueError(f"{len(self._generators)} seeds cannot serve a batch of {len(x)}.")
        # Drawn in single precision whatever `x` is: in double it would be another stream.
        rows = [
            torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in self._generators
        ]
        return torch.stack(rows).to(x.dtype).to(x.device)


def even(steps: int, first: float = 1.0, last: float = 0.0) -> Tensor:
    """`steps` equal steps from `first` down to `last`: steps + 1 times, float64."""
    if steps < 1:
        raise ValueError(f"sampling needs one step or more; got {steps}.")
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)
