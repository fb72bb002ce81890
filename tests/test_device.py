"""Laws of another device: no step waits for it, and no step copies what does not change.

The `meta` device, which has no numbers at all, stands in for an accelerator: whatever reads a value
raises there by itself, and every copy from the CPU is counted.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.algebra import Diagonal, dct, hartley
from sfumato.algebra.place import home
from sfumato.config import Config
from sfumato.corruption.boundary import time
from sfumato.corruption.learned import Monotone
from sfumato.methods import METHODS
from sfumato.model import Model
from sfumato.sampling.sample import prepare
from sfumato.sampling.samplers import Sampler
from sfumato.training import draws
from sfumato.training.data import Data, load
from sfumato.training.denoising import draw, objective
from sfumato.training.options import TrainOptions
from sfumato.training.step import gradients

META = torch.device("meta")
BATCH = 8
OPTIONS = TrainOptions(batch=BATCH, images=64)

LARGE = 1
"""Copies of a step that are larger than a scalar: the batch of bytes."""
SCALARS = 0
"""Numbers copied one by one in a step."""

CASES = {
    **{name: (name, {}) for name in METHODS},
    "soft-mask --wander": ("soft-mask", {"wander": True}),
    "ni-ddpm --noise data": ("ni-ddpm", {"noise": "data"}),
    "ni-ddpm --prediction score": ("ni-ddpm", {"prediction": "score"}),
    "soft --noise power": ("soft", {"noise": "power"}),
    "soft --prediction spectrum": ("soft", {"prediction": "spectrum"}),
    "vdm --bands 4": ("vdm", {"bands": 4}),
    "ve --weight likelihood": ("ve", {"weight": "likelihood"}),
}
SMALL = {
    "ihdm": {"count": 3},
    "vdm": {"bins": 17, "hidden": 4},
    "ncsn": {"count": 3, "inner": 2},
    "ncsnv2": {"count": 3, "inner": 2},
    "ni-smld": {"count": 3, "inner": 2},
    "edm": {"steps": 3},
}
OTHERS = (
    *("heun", "unipc", "ancestral", "euler-maruyama", "momentum", "langevin", "churn"),
    "euler-langevin",
)


class Scale(nn.Module):
    """A backbone of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, label: Tensor, **cond: Tensor) -> Tensor:
        return self.weight * x


