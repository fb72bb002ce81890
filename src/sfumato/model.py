"""A model is what training leaves and every command uses: recipe, facts, denoiser, record."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from sfumato import files
from sfumato.config import Config as Config
from sfumato.corruption.boundary import Time, shaped
from sfumato.corruption.facts import Facts, typical
from sfumato.corruption.prior import RandnLike
from sfumato.estimation import limit
from sfumato.estimation.denoise import Denoiser
from sfumato.methods import grids, lookup
from sfumato.methods.lookup import Method
from sfumato.methods.recipe import Recipe, reclocked
from sfumato.networks.ranks import network
from sfumato.sampling.density import log_prob
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import (
    Prepared,
    Seeds,
    check_converged,
    network_calls,
    numbers_of,
    prepare,
)


class Model:
    """A method fitted to data (final).

    Args:
        config: what the model is.
        facts: what was measured of the data; typical ones where nothing was.
        backbone: any module f(x, label, **cond); by default the U-Net of `config.network`.
        build: the method, where `config.method` is the user's own.
    """

    def __init__(
        self,
        config: Config,
        facts: Facts | None = None,
        backbone: nn.Module | None = None,
        build: Method | None = None,
    ) -> None:
        if build is None:
            if config.own:
                raise ValueError(
                    f"this model's method is {config.method}, code in a file, which no checkpoint "
                    "may run by itself. If you trust that file, name it: --method FILE.py:NAME, or "
                    "build=... in Python."
                )
            build = lookup.known(config.method)
        self.config, self.build = config, build
        self.facts = facts or typical(self.shape)
        try:
            recipe = build(self.shape, self.facts, **config.parameters)
        except (TypeError, IndexError, KeyError) as error:
            raise ValueError(f"method {config.method}: {error}.") from error
        self.recipe: Recipe = recipe if config.clock is None else reclocked(recipe, config.clock)
        if backbone is None:
            if config.network is None:
                raise ValueError(
                    "this model's backbone is a module of yours. Pass it as `backbone`."
                )
            classes = len(config.record.classes or ()) if config.conditional else None
            context = self.recipe.context.channels if self.recipe.context else 0
            backbone = network(self.shape, config.network, classes, context, self.recipe.fourier)
        # Faster for convolutions on nearly every device; other modules do not notice.
        convert_conv2d_weight_memory_format(backbone, torch.channels_last)
        process, means = self.recipe.process, self.recipe.parametrization
        self.denoiser = Denoiser(process, means, backbone, facts=self.facts)
        self._loops: dict[str, tuple[object, Prepared]] = {}

    def __reduce__(self) -> tuple[type[Model], tuple[object, ...], dict[str, Tensor]]:
        """For copies and other processes: a recipe is made of closures, its method travels."""
        given = self.config, self.facts, self.denoiser.backbone, self.build
        return Model, given, self.recipe.process.state_dict()

    def __setstate__(self, process: Mapping[str, Tensor]) -> None:
        self.recipe.process.load_state_dict(process)

    @property
    def learned(self) -> nn.Module:
        """All that training changes: the backbone, and with it the process where it learns too."""
        fixed = next(iter(self.recipe.process.parameters()), None) is None
        return self.denoiser.backbone if fixed else self.denoiser

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one signal."""
        return self.config.record.shape

    @property
    def steps(self) -> int:
        """Steps of the sampler where nobody says otherwise."""
        return self.config.steps or self.recipe.steps

    def few(self, most: int) -> int:
        """Steps for a quick look: at most `most`, but where the method takes one number only."""
        return self.recipe.steps if self.recipe.fixed else min(self.steps, most)

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The sampler where nobody says otherwise."""
        return lookup.kernel(self.config.kernel) if self.config.kernel else self.recipe.kernel

    @property
    def kernel_name(self) -> str:
        """What to call `kernel`."""
        return self.config.kernel or f"the kernel of {self.config.method}"

    def to(self, device: torch.device | str) -> Model:
        """Move the backbone to `device`, in place; the algebra stays where time is, on the CPU."""
        self.denoiser.backbone.to(device)
        return self

    def sample(
        self,
        seeds: Sequence[int],
        steps: int | None = None,
        kernel: Kernel | str | None = None,
        classes: Sequence[int] | None = None,
        batch: int = 64,
        callback: Callable[[int, Tensor], None] | None = None,
        *,
        start: int | None = None,
        grid: str | Tensor | None = None,
        clip: bool = False,
    ) -> Tensor:
        """Draw one signal for each seed; seed i gives signal i at any `batch`.

        Args:
            seeds: integers >= 0, such as range(4).
            steps: of the sampler, one network call each for most kernels; `self.steps` by default.
            kernel: `self.kernel` by default; a kernel, or its name as the command line spells it.
            classes: one class for each seed, for a conditional model.
            batch: signals in memory at once.
            callback: (steps done in this batch, x) after each step.
            start: a seed whose x_1 all signals of a class start from; later draws differ.
            grid: falling times, or how to choose them: own (the method's), uniform, quadratic,
                karras; auto: the least error predicted of Gaussian data; or on the levels of a
                chain leading, trailing, linspace.
            clip: clip every estimate of x_0 to [-1, 1], as official code of DDPM does.

        Returns:
            (len(seeds), *shape) in about [-1, 1], float32, on the CPU. Where signals diverged, a
            warning says how many.

        Raises:
            ValueError: what was asked cannot be; or signals are not finite, with the reason.
        """
        seeds = numbers_of(seeds)
        if not seeds:
            raise ValueError("sampling needs one seed or more; got none.")
        if batch < 1:
            raise ValueError(f"batch must be 1 or more; got {batch}.")
        given = self.kernel_name if kernel is None else kernel
        kernel = lookup.kernel(kernel) if isinstance(kernel, str) else kernel or self.kernel
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"kernel must be a Kernel or a name such as 'ddim:eta=0.5'; got {kernel!r}. "
                "A coupling becomes one by sf.reverse(coupling)."
            )
        times = grid if isinstance(grid, Tensor) else self.grid(grid, steps, kernel)
        labels = self._labels(classes, len(seeds))
        device = self._place().device
        whole, done = limit.limited(self.denoiser, limit.clip) if clip else self.denoiser, []
        if whole.training or whole.backbone.training:  # `eval` asks every module of the network
            whole.eval()
        # Taken out while it is used: a long grid's operators are made on the way.
        ready = self._loops.pop("last", None)
        for first in range(0, len(seeds), batch):
            chosen = seeds[first : first + batch]
            randn_like = Seeds(chosen)
            some = None if labels is None else labels[first : first + batch]
            x, context = self._begin(randn_like, some)
            if start is not None:
                x, context = self._begin(Seeds([start] * len(chosen)), some)
            denoiser = whole
            if some is not None:
                denoiser = denoiser.given(classes=some.to(device))
            if self.recipe.context is not None and context is not None:
                denoiser = self.recipe.context.bind(denoiser, context)
            like = kernel, x.shape, x.dtype, x.device, tuple(times.tolist()), denoiser
            if ready is None or ready[0] != like:
                ready = like, prepare(kernel, denoiser, x, times)
            run = ready[1]
            done.append(run(x, randn_like, callback).float().cpu())
        if ready and self.learned is self.denoiser.backbone:  # else the process may learn meanwhile
            self._loops["last"] = ready
        images = torch.cat(done)
        name = given if isinstance(given, str) else kernel.name
        check_converged(images, name, len(times) - 1, self.learned)
        return images

    def grid(
        self, name: str | None = None, steps: int | None = None, kernel: Kernel | None = None
    ) -> Tensor:
        """The falling times of a grid's name, (steps + 1,), float64; see `sample`.

        Raises:
            ValueError: no such grid, or one that this method or kernel cannot have.
        """
        wanted = self.steps if steps is None else steps
        return grids.grid(name or "own", self.recipe, self.facts, kernel or self.kernel, wanted)

    def network_calls(self, steps: int | None = None, kernel: Kernel | None = None) -> int:
        """How often sampling asks the network of one signal; it is not asked to find out.

        Raises:
            ValueError: this kernel cannot sample this model, whatever the network says.
        """
        recipe = self.recipe
        grid = recipe.grid(steps or self.steps)
        means = recipe.parametrization
        return network_calls(kernel or self.kernel, recipe.process, means, self.shape, grid)

    def start(self, seeds: Sequence[int], classes: Sequence[int] | None = None) -> Tensor:
        """x_1 for each seed, where `sample` starts; (len(seeds), *shape), float32, on the CPU."""
        drawn = Seeds(seeds)
        return self._begin(drawn, self._labels(classes, len(drawn)))[0].float().cpu()

    @torch.no_grad()
    def denoise(
        self,
        x: Tensor,
        t: Time,
        classes: Sequence[int] | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """The estimate of x_0 from x_t (B, *shape) at t, () or (B, 1, ..., 1) in (0, 1].

        `context` is how each image was corrupted, where the method draws that.
        """
        shaped("x", x, self.shape)
        labels = self._labels(classes, len(x))
        denoiser = self.denoiser.eval()
        if labels is not None:
            denoiser = denoiser.given(classes=labels.to(x.device))
        drawn = self.recipe.context
        if (drawn is None) != (context is None):
            raise ValueError(
                "this model takes no context." if drawn is None else "this model needs a context."
            )
        if drawn is not None and context is not None:
            denoiser = drawn.bind(denoiser, context)
        return denoiser(x, t).mean

    @torch.no_grad()
    def score(self, x: Tensor, t: Time, classes: Sequence[int] | None = None) -> Tensor:
        """The estimated gradient of log q_t at x_t (B, *shape): V_t^-1 (C_t x_0^ - x_t)."""
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
        grid = self.recipe.grid(self.recipe.finest)
        ends, x = grid[grid > 0][[0, -1]], self.placed(x)
        denoiser, prior = self.denoiser.eval(), self.recipe.prior
        return log_prob(denoiser, prior, x, ends, None, probes, randn_like, tolerance)

    def placed(self, x: Tensor) -> Tensor:
        """`x` as likelihoods take it: of the backbone's dtype, on its device.

        Raises:
            ValueError: a model of classes, or of corruptions drawn for each image.
        """
        if self.recipe.context is not None or self.config.conditional:
            raise ValueError(
                "likelihoods are of models without classes or corruptions drawn for each image."
            )
        shaped("x", x, self.shape)
        return x.to(self._place().dtype).to(self._place().device)

    def _place(self) -> Tensor:
        """A tensor with the dtype and device of the backbone."""
        return next(iter(self.denoiser.backbone.parameters()), torch.zeros(()))

    def _begin(self, randn_like: Seeds, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x_1, and how each signal was corrupted where the method draws that."""
        like, drawn = self._place().new_empty(len(randn_like), *self.shape), self.recipe.context
        x = self.recipe.prior.sample(like, randn_like, labels).detach()
        return x, None if drawn is None else drawn.draw(x, randn_like)

    def _labels(self, classes: Sequence[int] | None, count: int) -> Tensor | None:
        if classes is None:
            if self.config.conditional:
                raise ValueError("this model was trained on classes; name one for each image.")
            return None
        known = len(self.config.record.classes or ())
        if not self.config.conditional:
            raise ValueError("this model knows no classes; train with --conditional to sample one.")
        if len(classes) != count or not all(0 <= c < known for c in classes):
            raise ValueError(f"classes must be {count} numbers from 0 to {known - 1}.")
        return torch.tensor(list(classes))

    def save_pretrained(self, path: str | Path, raw: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder: `config.json`, `model.safetensors`, `facts.safetensors`, all or nothing.

        Args:
            path: a folder that does not exist yet.
            raw: weights without averaging, kept as `raw.safetensors`.
        """
        if Path(path).exists():
            raise ValueError(f"{path} exists; a model is written to a new folder.")
        with files.folder(path) as part:
            self.write(part, self.learned.state_dict(), raw)

    def write(
        self, part: Path, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None = None
    ) -> None:
        """Fill the folder `part` with this model's files."""
        (part / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        files.write_tensors(self.facts.tensors(), part / "facts.safetensors")
        files.write_tensors(files.plain(weights), part / "model.safetensors")
        if raw is not None:
            files.write_tensors(files.plain(raw), part / "raw.safetensors")
