r"""Laws of flow maps: what a network is trained towards, against closed forms of this file.

For Gaussian data with variances S in the basis of the process, M_t = c_t^2 S + v_t:

    one step of ddim multiplies a deviation by   kappa + (c_s - kappa c_t) S c_t / M_t
    the flow itself multiplies it by             (M_s / M_t)^1/2

with kappa = sigma_s / sigma_t, for each coefficient.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cases import (
    GENERAL,
    PROCESSES,
    SHAPE,
    Toy,
    amount,
    basis_of,
    diagonal_cov,
    matrix,
    normal,
    spd,
    time,
)
from sfumato import files
from sfumato.algebra import Basis, Dense, Diagonal, identity, pixel
from sfumato.algebra.combine import apply
from sfumato.config import Config, Origin
from sfumato.corruption.coupling import ddim, naive
from sfumato.corruption.families import Fade, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Linear
from sfumato.editing import encode
from sfumato.errors import Refused
from sfumato.estimation.contrast import Contrasted
from sfumato.estimation.denoise import Denoiser, NetworkDenoiser
from sfumato.estimation.flow_map import COARSE, FLOOR, flow_map, target
from sfumato.estimation.oracle import Mixture, gaussian
from sfumato.estimation.predictions import x0
from sfumato.guidance import Guidance
from sfumato.methods import METHODS
from sfumato.methods.flow_maps import FlowMap
from sfumato.methods.recipe import Context, Recipe
from sfumato.model import Model
from sfumato.networks.backbones import UNetOptions
from sfumato.networks.ranks import network, widened
from sfumato.record import Record
from sfumato.restoration import restore, uncorrupt
from sfumato.sampling.kernels import reverse
from sfumato.sampling.sample import sample
from sfumato.sampling.samplers import Sampler
from sfumato.store import from_pretrained
from sfumato.training.data import load
from sfumato.training.denoising import draw
from sfumato.training.targets import Batch, Targets, Told
from sfumato.training.train import TrainOptions, build, train

DDIM = reverse(ddim())
MEAN = 0.3 * normal(*SHAPE, seed=1)

METHOD = ("soft", "ddpm", "blurring", "edm", "vp", "ni-ddpm", "soft-mask", "ihdm", "soft-down")
FADING = Process(
    Fade(Linear(0.0, 1.6), torch.linspace(0, 1, 20).reshape(4, 5), pixel(4, 5), 0.4),
    Scale(Linear(0.05, 0.5)),
)
"""Its C_t is exactly 0 at some coefficients, at more and more of them."""
EACH: dict[str, Process] = {
    **{name: METHODS[name](SHAPE).process for name in METHOD},
    "haar": PROCESSES["haar"],
    "fading": FADING,
}
DATA = ("gaussian", "mixture")


def exact(process: Process, data: str) -> Denoiser:
    """The exact denoiser of a Gaussian, or of a mixture of three of them."""
    cov = diagonal_cov(basis_of(process))
    if data == "gaussian":
        return NetworkDenoiser(process, x0, gaussian(process, MEAN, cov))
    covs = [Diagonal(cov.log_gain + shift, None, cov.basis) for shift in (-1.0, -2.0, -1.5)]
    return NetworkDenoiser(process, x0, Mixture(process, normal(3, *SHAPE, seed=2), covs))


def gains(process: Process, *times: float) -> tuple[list[Tensor], list[Tensor]]:
    """c_t and sigma_t of each coefficient at each time."""
    of = (process.signal, process.noise)
    clean, level = ([family.at(time(t)).gain.expand(SHAPE) for t in times] for family in of)
    return clean, level


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def start(process: Process, t: float, rows: int = 3) -> Tensor:
    """Some x_t."""
    return process.corrupt(
        0.5 * normal(rows, *SHAPE, seed=3), time(t), normal(rows, *SHAPE, seed=4)
    )


# One map from two steps.


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", EACH)
def test_two_steps_are_one_of_the_weighted_estimate(name, data):
    """x~ = A a + (I - A) b with A in [0, 1]; one step with it is the two of the teacher."""
    process = EACH[name]
    denoiser, basis, dead = exact(process, data), basis_of(process), 0
    for t, m, s in ((0.75, 0.7, 0.6), (0.3, 0.2, 0.1), (1.0, 0.5, 0.05)):
        x = start(process, t)
        (c_t, c_m, c_s), (e_t, e_m, e_s) = gains(process, t, m, s)
        mid, end = (sample(DDIM, denoiser, x, times(t, *to)) for to in ([m], [m, s]))
        a, b = denoiser(x, time(t)).mean, denoiser(mid, time(m)).mean
        found = basis.analyze(target(process, time(t), time(s))(x, end, a))
        p, q = e_s / e_m * (c_m - e_m / e_t * c_t), c_s - e_s / e_m * c_m
        known = p + q > 1e-5  # below, x~ is lost to rounding of x_s, which hardly depends on it
        share = (p / (p + q))[known]
        assert bool((share >= 0).all()) and bool((share <= 1).all())
        u, v = (basis.analyze(y)[:, known] for y in (a, b))
        torch.testing.assert_close(found[:, known], v + share * (u - v), rtol=1e-8, atol=1e-8)
        step = e_s / e_t * basis.analyze(x) + (p + q) * found
        torch.testing.assert_close(step, basis.analyze(end), rtol=1e-9, atol=1e-9)
        gone = c_s == 0
        torch.testing.assert_close(found[:, gone], basis.analyze(a)[:, gone])
        dead += int(gone.sum())
    assert bool(dead) == (name == "fading")


def test_two_steps_of_operators_that_do_not_commute():
    """P x~ = p a + q b, so that A = (p + q)^-1 p: the order of the factors matters."""
    process, shape = GENERAL["matrices"].process, (6,)
    denoiser = NetworkDenoiser(process, x0, gaussian(process, normal(6), Dense(spd(6), shape)))
    t, m, s = times(0.9, 0.5, 0.2)
    x = 2 * normal(4, 6, seed=3)
    mid, end = (sample(DDIM, denoiser, x, torch.stack([t, *to])) for to in ([m], [m, s]))
    a, b = denoiser(x, t).mean, denoiser(mid, m).mean
    (c_t, c_m, c_s), (e_t, e_m, e_s) = (
        [matrix(family.at(one), shape) for one in (t, m, s)]
        for family in (process.signal, process.noise)
    )
    back = e_s @ torch.linalg.inv(e_m)
    p, q = back @ (c_m - e_m @ torch.linalg.inv(e_t) @ c_t), c_s - back @ c_m
    share = torch.linalg.inv(p + q) @ p
    expected = b + (a - b) @ share.T
    torch.testing.assert_close(target(process, t, s)(x, end, a), expected, rtol=1e-8, atol=1e-8)
    other = p @ torch.linalg.inv(p + q)
    assert float((other - share).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["ddpm", "vp", "edm", "fading-to-0"])
def test_to_the_clean_end_the_first_estimate_has_no_share(name):
    """A = 0 at s = 0, where there is no noise: x~ is the estimate at m, the end of the path."""
    clean = Process(FADING.signal, Scale(Linear(0.0, 0.5)))
    process = EACH.get(name, clean)
    denoiser, x = exact(process, "mixture"), start(process, 0.4)
    mid, end = (sample(DDIM, denoiser, x, times(0.4, *to)) for to in ([0.2], [0.2, 0.0]))
    found = target(process, time(0.4), time(0.0))(x, end, denoiser(x, time(0.4)).mean)
    torch.testing.assert_close(found, end, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, denoiser(mid, time(0.2)).mean, rtol=1e-9, atol=1e-9)


def test_in_single_precision_no_coefficient_is_lost_to_rounding():
    """With the floor for float32, x~ is that of float64 to 1e-2 or x_0^, and its step the path."""
    process, (t, m, s) = EACH["soft"], times(1.0, 0.97, 0.94)
    denoiser, basis, x = exact(process, "mixture"), basis_of(process), start(process, 1.0)
    end, near = sample(DDIM, denoiser, x, torch.stack([t, m, s])), denoiser(x, t).mean
    floor = FLOOR[torch.float32]
    single = target(process, t, s, floor)(x.float(), end.float(), near.float()).double()
    double = target(process, t, s, floor)(x, end, near)
    assert float((single - double).abs().max()) < 1e-2
    carry, pull = flow_map(process, t, s)
    assert bool((pull.gain < floor).any()) and bool((pull.gain > floor).any())
    dead = (pull.gain < floor).expand(SHAPE)
    torch.testing.assert_close(
        basis.analyze(single)[:, dead], basis.analyze(near)[:, dead], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(apply((carry, x), (pull, single)), end, rtol=0, atol=1e-5)


# Whole students.


class Student(nn.Module):
    """A network whose map over each of `steps` equal steps is two steps of `teacher`."""

    def __init__(self, teacher: Denoiser, steps: int) -> None:
        super().__init__()
        self.teacher, self.steps = teacher, steps

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        i = round(float(label[0]) * self.steps)
        t, m, s = (time(place / self.steps) for place in (i, i - 0.5, i - 1))
        end = sample(DDIM, self.teacher, x, torch.stack([t, m, s]))
        if i == 1:
            return end
        return target(self.teacher.process, t, s)(x, end, self.teacher(x, t).mean)


def generations(teacher: Denoiser) -> dict[int, Denoiser]:
    """The teacher in 16 steps, and students of 8, 4, 2 and 1, each of the one before."""
    found = {16: teacher}
    for steps in (8, 4, 2, 1):
        found[steps] = NetworkDenoiser(teacher.process, x0, Student(found[2 * steps], steps))
    return found


def walked(denoiser: Denoiser, x: Tensor, steps: int) -> Tensor:
    return sample(DDIM, denoiser, x, torch.linspace(1, 0, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("name", ["soft", "edm", "ni-ddpm", "ihdm", "fading"])
def test_four_halvings_keep_the_teacher_s_samples(name):
    """On a mixture: one step of the last student is 16 of the first teacher."""
    teacher = exact(EACH[name], "mixture")
    x = start(teacher.process, 1.0, rows=2)
    expected = walked(teacher, x, 16)
    for steps, student in generations(teacher).items():
        torch.testing.assert_close(walked(student, x, steps), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["soft", "ni-ddpm"])
def test_four_halvings_keep_the_variance_of_gaussian_data(name):
    """Each student's gain g = (B_1 B_2 - kappa) / (c_s - kappa c_t), and the product of all B."""
    process = EACH[name]
    basis = basis_of(process)
    cov = diagonal_cov(basis)
    data = amount(cov)

    def factor(t: float, s: float) -> tuple[Tensor, Tensor, Tensor]:
        """kappa, c_s - kappa c_t and B of one step of ddim of the exact denoiser."""
        (c_t, c_s), (e_t, e_s) = gains(process, t, s)
        estimate = data * c_t / (c_t**2 * data + e_t**2)
        kappa = e_s / e_t
        pull = c_s - kappa * c_t
        return (kappa, pull, kappa + pull * estimate) if s else (0 * kappa, c_s, estimate)

    ones = basis.synthesize(torch.ones(SHAPE, dtype=torch.float64))[None]
    product = torch.ones(SHAPE, dtype=torch.float64)
    for k in range(16):
        product = product * factor((16 - k) / 16, (15 - k) / 16)[2]
    (c_1,), (e_1,) = gains(process, 1.0)
    variance = product**2 * (c_1**2 * data + e_1**2)
    teacher = NetworkDenoiser(process, x0, gaussian(process, torch.zeros(SHAPE), cov))
    for steps, student in generations(teacher).items():
        ratio = basis.analyze(walked(student, ones, steps))[0]
        found = ratio**2 * (c_1**2 * data + e_1**2)
        torch.testing.assert_close(found, variance, rtol=1e-6, atol=1e-9)
        if steps == 8:
            kappa, pull, _ = factor(0.5, 0.375)
            both = factor(0.5, 0.4375)[2] * factor(0.4375, 0.375)[2]
            gain = basis.analyze(student(ones, time(0.5)).mean)[0]
            known = pull > 1e-5
            expected = ((both - kappa) / pull)[known]
            torch.testing.assert_close(gain[known], expected, rtol=1e-6, atol=1e-6)


