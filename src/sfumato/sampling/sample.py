r"""The only loop: from x at the first time of a grid to x at its last, by any kernel.

A grid falls, from noise to a sample; or it rises, from an image to the x_1 that the probability
flow takes to it, by the few kernels whose step holds in both directions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from sfumato import limits
from sfumato.algebra.operators import identity, scaled
from sfumato.corruption.boundary import alike, expect
from sfumato.corruption.coupling import ddim
from sfumato.corruption.prior import RandnLike
from sfumato.errors import Refused, RefusedType
from sfumato.estimation.denoise import NONE, Conditions, Denoiser
from sfumato.notes import Note
from sfumato.sampling.flow import dopri5, flow
from sfumato.sampling.kernels import Call, Ending, Kernel, reverse
from sfumato.sampling.seeds import Seeds as Seeds
from sfumato.sampling.seeds import numbers_of as numbers_of

FAR = 2.0
"""Root mean square of a signal that has diverged, over the data's largest: 1 in [-1, 1]."""
LIFTS = 6
"""Network calls that find where a grid begins that rises from 0."""

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
    cond: Conditions = NONE,
) -> Tensor:
    """Run `kernel` along `grid`, starting from `x` ~ the law of x at grid[0].

    A grid that ends at 0 ends with the estimate x_0^ made at the time before it. One that rises
    from 0 begins at the time after it, with the x whose estimate is the x_0 given.

    Args:
        x: (B, *shape).
        grid: times in [0, 1], at least two: falling, or rising for a kernel that
                `check_reversible` accepts.
        randn_like: source of the noise; `Seeds` gives every image its own stream.
        callback: called after each step with the number of steps done and x.
        cond: what the network receives besides x and t, by name, such as {"classes": (B,)}.

    Returns:
        x at grid[-1], (B, *shape).

    Raises:
        TypeError: arguments of other kinds, or in another order.
        ValueError: the grid is not monotone or leaves [0, 1], or rises and the kernel cannot be
            run backwards.

    >>> process = sf.METHODS["ddpm"]((1,)).process
    >>> oracle = sf.oracles.dataset(process, torch.tensor([[-1.0], [1.0]]))
    >>> denoiser = sf.NetworkDenoiser(process, sf.predictions.x0, oracle)
    >>> kernel = sf.kernels.reverse(sf.couplings.ancestral)
    >>> x0 = sf.sample(kernel, denoiser, torch.randn(3, 1), sf.grids.uniform_grid(50))
    >>> x0.abs().flatten().round(decimals=2)
    tensor([1., 1., 1.])
    """
    return prepare(kernel, denoiser, x, grid)(x, randn_like, callback, cond)


@final
class Prepared:
    """The loop with its operators precomputed; made by `prepare`.

    For any x of the shape, dtype and device that it was made for.
    """

    def __init__(self, kernel: Kernel, denoiser: Denoiser, x: Tensor, grid: Tensor) -> None:
        expect(
            kernel,
            Kernel,
            "sampling needs a kernel first, such as sf.kernels.reverse(sf.couplings.ddim())",
        )
        expect(denoiser, Denoiser, "sampling needs a Denoiser after the kernel")
        alike(x=x)
        grid = check_direction(grid, kernel)
        starts_clean, ends_clean = (float(end) == 0.0 for end in (grid[0], grid[-1]))
        inner = grid[grid > 0] if starts_clean or ends_clean else grid
        self._steps = len(inner) - 1
        self._ends_clean = ends_clean
        self._loop = kernel.prepare(denoiser, x, inner)
        self._lift = lifted(denoiser, inner[0]) if starts_clean else None

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        randn_like: RandnLike = torch.randn_like,
        callback: Callback | None = None,
        cond: Conditions = NONE,
    ) -> Tensor:
        """As `sample`."""
        call = Call(randn_like, cond)
        step, end, state = self._loop
        if self._lift is not None:
            x = self._lift(x, call)
            if callback is not None:
                callback(1, x)
        for i in range(self._steps):
            x, state = step(state, x, i, call)
            if callback is not None:
                callback(i + 1 + (self._lift is not None), x)
        if self._ends_clean:
            x = end(x, call)
            if callback is not None:
                callback(self._steps + 1, x)
        return x


def lifted(denoiser: Denoiser, t: Tensor) -> Ending:
    r"""(x_0, call) -> the x at `t` whose estimate is x_0: the inverse of a loop's last step.

    The solution of x = C_t x_0 + S_t eps^(x), the step of `ddim` from 0 to t, by iteration from
    C_t x_0. For Gaussian data each iteration reduces the error of a coefficient by its share of
    noise in x, V_t / M_t.
    """
    signal = denoiser.process.signal.at(t)
    noise = denoiser.at(t).update(identity(), scaled(-1.0) @ signal)

    def lift(x0: Tensor, call: Call) -> Tensor:
        clean = signal(x0)
        x = clean
        for _ in range(LIFTS):
            x = clean + noise(x, call.cond)
        return x

    return lift


def check_reversible(kernel: Kernel) -> None:
    """Raise ValueError unless `kernel` follows the probability flow in both directions of time.

    It does where its step draws nothing and holds for s > t as for s < t.
    """
    if not (isinstance(kernel, flow | dopri5) or kernel == reverse(ddim())):
        raise Refused(
            "only a deterministic sampler can be run backwards: ddim, euler, heun, rk4 or dopri5; "
            f"got {kernel.name}."
        )


