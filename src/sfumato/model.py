"""A model is the result of training: recipe, statistics, denoiser and the data's record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from sfumato import files, notebook, publishing
from sfumato.algebra.place import sent
from sfumato.codec import Codec, fitting
from sfumato.config import Config as Config
from sfumato.config import composed, made, method_of
from sfumato.corruption.boundary import Time, expect, shaped
from sfumato.corruption.prior import RandnLike
from sfumato.corruption.statistics import DataStatistics, default_statistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.guidance import Guidance, asked, estimating, labels
from sfumato.methods import grids
from sfumato.methods.flow_maps import check_mean, conditions
from sfumato.methods.lookup import Method
from sfumato.methods.recipe import Recipe
from sfumato.networks.named import Builder
from sfumato.sampling.batches import Batches, Begin, Begun
from sfumato.sampling.density import log_prob
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import Seeds, check_converged, network_calls, numbers_of
from sfumato.sampling.samplers import Sampler


@final
class Model:
    """A method fitted to data.

    Args:
        config: what the model is.
        stats: statistics measured from the data; by default typical ones.
        backbone: any module f(x, label, **cond), or the function that makes it where
            `config.backbone` is the user's own; by default what `config` names.
        method: the method, where `config.method` is the user's own.
        codec: of a model of latents; by default that of pixels, which changes nothing.

    Attributes:
        sampler: the default sampler: that of `config`, and what that leaves unset is the method's.

    >>> model = sf.from_pretrained("fashion-soft")
    >>> model.sample(seeds=range(2), sampler=sf.Sampler(steps=4)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        config: Config,
        stats: DataStatistics | None = None,
        backbone: nn.Module | Builder | None = None,
        method: Method | None = None,
        codec: Codec | None = None,
    ) -> None:
        method = method_of(config) if method is None else method
        self.config = config
        self.codec = fitting(config, codec)
        self.method = method
        self.stats = stats or default_statistics(self.shape)
        self.recipe: Recipe = composed(config, self.stats, method)
        backbone = made(config, self.recipe, backbone)
        # Faster for convolutions on nearly every device; no effect on other modules.
        convert_conv2d_weight_memory_format(backbone, torch.channels_last)
        process, means = self.recipe.process, self.recipe.parametrization
        self.denoiser = NetworkDenoiser(process, means, backbone, self.stats)
        self.sampler = config.sampler.over(self.recipe.sampler)
        self._batches = Batches()

    def __reduce__(self) -> tuple[type[Model], tuple[object, ...], dict[str, Tensor]]:
        """Copies and pickles hold the method: its recipe has closures and is rebuilt."""
        given = self.config, self.stats, self.denoiser.backbone, self.method, self.codec
        return Model, given, self.recipe.process.state_dict()

    def __setstate__(self, process: Mapping[str, Tensor]) -> None:
        self.recipe.process.load_state_dict(process)

    _repr_html_ = notebook.model
    __repr__ = notebook.line

    @property
    def trainable(self) -> nn.Module:
        """All that training changes: the backbone, and the process where it has parameters."""
        fixed = next(iter(self.recipe.process.parameters()), None) is None
        return self.denoiser.backbone if fixed else self.denoiser

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one signal: of a latent, where the model is of latents."""
        return self.config.record.shape

    def preview_steps(self, most: int) -> int:
        """Steps of a preview: at most `most`, unless the method does not take any number."""
        steps = self.sampler.whole[1]
        return steps if self.recipe.fixed or self.recipe.flow_map else min(steps, most)

    def to(self, device: torch.device | str) -> Model:
        """Move backbone, process and codec to `device`, in place; the process stays in float64."""
        self.denoiser.to(device)
        self.codec.to(device)
        return self

    def sample(
        self,
        seeds: Sequence[int],
        sampler: Sampler | str | None = None,
        classes: Sequence[int] | None = None,
        batch: int = 64,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        start: int | None = None,
        clip: bool = False,
        guidance: Guidance | float = 0.0,
    ) -> Tensor:
        """Draw one image for each seed; seed i gives image i at any `batch`.

        Args:
            seeds: integers >= 0, such as range(4).
            sampler: kernel, steps and grid, such as Sampler("ddim:eta=0.5", steps=20, grid="auto");
                the name of a kernel is enough. What it leaves unset is `self.sampler`'s.
            classes: one class for each seed, for a conditional model.
            batch: images in memory at once.
            callback: (steps done in this batch, x) after each step; x are signals, or latents.
            start: a seed whose x_1 all signals of a class start from; later draws differ.
            clip: clip every estimate of x_0 to [-1, 1], as DDPM's official code does.
            guidance: how far estimates are moved away from those without a class, or from those of
                a weaker model: a weight w >= 0, or Guidance(w, interval, guide). A model that was
                distilled with guidance receives w.

        Returns:
            (len(seeds), *config.pixels.shape) in about [-1, 1], float32, on the CPU. Where signals
            diverged, a warning says how many.

        Raises:
            ValueError: an impossible request; or signals that are not finite, with the reason.
        """
        drawn = self.signals(
            seeds, sampler, classes, batch, callback, start=start, clip=clip, guidance=guidance
        )
        return self.codec.decode(drawn, batch)

    def signals(
        self,
        seeds: Sequence[int],
        sampler: Sampler | str | None = None,
        classes: Sequence[int] | None = None,
        batch: int = 64,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        start: int | None = None,
        clip: bool = False,
        guidance: Guidance | float = 0.0,
    ) -> Tensor:
        """As `sample`, before the codec decodes: (len(seeds), *shape)."""
        if clip:
            self.codec.check_pixels("clip")
        seeds = numbers_of(seeds)
        guided, weight = asked(self, guidance)
        labels = self.labels(classes, len(seeds), guided)
        steps = self.chosen(sampler).whole[1]

        def begin(rows: slice, randn_like: Seeds) -> Begun:
            told = None if labels is None else labels[rows]
            x, context = self._begin(randn_like, told)
            if start is not None:
                x, context = self._begin(Seeds([start] * len(x)), told)
            denoiser = estimating(self.config, self._under(context), guided, told, clip)
            fresh = context is not None or (guided is not None and guided.classifier is not None)
            key = None if fresh else (self.denoiser, clip, guided)
            return Begun(x, denoiser, self.conditions(len(x), told, context, steps, weight), key)

        return self.drawn(seeds, begin, sampler, batch, callback, guided)

    def chosen(self, sampler: Sampler | str | None = None) -> Sampler:
        """A sampler of this model, with what `sampler` leaves unset as in `self.sampler`.

        Raises:
            ValueError, TypeError: it is neither a sampler nor the name of one.
        """
        if sampler is None:
            return self.sampler
        if isinstance(sampler, str | Kernel):
            sampler = Sampler(sampler)
        expect(sampler, Sampler, "sampler must be a Sampler, or a name such as 'ddim:eta=0.5'")
        return sampler.over(self.sampler)

    def times(self, sampler: Sampler | str | None = None) -> Tensor:
        """The falling times of a sampler, (steps + 1,), float64; ValueError for no such grid."""
        return grids.times(self.chosen(sampler), self.recipe, self.stats)

    def network_calls(
        self, sampler: Sampler | str | None = None, guidance: Guidance | float = 0.0
    ) -> int:
        """Network evaluations in sampling one signal, counted without evaluating the network.

        With guidance a step counts twice, once for the weaker network, which may be the same one in
        one call of twice the batch; steps outside the interval of guidance count once. Calls of a
        classifier are not counted.

        Raises:
            ValueError: this kernel cannot sample this model.
        """
        chosen = self.chosen(sampler)
        return self._try(chosen.whole[0], self.times(chosen), asked(self, guidance)[0])

    def drawn(
        self,
        seeds: Sequence[int],
        begin: Begin,
        sampler: Sampler | str | None,
        batch: int,
        callback: Callable[[int, Tensor], None] | None = None,
        guided: Guidance | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """A signal for each seed, from where `begin` starts each batch of them.

        What `sample` and restoration share: `times` are those of `sampler` where None.
        """
        chosen = self.chosen(sampler)
        kernel, _ = chosen.whole
        times = self.times(chosen) if times is None else times
        if self.denoiser.training or self.denoiser.backbone.training:
            self.denoiser.eval()  # visits every module of the network
        check = partial(self._try, kernel, times, guided)
        images = self._batches(seeds, begin, kernel, times, batch, callback, check)
        if self.trainable is not self.denoiser.backbone:
            self._batches.forget()  # the process may differ at the next call
        far = self.codec.far
        check_converged(images, lambda: chosen.name, len(times) - 1, self.trainable, far)
        return images

    def _try(self, kernel: Kernel, grid: Tensor, guidance: Guidance | None) -> int:
        """Run `kernel` on the CPU without the network, so that errors come before the work."""

        def around(backbone: nn.Module) -> Denoiser:
            process, means = self.recipe.process, self.recipe.parametrization
            base = NetworkDenoiser(process, means, backbone)
            return base if guidance is None else guidance.around(base, backbone)

        return network_calls(kernel, around, self.shape, grid)

    def start(self, seeds: Sequence[int], classes: Sequence[int] | None = None) -> Tensor:
        """x_1 for each seed, where `sample` starts; (len(seeds), *shape), float32, on the CPU."""
        drawn = Seeds(seeds)
        return self._begin(drawn, self.labels(classes, len(drawn)))[0].float().cpu()

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        t: Time,
        classes: Sequence[int] | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """The estimate of x_0 from x_t (B, *shape) at t, () or (B, 1, ..., 1) in (0, 1].

        `context` is the random parameter of each image's corruption, for methods that draw one. Of
        a flow map it is x~ (`sfumato.estimation.flow_map`).
        """
        shaped("x", x, self.shape)
        labels = self.labels(classes, len(x))
        if (self.recipe.context is None) != (context is None):
            asked = "takes no" if context is not None else "needs a"
            raise Refused(f"this model {asked} context.")
        self.denoiser.eval()
        return self._under(context)(x, t, **self.conditions(len(x), labels, context)).mean

    @torch.no_grad()
    def score(self, x: Tensor, t: Time, classes: Sequence[int] | None = None) -> Tensor:
        """The estimated gradient of log q_t at x_t (B, *shape): V_t^-1 (C_t x_0^ - x_t)."""
        check_mean(self.recipe, "scores")
        return self.recipe.process.score(x, self.denoise(x, t, classes), t)

    def log_prob(
        self,
        x: Tensor,
        tolerance: float = 1e-4,
        probes: int = 1,
        randn_like: RandnLike = torch.randn_like,
    ) -> Tensor:
        """log p(x) in nats, (B,), of the flow at the last time above 0 of a chain of 1,000 steps.

        For x (B, *shape) in [-1, 1]; see `sfumato.log_prob`.
        """
        x = self.placed(x)
        grid = self.recipe.grid(self.recipe.finest)
        ends = grid[grid > 0][[0, -1]]
        denoiser = self.denoiser.eval()
        prior = self.recipe.prior
        return log_prob(denoiser, prior, x, ends, None, probes, randn_like, tolerance)

    def placed(self, x: Tensor) -> Tensor:
        """`x` for likelihoods: in the backbone's dtype, on its device.

        Raises:
            ValueError: a conditional model, or one whose corruption is drawn for each image.
        """
        check_mean(self.recipe, "likelihoods")
        self.codec.check_pixels("a likelihood")
        if self.recipe.context is not None or self.config.conditional:
            raise Refused(
                "likelihoods need a model without classes or corruptions drawn for each image."
            )
        shaped("x", x, self.shape)
        return sent(x, self.place())

    def place(self) -> Tensor:
        """A tensor with the dtype and device of the backbone."""
        return next(iter(self.denoiser.backbone.parameters()), torch.zeros(()))

    def _begin(self, randn_like: Seeds, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x_1, and the context of each signal, for methods that draw one."""
        like = self.place().new_empty(len(randn_like), *self.shape)
        drawn = self.recipe.context
        x = self.recipe.prior.sample(like, randn_like, labels).detach()
        return x, None if drawn is None else drawn.draw(x, randn_like)

    def _under(self, context: Tensor | None) -> NetworkDenoiser:
        """The denoiser of signals with this context, for methods that draw one."""
        drawn = self.recipe.context
        if drawn is None or context is None:
            return self.denoiser
        return self.denoiser.with_process(drawn.process(context))

    def conditions(
        self,
        count: int,
        labels: Tensor | None,
        context: Tensor | None = None,
        steps: int | None = None,
        weight: float = 0.0,
    ) -> dict[str, Tensor]:
        """The inputs of the network beside x and t, on its device, for `count` signals.

        `steps` of the sampler and the `weight` of guidance are for flow maps that receive them.
        """
        device = self.place().device
        numbers = None
        if (flow := self.recipe.flow_map) is not None:
            numbers = flow.told(count, flow.size_of(steps) if steps else 0.0, weight)
        classes = labels if self.config.conditional else None
        told = conditions(classes, context, numbers, self.shape)
        return {name: value.to(device) for name, value in told.items()}

    def labels(
        self, classes: Sequence[int] | None, count: int, guidance: Guidance | None = None
    ) -> Tensor | None:
        """The classes of `count` signals, (count,); ValueError where they do not fit the model."""
        return labels(self.config, classes, count, guidance)

    def save_pretrained(self, path: str | Path, raw: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder: `config.json`, `model.safetensors`, `facts.safetensors`, all or nothing.

        A model of latents has `codec.safetensors` too, the weights and statistics of its codec.

        Args:
            path: a folder that does not exist yet.
            raw: weights without averaging, kept as `raw.safetensors`.
        """
        with files.folder(files.new(path)) as part:
            self.write(part, self.trainable.state_dict(), raw)

    def save_diffusers(self, path: str | Path) -> None:
        """Write a pipeline of diffusers to a new folder, all or nothing: docs/diffusers.md.

        Raises:
            ValueError: the folder exists, or the model cannot be exported; the sentence says why.
        """
        from sfumato.bridge import write  # imports pipelines, which nothing else needs

        with files.folder(files.new(path)) as part:
            write.write(self, part)

    def write(
        self, part: Path, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None = None
    ) -> None:
        """Fill the folder `part` with this model's files."""
        (part / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        files.write_tensors(self.stats.tensors(), part / "facts.safetensors")
        if held := self.codec.tensors():
            files.write_tensors(held, part / "codec.safetensors")
        files.write_tensors(files.plain(weights), part / "model.safetensors")
        if raw is not None:
            files.write_tensors(files.plain(raw), part / "raw.safetensors")

    push_to_hub = publishing.push