# What `Targets` make of a batch.

RECORD = Record("own", SHAPE, classes=("a", "b"))


def model_of(
    process: Process, backbone: nn.Module, drawn: Context | None = None, **config: Any
) -> Model:
    """A model of a user's own method, whose network estimates x_0 of `process`."""
    recipe = replace(METHODS["vp"](SHAPE), process=process, parametrization=x0, context=drawn)

    def method(shape: tuple[int, ...], stats: object = None) -> Recipe:
        return recipe

    return Model(Config("own", RECORD, network=None, **config), backbone=backbone, method=method)


def taught(flow: FlowMap, teacher: Model, own: nn.Module | None = None, **config: Any) -> Targets:
    """The targets of a student of `teacher`, whose own network is `own`."""
    weights = files.plain(teacher.trainable.state_dict())
    origin = Origin("teacher", files.digest(dict(sorted(weights.items()))))
    process, own = teacher.recipe.process, own or teacher.denoiser.backbone
    given = {"flow_map": flow, "origin": origin, "drawn": teacher.recipe.context}
    return Targets(model_of(process, own, **given, **config), teacher)


def tilde(targets: Targets, x: Tensor, place: int | list[int], **given: Any) -> Tensor:
    """x~ of x_t; `given` are data, noise and what the network is told, where they matter."""
    denoiser = given.get("denoiser", targets.model.denoiser)
    places = torch.tensor(place).expand(len(x))
    batch = Batch(given.get("x0", x), given.get("eps", x), places, given.get("told", Told()))
    return targets.target(denoiser, batch)(x)


