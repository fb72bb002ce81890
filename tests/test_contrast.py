"""Laws of a contrast of two networks: closed forms of two Gaussians, and which calls are made."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import (
    OPTIONS,
    PROCESSES,
    SHAPE,
    Toy,
    amount,
    basis_of,
    diagonal_cov,
    marginal,
    normal,
    time,
    tiny,
)
from sfumato.algebra import Diagonal
from sfumato.cli import main
from sfumato.corruption.process import Process
from sfumato.estimation.contrast import Contrasted
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.limit import Limited
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import noise, x0
from sfumato.guidance import Guidance
from sfumato.methods import METHODS
from sfumato.model import Model
from sfumato.sampling import operator_table, samplers
from sfumato.sampling.kernels import Kernel
from sfumato.sampling.sample import Seeds, prepare, sample, uniform_grid
from sfumato.sampling.samplers import Sampler
from test_kernels import GUIDED, KERNELS

NONE = 1
"""The class that stands for none, of a network that knows class 0 alone."""
PAIRS = ("vp", "ve", "blurring", "coloured")
each_process = pytest.mark.parametrize("process", PAIRS)


class Pair(nn.Module):
    """Oracles of the Gaussian of class 0 and of that of all data, chosen for each signal.

    Attributes:
        covs: the two covariances, in the process's own basis.
        means: the two means.
        calls: the number of signals in each call.
    """

    def __init__(self, process: Process) -> None:
        super().__init__()
        basis = basis_of(process)
        wide = diagonal_cov(basis)
        self.covs = Diagonal(0.6 * wide.log_gain - 1.5, None, basis), wide
        self.means = normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
        pairs = zip(self.means, self.covs, strict=True)
        self.oracles = [gaussian(process, mean, cov) for mean, cov in pairs]
        self.calls: list[int] = []

    def forward(self, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
        self.calls.append(len(x))
        found = torch.stack([oracle(x, label) for oracle in self.oracles])
        return found[classes, torch.arange(len(x))]


class Without(nn.Module):
    """A pair's oracle of all data, as another network."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.oracle = pair.oracles[1]
        self.calls: list[int] = []

    def forward(self, x: Tensor, label: Tensor, **cond: Any) -> Tensor:
        self.calls.append(len(x))
        return self.oracle(x, label)


def kernel_of(name: str) -> Kernel:
    return KERNELS[name] if name in KERNELS else samplers.kernel(name)


def drawn(denoiser, kernel: str, x: Tensor, grid: Tensor) -> Tensor:
    cond = {"classes": torch.zeros(len(x), dtype=torch.long)}
    return sample(kernel_of(kernel), denoiser, x, grid, Seeds(range(len(x))), cond=cond)


@each_process
@pytest.mark.parametrize(("kernel", "order"), [("ddim", 1), ("heun", 2), ("multistep", 2)])
def test_the_flow_s_gain_is_that_of_two_gaussians(kernel, order, process):
    """(M_c0 / M_c1)^((1 + w)/2) (M_u0 / M_u1)^(-w/2), approached at the sampler's order."""
    process = PROCESSES[process]
    pair, basis, weight, ends = Pair(process), basis_of(process), 1.5, (0.8, 0.3)
    denoiser = Contrasted(NetworkDenoiser(process, x0, pair), weight, NONE)
    ratios = [
        marginal(process, cov, ends[1]) / marginal(process, cov, ends[0]) for cov in pair.covs
    ]
    expected = ratios[0] ** ((1 + weight) / 2) * ratios[1] ** (-weight / 2)
    ones = basis.synthesize(torch.ones(SHAPE, dtype=torch.float64))
    x = torch.stack([ones, torch.zeros_like(ones)])
    errors = []
    for steps in (20, 40, 80):
        made = basis.analyze(drawn(denoiser, kernel, x, uniform_grid(steps, *ends)))
        errors.append((made[0] - made[1] - expected).abs().max().item())
    assert errors[-1] < 0.03
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 0.8 * 2**order


@each_process
def test_one_step_is_the_affine_recursion(process):
    """x_s = C_s x_0^ + S_s S_t^-1 (x - C_t x_0^) with x_0^ = (1 + w) x_0^_c - w x_0^_u."""
    process, weight = PROCESSES[process], 2.5
    pair, t, s = Pair(process), time(0.7), time(0.4)
    x, basis = normal(3, *SHAPE), basis_of(process)
    clean = []
    for mean, cov in zip(pair.means, pair.covs, strict=True):
        gain = process.signal.at(t).gain
        slope = amount(cov) * gain / marginal(process, cov, 0.7)
        away = basis.analyze(x) - gain * basis.analyze(mean)
        clean.append(basis.analyze(mean) + slope * away)
    mixed = (1 + weight) * clean[0] - weight * clean[1]
    ratio = process.noise.at(s).gain / process.noise.at(t).gain
    step = process.signal.at(s).gain * mixed
    step = step + ratio * (basis.analyze(x) - process.signal.at(t).gain * mixed)
    base = NetworkDenoiser(process, x0, pair)
    grid = torch.stack([t, s])
    for weak in (NONE, Without(pair)):
        found = drawn(Contrasted(base, weight, weak), "ddim", x, grid)
        torch.testing.assert_close(basis.analyze(found), step, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "coloured"])
