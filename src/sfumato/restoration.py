r"""Restoration by a trained model: samples of p(x_0 | y) for measurements y = A x_0 + noise.

`restore` takes any A; `uncorrupt` takes images that the model's own process has corrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.algebra.linear import Operator
from sfumato.algebra.place import sent
from sfumato.corruption.boundary import shaped
from sfumato.corruption.measurement import check_measured
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser
from sfumato.estimation.restored import Restored
from sfumato.methods.flow_maps import check_mean
from sfumato.model import Model
from sfumato.sampling.batches import Begun
from sfumato.sampling.sample import (
    Callback,
    Seeds,
    check_conditional,
    numbers_of,
    uniform_grid,
)
from sfumato.sampling.samplers import Sampler

MARKOV = Sampler("ancestral")
"""The sampler of `uncorrupt`, where the caller leaves it unset."""
APART = 2**31
"""Simulated noise has seeds from here on, so that it is independent of the samples' own.

The processor's generators use the lower 32 bits of a seed only.
"""


def simulated(x0: Tensor, operator: Operator, noise: float | Operator, seed: int = 0) -> Tensor:
    """y = A x_0 + noise of clean images, to be restored again.

    Args:
        x0: (n, *shape) in [-1, 1].
        operator, noise: as in `restore`.
        seed: of the noise; image i has the stream seed + i, which is none of a sample's.

    Returns:
        (n, *measured).
    """
    y = operator(x0)
    eps = Seeds([APART + seed + i for i in range(len(y))])(y)
    return y + (noise(eps) if isinstance(noise, Operator) else noise * eps)


def restore(
    model: Model,
    y: Tensor,
    operator: Operator,
    noise: float | Operator,
    seeds: Sequence[int] = range(8),
    sampler: Sampler | str | None = None,
    classes: Sequence[int] | None = None,
    batch: int = 64,
    callback: Callback | None = None,
    *,
    rule: str = "spectrum",
    scale: float = 1.0,
) -> Tensor:
    """Draw images from p(x_0 | y) for measurements y = A x_0 + noise of images.

    Args:
        model: of images, whose corruption is not drawn for each image.
        y: (n, *measured), of images in [-1, 1].
        operator: A, such as `sf.measurement("blur:sigma=2", model.shape)`.
        noise: its standard deviation, or a root of its covariance.
        seeds: of the samples of each image, which depend on its y and their seed alone.
        sampler, batch, callback: as in `Model.sample`; a batch may hold samples of several images.
        classes: one class for each image, for a conditional model.
        rule: how the estimate follows y: spectrum, pigdm, dps or replacement.
        scale: of the push of pigdm and dps.

    Returns:
        (n, len(seeds), *shape), float32, on the CPU.

    Raises:
        ValueError: an impossible request, as of `Model.sample` and `Restored`; an operator that
            does not fit the model or y.

    >>> model = sf.from_pretrained("fashion-soft")
    >>> x0 = model.sample([0], sf.Sampler("ddim", steps=5))
    >>> half = sf.measurement("down:2", model.shape)
    >>> found = sf.restore(model, half(x0), half, 0.01, range(3), sf.Sampler("ddim", steps=5))
    >>> found.shape, bool((half(found[0]) - half(x0)).abs().mean() < 0.1)
    (torch.Size([1, 3, 1, 28, 28]), True)
    """
    check_restorable(model)
    check_measured(operator, model.shape, y)

    def begin(mine: Tensor, randn_like: Seeds) -> tuple[Tensor, Denoiser]:
        like = model.place().new_empty(len(mine), *model.shape)
        denoiser = Restored(model.denoiser, operator, sent(y[mine], like), noise, rule, scale)
        return denoiser.start(like, randn_like), denoiser

    return _drawn(model, len(y), begin, seeds, sampler, classes, batch, callback)


def uncorrupt(
    model: Model,
    x: Tensor,
    t: float,
    seeds: Sequence[int] = range(8),
    sampler: Sampler | str | None = None,
    classes: Sequence[int] | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """Draw images from p(x_0 | x_t) for images that the model's own process has corrupted.

    Sampling starts at x_t, in steps of equal length from `t` to 0. Only a sampler that reverses the
    Markov process draws from this law, the nearer the more steps: a flow keeps the law of all x_s,
    and makes one image of each x_t.

    Args:
        x: (n, *shape), C_t x_0 + S_t eps, such as `model.recipe.process.corrupt(x0, t, eps)`.
        t: the time of `x` in (0, 1].
        sampler: ancestral, ancestral-large or euler-maruyama; ancestral by default.
        model, seeds, classes, batch, callback: as in `restore`.

    Returns:
        (n, len(seeds), *shape), float32, on the CPU.

    Raises:
        ValueError: another sampler, a time outside (0, 1], or a request that `restore` refuses too.

    >>> model = sf.from_pretrained("fashion-soft")
    >>> x0 = model.sample([0], sf.Sampler("ddim", steps=5))
    >>> x = model.recipe.process.corrupt(x0, 0.3, torch.randn_like(x0))
    >>> sf.uncorrupt(model, x, 0.3, [0, 1], sf.Sampler("ancestral", steps=5)).shape
    torch.Size([1, 2, 1, 28, 28])
    """
    check_restorable(model)
    shaped("x", x, model.shape)
    if not isinstance(t, float | int) or not 0 < t <= 1:
        raise Refused(f"all images have one time, a number above 0, up to 1; got {t}.")
    chosen = model.chosen(MARKOV if sampler is None else sampler)
    kernel, steps = chosen.whole
    check_conditional(kernel)
    placed = sent(x, model.place())

    def begin(mine: Tensor, randn_like: Seeds) -> tuple[Tensor, Denoiser]:
        return placed[mine], model.denoiser

    times = uniform_grid(steps, t)
    return _drawn(model, len(x), begin, seeds, chosen, classes, batch, callback, times)


def check_restorable(model: Model) -> None:
    """Raise ValueError for a model that does not restore."""
    model.codec.check_pixels("a restoration")
    check_mean(model.recipe, "restorations")
    if model.recipe.context is not None:
        raise Refused("restoration needs a model whose corruption is not drawn for each image.")


def _drawn(
    model: Model,
    count: int,
    start: Callable[[Tensor, Seeds], tuple[Tensor, Denoiser]],
    seeds: Sequence[int],
    sampler: Sampler | str | None,
    classes: Sequence[int] | None,
    batch: int,
    callback: Callback | None,
    times: Tensor | None = None,
) -> Tensor:
    """A sample for each seed of each of `count` images; `start` gives x and its denoiser."""
    seeds = numbers_of(seeds)
    labels = model.labels(classes, count)
    owner = torch.arange(count).repeat_interleave(len(seeds))

    def begin(rows: slice, randn_like: Seeds) -> Begun:
        mine = owner[rows]
        told = model.conditions(len(mine), None if labels is None else labels[mine])
        with torch.no_grad():
            x, denoiser = start(mine, randn_like)
        return Begun(x, denoiser, told, None)

    drawn = model.drawn(seeds * count, begin, sampler, batch, callback, times=times)
    return drawn.unflatten(0, (count, len(seeds)))