class Flow(NamedTuple):
    """Closed forms of the data N(MEAN, cov), in coefficients about the mean."""

    process: Process
    basis: Basis
    data: Tensor

    def marginal(self, t: float) -> Tensor:
        (c,), (e,) = gains(self.process, t)
        return c**2 * self.data + e**2

    def away(self, x: Tensor, t: float) -> Tensor:
        return self.basis.analyze(x) - gains(self.process, t)[0][0] * self.basis.analyze(MEAN)

    def ratio(self, t: float, s: float) -> Tensor:
        """Of deviations at s and t on the same path."""
        return (self.marginal(s) / self.marginal(t)).sqrt()

    def step(self, t: float, s: float) -> Tensor:
        """The same for one step of ddim."""
        (c_t, c_s), (e_t, e_s) = gains(self.process, t, s)
        kappa = e_s / e_t
        return kappa + (c_s - kappa * c_t) * self.data * c_t / self.marginal(t)

    def pull(self, t: float, s: float) -> Tensor:
        (c_t, c_s), (e_t, e_s) = gains(self.process, t, s)
        return c_s - e_s / e_t * c_t

    def mapped(self, x: Tensor, found: Tensor, t: float, s: float) -> Tensor:
        """The deviation at s of K x + P x~."""
        _, (e_t, e_s) = gains(self.process, t, s)
        y = e_s / e_t * self.basis.analyze(x) + self.pull(t, s) * self.basis.analyze(found)
        return y - gains(self.process, s)[0][0] * self.basis.analyze(MEAN)


def flow_of(process: Process) -> Flow:
    basis = basis_of(process)
    return Flow(process, basis, amount(diagonal_cov(basis)))


def oracle(process: Process) -> Model:
    """A teacher that is the exact denoiser of N(MEAN, cov)."""
    cov = diagonal_cov(basis_of(process))
    return model_of(process, Ordinary(gaussian(process, MEAN, cov)))


