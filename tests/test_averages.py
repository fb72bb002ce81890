"""Laws of averages: a profile is what the recursion does, and others are made from snapshots."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from scipy.integrate import quad

import sfumato as sf
from cases import tiny
from sfumato.cli import main
from sfumato.errors import Refused
from sfumato.training import checkpoint, snapshots
from sfumato.training.averages import Average, Power, exponent, mixed, power, ramped
from sfumato.training.train import TrainOptions, train

OPTIONS = TrainOptions(
    320, 16, averages=(0.05, 0.1), snapshots=20, checkpoint_every=80, preview_every=0
)


def density(length: float, n: float, t: float) -> float:
    """The paper's profile: t^g / n^(g + 1), of integral 1 up to n."""
    g = bisected(length)
    return (g + 1) / n * (t / n) ** g if t <= n else 0.0


@cache
def bisected(length: float) -> float:
    low, high = 0.0, 1e4
    for _ in range(100):
        g = (low + high) / 2
        spread = (g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5
        low, high = (g, high) if spread > length else (low, g)
    return low


def followed(decay, path) -> torch.Tensor:
    """The average of a parameter that goes along `path`, (steps,)."""
    weight = torch.nn.Parameter(torch.full((3,), 99.0, dtype=torch.float64))
    average = Average([weight], decay)
    for value in path:
        weight.data.fill_(float(value))
        average.step([weight])
    return average.tensors[0][0]


@pytest.mark.parametrize(("length", "published"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_the_published_ones(length, published):
    assert exponent(length) == pytest.approx(published, abs=5e-3)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_length_is_the_deviation_of_the_profile(length):
    def moment(k: int) -> float:
        return quad(lambda t: t**k * density(length, 1.0, t), 0, 1, epsabs=1e-12)[0]

    assert moment(0) == pytest.approx(1, abs=1e-9)
    assert np.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.25])
def test_a_power_average_is_the_integral_of_its_profile(length):
    """Of weights that stand still within a step, exactly: the integral over each step by `quad`."""
    path = np.random.default_rng(0).normal(size=40)
    shares = [quad(lambda t: density(length, 40, t), k, k + 1)[0] for k in range(40)]
    assert float(followed(power(length), path)) == pytest.approx(shares @ path, abs=1e-9)


def test_a_power_average_of_a_line_tends_to_the_closed_form():
    """The mean of t over (g + 1) t^g is (g + 1) / (g + 2); with N steps the error halves with N."""
    errors = []
    for steps in (50, 100, 200, 400):
        found = followed(power(0.1), np.arange(1, steps + 1) / steps)
        errors.append(float(found) - (6.94 + 1) / (6.94 + 2))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(orders - 1).max() < 0.02


def test_the_ordinary_average_is_that_of_diffusers_bit_by_bit():
    torch.manual_seed(0)
    shapes = [(16, 8, 3, 3), (33,), (7, 5)]
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = EMAModel(weights, 0.95, foreach=True)
    ours = Average(weights, ramped(0.95))
    for _ in range(250):
        for weight in weights:
            weight.data += 0.1 * torch.randn_like(weight)
        theirs.step(weights)
        ours.step(weights)
        assert all(map(torch.equal, ours.tensors, theirs.shadow_params))


@pytest.mark.parametrize("length", [0.03, 0.08, 0.2])
def test_shares_are_the_closest_and_their_error_is_what_is_left(length):
    """By numerical integration of the difference, which any other shares make larger."""
    known = [Power(s, n) for n in range(25, 201, 25) for s in (0.05, 0.1)]
    found = mixed(known, Power(length, 200))
    assert sum(found.shares) == pytest.approx(1, abs=1e-9)
    t = (np.arange(4000) + 0.5) / 20
    rows = np.array([[density(p.length, p.steps, x) for x in t] for p in known])
    wanted = np.array([density(length, 200, x) for x in t])

    def left(shares: np.ndarray) -> float:
        return float(np.linalg.norm(shares @ rows - wanted) / np.linalg.norm(wanted))

    best = np.array(found.shares)
    assert left(best) == pytest.approx(found.error, rel=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = rng.normal(size=len(best))
        other -= other.mean()  # shares of any other average sum to 1 too
        assert left(best + 1e-2 * other / np.linalg.norm(other)) > left(best)


def test_errors_fall_with_the_number_of_snapshots():
    """Twice as many, a quarter of the error: smooth profiles, and intervals of half the length."""
    errors = []
    for count in (8, 16, 32, 64):
        known = [Power(s, 1024 * k // count) for k in range(1, count + 1) for s in (0.05, 0.1)]
        errors.append(mixed(known, Power(0.15, 1024)).error)
    assert (np.array(errors[:-1]) / errors[1:]).min() > 3.5
    assert errors[-1] < 1e-3


def test_a_kept_length_is_its_own_mixture():
    known = [Power(s, n) for n in (10, 20, 30) for s in (0.05, 0.1)]
    found = mixed(known, Power(0.1, 30))
    assert np.allclose(found.shares, [0, 0, 0, 0, 0, 1], atol=1e-7) and found.error < 1e-6


def trained(options: TrainOptions, out: Path) -> Path:
    model, data = tiny(options=options)
    train(model, data, options, out, device="cpu")
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """20 steps with the averages that the paper keeps."""
    return trained(OPTIONS, tmp_path_factory.mktemp("averages") / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The same steps without any."""
    return trained(replace(OPTIONS, averages=()), tmp_path_factory.mktemp("averages") / "plain")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> dict[float, dict[str, torch.Tensor]]:
    """Averages of two other lengths, kept while the same steps were made."""
    options = replace(OPTIONS, averages=(0.07, 0.15))
    out = trained(options, tmp_path_factory.mktemp("averages") / "tracked")
    return snapshots.read(out / "checkpoints" / "00000020" / snapshots.FILE).averages


@pytest.mark.parametrize("length", [0.07, 0.15])
def test_an_average_from_snapshots_is_the_one_that_was_tracked(length, run, tracked):
    """To the error of its profile, relative to how far apart the two kept averages are."""
    expected = tracked[length]
    found = sf.averages.reconstructed(run, length)
    last = snapshots.read(sorted((run / "snapshots").iterdir())[-1] / snapshots.FILE)
    assert (found.steps, found.snapshots, last.steps) == (20, 20, 20)

    def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return sum(float((one[k] - other[k]).square().sum()) for k in other) ** 0.5

    between = apart(last.averages[0.05], last.averages[0.1])
    assert apart(found.weights, expected) < 3 * found.error * between
    assert found.error < 0.02 and between > 0


def test_the_weights_of_each_snapshot_are_read_once(run, monkeypatch):
    """Lengths and steps are in the header."""
    seen: list[Path] = []
    plain = snapshots.read
    monkeypatch.setattr(snapshots, "read", lambda path: (seen.append(path), plain(path))[1])
    assert sf.averages.reconstructed(run, 0.08).steps == 20
    assert len(seen) == len({*seen}) == 20


def test_the_folder_has_the_average_and_the_rest_of_the_checkpoint(run, tmp_path, capsys):
    out = tmp_path / "model"
    assert main(f"average {run} --length 0.08 --out {out}".split()) == 0
    assert "average of length 0.08 over 20 steps, of 20 snapshots" in capsys.readouterr().out
    names = {"config.json", "facts.safetensors", "model.safetensors", "manifest.json"}
    assert {path.name for path in out.iterdir()} == names
    expected = sf.averages.reconstructed(run, 0.08).weights
    weights = load_file(out / "model.safetensors")
    assert {*weights} >= {*expected}
    assert all(torch.equal(weights[name], value.float()) for name, value in expected.items())
    seen = [
        m.sample([1], sf.Sampler(steps=2))
        for m in (sf.from_pretrained(out), sf.averages.averaged(run, 0.08), sf.from_pretrained(run))
    ]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert main(["check", str(run), "--quiet"]) == 0


def test_a_kept_length_comes_back_bit_by_bit(run):
    last = run / "checkpoints" / "00000020"
    expected = snapshots.read(last / snapshots.FILE).averages[0.1]
    found = sf.averages.reconstructed(run, 0.1).weights
    for name, value in expected.items():
        assert torch.allclose(found[name].float(), value, rtol=1e-6, atol=1e-7)


def test_further_averages_change_nothing_else(run, plain):
    ours, others = (out / "checkpoints" / "00000020" for out in (run, plain))
    files = {path.name: path.read_bytes() for path in others.iterdir() if path.suffix != ".json"}
    assert len(files) == 4
    assert all((ours / name).read_bytes() == found for name, found in files.items())
    assert not (plain / "snapshots").exists()


class Cut(BaseException):
    """Ends a run where it stands."""


def test_a_cut_run_has_the_snapshots_of_the_run(run, tmp_path, monkeypatch):
    """Cut inside the writing of a snapshot, after a checkpoint: the same bytes in the end."""
    out, fill = tmp_path / "cut", snapshots.fill

    def cut(folder: Path, *given) -> None:
        fill(folder, *given)
        if folder.parent.name == "snapshots" and folder.name.startswith(".00000008"):
            raise Cut

    monkeypatch.setattr(snapshots, "fill", cut)
    with pytest.raises(Cut):
        trained(OPTIONS, out)
    monkeypatch.setattr(snapshots, "fill", fill)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"00000005"}
    (out / "snapshots" / ".00000008.x.part").mkdir()  # what a kill would leave
    trained(OPTIONS, out)
    assert '"resumed"' in (out / "log.jsonl").read_text()
    for part in ("checkpoints", "snapshots"):
        names = sorted(path.relative_to(run) for path in (run / part).rglob("*.safetensors"))
        assert len(names) >= 10
        assert names == sorted(
            path.relative_to(out) for path in (out / part).rglob("*.safetensors")
        )
        assert all((out / name).read_bytes() == (run / name).read_bytes() for name in names)
    assert not list((out / "snapshots").glob(".*"))


def test_few_snapshots_are_kept_and_evenly(tmp_path):
    weights = {0.1: {"w": torch.zeros(1)}}
    for step in range(1, 101):
        snapshots.add(tmp_path, step, weights, step, 8)
        kept = [int(p.name) for p in sorted((tmp_path / "snapshots").iterdir())]
        assert len(kept) <= 8 and kept[-1] == step
        gaps = np.diff([0, *kept[:-1]])
        assert len(kept) < 8 or gaps.max() <= 3 * gaps.min()


def test_skipped_steps_are_in_no_average(tmp_path):
    """Two snapshots with a skipped step between have equal profiles; the shares allow for it."""
    weight = torch.nn.Parameter(torch.zeros(4))
    averages = {s: Average([weight], power(s)) for s in (0.05, 0.1)}
    optimizer = torch.optim.AdamW([weight])
    module = torch.nn.ParameterDict({"w": weight})
    state = checkpoint.State(module, optimizer, Average([weight], ramped(0.9)), averages)
    for step in range(1, 13):
        weight.grad = torch.full((4,), float(step))
        state.step(0.1, good=step != 12)
        snapshots.add(tmp_path, step, state.kept(), state.ema.steps, 12)
    found = sf.averages.reconstructed(tmp_path, 0.1)
    assert found.steps == 11
    assert torch.allclose(found.weights["w"].float(), averages[0.1].tensors[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"averages": (0.3,)}, "length of an average lies above 0 and up to 0.2886"),
        ({"averages": (0.1, 0.1)}, "averages are of different lengths"),
        ({"snapshots": 0}, "snapshots must be 1 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(given, sentence):
    with pytest.raises(Refused, match=sentence):
        TrainOptions(**given)


def test_what_cannot_be_averaged_is_refused(run, plain, tmp_path):
    with pytest.raises(Refused, match="has no snapshots of averages: train it with --averages"):
        sf.averages.reconstructed(plain, 0.1)
    with pytest.raises(Refused, match=r"the 20 snapshots of .* give an average of length 0.01"):
        sf.averages.reconstructed(run, 0.01)
    with pytest.raises(Refused, match="lies above 0 and up to"):
        sf.averages.averaged(run, 0.5)
    with pytest.raises(Refused, match="exists"):
        sf.averages.save_averaged(run, 0.1, tmp_path)
    with pytest.raises(Refused, match=r"options.averages is \(0.05, 0.1\), here \(0.1,\)"):
        trained(replace(OPTIONS, averages=(0.1,)), run)


def test_a_damaged_snapshot_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = sorted((tmp_path / "run" / "snapshots").iterdir())[3] / snapshots.FILE
    path.write_bytes(path.read_bytes()[:-8] + b"01234567")
    with pytest.raises(Refused, match="is damaged: its bytes are not those"):
        sf.averages.averaged(tmp_path / "run", 0.08)
