"""The public checks: members of the package pass, and what breaks one law is told which."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from cases import COUPLINGS, FAMILIES, OPERATORS, PROCESSES, SHAPE, SMALL, impossible, normal, time
from sfumato.algebra import Dense, MatrixFree, Operator, identity, scaled
from sfumato.checks import check_coupling, check_method, check_operator
from sfumato.corruption.coupling import Step, ddim
from sfumato.corruption.families import Family, Fixed, Mapping, Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Linear
from sfumato.estimation.loss import unweighted
from sfumato.estimation.predictions import Precondition, noise
from sfumato.methods import METHODS

IMAGE = (1, 8, 8)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_pass(name):
    check_operator(*OPERATORS[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_families_pass(name):
    for t in (0.0, 0.4, 1.0):
        check_operator(FAMILIES[name].at(time(t)), SHAPE)


@pytest.mark.parametrize("process", ["vp", "soft", "coloured"])
@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings_pass(name, process):
    case = COUPLINGS[name]
    if not impossible(name, process, 0.9, 0.4):
        check_coupling(case.coupling, PROCESSES[process], SHAPE, case.consistency)


@pytest.mark.parametrize("name", METHODS)
def test_methods_pass(name):
    check_method(METHODS[name], IMAGE, **SMALL.get(name, {}))


def test_learned_methods_pass():
    check_method(METHODS["vdm"], IMAGE, bands=64, bins=17, hidden=4)
    check_method(METHODS["soft-mask"], IMAGE, wander=True)


class Broken(Operator):
    """x -> 2 x that lies about one thing."""

    def __init__(self, **lies) -> None:
        self.lies = lies

    def __call__(self, x):
        return self.lies.get("call", lambda x: 2 * x)(x)

    @property
    def T(self):
        return self.lies.get("T", self)

    def inv(self):
        return self.lies.get("inv", scaled(0.5))

    def sqrt(self):
        return self.lies.get("sqrt", scaled(2**0.5))

    def logdet(self, shape):
        return torch.tensor(self.lies.get("logdet", 6 * 0.6931471805599453)).double()

    def _times(self, other):
        return self.lies.get("times")

    def _plus(self, other):
        return self.lies.get("plus")


class Single(Operator):
    """A positive matrix that computes in float32, whatever it is given."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix.float()

    def __call__(self, x):
        return (x.float().flatten(1) @ self.matrix.T).reshape(x.shape).to(x.dtype)

    @property
    def T(self):
        return Single(self.matrix.T)

    def inv(self):
        return Single(torch.linalg.inv(self.matrix.double()))

    def logdet(self, shape):
        return torch.linalg.slogdet(self.matrix.double())[1]


def near(size: int) -> torch.Tensor:
    """A positive matrix near the identity."""
    square = normal(size, size) / size**0.5
    return torch.eye(size).double() + square @ square.T / 4


def convolved(x):
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    return torch.nn.functional.conv2d(x.float(), kernel, padding=1).to(x.dtype)


SINGLE = {
    "matrix": Single(near(64)),
    "its inverse": Single(near(64)).inv(),
    "convolution": MatrixFree(convolved),
    "after float64": MatrixFree(convolved) @ scaled(0.7),
    "beside float64": MatrixFree(convolved) + scaled(0.5),
}


@pytest.mark.parametrize("name", SINGLE)
def test_operators_in_float32_are_held_to_float32(name):
    """Off by some 1e-7, as matrix products in float32 are."""
    x, y = normal(3, *IMAGE), normal(3, *IMAGE, seed=1)
    operator = SINGLE[name]
    gap = operator(2 * x - 3 * y) - 2 * operator(x) + 3 * operator(y)
    assert 1e-8 < float(gap.abs().max()) < 1e-5
    check_operator(operator, IMAGE)


def test_couplings_and_methods_in_float32_pass():
    blur = Mapping(lambda t: scaled(1 - t) + scaled(t) @ MatrixFree(convolved))
    root = Fixed(Single(near(64)))
    check_coupling(ddim(), Process(Scale(Linear(1.0, 0.5)), Scale(Linear(0.1, 0.5)) @ root), IMAGE)
    residual, cold = METHODS["soft"](IMAGE), METHODS["cold"](IMAGE)
    process = Process(blur, Scale(Linear(0.1, 0.5)))
    recipe = replace(residual, process=process, weighting=unweighted, sampler=cold.sampler)
    check_method(lambda shape, stats=None: recipe, IMAGE)
    check_method(functools.partial(METHODS["ddpm"], betas="linear"), IMAGE)


@pytest.mark.parametrize("off", [1e-2, 1e-5])
def test_what_is_wrong_in_float64_is_no_matter_of_float32(off):
    with pytest.raises(ValueError, match=r"A \(2x - 3y\)"):
        check_operator(MatrixFree(lambda x: x.roll(1, -1) + off), IMAGE)
    with pytest.raises(ValueError, match="<A x, y>"):
        check_operator(MatrixFree(lambda x: x, lambda y: (1 + off) * y), IMAGE)
    with pytest.raises(ValueError, match="<A x, y>"):
        check_operator(MatrixFree(convolved, lambda y: 1.01 * convolved(y)), IMAGE)


