"""A preview is a picture of samples of the averaged weights, always from the same seeds."""

from __future__ import annotations

import warnings

import torch
from PIL import Image

from sfumato import pictures, trajectory
from sfumato.model import Model
from sfumato.notes import Note
from sfumato.sampling.sample import Diverged
from sfumato.sampling.samplers import Sampler
from sfumato.training.data import Data

STEPS = 50
"""Steps of the sampler, at most."""
SAMPLES = 36
ROWS = 6


def previews(model: Model, data: Data, images: int) -> dict[str, Image.Image]:
    """Pictures by name: `samples`, their path from noise (`reverse`), and the data's (`forward`).

    There are none of signals that cannot be drawn, nor of samples that are not finite.

    Args:
        model: with the weights to sample.
        data: what it is trained on.
        images: seen so far, for the note about samples that are not finite.
    """
    if not (corrupted := forward(model, data)):
        return {}
    sampler = Sampler(steps=model.preview_steps(STEPS))
    classes = None
    if model.config.conditional:
        classes = [i % len(model.config.record.classes or ()) for i in range(SAMPLES)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Diverged)  # early weights may; the picture shows it
            samples = model.sample(range(SAMPLES), sampler, classes=classes)
            few = classes and classes[:ROWS]
            reverse = trajectory.reverse(model, range(ROWS), sampler=sampler, classes=few)
    except Diverged:
        warnings.warn(Note(f"samples at {images} images are not finite: no picture."), stacklevel=3)
        return {}
    return {
        "samples": pictures.grid(samples),
        "reverse": pictures.strip(list(reverse)),
        **corrupted,
    }


def forward(model: Model, data: Data) -> dict[str, Image.Image]:
    """The picture `forward` of how the data are corrupted; none of signals that are no pictures."""
    record = model.config.pixels
    if not (record.pictures and pictures.drawable(record.shape)):
        return {}
    x0 = data.batch(torch.arange(min(ROWS, len(data))))
    shown = model.codec.decode(trajectory.forward(model.recipe.process, x0))
    return {"forward": pictures.strip(list(shown))}