class Ordinary(nn.Module):
    """An exact denoiser that may be told more."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor, label: Tensor, context: Tensor | None = None) -> Tensor:
        return self.exact(x, label)


class Known(nn.Module):
    """A network that has learned the exact maps of a consistency model or of shortcuts."""

    def __init__(self, flow: Flow, maps: FlowMap) -> None:
        super().__init__()
        self.flow, self.maps = flow, maps
        self.ordinary = gaussian(flow.process, MEAN, diagonal_cov(flow.basis))
        self.sizes: list[float] = []

    def forward(self, x: Tensor, label: Tensor, context: Tensor | None = None) -> Tensor:
        known = self.maps.times
        i, last = min(range(len(known)), key=lambda k: abs(known[k] - float(label[0]))), -1
        if context is not None:
            assert bool((context == context[0, 0, 0, 0]).all())
            self.sizes.append(float(context[0, 0, 0, 0]))
            if self.sizes[-1] == 0:
                return self.ordinary(x, label)
            last = i + round((len(known) - 1) ** self.sizes[-1])
        t, s, flow = known[i], known[last], self.flow
        _, (e_t, e_s) = gains(flow.process, t, s)
        off = flow.ratio(t, s) * flow.away(x, t) - e_s / e_t * flow.away(x, t)
        pull = flow.pull(t, s)
        return MEAN + flow.basis.synthesize(torch.where(pull > 0, off / pull, 0.0))


def falling(count: int) -> tuple[float, ...]:
    """Times between which no process here has removed all of a coefficient."""
    return tuple(torch.linspace(0.6, 0.3, count + 1, dtype=torch.float64).tolist())


NAMES = ("vp", "blurring", "soft", "coloured")
each_name = pytest.mark.parametrize("name", NAMES)


def orders(errors: list[float]) -> list[float]:
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("name", ["blurring", "soft", "coloured"])
@pytest.mark.parametrize(
    ("kernel", "order"), [("ddim", 1), ("multistep", 2), ("unipc", 3), ("heun", 2)]
)
def test_progressive_distillation_tends_to_the_flow(kernel, order, name):
    """One map by a teacher of more and more steps: (M_s / M_t)^1/2, at the teacher's order."""
    process = PROCESSES[name]
    flow, x, errors = flow_of(process), start(process, 0.6), []
    teacher = oracle(process)
    for count in (12, 24, 48):
        t, *_, s = falling(count)
        targets = taught(FlowMap("progressive", (t, *falling(count)[1:]), 1, kernel), teacher)
        found = tilde(targets, x, 0)
        off = flow.mapped(x, found, t, s) - flow.ratio(t, s) * flow.away(x, t)
        kept = flow.pull(t, s) > (COARSE if kernel == "heun" else 0)
        errors.append(float(off[:, kept].abs().max()))
        near = flow.basis.analyze(teacher.denoiser(x, time(t)).mean)
        torch.testing.assert_close(flow.basis.analyze(found)[:, ~kept], near[:, ~kept])
    assert errors[-1] < 0.02
    assert min(orders(errors)) > order - 0.4


@pytest.mark.parametrize(("kernel", "floor"), [("ddim", FLOOR[torch.float64]), ("heun", COARSE)])
def test_where_a_map_is_hardly_moved_by_it_the_estimate_is_the_teacher_s_first(kernel, floor):
    """Coefficients whose P is below the floor, on a mixture, and for one batch after another."""
    process = PROCESSES["soft"]
    flow, teacher = flow_of(process), model_of(process, exact(process, "mixture").backbone)
    targets = taught(FlowMap("progressive", (1.0, 0.9, 0.8), 1, kernel), teacher)
    dead = flow.pull(1.0, 0.8) < floor
    assert bool(dead.any()) and not bool(dead.all())
    for seed in (0, 1):
        x = start(process, 1.0) + seed
        near = flow.basis.analyze(teacher.denoiser(x, time(1.0)).mean)
        later = sample(DDIM, teacher.denoiser, x, times(1.0, 0.9))
        after = flow.basis.analyze(teacher.denoiser(later, time(0.9)).mean)
        assert float((near - after)[:, dead].abs().max()) > 1e-3
        found = flow.basis.analyze(tilde(targets, x, 0))
        torch.testing.assert_close(found[:, dead], near[:, dead], rtol=1e-9, atol=1e-9)


@each_name
def test_consistency_distillation_is_one_step_and_the_flow_from_there(name):
    """With an exact own map: B_{t,m} (M_s / M_m)^1/2, an error of second order in the step."""
    process = PROCESSES[name]
    flow, x, teacher, errors = flow_of(process), start(process, 0.6), oracle(process), []
    for count in (4, 8, 16):
        maps = FlowMap("consistency", falling(count), 1, "ddim")
        targets = taught(maps, teacher, Known(flow, maps))
        for i in {0, 1, count - 1}:
            t, m, s = maps.times[i], maps.times[i + 1], maps.times[-1]
            found = flow.mapped(x, tilde(targets, x, i), t, s)
            expected = flow.step(t, m) * flow.ratio(m, s) * flow.away(x, t)
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        first = maps.times[:2]
        off = flow.step(*first) * flow.ratio(first[1], s) - flow.ratio(first[0], s)
        errors.append(float(off.abs().max()))
    assert min(orders(errors)) > 1.6