LIES = {
    "keeps shape and dtype": {"call": lambda x: x[..., :3]},
    "float64 for float32": {"call": lambda x: x * torch.ones((), dtype=torch.float64).reshape(1)},
    r"A \(2x - 3y\)": {"call": lambda x: 2 * x + 1},
    "each sample alone": {"call": lambda x: x - x.mean(0, keepdim=True)},
    "<A x, y>": {"T": scaled(3.0)},
    r"\(A A\) x": {"times": scaled(3.0)},
    r"\(A \+ A\) x": {"plus": scaled(3.0)},
    "A A\\^-1 A": {"inv": scaled(0.4)},
    "sqrt": {"sqrt": scaled(1.5)},
    "logdet": {"logdet": 1.0},
}


def test_an_operator_that_tells_the_truth_passes():
    check_operator(Broken(), (6,))
    check_operator(MatrixFree(lambda x: x.roll(1, -1)), (2, 6))


@pytest.mark.parametrize("law", LIES)
def test_broken_operators_are_told(law):
    with pytest.raises(ValueError, match=law):
        check_operator(Broken(**LIES[law]), (6,))


def drawn(process: Process, t, s) -> Step:
    """Too little is drawn afresh."""
    return Step(scaled(0.5), scaled(0.5) @ process.noise.at(s))


def swapped(process: Process, t, s) -> Step:
    """Consistent for single times; with one time each sample gets the first's."""
    return Step(scaled(0.0), process.noise.at(s if s.ndim == 0 else s[:1].expand(s.shape)))


def test_broken_couplings_are_told():
    process = PROCESSES["vp"]
    with pytest.raises(
        ValueError, match=r"V_s = K V_t K\^T \+ L L\^T fails by 0.19 .*`from_cross_covariance`"
    ):
        check_coupling(drawn, process, SHAPE)
    with pytest.raises(ValueError, match="where first order leaves a quarter"):
        check_coupling(drawn, process, SHAPE, "first")
    check_coupling(drawn, process, SHAPE, "none")
    with pytest.raises(ValueError, match="a batch of times equals"):
        check_coupling(swapped, process, SHAPE)
    with pytest.raises(ValueError, match="not finite"):
        check_coupling(lambda p, t, s: Step(scaled(float("nan")), identity()), process, SHAPE)
    with pytest.raises(ValueError, match="at most 256 values"):
        check_coupling(drawn, process, (1, 28, 28))


def like(**changes):
    """A method like ddim with something changed."""

    def method(shape, stats=None):
        recipe = METHODS["ddim"](shape, stats)
        return replace(recipe, **{name: make(recipe) for name, make in changes.items()})

    return method


def _noise(family: Family):
    return lambda recipe: Process(recipe.process.signal, family)


def _off(process: Process, t) -> Precondition:
    """What is estimated is half of what it says."""
    return noise(process, t)._replace(skip=scaled(0.0), out=scaled(0.0))


BROKEN = {
    "names its source": {"reference": lambda _: " "},
    "grid must fall": {
        "sampler": lambda recipe: replace(
            recipe.sampler, grid=lambda n: torch.linspace(0, 1, n + 1)
        )
    },
    "training times lie in": {"times": lambda _: lambda u: 2 * u},
    "label must differ between times": {
        "parametrization": lambda r: (
            lambda p, t: r.parametrization(p, t)._replace(label=torch.zeros_like(t))
        )
    },
    "S_t is symmetric": {
        "process": _noise(Fixed(Dense(normal(64, 64) + 9 * torch.eye(64).double(), IMAGE))),
        "weighting": lambda _: unweighted,
    },
    r"A \(2x - 3y\)": {"process": _noise(Mapping(lambda t: MatrixFree(lambda x: x + 1)))},
    "does not depend on the network": {"parametrization": lambda _: _off},
    "is not finite": {"weighting": lambda _: lambda p, t, s: scaled(float("inf"))},
}


@pytest.mark.parametrize("law", BROKEN)
def test_broken_methods_are_told(law):
    with pytest.raises(ValueError, match=law):
        check_method(like(**BROKEN[law]), IMAGE)


def test_a_method_of_one_s_own_passes():
    """A matrix-free corruption in white noise, from its two families alone."""
    roll = Mapping(lambda t: MatrixFree(lambda x: (1 - t / 2) * x + t / 2 * x.roll(1, -1)))
    process = Process(roll, Scale(Linear(0.1, 0.5)))
    residual = METHODS["soft"](IMAGE)

    def method(shape, stats=None):
        return replace(
            residual, process=process, weighting=unweighted, sampler=METHODS["cold"](shape).sampler
        )

    check_method(method, IMAGE)
