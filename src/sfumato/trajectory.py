"""A trajectory is a process or a sampler at a few times, as frames to view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.corruption.process import Process
from sfumato.errors import Refused
from sfumato.sampling.sample import Seeds
from sfumato.sampling.samplers import Sampler

if TYPE_CHECKING:
    from sfumato.model import Model


def forward(process: Process, x0: Tensor, frames: int = 9, seed: int = 0) -> Tensor:
    """x_t at `frames` even times from 0 to 1, with the same noise at all of them.

    Args:
        process: what corrupts.
        x0: (n, *shape) in [-1, 1].
        frames: times shown, 2 or more.
        seed: of the noise; image i has the stream seed + i.

    Returns:
        (n, frames, *shape).
    """
    if frames < 2:
        raise Refused(f"a strip needs two frames or more; got {frames}.")
    eps = Seeds(range(seed, seed + len(x0)))(x0)
    times = torch.linspace(0, 1, frames, dtype=torch.float64)
    shown = [x0, *(process.corrupt(x0, t, eps) for t in times[1:])]
    return torch.stack(shown, dim=1)


def reverse(
    model: Model,
    seeds: Sequence[int],
    frames: int = 9,
    sampler: Sampler | str | None = None,
    classes: Sequence[int] | None = None,
    clip: bool = False,
) -> Tensor:
    """x along the sampler's path from t = 1 to the sample, at `frames` even steps.

    Latents are decoded, noisy ones too: a picture of them, which no blurred or noisy image is.

    Returns:
        (len(seeds), frames, *pixels); the last frame is what `model.sample` returns.
    """
    if frames < 2:
        raise Refused(f"a strip needs two frames or more; got {frames}.")
    seen: list[Tensor] = []
    start = model.start(seeds, classes)
    last = model.sample(
        seeds,
        sampler,
        classes,
        batch=len(seeds),
        clip=clip,
        callback=lambda _, x: seen.append(x.float().cpu()),
    )
    path = [start, *seen]
    chosen = torch.linspace(0, len(path) - 1, frames).round().long().tolist()
    shown = (model.codec.decode(path[i]) for i in chosen[:-1])
    return torch.stack([*shown, last], dim=1)
