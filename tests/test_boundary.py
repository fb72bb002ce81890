"""Public functions called wrongly: each answers with a sentence of this package, none with images.

TIMED and GIVEN enrol what takes times and signals; a law sees that no public function is missing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from cases import normal

SHAPE = (1, 8, 8)
SMALL = sf.UNetOptions(width=8, multipliers=(1,), patch=1)
RECORD = sf.Record("x", SHAPE, -1.0, 1.0, None, 2, "train", "0" * 64)


class Still(nn.Module):
    """A backbone that answers 0."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return 0 * x


POWER = sf.schedules.CosineSNR(10.0, -10.0)
VP = sf.Process(
    sf.families.Scale(sf.schedules.Amplitude(POWER)),
    sf.families.Scale(sf.schedules.Complement(POWER)),
)
BLUR = sf.families.Heat(sf.schedules.Geometric(0.1, 3.0, zero_at_start=True), sf.bases.dct(8, 8))
DENOISER = sf.NetworkDenoiser(VP, sf.predictions.noise, Still())
PRIOR = sf.priors.standard(VP, SHAPE)
MODEL = sf.Model(sf.Config("ddpm", RECORD, network=SMALL))
X, RATES = normal(4, *SHAPE).float(), torch.rand(8, 8)
UNIT = sf.predictions.wiener(sf.operators.identity())

COUPLINGS = {
    "ancestral": sf.couplings.ancestral,
    "ancestral_large": sf.couplings.ancestral_large,
    "bridge": sf.couplings.bridge,
    "momentum": sf.couplings.momentum,
    "pf_momentum": sf.couplings.pf_momentum,
    "naive": sf.couplings.naive,
    "ddim": sf.couplings.ddim(),
    "annealed": sf.couplings.annealed(),
    "matched": sf.couplings.analytic_variance(sf.couplings.ancestral, sf.operators.identity()),
    "reverse_diffusion": sf.kernels.reverse_diffusion,
    "simple": sf.weightings.simple,
    "score": sf.weightings.score,
    "likelihood": sf.weightings.likelihood,
    "variational_bound": sf.weightings.variational_bound(sf.couplings.ancestral),
    "unit": sf.weightings.unit_target(UNIT),
    "given": lambda process, t, s: sf.couplings.from_cross_covariance(
        process, t, s, process.cov(s)
    ),
}
FORMS = {
    "x0": sf.predictions.x0,
    "residual": sf.predictions.residual,
    "noise": sf.predictions.noise,
    "score": sf.predictions.score,
    "velocity": sf.predictions.velocity,
    "coloured": sf.predictions.coloured_noise(sf.schedules.Linear(0.1, 1.0)),
    "wiener": UNIT,
    "unit_input": sf.predictions.unit_input(sf.predictions.noise),
    "growth": sf.kernels.growth,
    "markov": sf.kernels.markov,
}
LEVEL, PIXEL = sf.schedules.Linear(0.0, 1.0), sf.bases.pixel(8, 8)
FAMILIES: dict[str, sf.families.Family] = {
    "Scale": VP.noise,
    "Heat": BLUR,
    "Damp": sf.families.Damp(LEVEL, RATES, PIXEL),
    "Fade": sf.families.Fade(LEVEL, RATES, PIXEL, 0.5),
    "Mapping": sf.families.Mapping(sf.operators.scaled),
    "Paced": sf.families.TimeWarped(BLUR, sf.schedules.Linear(0.0, 1.0)),
}
NAMED: dict[str, Callable[[Tensor | float], object]] = {
    "Process.corrupt": lambda t: VP.corrupt(X, t, X),
    "Process.score": lambda t: VP.score(X, X, t),
    "Process.log_prob": lambda t: VP.log_prob(X, X, t),
    "Denoiser": lambda t: DENOISER(X, t).mean,
    "Model.denoise": lambda t: MODEL.denoise(X, t),
    "Model.score": lambda t: MODEL.score(X, t),
    "loss": lambda t: sf.loss(DENOISER, sf.weightings.simple, X, t, X),
}
TIMED: dict[str, Callable[[Tensor | float], object]] = {
    **NAMED,
    "Process.cov": VP.cov,
    "Process.log_snr": VP.log_snr,
    "Process.propagator": lambda t: VP.propagator(0.2, t),
    "Process.transition": lambda t: VP.transition(0.2, t),
    **{f"{name}.at": family.at for name, family in FAMILIES.items()},
    **{f"{name}.rate": family.rate for name, family in FAMILIES.items()},
    **{name: lambda t, form=form: form(VP, t) for name, form in FORMS.items()},
    **{name: lambda t, pair=pair: pair(VP, t, t) for name, pair in COUPLINGS.items()},
}
UNTIMED = {"cold", "unweighted", "uncorrupt"}
"""What is the same operator at all times, or has one number for all signals."""

