"""A place is a dtype on a device: constants are float64, with one copy for each place of use.

Constants of the algebra stay on the device where they were made and are copied once to each place
where they are used, so that no step of a loop copies or waits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import final

import torch
from torch import Tensor

CPU = torch.device("cpu")
Place = tuple[torch.dtype, torch.device]


def home(device: torch.device | str) -> torch.device:
    """The device of the times and gains, in float64, of signals on `device`.

    The device itself if it has float64 (cpu, cuda, meta), else the CPU (for mps): there gains are
    computed on the CPU and copied when they are applied to a signal.
    """
    device = torch.device(device)
    return CPU if device.type == "mps" else device


def sent(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype and on the device of `x`; cast first, as mps has no float64."""
    return moved(value.to(x.dtype), x.device)


def double(x: Tensor) -> Tensor:
    """`x` in float64 at the `home` of its device."""
    return x.to(home(x.device)).to(torch.float64)


def moved(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`; a single number on the CPU is passed as an argument, without a copy."""
    if value.ndim or value.device != CPU or device == CPU:
        return value.to(device)
    return torch.zeros((), dtype=value.dtype, device=device) + value


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A batch from the CPU on `device`; to a GPU by an asynchronous copy from pinned memory."""
    if device.type == "cuda" and x.device == CPU:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def seen(mask: Tensor) -> bool:
    """Whether any of `mask` holds, read on the CPU only; False on other devices.

    Reading another device's values would make the host wait for it, at every step of a loop. What
    must be refused is therefore checked once, before the loop, with times on the CPU.
    """
    return mask.device.type == "cpu" and bool(mask.any())


def lasting() -> AbstractContextManager[None]:
    """For tensors that are made once and kept: they outlive an inference mode of the caller."""
    return torch.inference_mode(False)


@final
class Placed:
    """A constant tensor, copied once to each place where it is used.

    A learned tensor is copied at each use, so that gradients reach it.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[Place, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """In its own dtype, at the `home` of `device`."""
        return self._at(self.value.dtype, home(device))

    def like(self, x: Tensor) -> Tensor:
        """In the dtype and on the device of `x`."""
        return self._at(x.dtype, x.device)

    def _at(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        found = self._copies.get((dtype, device))
        if found is None:
            if self.value.requires_grad:
                return self.value.to(dtype).to(device)
            with lasting():
                found = self._copies[dtype, device] = self.value.to(dtype).to(device)
        return found