class Copies(TorchDispatchMode):
    """Counts what comes to the meta device from the CPU, by its number of values."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            if source.device.type == "cpu" and out.device.type == "meta":
                self.sizes.append(source.numel())
        elif any(x.device.type == "cpu" and x.ndim for x in tensors(args)) and any(
            x.device.type == "meta" for x in tensors(args)
        ):
            raise AssertionError(f"{func} mixes devices")
        return out

    @property
    def large(self) -> int:
        return sum(size > 1 for size in self.sizes)

    @property
    def scalars(self) -> int:
        return sum(size == 1 for size in self.sizes)


def tensors(args: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]


def built(case: str) -> tuple[Model, Data]:
    """The model of a case, with a network of one parameter, on the meta device."""
    method, parameters = CASES[case]
    data = load("digits")
    config = Config(method, data.record, parameters={**SMALL.get(method, {}), **parameters})
    return Model(config, data.stats(), backbone=Scale()).to(META), data


@pytest.fixture
def unseeded(monkeypatch) -> None:
    """The meta device has no streams of random numbers; `randn` there needs none."""
    stream = draws.stream

    def streams(device: torch.device, *parts: object) -> torch.Generator | None:
        return None if device == META else stream(device, *parts)

    monkeypatch.setattr(draws, "stream", streams)


# What `gradients` asks of Accelerate, in one process on the meta device.
ALONE = SimpleNamespace(
    device=META,
    process_index=0,
    num_processes=1,
    backward=lambda value: value.backward(),
    reduce=lambda value, how: value,
    no_sync=lambda module: nullcontext(),
)


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_neither_waits_nor_copies(case, unseeded):
    """What comes from the CPU at a step is the batch of bytes alone."""
    model, data = built(case)
    trained = objective(model)

    def step(number: int) -> None:
        drawn = draw(number, data, OPTIONS, model, META)
        value, good = gradients(number, drawn, ALONE, trained, data, OPTIONS, data.raw(drawn.rows))
        assert value.device == good.device == META

    step(0)  # what is made once is made here
    with Copies() as copies:
        step(1)
    print(f"{case}: {copies.large} copies and {copies.scalars} scalars a step")
    assert (copies.large, copies.scalars) == (LARGE, SCALARS)
    assert all(parameter.grad.device == META for parameter in model.trainable.parameters())


LOOPS = [
    *((case, None) for case in CASES),
    *((case, kernel) for kernel in OTHERS for case in ("soft", "ddpm", "ni-ddpm", "vdm --bands 4")),
    *((case, "unipc:order=3") for case in ("ddpm", "blurring")),
]
ONCE = 16
"""Copies that preparing a loop makes, times and constants, however many steps it has."""


def sampled(model: Model, kernel: str | None, steps: int) -> Copies:
    """What a loop of `steps` copies, with its preparation."""
    denoiser, x = model.denoiser.eval(), torch.empty(3, *model.shape, device=META)
    cond = {}
    if model.recipe.context is not None:
        cond = {"context": model.recipe.context.draw(x, torch.randn_like)}
        denoiser = denoiser.with_process(model.recipe.context.process(cond["context"]))
    how, _ = model.chosen(Sampler(kernel)).whole
    with torch.no_grad(), Copies() as copies:
        run = prepare(how, denoiser, x, model.recipe.grid(steps))
        assert run(x, cond=cond).device == META
    with torch.no_grad(), Copies() as again:
        run(x, cond=cond)
    assert not again.sizes, "a loop copies what was prepared"
    return copies


@pytest.mark.parametrize(("case", "kernel"), LOOPS)
def test_a_sampling_loop_neither_waits_nor_copies(case, kernel):
    """What comes from the CPU is what preparing the loop needs, as much for twice the steps."""
    counts = []
    for steps in (4, 8):
        model, _ = built(case)
        few = sampled(model, kernel, model.recipe.sampler.steps if model.recipe.fixed else steps)
        counts.append((few.large, few.scalars))
    print(f"{case} by {kernel or 'its own'}: {counts[0][0]} copies, {counts[0][1]} scalars a loop")
    assert sum(counts[1]) <= sum(counts[0]) <= ONCE


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", ["soft", "soft-mask --wander"])
def test_processes_draw_what_one_does(case, processes):
    """1, 2 and 4 processes have the same rows, times, noise and masks, whatever parts they cut."""
    method, parameters = CASES[case]
    data = load("digits")
    model = Model(Config(method, data.record, parameters=parameters), backbone=Scale())
    options = TrainOptions(batch=200, images=2000)  # 7 parts, which no process starts or ends with
    whole = draw(3, data, options, model)
    shares = [draw(3, data, options, model, home("cpu"), k, processes) for k in range(processes)]
    for one, parts in zip(whole, zip(*shares, strict=True), strict=True):
        if one is not None:
            assert torch.equal(one, torch.cat(parts))
    assert not torch.equal(whole.eps, draw(4, data, options, model).eps)
    assert whole.eps.flatten(1).unique(dim=0).shape[0] == 200


@pytest.mark.parametrize("move", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m])
def test_a_process_stays_in_float64(move):
    """A model cast to another dtype keeps the algebra, and gives the same operators to the bit."""
    data = load("digits")
    model = Model(
        Config("vdm", data.record, parameters={"hidden": 4, "bins": 17}), backbone=Scale()
    )
    t = torch.tensor(0.3).double()
    before = model.recipe.process.noise.at(t).log_gain
    move(model.denoiser)
    assert all(p.dtype == torch.float64 for p in model.recipe.process.parameters())
    assert torch.equal(model.recipe.process.noise.at(t).log_gain, before)


def test_a_model_moves_with_its_process():
    model, _ = built("vdm --bands 4")
    assert all(p.device == META for p in model.denoiser.parameters())
    assert not any("." not in name for name in model.denoiser.state_dict() if "backbone" in name)


def test_mps_keeps_its_algebra_on_the_cpu():
    """The one place that knows of a device without float64."""
    assert home("mps") == torch.device("cpu")
    assert [home(name).type for name in ("cpu", "cuda", "meta")] == ["cpu", "cuda", "meta"]


def test_a_time_lives_where_its_signals_do():
    x = torch.empty(2, 1, 4, 4, device=META)
    for t in (0.3, torch.tensor(0.3), torch.full((2, 1, 1, 1), 0.3)):
        with Copies() as copies:
            found = time(t, x)
        assert found.device == META and found.dtype == torch.float64
        assert copies.large == (0 if isinstance(t, float) or not t.ndim else 1)


@pytest.mark.parametrize("basis", [dct(4, 4), hartley(4, 4)])
def test_an_operator_of_the_cpu_joins_one_elsewhere(basis):
    """A constant is copied once, in products, sums and ratios; the same object serves again."""
    constant = Diagonal(torch.zeros(4, 4).double(), None, basis)
    moving = Diagonal(torch.empty(2, 1, 1, 1, device=META))
    for combine in (lambda a, b: a @ b, lambda a, b: b @ a, lambda a, b: a + b, lambda a, b: b - a):
        assert combine(constant, moving).log_gain.device == META
    with Copies() as copies:
        assert (constant @ moving).device == META
    assert not copies.sizes


def test_a_learned_level_answers_where_its_parameters_are():
    path = Monotone(0.0, 1.0, 4).to(META)
    assert path(torch.tensor(0.2).double()).device == META


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_the_cpu():
    """At a small size, in seconds: each method's step and its samples over bare ones."""
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--device", "cpu", "--small", "--seconds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    for name in ("ddpm", "soft", "ni-ddpm"):
        assert f"training step, {name}," in done.stdout
        assert f"sampling 2 steps, {name}," in done.stdout