WRONG_TIMES = {
    "a step of a chain": torch.tensor(500),
    "a step as a number": 500.0,
    "beyond 1": torch.tensor(1.5),
    "not a number": torch.tensor(torch.nan),
    "(B,)": torch.rand(4),
    "text": "0.5",
}


def refused(call: Callable[[], object]) -> str:
    """The sentence with which this package refuses the call."""
    with pytest.raises(sf.Refused) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("wrong", WRONG_TIMES)
@pytest.mark.parametrize("name", TIMED)
def test_wrong_times(name, wrong):
    assert "time" in refused(lambda: TIMED[name](WRONG_TIMES[wrong]))


def test_every_function_of_time_is_in_the_table():
    timed = {
        name
        for name in sf.__all__
        if inspect.isfunction(f := getattr(sf, name))
        and {"t", "s"} & {*inspect.signature(f).parameters}
    }
    assert timed <= {*TIMED} | UNTIMED


@pytest.mark.parametrize("name", NAMED)
def test_times_of_other_signals(name):
    assert "one for each signal" in refused(lambda: NAMED[name](torch.rand(3, 1, 1, 1)))
    sentence = refused(lambda: NAMED[name](torch.rand(4)))
    assert sentence.endswith("got (4,). Reshape them to (4, 1, 1, 1).")


@pytest.mark.parametrize("name", ["Process.corrupt", "Denoiser", "Model.denoise", "Model.score"])
def test_a_number_is_a_time(name):
    torch.testing.assert_close(NAMED[name](0.5), NAMED[name](torch.full((4, 1, 1, 1), 0.5)))


def test_times_above_1_are_those_that_churn_reaches():
    """EDM's sigma_t = 80 t goes on to sqrt(2), the most that Algorithm 2 raises a time; no more."""
    process = sf.METHODS["edm"](SHAPE).process
    deviation = process.cov(1.4).gain.sqrt()
    torch.testing.assert_close(deviation, torch.full_like(deviation, 1.4 * 80.0))
    assert "times lie in [0, 1]" in refused(lambda: process.cov(1.42))
    assert "times lie in [0, 1]" in refused(lambda: VP.cov(1.2))


