"""A trajectory is a process or a sampler at a few times, as frames to view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, final

import torch
from torch import Tensor

from sfumato.algebra.basis import dct
from sfumato.algebra.linear import Operator
from sfumato.algebra.place import sent
from sfumato.corruption.process import Process
from sfumato.corruption.statistics import radial
from sfumato.errors import Refused
from sfumato.estimation.restored import Restored
from sfumato.guidance import Guidance, asked, estimating
from sfumato.restoration import check_restorable, restore
from sfumato.sampling.sample import Callback, Seeds
from sfumato.sampling.samplers import Sampler

if TYPE_CHECKING:
    from sfumato.model import Model

BANDS = 48
"""Most bands of frequency in a spectrum."""


@final
class Moment(NamedTuple):
    """A sampler between two steps.

    Attributes:
        done: steps done.
        steps: of all.
        time: t.
        x: x_t, (n, *pixels), float32, on the CPU.
        estimate: x_0^ from x_t, by which the next step goes; at the end x itself; None where the
            corruption is drawn for each image, which only the sampler knows.
    """

    done: int
    steps: int
    time: float
    x: Tensor
    estimate: Tensor | None


See = Callable[[Moment], None]
"""Called with a moment; an exception stops the sampler."""


def corrupted(process: Process, x0: Tensor, times: Tensor, seed: int = 0) -> Tensor:
    """x_t at some times, with the same noise at all of them.

    Args:
        process: what corrupts.
        x0: (n, *shape) in [-1, 1].
        times: (k,) in [0, 1]; at 0 it is x_0 itself.
        seed: of the noise; image i has the stream seed + i.

    Returns:
        (n, k, *shape).
    """
    eps = Seeds(range(seed, seed + len(x0)))(x0)
    return torch.stack([x0 if t == 0 else process.corrupt(x0, t, eps) for t in times], dim=1)


def forward(process: Process, x0: Tensor, frames: int = 9, seed: int = 0) -> Tensor:
    """x_t at `frames` even times from 0 to 1: `corrupted`, (n, frames, *shape).

    Raises:
        ValueError: fewer than two frames.
    """
    if frames < 2:
        raise Refused(f"a strip needs two frames or more; got {frames}.")
    return corrupted(process, x0, torch.linspace(0, 1, frames, dtype=torch.float64), seed)


def spectrum(x: Tensor, bands: int | None = None) -> tuple[Tensor, Tensor]:
    """The mean power of an image's DCT coefficients in bands of frequency.

    White noise of variance 1 has power 1 at every frequency.

    Args:
        x: (*lead, H, W), the mean over all leading axes.
        bands: equal ones, from 0 to the largest frequency; by default one for two pixels of the
            shorter side, up to `BANDS`.

    Returns:
        The middle of each band in cycles per pixel, and its power; float64.
    """
    basis = dct(*x.shape[-2:])
    bands = max(1, min(BANDS, min(x.shape[-2:]) // 2)) if bands is None else bands
    frequency = basis.laplacian.sqrt() / (2 * torch.pi)
    return radial(frequency, basis.analyze(x.double()).square(), bands)


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


def watch(
    model: Model,
    seeds: Sequence[int],
    see: See,
    sampler: Sampler | str | None = None,
    classes: Sequence[int] | None = None,
    *,
    clip: bool = False,
    guidance: Guidance | float = 0.0,
    moments: int = 100,
) -> Tensor:
    """`model.sample`, seen on its way: x_t and the estimate that the sampler makes from it.

    The estimates that are shown cost a network call each beside the sampler's own.

    Args:
        see: receives the start, the end, and moments between them.
        moments: how many are seen at most, 2 or more; at even steps.
        model, seeds, sampler, classes, clip, guidance: as in `Model.sample`.

    Returns:
        What `model.sample` returns, (len(seeds), *pixels).
    """
    times = model.times(model.chosen(sampler))
    guided, weight = asked(model, guidance)
    labels = model.labels(classes, len(seeds), guided)
    told = model.conditions(len(seeds), labels, None, len(times) - 1, weight)
    base = estimating(model.config, model.denoiser, guided, labels, clip)

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        return base(x, t, **told).mean

    seen = _seen(model, times, None if model.recipe.context else estimate, see, moments)
    seen(0, model.start(seeds, classes))
    return model.sample(seeds, sampler, classes, len(seeds), seen, clip=clip, guidance=guidance)


def watch_restoration(
    model: Model,
    y: Tensor,
    operator: Operator,
    noise: float | Operator,
    see: See,
    seeds: Sequence[int] = range(4),
    sampler: Sampler | str | None = None,
    classes: Sequence[int] | None = None,
    *,
    rule: str = "spectrum",
    scale: float = 1.0,
    moments: int = 100,
) -> Tensor:
    """`restore` of one measurement, seen on its way as by `watch`.

    Args:
        y: (1, *measured).
        classes: one class, for a conditional model.
        see, moments: as in `watch`.
        model, operator, noise, seeds, sampler, rule, scale: as in `restore`.

    Returns:
        What `restore` returns, (1, len(seeds), *shape).
    """
    check_restorable(model)
    if len(y) != 1:
        raise Refused(f"one restoration is watched at a time; got {len(y)} measurements.")
    times = model.times(model.chosen(sampler))
    like = model.place().new_empty(len(seeds), *model.shape)
    rows = sent(y, like).expand(len(seeds), *y.shape[1:])
    denoiser = Restored(model.denoiser, operator, rows, noise, rule, scale)
    label = model.labels(classes, 1)
    told = model.conditions(len(seeds), None if label is None else label.expand(len(seeds)))

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        return denoiser(x, t, **told).mean

    seen = _seen(model, times, estimate, see, moments)
    with torch.no_grad():
        seen(0, denoiser.start(like, Seeds(seeds)))
    return restore(
        *(model, y, operator, noise, seeds, sampler, classes, len(seeds), seen),
        rule=rule,
        scale=scale,
    )


def _seen(
    model: Model,
    times: Tensor,
    estimate: Callable[[Tensor, Tensor], Tensor] | None,
    see: See,
    moments: int,
) -> Callback:
    """A sampler's callback that shows it at `moments` even steps along `times`."""
    if moments < 2:
        raise Refused(f"a sampler is seen at two moments or more; got {moments}.")
    steps = len(times) - 1
    even = torch.linspace(0, steps, min(moments, steps + 1), dtype=torch.float64)
    chosen = {*even.round().long().tolist()}
    model.denoiser.eval()

    @torch.no_grad()
    def shown(done: int, x: Tensor) -> None:
        if done not in chosen:
            return
        pixels = model.codec.decode(x).float().cpu()
        made: Tensor | None = pixels
        if done < steps:
            there = sent(x, model.place())
            made = None if estimate is None else model.codec.decode(estimate(there, times[done]))
        see(
            Moment(
                done,
                steps,
                float(times[done]),
                pixels,
                None if made is None else made.float().cpu(),
            )
        )

    return shown
