"""Samples are the images to evaluate: blocks of seeds of a model, or finished images.

A finished block is stored, so that an interrupted evaluation resumes from it; it belongs to one
network, sampler and set of seeds.
"""

from __future__ import annotations

import functools
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from sfumato import machine
from sfumato.config import Config
from sfumato.evaluation import blocks
from sfumato.guidance import Guidance
from sfumato.model import Model
from sfumato.pictures import to_uint8
from sfumato.processes import here
from sfumato.sampling.sample import Diverged, diverged
from sfumato.sampling.samplers import Sampler
from sfumato.scores import fingerprint as fingerprint

BLOCK = 500
"""Images in one file."""
UNGUIDED = Guidance(0.0)


@final
class Images(NamedTuple):
    """Images to evaluate.

    Attributes:
        pixels: uint8 (n, C, H, W).
        about: how they were made, as JSON holds it.
        classes: the name of the class that each image was asked to be of, if any.
    """

    pixels: Tensor
    about: dict[str, Any]
    classes: tuple[str, ...] | None = None


@final
@dataclass(frozen=True)
class Drawing:
    """How a model's samples are drawn.

    Attributes:
        model: what draws them.
        count: images, of the seeds 0 to count - 1.
        sampler: complete, as `Model.chosen` returns it.
        batch: images in memory at once.
        keep: where finished blocks are; None stores none.
        tick: called with the number of images in each block, once it is finished.
        clip: whether every estimate of x_0 is clipped.
        guidance: of the samples.
        dtype: precision of the network, as `--dtype` names it.
    """

    model: Model
    count: int
    sampler: Sampler
    batch: int = 100
    keep: blocks.Blocks | None = None
    tick: Callable[[int], None] = lambda _: None
    clip: bool = False
    guidance: Guidance = UNGUIDED
    dtype: str = "float32"

    def images(self) -> Images:
        """The images, and the record of how they were drawn.

        Where several processes draw them, the first has all, and the others none.
        """
        about = self.about()
        pixels = torch.empty(0, dtype=torch.uint8)
        done, seconds, lost = 0, 0.0, 0
        firsts = range(0, self.count, BLOCK)
        for block in blocks.every(self.keep, self.key(), firsts, self._block):
            part = torch.from_numpy(block["images"]).permute(0, 3, 1, 2)
            if self.keep is None or here().first:
                if not done:
                    pixels = part.new_empty(self.count, *part.shape[1:])
                pixels[done : done + len(part)] = part
            done += len(part)
            seconds += float(block["seconds"])
            lost += int(block["diverged"])
            self.tick(len(part))
        if not len(pixels):
            return Images(pixels, about)
        about |= {"seconds_per_image": round(seconds / self.count, 5)}
        names = self._classed.record.classes or ()
        classes = self._classes(range(self.count))
        asked = None if classes is None else tuple(names[one] for one in classes)
        return Images(pixels, about | {"diverged": lost} if lost else about, asked)

    def about(self) -> dict[str, Any]:
        """What the images depend on: network, sampler, grid, seeds, threads."""
        about = {
            "model": fingerprint(self.model),
            "sampler": self.sampler.name,
            "steps": self.sampler.whole[1],
            "network_calls": self.model.network_calls(self._timed, self.guidance),
            "grid": [round(float(t), 12) for t in self._times],
            "seeds": f"0-{self.count - 1}",
            "batch": self.batch,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        guided = {"guidance": self._guided()} if self.guidance.weight else {}
        return about | ({"clip": True} if self.clip else {}) | guided

    def key(self) -> dict[str, Any]:
        """What stored blocks of the images depend on: `about`, and what computes them."""
        about = {name: value for name, value in self.about().items() if name != "threads"}
        return about | computed(self.model, self.dtype)

    def _guided(self) -> dict[str, Any]:
        found = self.guidance
        others = {"guide": found.guide, "classifier": found.classifier}
        known = {
            name: fingerprint(other) for name, other in others.items() if isinstance(other, Model)
        }
        return {"weight": found.weight, "interval": list(found.interval), **known}

    def _classes(self, seeds: Sequence[int]) -> list[int] | None:
        """Of samples of classes, seed i has class i modulo their number."""
        if not self._classed.conditional:
            return None
        known = len(self._classed.record.classes or ())
        return [seed % known for seed in seeds]

    @property
    def _classed(self) -> Config:
        """The config of what knows the classes of the samples."""
        classifier = self.guidance.classifier
        return (self.model if classifier is None else classifier).config

    def _block(self, first: int) -> dict[str, np.ndarray]:
        seeds = range(first, min(first + BLOCK, self.count))
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Diverged)  # counted instead, over all blocks
            made = self.model.signals(
                seeds,
                self._timed,
                self._classes(seeds),
                self.batch,
                clip=self.clip,
                guidance=self.guidance,
            )
            images = to_uint8(self.model.codec.decode(made, self.batch))
        return {
            "images": images,
            "seconds": np.array(time.perf_counter() - began),
            "diverged": np.array(int(diverged(made, self.model.codec.far).sum())),
        }

    @property
    def _timed(self) -> Sampler:
        return replace(self.sampler, grid=self._times)

    @functools.cached_property
    def _times(self) -> Tensor:
        """The sampler's times, computed once: some grids need a search of seconds."""
        return self.model.times(self.sampler)


def computed(model: Model, dtype: str) -> dict[str, Any]:
    """What a model's numbers depend on beside its weights, by more than the order of sums."""
    return {
        "dtype": dtype,
        "device": model.place().device.type,
        "torch": torch.__version__,
        **machine.versions(("sfumato",)),
    }


def digest(pixels: Tensor) -> str:
    """SHA-256 of images' bytes, in hex."""
    return hashlib.sha256(np.ascontiguousarray(pixels.numpy()).data).hexdigest()
