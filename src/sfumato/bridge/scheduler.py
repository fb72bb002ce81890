r"""Any process of ours as a scheduler of diffusers: soft, masked, coloured, of any sampler.

What passes between scheduler and network is the network's input z_t = in_t x_t, and a timestep is
1000 label - 1, so that the levels k / 1000 of a chain are the steps k - 1. For most methods in_t is
the identity and the label is t.

Pipelines start from white noise. x_1 is not that for most processes, so that the first timestep
turns the noise into z_1, and what the network returns there is not used.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, final

import safetensors.torch
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from sfumato.algebra.operators import Operator
from sfumato.config import Config, composed
from sfumato.corruption.statistics import DataStatistics, default_statistics
from sfumato.errors import Refused
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.methods import grids
from sfumato.networks.backbones import LABEL_SCALE
from sfumato.sampling.sample import sample as run
from sfumato.sampling.samplers import Sampler

HALVINGS = 60
"""Of the interval in which the time of a label is sought."""
NEAR = 0.01
"""Timesteps nearer than this are the same."""

Generators = torch.Generator | Sequence[torch.Generator] | None


@final
class SfumatoScheduler(SchedulerMixin, ConfigMixin):
    """A sampler of any process.

    Args:
        model: the config of a model, as its `config.json` holds it.
        statistics: of the data, a safetensors file in base64; by default typical ones.
        sampler: kernel, steps and grid, as a config holds them; the kernel calls the network once a
            step and keeps nothing between steps.
        num_train_timesteps: timesteps of training are 0 to this, less 1.

    Raises:
        ValueError: the config is none, or names a method that is not the library's.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        model: Mapping[str, Any],
        statistics: str | None = None,
        sampler: Mapping[str, Any] | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        config = Config.from_dict(model)
        self.stats = unpacked(statistics, config.record.shape)
        self.recipe = composed(config, self.stats)
        self.sampler = Sampler.from_dict(sampler or {}).over(config.sampler)
        self.sampler = self.sampler.over(self.recipe.sampler)
        self.init_noise_sigma = 1.0
        self.set_timesteps()

    @classmethod
    def _get_compatibles(cls) -> list[type[SchedulerMixin]]:
        """Itself alone: diffusers looks for classes of its own."""
        return [cls]

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None
    ) -> None:
        """Choose the times of `num_inference_steps` steps; by default as many as the method has."""
        sampler = self.sampler
        if num_inference_steps is not None:
            sampler = sampler.stepping(num_inference_steps)
        self.times = grids.times(sampler, self.recipe, self.stats)
        self.num_inference_steps = len(self.times) - 1
        steps = self._label(self.times[:-1]) * LABEL_SCALE - 1
        start = steps[:1] + 1
        self.timesteps = torch.cat([start, steps]).float().to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """`sample`, which is the network's input already."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step of the sampler, to the next of its times below `timestep`.

        Args:
            model_output: the network's, at `sample` and `timestep`.
            timestep: one of `timesteps`, or any other.
            sample: (B, C, H, W).
            generator: of the noise.
            return_dict: whether the result has a field `prev_sample`, or is a tuple.
        """

        def draw(like: Tensor) -> Tensor:
            chosen = generator if isinstance(generator, torch.Generator | None) else [*generator]
            return randn_tensor(like.shape, chosen, like.device, like.dtype)

        t, s = self._between(float(timestep))
        if t is None:
            found = self._start(sample, draw)
        else:
            process, means = self.recipe.process, self.recipe.parametrization
            denoiser = NetworkDenoiser(process, means, _Given(model_output), self.stats)
            x = self._input(t).inv()(sample)
            found = run(self.sampler.whole[0], denoiser, x, torch.stack([t, s]), draw)
        found = found if float(s) == 0.0 else self._input(s)(found)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t, the network's input in training: of x_0 (B, C, H, W), white noise and steps (B,)."""
        shape = (-1, *(1 for _ in original_samples.shape[1:]))
        t = self._time(timesteps.cpu().double()).reshape(shape)
        x = self.recipe.process.corrupt(original_samples, t, noise.to(original_samples))
        return self._input(t)(x)

    def _start(self, white: Tensor, draw: Any) -> Tensor:  # noqa: ANN401 - RandnLike
        """x_1 of the prior, whose first draw is `white`."""
        given = [white]
        return self.recipe.prior.sample(white, lambda x: given.pop() if given else draw(x))

    def _between(self, timestep: float) -> tuple[Tensor | None, Tensor]:
        """(t, s) of a step; t is None at the first timestep, which leads to the first time."""
        near = (self.timesteps.cpu() - timestep).abs()
        index = int(near.argmin())
        if float(near[index]) > NEAR:
            t = self._time(torch.tensor(timestep, dtype=torch.float64))
            below = self.times[self.times < t]
            return t, below[0] if len(below) else torch.zeros_like(t)
        return (self.times[index - 1] if index else None), self.times[index]

    def _input(self, t: Tensor) -> Operator:
        return self.recipe.parametrization(self.recipe.process, t).inp

    def _label(self, t: Tensor) -> Tensor:
        """The labels of times (n,)."""
        each = t.reshape(-1, *(1 for _ in self.stats.mean.shape))
        label = self.recipe.parametrization(self.recipe.process, each).label
        return label.detach().reshape(-1).expand(len(t))

    def _time(self, timestep: Tensor) -> Tensor:
        """The times of timesteps, by bisection: the label is monotone in time."""
        wanted = ((timestep + 1) / LABEL_SCALE).reshape(-1)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        rises = bool(self._label(high[:1]) > self._label(high[:1] / 2))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            beyond = (self._label(middle) >= wanted) == rises
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        return high.reshape(timestep.shape)


class _Given(nn.Module):
    """A network whose output is known."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.output


def packed(stats: DataStatistics) -> str:
    """Statistics as text: a safetensors file in base64."""
    plain = {name: value.contiguous().clone() for name, value in stats.tensors().items()}
    return base64.b64encode(safetensors.torch.save(plain)).decode()


def unpacked(text: str | None, shape: tuple[int, ...]) -> DataStatistics:
    """The statistics that `packed` wrote; typical ones for None."""
    if text is None:
        return default_statistics(shape)
    try:
        found = DataStatistics(**safetensors.torch.load(base64.b64decode(text)))
        if tuple(found.mean.shape) != tuple(shape) or found.spectrum.shape != found.mean.shape:
            raise Refused(f"they are of shape {tuple(found.mean.shape)}")
        return found
    except (ValueError, TypeError, safetensors.SafetensorError) as error:
        raise Refused(f"the scheduler's statistics cannot be read: {error}.") from error