@pytest.mark.parametrize("name", GUIDED)
def test_every_kernel_contrasts(name, process):
    """As the same kernel with the estimate (1 + w) x_0^_c - w x_0^_u made by hand; at 0, the bits
    of the plain loop, and by one call or by two the same."""
    process = PROCESSES[process]
    pair, grid, x = Pair(process), torch.tensor([0.7, 0.5, 0.3, 0.2, 0.0]), normal(3, *SHAPE)
    base = NetworkDenoiser(process, x0, pair)
    plain = drawn(base, name, x, grid)
    assert torch.equal(drawn(Contrasted(base, 0.0, NONE), name, x, grid), plain)
    assert torch.equal(drawn(Contrasted(base, 3.0, NONE, (0.995, 1.0)), name, x, grid), plain)

    class Mixed(nn.Module):
        def forward(self, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
            strong, weak = (oracle(x, label) for oracle in pair.oracles)
            return 1.7 * strong - 0.7 * weak

    expected = drawn(NetworkDenoiser(process, x0, Mixed()), name, x, grid)
    assert (expected - plain).abs().max() > 0.05
    for weak in (NONE, Without(pair)):
        found = drawn(Contrasted(base, 0.7, weak), name, x, grid)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("name", ["ddim", "heun", "multistep", "churn:amount=2", "euler-langevin"])
def test_outside_the_interval_the_network_is_called_once(name, block, monkeypatch):
    """One call of twice the batch within, one of the batch outside."""
    monkeypatch.setattr(operator_table, "BLOCK", block)
    process, x = PROCESSES["vp"], normal(3, *SHAPE)
    pair, grid = Pair(process), uniform_grid(7, 0.9, 0.2)
    seen: list[float] = []

    class Watched(nn.Module):
        """What the interval should make of the network: two calls by the time itself."""

        def forward(self, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
            strong, weak = (oracle(x, label) for oracle in pair.oracles)
            seen.append(float(label[0]))
            return 2.5 * strong - 1.5 * weak if 0.35 <= seen[-1] <= 0.65 else strong

    denoiser = Contrasted(NetworkDenoiser(process, x0, pair), 1.5, NONE, (0.35, 0.65))
    found = drawn(denoiser, name, x, grid)
    expected = drawn(NetworkDenoiser(process, x0, Watched()), name, x, grid)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert pair.calls == [6 if 0.35 <= t <= 0.65 else 3 for t in seen]
    assert {3, 6} == {*pair.calls}


def test_times_of_their_own_for_each_signal():
    process = PROCESSES["vp"]
    denoiser = Contrasted(NetworkDenoiser(process, x0, Pair(process)), 1.5, NONE, (0.4, 0.6))
    x, t = normal(3, *SHAPE), torch.tensor([0.2, 0.5, 0.9]).double().reshape(3, 1, 1, 1)
    told = {"classes": torch.zeros(1, dtype=torch.long)}
    whole = denoiser(x, t, classes=torch.zeros(3, dtype=torch.long)).mean
    each = [denoiser(x[i : i + 1], t[i].reshape(()), **told).mean for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(each), rtol=1e-10, atol=1e-10)


def test_a_prepared_loop_serves_many_batches():
    process, grid = PROCESSES["blurring"], torch.tensor([0.9, 0.6, 0.3, 0.0])
    pair = Pair(process)
    denoiser = Contrasted(NetworkDenoiser(process, x0, pair), 1.5, NONE, (0.5, 0.7))
    run = prepare(samplers.kernel("ddim"), denoiser, normal(2, *SHAPE), grid)
    for seed in (3, 4):
        x = normal(2, *SHAPE, seed=seed)
        cond = {"classes": torch.zeros(2, dtype=torch.long)}
        torch.testing.assert_close(run(x, cond=cond), drawn(denoiser, "ddim", x, grid))
    assert pair.calls == 2 * [2, 4, 2] * 2


@pytest.mark.parametrize("method", ["soft", "ddpm", "edm", "blurring", "ihdm", "soft-mask"])
def test_estimates_of_any_prediction_move_alike(method):
    """x_0^ + w (x_0^ - x_0^_weak), whatever the network predicts; a clip comes after it."""
    recipe = METHODS[method]((1, 4, 4))
    process, means, t = recipe.process, recipe.parametrization, time(0.5)
    x = normal(2, 1, 4, 4)

    class Other(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return -0.3 * Toy()(x, label) + 0.1

    strong, weak = (NetworkDenoiser(process, means, net) for net in (Toy(), Other()))
    found = Contrasted(strong, 0.8, Other())(x, t)
    expected = strong.at(t).total(x) * 1.8 - weak.at(t).total(x) * 0.8
    of = strong.at(t).of
    torch.testing.assert_close(found.through(of), expected, rtol=1e-9, atol=1e-9)
    if method == "ddpm":
        clipped = Limited(Contrasted(strong, 0.8, Other()), lambda x0: x0.clamp(-1, 1))
        torch.testing.assert_close(clipped(x, t).mean, found.mean.clamp(-1, 1))


def test_a_loop_on_a_device_waits_for_none():
    """On `meta`, where reading a value raises: both networks in one call, and a guide."""
    process, x = PROCESSES["vp"], torch.empty(3, *SHAPE, device="meta")
    cond = {"classes": torch.zeros(3, dtype=torch.long, device="meta")}

    class Net(nn.Module):
        def forward(self, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
            return x * classes.reshape(-1, 1, 1, 1)

    base, grid = NetworkDenoiser(process, noise, Net()), uniform_grid(4)
    for weak in (NONE, Net()):
        made = prepare(samplers.kernel("heun"), Contrasted(base, 2.0, weak), x, grid)
        assert made(x, cond=cond).shape == x.shape


def test_a_context_is_given_to_both_halves():
    """A network that receives a mask: in one call of twice the batch as in two calls."""
    process = PROCESSES["vp"]
    told = {"context": normal(3, 1, *SHAPE[1:], seed=5), "classes": torch.tensor([0, 0, 0])}

    class Masked(nn.Module):
        def forward(self, x: Tensor, label: Tensor, classes: Tensor, context: Tensor) -> Tensor:
            return Toy()(x, label) * context + classes.reshape(-1, 1, 1, 1)

    x, t, base = normal(3, *SHAPE), time(0.5), NetworkDenoiser(process, noise, Masked())
    none = {**told, "classes": torch.tensor([NONE] * 3)}
    expected = 3 * base(x, t, **told).mean - 2 * base(x, t, **none).mean
    found = Contrasted(base, 2.0, NONE)(x, t, **told).mean
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="needs a class for each signal"):
        Contrasted(base, 2.0, NONE)(x, t, context=told["context"])


# Models.


def shaken(method: str = "ddpm", seed: int = 0, **config: Any) -> Model:
    """A small model whose weights are drawn, so that classes and labels change its output."""
    model, _ = tiny(method, replace(OPTIONS, seed=seed), **config)
    torch.manual_seed(seed)
    for parameter in model.denoiser.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def images(model: Model, guidance: Guidance | float = 0.0, **how: Any) -> Tensor:
    classes = [1, 3, 5] if model.config.conditional else None
    sampler = Sampler("ddim", 4)
    return model.sample(range(3), sampler, classes, guidance=guidance, clip=True, **how)


CLASSES = {"conditional": True, "drop_classes": 0.1}


def test_a_weight_of_0_is_the_plain_model():
    """Bit for bit, for any model; another weight, interval or guide is another prepared loop."""
    model, other = shaken(**CLASSES), shaken(seed=1)
    plain = images(model)
    assert torch.equal(images(model, Guidance(0.0, (0.2, 0.8))), plain)
    assert torch.equal(images(shaken(conditional=True), 0.0), images(shaken(conditional=True)))
    found = [plain]
    choices = (1.0, 2.0, Guidance(1.0, (0.4, 1.0)), Guidance(1.0, guide=other))
    for chosen in (*choices, *choices):
        found.append(images(model, chosen))
    for i, one in enumerate(found[1:5]):
        assert torch.equal(one, found[i + 5])
        assert not any(torch.equal(one, another) for another in found[: i + 1])
    assert torch.equal(images(model), plain)
    once = images(model, 2.0, batch=1)
    torch.testing.assert_close(once, found[2], rtol=1e-4, atol=1e-4)


def test_a_guide_that_is_the_model_guides_nowhere():
    """F - F_weak = 0: the plain samples to rounding, with classes and without."""
    for config in ({}, CLASSES):
        model, same = shaken(**config), shaken(**config)
        found = images(model, Guidance(3.0, guide=same))
        torch.testing.assert_close(found, images(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["ddpm", "soft", "edm", "soft-mask"])
def test_guides_with_and_without_classes(method):
    """A guide without classes for a model of classes, and a guide of classes for one without."""
    model, plain = shaken(method, **CLASSES), shaken(method, seed=1)
    for one, other in ((model, plain), (plain, model), (plain, shaken(method, seed=2))):
        found = images(one, Guidance(0.5, guide=other))
        assert bool(found.isfinite().all()) and not torch.equal(found, images(one))


def test_network_calls_count_both_networks():
    """Twice at times within the interval, for any kernel."""
    model = shaken(**CLASSES)
    for kernel in ("ddim", "multistep"):
        sampler = Sampler(kernel, 10)
        assert model.network_calls(sampler) == 10
        assert model.network_calls(sampler, 2.0) == 20
        # Times of the last step of a grid that ends at 0: 1, 0.9, ..., 0.1.
        assert model.network_calls(sampler, Guidance(2.0, (0.25, 0.75))) == 15
        assert model.network_calls(sampler, Guidance(2.0, guide=shaken())) == 20


REFUSED = {
    "no classes": ({}, lambda: 1.0, "needs a model of classes, and this model has none"),
    "no null class": (
        {"conditional": True},
        lambda: 1.0,
        "has not learned to sample without one. Train with --drop-classes",
    ),
    "negative": (CLASSES, lambda: -1.0, "is 0 or more; got -1"),
    "nan": (CLASSES, lambda: float("nan"), "is 0 or more; got nan"),
    "falls": (CLASSES, lambda: Guidance(1.0, (0.8, 0.2)), "two times that rise"),
    "outside": (CLASSES, lambda: Guidance(1.0, (0.0, 1.2)), "within 0 and 1"),
    "a text": (CLASSES, lambda: "much", "guidance must be a weight"),
    "another method": (
        CLASSES,
        lambda: Guidance(1.0, guide=shaken("soft")),
        r"the guide's network \(soft\) estimates something else .* than this model's \(ddpm\)",
    ),
    "other parameters": (
        CLASSES,
        lambda: Guidance(1.0, guide=shaken(parameters={"prediction": "velocity"})),
        r"\(ddpm prediction=velocity\) estimates something else",
    ),
    "a guide of classes": (
        {},
        lambda: Guidance(1.0, guide=shaken(conditional=True)),
        "the guide needs classes, which this model has not",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_guidance_that_cannot_be_is_refused(case):
    config, guidance, sentence = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=sentence):
        images(shaken(**config), guidance())


def test_a_guide_of_other_shape_or_classes_is_refused():
    model, guide = shaken(**CLASSES), shaken(**CLASSES)
    record = replace(guide.config.record, classes=("a", "b"))
    guide.config = replace(guide.config, record=record)
    with pytest.raises(ValueError, match="the guide has other classes than this model"):
        images(model, Guidance(1.0, guide=guide))
    guide.config = replace(guide.config, record=replace(record, shape=(1, 9, 9)))
    with pytest.raises(
        ValueError, match=r"signals of shape \(1, 9, 9\), this model of \(1, 8, 8\)"
    ):
        images(model, Guidance(1.0, guide=guide))


def test_the_command_line_guides(tmp_path, monkeypatch, capsys):
    """sample and evaluate; a record names the guidance, counts its calls, and holds."""
    monkeypatch.chdir(tmp_path)
    shaken(**CLASSES).save_pretrained("model")
    shaken(seed=1).save_pretrained("weak")
    words = ["sample", "model", "--steps", "4", "--sampler", "ddim", "--clip", "--seeds", "0-2"]
    guided = ["--guidance", "1.5", "--guidance-interval", "0.3,0.8", "--guide", "weak"]
    assert main([*words, "--classes", "1,3,5", *guided, "--out", "x.npz"]) == 0
    assert "guidance 1.5" in capsys.readouterr().out
    assert main([*words, "--guide", "weak", "--out", "no.npz"]) == 2
    assert "--guide needs a weight" in capsys.readouterr().err
    assert main([*words, "--guidance", "1", "--guide", "none-there", "--out", "no.npz"]) == 2
    assert not Path("no.npz").exists()
    score = ["evaluate", "model", "--steps", "4", "--n", "8", "--threads", "1", "--quiet"]
    assert main([*score, "--sampler", "ddim", "--clip", *guided, "--out", "r.json"]) == 0
    record = json.loads(Path("r.json").read_text())
    assert record["subject"]["guide"] == "weak" and record["subject"]["guidance"] == 1.5
    row = record["results"][0]
    assert row["guidance"]["interval"] == [0.3, 0.8] and len(row["guidance"]["guide"]) == 64
    assert row["network_calls"] == 6 and 0 <= row["accuracy"] <= 1
    assert main(["evaluate", "--verify", "r.json", "--quiet"]) == 0
    assert main([*score, "--guidance", "-1", "--out", "no.json"]) == 2