@torch.no_grad()
def prepare(kernel: Kernel, denoiser: Denoiser, x: Tensor, grid: Tensor) -> Prepared:
    """`sample` with precomputed operators, for many batches like `x`, whose values are not read.

    Raises:
        ValueError: as `sample`.
    """
    return Prepared(kernel, denoiser, x, grid)


def check_conditional(kernel: Kernel) -> None:
    """Raise ValueError unless `kernel`, started from one x_t, draws from p(x_0 | x_t)."""
    if not kernel.markov:
        raise Refused(
            f"{kernel.name} started from one x_t does not draw from p(x_0 | x_t): only samplers "
            "that reverse the Markov process do. Use ancestral, ancestral-large or euler-maruyama."
        )


def network_calls(
    kernel: Kernel,
    make: Callable[[nn.Module], Denoiser],
    shape: Sequence[int],
    grid: Tensor,
) -> int:
    """The number of network calls of `kernel` for one signal along `grid`; no network is run.

    Args:
        kernel, shape, grid: how a signal is sampled.
        make: the denoiser with a given backbone in place of each network.

    Raises:
        ValueError: this kernel cannot sample this process, with any network.
    """
    count = _Count()
    sample(kernel, make(count), torch.zeros(1, *shape), grid)
    return count.calls


def noise_drawn(
    kernel: Kernel,
    make: Callable[[nn.Module], Denoiser],
    shape: Sequence[int],
    grid: Tensor,
) -> bool:
    """Whether `kernel` draws noise along `grid`; arguments and errors as `network_calls`."""
    drawn = False

    def noted(x: Tensor) -> Tensor:
        nonlocal drawn
        drawn = True
        return torch.zeros_like(x)

    sample(kernel, make(_Count()), torch.zeros(1, *shape), grid, noted)
    return drawn


class _Count(nn.Module):
    """A backbone that returns 0 and counts its calls."""

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
        raise RefusedType(
            "a grid is falling times, such as sf.grids.uniform_grid(20); got "
            f"{type(grid).__name__}."
        ) from None
    if grid.ndim != 1 or len(grid) < 2:
        raise Refused(f"a grid needs two times or more; got shape {tuple(grid.shape)}.")
    if float(grid.max()) > 1 or float(grid.min()) < 0:
        raise Refused(f"a grid lies in [0, 1]; got {grid.min():g} to {grid.max():g}.")
    rises = (~(grid.diff() < 0)).nonzero()  # in this form NaN is refused too
    if len(rises):
        i = int(rises[0])
        raise Refused(
            f"grid must fall from 1 to 0; got {grid[i]:g} before {grid[i + 1]:g} at index {i + 1}."
        )
    return grid


def check_direction(grid: Tensor, kernel: Kernel) -> Tensor:
    """As `check_grid`, and a grid that rises where `kernel` is reversible."""
    times = torch.as_tensor(grid) if isinstance(grid, Tensor | Sequence) else None
    if times is None or times.ndim != 1 or len(times) < 2 or not bool(times[0] < times[-1]):
        return check_grid(grid)
    rising = check_grid(times.flip(0)).flip(0)
    check_reversible(kernel)
    return rising


def diverged(x: Tensor, far: float = FAR) -> Tensor:
    """Which signals x (n, *shape) diverged: those of root mean square above `far`, or not finite.

    Data in [-1, 1] have a root mean square of 1 at most. (n,) of bool.
    """
    return ~(x.flatten(1).square().mean(1) <= far**2)


def divergence(kernel: str, lost: int, steps: int) -> str:
    """The sentence about `lost` signals that `diverged`."""
    return (
        f"{kernel} diverged in {lost} of the samples at {steps} steps. Use another --sampler, such "
        "as ddim, another --grid, such as leading, or many more --steps."
    )


class Diverged(Refused, Note):
    """Samples far outside the data's range: a warning, and an error where some are not finite."""


def check_converged(
    x: Tensor, kernel: Callable[[], str], steps: int, learned: nn.Module, far: float = FAR
) -> None:
    """Warn where signals x (n, *shape) `diverged`, beyond `far`.

    Args:
        kernel: returns the name of the sampler that drew them, in `steps` steps.
        learned: the module whose weights it used.

    Raises:
        Diverged: some signals are not finite; if the weights are not, the sentence says so.
    """
    if not (lost := int(diverged(x, far).sum())):
        return
    if not finite(learned):
        raise Diverged(
            "the weights of this model are not finite numbers: its training diverged. Sample an "
            "earlier checkpoint, or train again with a lower --learning-rate."
        )
    sentence = divergence(kernel(), lost, steps)
    if not bool(x.isfinite().all()):
        raise Diverged(sentence)
    warnings.warn(Diverged(sentence), stacklevel=5)


def finite(module: nn.Module) -> bool:
    """Whether all parameters and buffers of `module` are finite; reads the device once."""
    held = [value for value in module.state_dict().values() if value.is_floating_point()]
    largest = nn.utils.get_total_norm([value for value in held if value.numel()], math.inf)
    return bool(largest.isfinite())


def uniform_grid(steps: int, first: float = 1.0, last: float = 0.0) -> Tensor:
    """`steps` equal steps from `first` down to `last`: steps + 1 times, float64.

    >>> sf.grids.uniform_grid(4)
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    if steps < 1:
        raise Refused(f"sampling needs one step or more; got {steps}.")
    limits.whole("steps", steps, 1, limits.STEPS)
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)
