"""Batches of seeds: each begins at its own x_1; the loop over times is prepared once for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.place import CPU
from sfumato.errors import Refused
from sfumato.estimation.denoise import Conditions, Denoiser
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import Callback, Prepared, Seeds, prepare


@final
class Begun(NamedTuple):
    """The start of one batch.

    Attributes:
        x: x_1, (B, *shape).
        denoiser: of these signals.
        cond: what the network receives besides x and t.
        key: equal for batches whose denoisers are equal at all times; None where there are none.
    """

    x: Tensor
    denoiser: Denoiser
    cond: Conditions
    key: object | None


Begin = Callable[[slice, Seeds], Begun]
"""(rows of the seeds, their streams) -> the start of these rows."""


@final
class Batches:
    """Draws signals for seeds; the operators of the last loop are kept for the next call."""

    def __init__(self) -> None:
        self._ready: tuple[object, Prepared] | None = None

    def forget(self) -> None:
        """Prepare the next loop anew."""
        self._ready = None

    def __call__(
        self,
        seeds: Sequence[int],
        begin: Begin,
        kernel: Kernel,
        times: Tensor,
        batch: int,
        callback: Callback | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> Tensor:
        """A signal for each seed, (len(seeds), *shape), float32, on the CPU.

        Args:
            seeds: signal i depends on seeds[i] alone, at any `batch`.
            begin: returns the start of a batch.
            kernel, times, callback: as in `sample`.
            batch: signals in memory at once.
            check: raises what the loop itself, which reads no values there, cannot on a device.

        Raises:
            ValueError: no seeds, or a batch below 1.
        """
        if not seeds:
            raise Refused("sampling needs one seed or more; got none.")
        if batch < 1:
            raise Refused(f"batch must be 1 or more; got {batch}.")
        # Taken out while in use: the operators of a long grid are computed during the loop.
        ready = self._ready
        self._ready = None
        key = None
        done = []
        for first in range(0, len(seeds), batch):
            randn_like = Seeds(seeds[first : first + batch])
            x, denoiser, cond, key = begin(slice(first, first + batch), randn_like)
            whole = key, kernel, tuple(times.tolist()), x.shape, x.dtype, x.device
            if ready is None or ready[0] != whole or key is None:
                if x.device != CPU and not first:
                    check()
                ready = whole, prepare(kernel, denoiser, x, times)
            done.append(ready[1](x, randn_like.on(x.device), callback, cond).float().cpu())
        self._ready = None if ready is None or key is None else ready
        return torch.cat(done)
