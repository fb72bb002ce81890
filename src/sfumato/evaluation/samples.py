"""Samples are the images that are judged: blocks of seeds of a model, or images made before.

A block that is finished is kept, so that an evaluation that was cut goes on from there; it belongs
to one network, sampler and set of seeds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato import files
from sfumato.evaluation import blocks
from sfumato.methods import lookup
from sfumato.model import Model
from sfumato.pictures import to_uint8
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import Diverged, check_grid, diverged

BLOCK = 500
"""Images in one file."""


class Images(NamedTuple):
    """Images to judge (final).

    Attributes:
        pixels: uint8 (n, C, H, W).
        about: how they were made, as JSON holds it.
    """

    pixels: Tensor
    about: dict[str, Any]


@dataclass(frozen=True)
class Sampler:
    """How a model's samples are drawn (final).

    Attributes:
        model: what draws them.
        count: images, of the seeds 0 to count - 1.
        kernel: as `--kernel` spells it; None for the model's own.
        batch: images in memory at once.
        keep: folder of finished blocks; None keeps none.
        tick: called with the number of images in each block, once it is there.
        grid: as `--grid` spells it; None for the method's own.
        clip: whether every estimate of x_0 is clipped.
    """

    model: Model
    count: int
    kernel: str | None = None
    batch: int = 100
    keep: Path | None = None
    tick: Callable[[int], None] = lambda _: None
    grid: str | None = None
    clip: bool = False

    def images(self, steps: int) -> Images:
        """The images at `steps` steps, and the record of how they were drawn."""
        about = self.about(steps)
        parts, seconds, lost = [], 0.0, 0
        for first in range(0, self.count, BLOCK):
            seeds = range(first, min(first + BLOCK, self.count))
            make = functools.partial(self._block, seeds, steps)
            block = blocks.kept(self.keep, about, first, make)
            parts.append(block["images"])
            seconds += float(block["seconds"])
            lost += int(block["diverged"])
            self.tick(len(seeds))
        pixels = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
        about |= {"seconds_per_image": round(seconds / self.count, 5)}
        return Images(pixels, about | {"diverged": lost} if lost else about)

    def about(self, steps: int) -> dict[str, Any]:
        """What decides the images: network, sampler, grid, seeds, threads."""
        grid = self._grid(steps)
        about = {
            "model": fingerprint(self.model),
            "kernel": self.kernel or self.model.kernel_name,
            "steps": steps,
            "network_calls": self.model.network_calls(steps, self._kernel()),
            "grid": [round(float(t), 12) for t in grid],
            "seeds": f"0-{self.count - 1}",
            "batch": self.batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        return about | ({"clip": True} if self.clip else {})

    def _block(self, seeds: Sequence[int], steps: int) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        classes = None
        if self.model.config.conditional:
            known = len(self.model.config.record.classes or ())
            classes = [seed % known for seed in seeds]
        times = self._grid(steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Diverged)  # counted instead, over all blocks
            made = self.model.sample(
                seeds, steps, self.kernel, classes, self.batch, grid=times, clip=self.clip
            )
        return {
            "images": to_uint8(made),
            "seconds": np.array(time.perf_counter() - began),
            "diverged": np.array(int(diverged(made).sum())),
        }

    @functools.cache  # noqa: B019 - a search of seconds for some grids; a sampler lives no longer
    def _grid(self, steps: int) -> Tensor:
        return check_grid(self.model.grid(self.grid, steps, self._kernel()))

    def _kernel(self) -> Kernel:
        return self.model.kernel if self.kernel is None else lookup.kernel(self.kernel)


def fingerprint(model: Model) -> str:
    """SHA-256 of all that decides a model's samples but the sampler: config, facts, weights."""
    config = json.dumps(model.config.to_dict(), sort_keys=True).encode()
    weights = files.plain(model.learned.state_dict())
    return files.digest({**model.facts.tensors(), **weights}, config)


def digest(pixels: Tensor) -> str:
    """SHA-256 of images' bytes, in hex."""
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