def test_times_are_differentiated():
    """The checks read values, which forward derivatives allow: d/dt exp(-t) = -exp(-t)."""
    family = sf.families.Damp(LEVEL, torch.ones(8, 8), PIXEL)
    t = torch.tensor(0.3, dtype=torch.float64)
    slope = torch.func.jvp(lambda t: family.at(t).gain, (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(slope, torch.full((8, 8), -np.exp(-0.3), dtype=torch.float64))


GRID = sf.grids.uniform_grid(4)
DDIM = sf.kernels.reverse(sf.couplings.ddim())
GIVEN: dict[str, tuple[Callable[[], object], str]] = {
    "bytes corrupted": (lambda: VP.corrupt(X.byte(), 0.5, X), "x0 must be of floating-point"),
    "an array corrupted": (lambda: VP.corrupt(X.numpy(), 0.5, X), "x0 must be a tensor"),
    "other noise": (lambda: VP.corrupt(X, 0.5, X[:1]), "x0 and eps must have one shape"),
    "t and eps swapped": (lambda: VP.corrupt(X, X, 0.5), "eps must be a tensor"),
    "bytes denoised": (lambda: DENOISER(X.byte(), 0.5), "x must be of floating-point"),
    "other size denoised": (
        lambda: MODEL.denoise(X[..., :4], 0.5),
        r"x must have shape \(B, 1, 8, 8",
    ),
    "other size scored": (lambda: MODEL.log_prob(X[..., :4]), "x must have shape"),
    "bytes in the loss": (
        lambda: sf.loss(DENOISER, sf.weightings.simple, 127.5 * X + 127.5, 0.5, X),
        r"x0 must be data in \[-1, 1\]",
    ),
    "weighting first": (
        lambda: sf.loss(sf.weightings.simple, DENOISER, X, 0.5, X),
        "needs a Denoiser first",
    ),
    "bytes measured": (lambda: sf.measure([(127.5 * X + 127.5).byte()], SHAPE), "floating-point"),
    "unscaled measured": (lambda: sf.measure([127.5 * X + 127.5], SHAPE), "must be data in"),
    "unscaled data": (
        lambda: sf.Data(np.full((2, *SHAPE), 200, np.uint8), None, RECORD),
        "the record says values from -1 to 1; got 200 to 200",
    ),
    "matrices as a process": (lambda: sf.Process(torch.eye(3), torch.eye(3)), "sf.families.Fixed"),
    "an operator as a family": (
        lambda: sf.Process(BLUR, sf.operators.identity()),
        "sf.families.Fixed",
    ),
    "a class as a family": (
        lambda: sf.Process(sf.families.Heat, BLUR),
        "needs a family for its signal",
    ),
    "backbone first": (
        lambda: sf.NetworkDenoiser(Still(), sf.predictions.noise, VP),
        "needs a Process first",
    ),
    "backbone second": (
        lambda: sf.NetworkDenoiser(VP, Still(), sf.predictions.noise),
        "torch module as its backbone",
    ),
    "denoiser first": (lambda: sf.sample(DENOISER, DDIM, X, GRID), "needs a kernel first"),
    "a coupling": (
        lambda: sf.sample(sf.couplings.ddim(), DENOISER, X, GRID),
        "needs a kernel first",
    ),
    "x second": (lambda: sf.sample(DDIM, X, DENOISER, GRID), "needs a Denoiser after the kernel"),
    "grid before x": (lambda: sf.sample(DDIM, DENOISER, GRID, X), "a grid needs two times or more"),
    "steps for a grid": (lambda: sf.sample(DDIM, DENOISER, X, 20), "a grid needs two times"),
    "bytes sampled": (lambda: sf.sample(DDIM, DENOISER, X.byte(), GRID), "floating-point"),
    "prior first": (lambda: sf.log_prob(PRIOR, DENOISER, X, GRID), "needs a Denoiser first"),
    "x before prior": (
        lambda: sf.likelihoods.bound_terms(DENOISER, X, PRIOR, GRID),
        "needs a Prior after",
    ),
    "no prior": (lambda: sf.likelihoods.flow_bound(DENOISER, X, X, GRID), "needs a Prior after"),
    "a count": (lambda: PRIOR.sample(16, torch.randn_like), "like must be a tensor"),
    "another size": (lambda: PRIOR.sample(X[..., :4], torch.randn_like), "like must have shape"),
    "density of bytes": (lambda: PRIOR.log_prob(X.byte()), "x must be of floating-point"),
    "a number of seeds": (lambda: MODEL.sample(4), r"such as seeds=range\(4\); got 4"),
    "a number to Seeds": (lambda: sf.Seeds(4), r"such as seeds=range\(4\); got 4"),
    "half a seed": (lambda: sf.Seeds([0.5]), "seeds are whole numbers"),
    "data before config": (
        lambda: sf.build(sf.load("digits"), MODEL.config, sf.TrainOptions()),
        "build needs a Config first",
    ),
    "data before model": (
        lambda: sf.train(sf.load("digits"), MODEL, sf.TrainOptions(), "out"),
        "train needs a Model first",
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_wrong_arguments(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, sentence = GIVEN[name]
    assert re.search(sentence, refused(call))
    assert not list(tmp_path.iterdir())