@each_name
def test_consistency_training_is_distillation_from_ddim_on_average(name):
    """Over data x_0 given x_t, each with its own noise: the target of an exact ddim teacher."""
    process = PROCESSES[name]
    flow, x = flow_of(process), start(process, 0.6)
    maps = FlowMap("consistency", falling(8))
    own = model_of(process, Known(flow, maps), flow_map=maps)
    alone, teacher = Targets(own, None), oracle(process)
    distilled = taught(replace(maps, sampler="ddim"), teacher, own.denoiser.backbone)
    t, s = maps.times[0], maps.times[-1]
    centre, some = teacher.denoiser(x, time(t)).mean, normal(*x.shape, seed=9)
    found = []
    for data in (centre + some, centre - some):  # any two of the same mean: the target is affine
        eps = process.noise.at(time(t)).inv()(x - process.signal.at(time(t))(data))
        found.append(tilde(alone, x, 0, x0=data, eps=eps))
    mean, expected = sum(found) / 2, tilde(distilled, x, 0)
    assert float((found[0] - expected).abs().max()) > 0.1
    torch.testing.assert_close(
        flow.mapped(x, mean, t, s), flow.mapped(x, expected, t, s), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("end", [0.3, 0.0])
@pytest.mark.parametrize("name", ["vp", "soft", "coloured"])
def test_the_last_step_of_consistency_training_is_the_data(name, end):
    """x~ = x_0, also where the process has noise at the end."""
    process = PROCESSES[name]
    maps = FlowMap("consistency", (0.8, 0.5, end))
    own = model_of(process, Ordinary(nn.Identity()), flow_map=maps)
    data, eps = 0.5 * normal(3, *SHAPE, seed=5), normal(3, *SHAPE, seed=6)
    x = process.corrupt(data, time(0.5), eps)
    found = tilde(Targets(own, None), x, 1, x0=data, eps=eps)
    known = flow_of(process).pull(0.5, end) > 1e-6
    off = basis_of(process).analyze(found - data)
    assert float(off[:, known].abs().max()) < 1e-8


@each_name
def test_shortcuts_are_two_steps_of_half_the_length(name):
    """The shortest are two of ddim; of longer ones, whose halves are exact, the flow."""
    process = PROCESSES[name]
    flow, x, errors = flow_of(process), start(process, 0.6), []
    for count in (4, 8, 16):
        maps = FlowMap("shortcut", falling(count))
        own = Known(flow, maps)
        targets = Targets(model_of(process, own, flow_map=maps), None)
        for place, segment in enumerate(maps.segments()):
            if segment.path[0] not in (0, count // 2):
                continue
            t, m, s = (maps.times[i] for i in segment.path)
            found = flow.mapped(x, tilde(targets, x, place), t, s)
            span = segment.end - segment.path[0]
            ratio = flow.step(t, m) * flow.step(m, s) if span == 2 else flow.ratio(t, s)
            torch.testing.assert_close(found, ratio * flow.away(x, t), rtol=1e-8, atol=1e-8)
            # What the network was told: log2 of the step over that of the longest, 0 for one.
            part = math.log2(span // 2) / math.log2(count)
            assert own.sizes[-2:] == pytest.approx([part, part])
            told = targets.cond(torch.tensor([place, -1]), Told())["context"]
            assert told.shape == (2, 1, *SHAPE[1:])
            expected = [math.log2(span) / math.log2(count), 0.0]
            assert told[:, 0, 0, 0].tolist() == pytest.approx(expected)
        first = maps.times[:3]
        off = flow.step(*first[:2]) * flow.step(*first[1:]) - flow.ratio(first[0], first[2])
        errors.append(float(off.abs().max()))
    assert min(orders(errors)) > 1.6


@pytest.mark.parametrize("name", ["ddpm", "vp", "edm"])
def test_consistency_models_are_sampled_by_corrupting_the_end_again(name):
    """With exact maps to s = 0, N(MEAN, cov) exactly in any number of steps; a step of ddim to a
    time in between has too much variance."""
    process, levels = EACH[name], (1.0, 0.75, 0.5, 0.25, 0.0)
    flow, maps = flow_of(process), FlowMap("consistency", levels, 4)
    model = model_of(process, Known(flow, maps), flow_map=maps)
    chosen, steps = model.sampler.whole
    assert chosen == reverse(naive) and model.times().tolist() == list(levels)
    ones = flow.basis.synthesize(torch.ones(SHAPE, dtype=torch.float64))
    found = {}
    for kernel in (reverse(naive), DDIM):
        mean, variance = process.signal.at(time(1.0))(MEAN[None]), flow.marginal(1.0)
        for i in range(steps):
            # Of a step x -> b x + l eps of each coefficient, about the mean.
            rows, eps = (
                torch.cat([mean, mean + ones, mean]),
                torch.stack([0 * ones, 0 * ones, ones]),
            )
            path = times(*levels[i : i + 2])
            y = sample(kernel, model.denoiser, rows, path, lambda x, eps=eps: eps)
            gain, fresh = flow.basis.analyze(y[1:] - y[:1])
            mean, variance = y[:1], gain**2 * variance + fresh**2
        found[kernel] = variance
        torch.testing.assert_close(mean[0], MEAN, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[reverse(naive)], flow.data, rtol=1e-6, atol=1e-6)
    assert bool((found[DDIM] > 1.02 * flow.data).all())


def test_rows_of_a_batch_are_walked_apart():
    """Each row by its own segment; those at -1 are compared with their own x_0."""
    process = PROCESSES["blurring"]
    maps, rows = FlowMap("shortcut", falling(4)), normal(5, *SHAPE, seed=3)
    targets = Targets(model_of(process, Known(flow_of(process), maps), flow_map=maps), None)
    places, data = [2, -1, 0, 1, 2], normal(5, *SHAPE, seed=8)
    found = tilde(targets, rows, places, x0=data)
    for i, place in enumerate(places):
        expected = data[i : i + 1] if place < 0 else tilde(targets, rows[i : i + 1], place)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-10, atol=1e-10)


class Masked(nn.Module):
    """A network that receives the corruption of each image, and what more it is told."""

    def forward(self, x: Tensor, label: Tensor, context: Tensor) -> Tensor:
        return Toy()(x, label) * context[:, :1] + context[:, 1:].sum(1, keepdim=True)


@pytest.mark.parametrize("by", ["progressive", "consistency", "shortcut"])
def test_corruptions_drawn_for_each_image_are_walked_with_their_own(by):
    """A batch of masks and segments, as each image alone with the process of its mask."""
    recipe = METHODS["soft-mask"](SHAPE, wander=True)
    drawn = recipe.context
    context = drawn.draw(normal(4, *SHAPE, seed=5), lambda x: normal(*x.shape, seed=6).to(x))
    maps = FlowMap(by, falling(4), 2, None if by == "shortcut" else "ddim")
    if maps.sampler:
        targets = taught(maps, model_of(recipe.process, Masked(), drawn))
    else:
        targets = Targets(model_of(recipe.process, Masked(), drawn, flow_map=maps), None)
    places, process = [0, 1, 1, 0], drawn.process(context)
    whole = targets.model.denoiser.with_process(process)
    x = normal(4, *SHAPE, seed=3)
    found = tilde(targets, x, places, denoiser=whole, told=Told(None, context))
    for i, place in enumerate(places):
        mine = drawn.process(context[i : i + 1])
        denoiser = NetworkDenoiser(mine, x0, Masked())
        segment = maps.segments()[place]
        path = segment.path if segment.path[-1] == segment.end else (*segment.path, segment.end)
        grid, cond = times(*(maps.times[k] for k in path)), {"context": context[i : i + 1]}
        if by == "shortcut":
            cond["context"] = torch.cat([cond["context"], torch.zeros(1, 1, *SHAPE[1:])], 1)
        end = sample(DDIM, denoiser, x[i : i + 1], grid, cond=cond)
        carry, pull = flow_map(mine, grid[0], grid[-1])
        made = apply((carry, x[i : i + 1]), (pull, found[i : i + 1]))
        torch.testing.assert_close(made, end, rtol=1e-6, atol=1e-6)


# Guidance.

GUIDED = {"conditional": True, "drop_classes": 0.1}
NO_CLASS = len(RECORD.classes or ())


class Classes(nn.Module):
    """Exact denoisers of two classes and of all data; keeps the contexts it is told."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        cov = diagonal_cov(basis_of(process))
        self.of = [gaussian(process, normal(*SHAPE, seed=k), cov) for k in range(NO_CLASS + 1)]
        self.told: list[Tensor] = []

    def forward(
        self, x: Tensor, label: Tensor, classes: Tensor, context: Tensor | None = None
    ) -> Tensor:
        if context is not None:
            assert torch.equal(context, context[..., :1, :1].expand(-1, -1, *SHAPE[1:]))
            self.told.append(context[..., 0, 0])
        return torch.stack([exact(x, label) for exact in self.of])[classes, torch.arange(len(x))]


@pytest.mark.parametrize("by", ["progressive", "consistency"])
def test_the_teacher_of_a_guided_map_is_contrasted_with_each_weight(by):
    """Each row walks as with `Contrasted` at its own weight; the network receives w / 4."""
    process = PROCESSES["blurring"]
    teacher = model_of(process, Classes(process), **GUIDED)
    maps = FlowMap(by, falling(4 if by == "progressive" else 2), 2, "ddim", 4)
    own = Classes(process)
    targets = taught(maps, teacher, own, **GUIDED)
    flow, x = flow_of(process), start(process, 0.6, rows=4)
    places, classes = [0, 1, 0, 1], torch.tensor([0, 1, 1, 0])
    told = Told(classes, None, torch.tensor([0.0, 1.5, 4.0, 2.5]))
    found, own.told = tilde(targets, x, places, told=told), []
    for i, place in enumerate(places):
        segment, cond = maps.segments()[place], {"classes": classes[i : i + 1]}
        path = times(*(maps.times[k] for k in segment.path))
        weight = float(told.weight[i])
        denoiser = Contrasted(teacher.denoiser, weight, NO_CLASS)
        end = sample(DDIM, denoiser, x[i : i + 1], path, cond=cond)
        if segment.path[-1] != segment.end:  # on to the end, by the network's own map
            cond["context"] = torch.full((1, 1, *SHAPE[1:]), weight / 4)
            rest = times(*(maps.times[k] for k in (segment.path[-1], segment.end)))
            end = sample(DDIM, targets.model.denoiser, end, rest, cond=cond)
        t, s = float(path[0]), maps.times[segment.end]
        made = flow.mapped(x[i : i + 1], found[i : i + 1], t, s)
        torch.testing.assert_close(made, flow.away(end, s), rtol=1e-7, atol=1e-7)
    given = targets.cond(torch.tensor(places), told)
    assert given["context"][:, 0, 0, 0].tolist() == [0.0, 0.375, 1.0, 0.625]
    assert torch.equal(given["classes"], classes)


def test_a_guided_map_receives_the_weight_when_it_is_sampled_and_when_it_teaches():
    process = PROCESSES["vp"]
    maps = FlowMap("progressive", falling(4), 4, "ddim", 4)
    teacher = model_of(process, Classes(process), flow_map=maps, **GUIDED)
    network = teacher.denoiser.backbone
    teacher.sample([0, 1], classes=[0, 1], guidance=3.0)
    assert len(network.told) == 4 and all(told.tolist() == [[0.75]] * 2 for told in network.told)
    network.told = []
    targets = taught(replace(maps, steps=2), teacher, Classes(process), **GUIDED)
    told = Told(torch.tensor([0, 1]), None, torch.tensor([1.0, 2.0]))
    tilde(targets, start(process, 0.6, rows=2), 0, told=told)
    assert [told.tolist() for told in network.told] == [[[0.25], [0.5]]] * 2


@pytest.mark.parametrize(("steps", "size"), [(8, 0.0), (4, 1 / 3), (2, 2 / 3), (1, 1.0)])
def test_shortcuts_receive_the_size_of_the_sampler_s_steps(steps, size):
    """log2 of the steps of the finest in one of these, over that of the whole; 0 for the finest."""
    process = PROCESSES["vp"]
    maps = FlowMap("shortcut", falling(8))
    model = model_of(process, Known(flow_of(process), maps), flow_map=maps)
    model.sample([0, 1], Sampler(steps=steps))
    assert model.denoiser.backbone.sizes == pytest.approx([size] * steps)


# Networks, draws, configs and refusals.


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("shape", [(2, 6, 6), (12,), (2, 32), (1, 4, 8, 8)])
def test_a_widened_network_ignores_its_new_channels(shape, extra, classes):
    """The output of the network with one channel less or two, whatever the new ones hold."""
    options = UNetOptions(width=32 if len(shape) == 2 else 8, multipliers=(1,), patch=2)
    torch.manual_seed(0)
    small, large = (network(shape, options, classes, context) for context in (1, 1 + extra))
    for parameter in [*small.parameters(), *large.parameters()]:
        nn.init.normal_(parameter, std=0.2)
    large.load_state_dict(widened(small.state_dict(), large, extra))
    x, label, space = torch.randn(2, *shape), torch.rand(2), shape[1:]
    told = {} if classes is None else {"classes": torch.tensor([0, 2])}
    old, new = torch.randn(2, 1, *space), 10 * torch.randn(2, extra, *space)
    with torch.no_grad():
        expected = small(x, label, context=old, **told)
        found = large(x, label, context=torch.cat([old, new], 1), **told)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "maps",
    [
        FlowMap("progressive", falling(8), 4, "ddim"),
        FlowMap("consistency", falling(8)),
        FlowMap("shortcut", falling(8)),
    ],
    ids=lambda maps: maps.by,
)
def test_every_segment_is_drawn_as_often(maps):
    """Of stratified numbers; of shortcuts half are ordinary, and each size is drawn as often."""
    u = (torch.arange(96, dtype=torch.float64) + 0.37) / 96
    kinds = 3 if maps.by == "shortcut" else 1
    counts = torch.zeros(len(maps.segments()))
    for k in range(kinds):
        places = maps.drawn(u, (k + 0.5) / kinds)
        assert int((places < 0).sum()) == (48 if kinds == 3 else 0)
        known = places[places >= 0]
        counts += torch.bincount(known, minlength=len(counts))
        assert torch.equal(
            maps.starts(known), times(*(maps.times[maps.segments()[i].path[0]] for i in known))
        )
    share = {
        "progressive": [24] * 4,
        "consistency": [12] * 8,
        "shortcut": [12] * 4 + [24] * 2 + [48],
    }
    assert counts.tolist() == share[maps.by]


def flow_config(maps: FlowMap, **config: Any) -> Config:
    return Config("ddpm", load("digits").record, network=NETWORK, flow_map=maps, **config)


NETWORK = UNetOptions(width=8, patch=1, multipliers=(1,))
TIMES = tuple(k / 8 for k in range(8, -1, -1))
MAPS = {
    "progressive": FlowMap("progressive", TIMES, 4, "ddim", 4),
    "consistency": FlowMap("consistency", TIMES, 2, "heun"),
    "shortcut": FlowMap("shortcut", TIMES, 2),
}
each_way = pytest.mark.parametrize("by", MAPS)


def small(by: str) -> Model:
    return Model(flow_config(MAPS[by], **(GUIDED if by == "progressive" else {})))


def test_ordinary_rows_of_shortcuts_have_stratified_times():
    """One in each of equal parts of (0, 1], in any batch, whatever the size of the others."""
    data, options = load("digits"), TrainOptions(images=64, batch=32)
    config = Config("soft", data.record, network=NETWORK, flow_map=MAPS["shortcut"])
    model = build(config, data, options)
    for step in range(4):
        drawn = draw(step, data, options, model)
        ordinary = drawn.places < 0
        assert int(ordinary.sum()) == 16
        parts = (drawn.t.flatten()[ordinary] * 16).ceil().long()
        assert sorted(parts.tolist()) == list(range(1, 17))
        mapped = drawn.places[~ordinary]
        assert len({MAPS["shortcut"].segments()[i].size for i in mapped}) == 1
        assert torch.equal(drawn.t.flatten()[~ordinary], MAPS["shortcut"].starts(mapped))


@each_way
def test_a_config_keeps_its_flow_map(by):
    config = small(by).config
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.flow_map == MAPS[by]
    assert "flow_map" not in replace(config, flow_map=None).to_dict()


GRIDS = [
    ("progressive", 4, (1.0, 0.75, 0.5, 0.25, 0.0)),
    ("consistency", 3, (1.0, 0.625, 0.375, 0.0)),
    ("consistency", 1, (1.0, 0.0)),
    ("shortcut", 2, (1.0, 0.5, 0.0)),
    ("shortcut", 8, TIMES),
]


@pytest.mark.parametrize(("by", "steps", "expected"), GRIDS)
def test_the_grid_is_of_the_map_s_own_times(by, steps, expected):
    model = small(by)
    assert tuple(model.times(Sampler(steps=steps)).tolist()) == expected
    assert model.network_calls(Sampler(steps=steps)) == steps


def sampled(model: Model, sampler: Any = None, **given: Any) -> Tensor:
    classes = [1] if model.config.conditional else None
    return model.sample([0], sampler, classes, **given)


IMAGE = torch.zeros(1, 1, 8, 8)


def asked(by: str, what: str) -> Any:
    """Something that a model of maps does not do."""
    model = small(by)
    ordinary = Model(replace(model.config, flow_map=None))
    classes = [1] if model.config.conditional else None
    if what == "classifier":
        config = replace(ordinary.config, classifier=True, conditional=True, drop_classes=0.0)
        return sampled(model, guidance=Guidance(1.0, classifier=Model(config)))
    return {
        "restore": lambda: restore(model, IMAGE, identity(), 0.1, classes=classes),
        "uncorrupt": lambda: uncorrupt(model, IMAGE, 0.5, classes=classes),
        "encode": lambda: encode(model, IMAGE, classes=classes),
        "log_prob": lambda: model.log_prob(IMAGE),
        "score": lambda: model.score(IMAGE, 0.5, classes),
        "as a guide": lambda: sampled(ordinary, guidance=Guidance(1.0, guide=model)),
        "guide": lambda: sampled(model, guidance=Guidance(1.0, guide=ordinary)),
        "interval": lambda: sampled(model, guidance=Guidance(1.0, (0.2, 0.8))),
    }[what]()


NO_MEAN = "need estimates of the mean of x_0 given x_t, and this model learns maps to later times"
MEANS = ("restore", "uncorrupt", "encode", "log_prob", "score", "as a guide")
NO_CONTRAST = "cannot be guided by another model, nor at some times"


@each_way
@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        *((what, NO_MEAN) for what in MEANS),
        *((what, NO_CONTRAST) for what in ("classifier", "guide", "interval")),
    ],
)
def test_what_needs_the_mean_is_refused(what, sentence, by):
    with pytest.raises(Refused, match=sentence):
        asked(by, what)


@pytest.mark.parametrize(
    ("by", "given", "sentence"),
    [
        (
            "progressive",
            {"sampler": Sampler(steps=8)},
            "was distilled to 4 steps and takes no other",
        ),
        ("consistency", {"sampler": Sampler(steps=9)}, "on 8 levels and takes at most as many"),
        ("shortcut", {"sampler": Sampler(steps=3)}, "takes 1, 2, 4, 8 steps, or more; got 3"),
        *(
            (by, {"sampler": Sampler(kernel)}, f"to a later one, which is .*ddim; got {kernel}")
            for by in MAPS
            for kernel in ("ancestral", "heun", "multistep")
        ),
        *((by, {"sampler": Sampler(grid="uniform")}, "its own times alone") for by in MAPS),
        ("progressive", {"guidance": 4.5}, "from 0 to 4; got 4.5"),
        ("shortcut", {"guidance": 1.0}, "estimates cannot be guided"),
    ],
)
def test_other_steps_grids_kernels_and_weights_are_refused(by, given, sentence):
    with pytest.raises(Refused, match=sentence):
        sampled(small(by), **given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("progressive", (1.0, 0.5, 0.0), 4), "2 steps of a teacher are not 4 steps of a student"),
        (("consistency", (0.5, 1.0)), "two times or more that fall"),
        (("shortcut", tuple(1 - k / 6 for k in range(7))), "need 2, 4, 8, 16, .*; got 6"),
        (("progressive", TIMES, 4, "ddim", -1.0), "a positive number; got -1"),
        (("by magic", TIMES), "way to learn a flow map"),
        (("progressive", TIMES, 4), "needs the name of its teacher's sampler"),
        (("shortcut", TIMES, 1, "ddim"), "from steps of their own: leave the sampler out"),
        *(((by, TIMES, 1, None, 4), "would not depend") for by in ("consistency", "shortcut")),
    ],
)
def test_maps_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(Refused, match=sentence):
        FlowMap(*given)


# Training.


class Killed:
    """A tracker that interrupts a training after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def start(self, model: Model, options: TrainOptions, step: int) -> None: ...

    def log(self, step: int, figures: Any) -> None:
        if step == self.at:
            raise KeyboardInterrupt

    def image(self, name: str, step: int, x: Any) -> None: ...

    def stop(self) -> None: ...


def last(out: Path) -> dict[str, bytes]:
    found = max((out / "checkpoints").iterdir())
    return {file.name: file.read_bytes() for file in found.iterdir()}


@each_way
def test_an_interrupted_distillation_is_the_whole_one(by, tmp_path):
    """The same bytes of weights, average and moments; and weights that moved from the teacher's."""
    data = load("digits")
    options = TrainOptions(images=48, batch=8, checkpoint_every=16, preview_every=0)
    config = flow_config(MAPS[by], **(GUIDED if by == "progressive" else {}))
    plain = build(replace(config, flow_map=None), data, options)
    for parameter in plain.denoiser.backbone.parameters():
        nn.init.normal_(parameter, std=0.1)
    plain.save_pretrained(tmp_path / "teacher")

    def run(out: str, *trackers: Killed) -> Model:
        model = build(config, data, options, start=tmp_path / "teacher")
        teacher = from_pretrained(tmp_path / "teacher") if config.flow_map.sampler else None
        return train(model, data, options, tmp_path / out, trackers, "cpu", teacher)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", Killed(5))
    run("cut")
    assert '"resumed", "step": 4' in (tmp_path / "cut" / "log.jsonl").read_text()
    assert last(tmp_path / "cut") == last(tmp_path / "whole")
    again = from_pretrained(tmp_path / "cut")
    assert again.config == whole.config and torch.equal(sampled(again), sampled(whole))


def test_another_teacher_is_refused(tmp_path):
    """None, one of other weights, and one of another method."""
    data, options = load("digits"), TrainOptions(images=16, batch=8)
    config = flow_config(MAPS["consistency"])
    plain = build(replace(config, flow_map=None), data, options)
    plain.save_pretrained(tmp_path / "teacher")
    model = build(config, data, options, start=tmp_path / "teacher")
    other = build(replace(config, flow_map=None), data, replace(options, seed=1))
    method = build(Config("soft", data.record, network=NETWORK), data, options)
    Targets(model, plain)
    for teacher, sentence in (
        (None, "is distilled from another: train"),
        (other, "other weights than the teacher's"),
        (method, "the teacher's method is soft, and this model's ddpm"),
    ):
        with pytest.raises(Refused, match=sentence):
            Targets(model, teacher)
