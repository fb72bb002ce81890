r"""Editing by the probability flow, which joins an image to one x_1 and that x_1 to the image.

    encode    x_0 -> x_1, the flow forward in time
    decode    x_1 -> x_0, a deterministic sampler from there

Under a model of latents the image is encoded by its codec first, and decoded by it last.

An edit is made at x_1: on a path between two images, or by decoding under another class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.algebra.operators import Diagonal
from sfumato.algebra.place import sent
from sfumato.corruption.boundary import shaped
from sfumato.errors import Refused
from sfumato.methods.flow_maps import check_mean
from sfumato.model import Model
from sfumato.sampling.batches import Batches, Begun
from sfumato.sampling.sample import Seeds, check_converged, check_reversible
from sfumato.sampling.samplers import Sampler

DEFAULT = Sampler("heun", steps=100)
"""The sampler of an edit, where the caller leaves it unset; the grid is the method's."""

Callback = Callable[[int, Tensor], None]
"""(steps done in a batch, x) -> None, after every step."""


def encode(
    model: Model,
    x0: Tensor,
    classes: Sequence[int] | None = None,
    sampler: Sampler | str | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """The x_1 from which `decode` makes `x0`: the probability flow, forward in time.

    The flow has no velocity where noise starts: it begins at the last time above 0 of the sampler's
    grid, with the x whose estimate is `x0`. `decode` reverses it up to the error of the steps.

    Args:
        model: of a method whose corruption is the same for all images, and has noise.
        x0: images (B, *model.config.pixels.shape) in [-1, 1].
        classes: one class for each image, for a conditional model.
        sampler: ddim, euler, heun, rk4 or dopri5; what it leaves unset is `DEFAULT`'s.
        batch: signals in memory at once.
        callback: called after each step.

    Returns:
        x_1, (B, *model.shape), float32, on the CPU.

    Raises:
        ValueError: signals of another shape, a sampler that draws noise, or a method whose flow
            cannot be inverted.

    >>> model = sf.from_pretrained("fashion-soft")
    >>> sampler = sf.Sampler("ddim", steps=4)
    >>> x0 = model.sample([0], sampler)
    >>> again = sf.decode(model, sf.encode(model, x0, sampler=sampler), sampler=sampler)
    >>> bool((again - x0).square().mean().sqrt() < 0.2)  # an error of 4 steps each way
    True

    References:
        Denoising Diffusion Implicit Models (J. Song, C. Meng, S. Ermon, 2020), section 4.3,
        https://arxiv.org/abs/2010.02502
        Score-Based Generative Modeling through Stochastic Differential Equations (Y. Song et al.,
        2020), section 4.3, https://arxiv.org/abs/2011.13456
    """
    shaped("x0", x0, model.config.pixels.shape)
    chosen = deterministic(model, sampler)
    signals = model.codec.encode(x0, batch)
    x1 = _carried(model, signals, model.times(chosen).flip(0), chosen, classes, batch, callback)
    if not bool(x1.isfinite().all()):
        check_converged(x1, lambda: chosen.name, chosen.whole[1], model.trainable)
    return x1


def decode(
    model: Model,
    x1: Tensor,
    classes: Sequence[int] | None = None,
    sampler: Sampler | str | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """The images (B, *pixels) that a deterministic sampler makes from `x1`; arguments as `encode`.

    From `model.start(seeds)` they are the images of `model.sample(seeds)` by the same sampler.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> sampler = sf.Sampler("ddim", steps=4)
    >>> x0 = sf.decode(model, model.start([7]), sampler=sampler)
    >>> torch.equal(x0, model.sample([7], sampler))
    True
    """
    shaped("x1", x1, model.shape)
    chosen = deterministic(model, sampler)
    x0 = _carried(model, x1, model.times(chosen), chosen, classes, batch, callback)
    far = model.codec.far
    check_converged(x0, lambda: chosen.name, chosen.whole[1], model.trainable, far)
    return model.codec.decode(x0, batch)


def _carried(
    model: Model,
    x: Tensor,
    times: Tensor,
    chosen: Sampler,
    classes: Sequence[int] | None,
    batch: int,
    callback: Callback | None,
) -> Tensor:
    """`x` (B, *shape), at the first of `times`, along the flow to the last."""
    labels = model.labels(classes, len(x))
    placed = sent(x, model.place())
    denoiser = model.denoiser.eval()
    kernel, _ = chosen.whole

    def begin(rows: slice, randn_like: Seeds) -> Begun:
        told = model.conditions(len(placed[rows]), None if labels is None else labels[rows])
        return Begun(placed[rows], denoiser, told, denoiser)

    def check() -> int:
        return model.network_calls(chosen)

    return Batches()(range(len(x)), begin, kernel, times, batch, callback, check)


def interpolate(
    model: Model,
    a: Tensor,
    b: Tensor,
    count: int,
    label: int | None = None,
    sampler: Sampler | str | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """`count` images from `a` to `b`, both (*pixels): decoded from a path between their x_1,
    that of `Whitening.between`.

    The first and the last image are the round trips of `a` and `b`.

    Args:
        count: of images, 2 or more.
        label: the class of all of them, for a conditional model.
        model, sampler, batch, callback: as in `encode`.

    Returns:
        (count, *pixels) in about [-1, 1], float32, on the CPU.

    >>> model = sf.from_pretrained("fashion-ddpm")
    >>> a, b = model.sample([0, 1], sf.Sampler("ddim", steps=4))
    >>> sf.interpolate(model, a, b, count=3, sampler=sf.Sampler("ddim", steps=3)).shape
    torch.Size([3, 1, 28, 28])
    """
    check_count(count)
    white = Whitening(model)
    pair = None if label is None else [label] * 2
    ends = encode(model, torch.stack([a, b]), pair, sampler, batch, callback)
    every = None if label is None else [label] * count
    return decode(model, white.between(ends[0], ends[1], count), every, sampler, batch, callback)


def check_count(count: int) -> None:
    """Raise ValueError unless an interpolation has `count` images, with its ends."""
    if count < 2:
        raise Refused(f"an interpolation has 2 images or more, with its ends; got {count}.")


def sphere(a: Tensor, b: Tensor, count: int) -> Tensor:
    """`count` points from `a` to `b`, (count, *shape): equal angles, and lengths at equal steps.

    Raises:
        ValueError: one of them is 0, or they are opposite and no arc is the shortest.

    References:
        Animating Rotation with Quaternion Curves (K. Shoemake, 1985),
        https://doi.org/10.1145/325334.325242
    """
    lengths = [float(x.norm()) for x in (a, b)]
    if not all(lengths):
        raise Refused("a point at the centre has no direction to interpolate.")
    from_, to = a / lengths[0], b / lengths[1]
    angle = 2 * math.atan2(float((from_ - to).norm()), float((from_ + to).norm()))
    if math.pi - angle < 1e-6:
        raise Refused("the two points are opposite: no arc between them is the shortest.")
    share = torch.linspace(0, 1, count, dtype=a.dtype).reshape(-1, *(1,) * a.ndim)
    near, far = 1 - share, share
    if angle > 1e-6:
        near, far = ((angle * part).sin() / math.sin(angle) for part in (near, far))
    length = (1 - share) * lengths[0] + share * lengths[1]
    return length * (near * from_ + far * to)


@final
class Whitening:
    """x_1 in coordinates of mean 0 and covariance I, by the data's measured mean and spectrum.

    M_1^-1/2 (x_1 - C_1 m) with M_1 = C_1 S C_1^T + V_1, in the process's basis.

    Raises:
        ValueError: the process has no basis, or x_1 no noise on some coefficients.
    """

    @torch.no_grad()
    def __init__(self, model: Model) -> None:
        process, stats = model.recipe.process, model.stats
        one = torch.ones((), dtype=torch.float64)
        gains = process.gains(one)
        if gains is None:
            raise Refused(
                "an interpolation needs a process whose signal and noise share a basis; those of "
                f"{model.config.method} do not."
            )
        _check_noise(model)
        signal = gains.signal
        total = signal @ stats.cov(gains.basis) @ signal.T + process.cov(one)
        self._mean = signal(stats.basis.synthesize(stats.mean))
        self._root = total.sqrt()
        self._back = self._root.inv()

    def __call__(self, x: Tensor) -> Tensor:
        """x_1 (..., *shape) in white coordinates, float64."""
        return self._back(x.double() - self._mean)

    def inverse(self, white: Tensor) -> Tensor:
        """x_1 from white coordinates."""
        return self._mean + self._root(white)

    def between(self, a: Tensor, b: Tensor, count: int) -> Tensor:
        """`count` x_1 from `a` to `b`, (*shape) each: by `sphere` in white coordinates; float32."""
        return self.inverse(sphere(self(a), self(b), count)).float()


def deterministic(model: Model, sampler: Sampler | str | None = None) -> Sampler:
    """The sampler of an edit; what `sampler` leaves unset is that of `DEFAULT`.

    Raises:
        ValueError: a sampler that draws noise, or a method whose flow cannot be inverted.
    """
    check_mean(model.recipe, "edits")
    told = sampler if isinstance(sampler, Sampler) else Sampler(sampler)
    chosen = model.chosen(told.over(DEFAULT))
    check_reversible(chosen.whole[0])
    if model.recipe.context is not None:
        raise Refused(
            f"{model.config.method} draws a corruption for each image, so that its images have no "
            "common flow to be encoded along. Use a model of another method."
        )
    _check_noise(model)
    return chosen


def _check_noise(model: Model) -> None:
    noise = model.recipe.process.noise.at(torch.ones((), dtype=torch.float64))
    if isinstance(noise, Diagonal) and bool(torch.isneginf(noise.log_gain).any()):
        raise Refused(
            f"{model.config.method} has no noise, so that x_1 does not hold what its corruption "
            "removes from an image. Use a model of a method with noise."
        )
