"""Laws of selection: distances, paths, clocks, noise scales, predictions and grids.

The closed forms are those of docs/mathematics.md, "Predictions for Gaussian data".
"""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import scipy.fft
import scipy.interpolate
import scipy.linalg
import scipy.spatial
import torch

from cases import PROCESSES, SHAPE, Zero, affine, basis_of, normal, push, time
from sfumato.algebra import dct, haar
from sfumato.cli import main
from sfumato.corruption import select
from sfumato.corruption.colours import power_law
from sfumato.corruption.families import Scale
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Linear
from sfumato.corruption.spread import farthest
from sfumato.corruption.statistics import DataStatistics, RunningMoments, default_statistics, shrunk
from sfumato.corruption.tables import Cubic
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.oracle import gaussian
from sfumato.estimation.predictions import x0
from sfumato.methods import METHODS, grids
from sfumato.sampling import samplers
from sfumato.sampling.predict import Predictor
from sfumato.sampling.sample import uniform_grid
from sfumato.sampling.samplers import Sampler
from sfumato.training.data import load

BLUR = METHODS["soft"]((1, 16, 16), default_statistics((1, 16, 16)))


def facts_of(spectrum: torch.Tensor, mean: torch.Tensor) -> DataStatistics:
    return DataStatistics(mean, spectrum, torch.zeros(2, *spectrum.shape), torch.tensor(0))


# Distances.


def test_gaussian_distances_are_frechet_s():
    """Against the closed form for covariance matrices, scipy's square roots."""
    process, times = PROCESSES["blurring"], torch.tensor([0.2, 0.5, 0.9]).double()
    stats = facts_of(normal(*SHAPE).exp(), normal(*SHAPE, seed=1))
    found = select.gaussian(process, stats, times)
    units = torch.eye(20).double().reshape(20, *SHAPE)
    cov = stats.cov()(units).reshape(20, 20)
    mean = stats.basis.synthesize(stats.mean).flatten()
    laws = []
    for t in times:
        c = process.signal.at(t)(units).reshape(20, 20).T
        laws.append((c @ mean, c @ cov @ c.T + process.cov(t)(units).reshape(20, 20)))
    for i, j in itertools.product(range(3), range(3)):
        (m, a), (n, b) = laws[i], laws[j]
        cross = scipy.linalg.sqrtm(scipy.linalg.sqrtm(a) @ b.numpy() @ scipy.linalg.sqrtm(a)).real
        square = float((m - n).square().sum() + a.trace() + b.trace()) - 2 * np.trace(cross)
        assert float(found[i, j]) == pytest.approx(math.sqrt(max(square, 0.0)), abs=2e-6)
    together = select.bures(
        torch.stack([m for m, _ in laws]), torch.stack([(a + a.T) / 2 for _, a in laws])
    )
    torch.testing.assert_close(together, found, rtol=1e-6, atol=1e-5)


def test_the_same_image_bounds_the_distance():
    times = torch.linspace(0, 1, 12).double()
    stats = facts_of(normal(*SHAPE).exp(), normal(*SHAPE, seed=1))
    for process in PROCESSES.values():
        below, above = (f(process, stats, times) for f in (select.gaussian, select.coupled))
        assert bool((below <= above + 1e-9).all())


def test_sliced_distances_are_those_of_sorted_projections():
    """One direction at a time by scipy; the same noise at both times."""
    process, times = PROCESSES["vp"], torch.tensor([0.2, 0.6]).double()
    x0 = normal(40, *SHAPE, seed=2)
    found = select.sliced(process, x0, times, directions=8, seed=3)
    generator = torch.Generator().manual_seed(3)
    way = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    way = (way / way.norm(dim=0)).numpy()
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    a, b = (process.corrupt(x0, t, eps).flatten(1).numpy() @ way for t in times)
    square = np.mean([np.mean((np.sort(a[:, k]) - np.sort(b[:, k])) ** 2) for k in range(8)])
    assert float(found[0, 1]) == pytest.approx(math.sqrt(square), rel=1e-9)


# Paths.


def brute(distances: torch.Tensor, epsilon: float) -> tuple[int, float] | None:
    """Fewest steps within epsilon, and the least sum of squares of so few, of all paths."""
    last, best = len(distances) - 1, None
    for size in range(last):
        for inner in itertools.combinations(range(1, last), size):
            steps = [float(distances[i, j]) for i, j in itertools.pairwise((0, *inner, last))]
            if max(steps) <= epsilon:
                value = (len(steps), sum(step**2 for step in steps))
                best = value if best is None or value < best else best
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_path_is_brute_force_s(seed):
    """Of seven candidates at random places of a plane, for several epsilon."""
    rows = normal(7, 2, seed=seed).cumsum(0)
    distances = torch.cdist(rows, rows)
    for epsilon in np.quantile(distances[distances > 0], [0.3, 0.5, 0.8]):
        expected = brute(distances, float(epsilon))
        if expected is None:
            with pytest.raises(ValueError, match="no path of levels"):
                select.shortest(distances, float(epsilon))
            continue
        path = select.shortest(distances, float(epsilon))
        steps = [float(distances[i, j]) for i, j in itertools.pairwise(path)]
        assert (len(steps), sum(step**2 for step in steps)) == pytest.approx(expected)
        assert max(steps) <= epsilon


@pytest.mark.parametrize("seed", range(10))
def test_selection_has_the_least_largest_step(seed):
    rows = normal(8, 1, seed=seed).abs().cumsum(0)  # on a line, as levels nearly are
    distances = torch.cdist(rows, rows)
    for levels in (2, 4, 6):
        path = select.select(distances, levels)
        least = min(
            max(float(distances[i, j]) for i, j in itertools.pairwise((0, *inner, 7)))
            for inner in itertools.combinations(range(1, 7), levels - 2)
        )
        assert len(path) == levels and path[0] == 0 and path[-1] == 7
        found = max(float(distances[i, j]) for i, j in itertools.pairwise(path))
        assert found == pytest.approx(least)


def test_selected_blur_is_the_geodesic_of_equal_distance():
    """On 1/f^2 data, within a candidate: against arc length integrated by numpy."""
    stats, count = default_statistics((1, 16, 16)), 256
    process, times = select.still(BLUR.process, 0.0), torch.linspace(0, 1, count).double()
    distances = select.gaussian(process, stats, times)
    path = torch.tensor(select.select(distances, 17)).double()
    fine = np.linspace(0, 1, 20001)
    width = BLUR.process.signal.blur(torch.from_numpy(fine)).numpy()
    gain = np.exp(-dct(16, 16).laplacian.numpy().ravel() * width[:, None] ** 2 / 2)
    spread = np.sqrt(gain**2 * stats.spectrum.numpy().ravel() + 0.02**2)
    way = np.concatenate([[0], np.sqrt((np.diff(spread, axis=0) ** 2).sum(1)).cumsum()])
    place = np.interp(np.linspace(0, 1, 17) * way[-1], way, fine) * (count - 1)
    steady = select.steady(distances, 17)
    np.testing.assert_allclose(steady.numpy(), place, atol=0.05)
    # Where the candidates are far apart in distance, a level can only be one of them.
    np.testing.assert_allclose(path.numpy(), place, atol=1.0)


def test_a_family_of_constant_speed_has_uniform_levels():
    process = Process(Scale(Constant(1.0)), Scale(Linear(0.0, 2.0)))
    times = torch.linspace(0, 1, 17).double()
    distances = select.coupled(process, default_statistics(SHAPE), times)
    assert select.select(distances, 5) == [0, 4, 8, 12, 16]
    torch.testing.assert_close(select.steady(distances, 5), torch.arange(0, 17, 4).double())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda d: select.select(d, 9), "levels must be 2 to 4, the number of candidates; got 9"),
        (lambda d: select.select(d, 1), "levels must be 2 to 4"),
        (lambda d: select.shortest(d, 0.5), "no path of levels has all its steps within"),
        (lambda d: select.select(0 * d, 3), "changes nothing of the data"),
        (lambda d: select.steady(0 * d, 3), "changes nothing of the data"),
        (lambda d: select.select(d * math.nan, 3), "are there NaNs in the data"),
        (lambda d: select.select(d[:1], 3), "between two candidates or more"),
    ],
)
def test_what_cannot_be_selected_is_said(call, sentence):
    place = torch.tensor([[0.0], [1.0], [2.0], [3.0]]).double()
    with pytest.raises(ValueError, match=sentence):
        call(torch.cdist(place, place))


# Clocks.


def test_the_cubic_is_scipy_s():
    times, levels = [0.0, 0.1, 0.4, 0.5, 0.8, 1.0], [0.0, 0.5, 0.6, 0.6, 0.9, 2.0]
    fine = torch.linspace(0, 1, 301).double()
    for y in (levels, levels[::-1]):
        found, peer = Cubic(times, y), scipy.interpolate.PchipInterpolator(times, y)
        np.testing.assert_allclose(found(fine), peer(fine), atol=1e-12)
    pair = Cubic([0.0, 1.0], [2.0, 5.0])
    torch.testing.assert_close(pair(fine), 2 + 3 * fine)


def test_a_clock_moves_the_signal_and_where_meant_the_noise():
    times = [0.0, 0.5, 0.7, 1.0]
    for alone in (True, False):
        process = select.time_warped(BLUR.process, times, alone)
        for k, t in enumerate(times):
            at, own = time(k / 3), time(t)
            same = process.signal.at(at).log_gain
            torch.testing.assert_close(same, BLUR.process.signal.at(own).log_gain)
            noise = BLUR.process.noise.at(at if alone else own).gain
            torch.testing.assert_close(process.noise.at(at).gain, noise)


def test_clocks_that_do_not_rise_are_refused():
    from sfumato.methods.recipe import with_time_warp

    for bad in ((0.0, 0.7, 0.5, 1.0), (0.1, 1.0), (0.0,)):
        with pytest.raises(ValueError, match="rise from 0 to 1"):
            with_time_warp(BLUR, bad)
    with pytest.raises(ValueError, match="learns its own levels"):
        with_time_warp(METHODS["vdm"]((1, 8, 8)), (0.0, 1.0))


# Statistics.


@pytest.mark.parametrize("basis", [dct(8, 8), haar(8, 8)], ids=repr)
def test_streamed_moments_are_those_of_the_whole(basis):
    """In any basis, in batches of any size, to 1e-6; the DCT by scipy."""
    data = load("digits")
    x = data.batch(range(len(data)))
    running = RunningMoments(basis, (1, 8, 8))
    for part in x.split([1, 500, 7, len(x) - 508]):
        running.update(part)
    whole = basis.analyze(x.double()).numpy()
    if basis == dct(8, 8):
        whole = scipy.fft.dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")
    np.testing.assert_allclose(running.mean, whole.mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(running.variance, whole.var(0), rtol=1e-6, atol=1e-12)


def test_few_images_are_shrunk_and_many_are_not():
    """Nearer the truth with 20 images of a smooth spectrum; with 60,000 a thousandth at most."""
    truth = default_statistics((1, 16, 16)).spectrum
    squared = dct(16, 16).laplacian
    draws = truth.sqrt() * normal(20, 1, 16, 16, seed=4)
    seen = draws.var(0, correction=0)
    near = shrunk(seen, squared, 20)
    off = lambda v: float((v.log() - truth.log()).square().mean())  # noqa: E731
    assert off(near) < 0.5 * off(seen)
    rough = truth * (0.3 * normal(1, 16, 16, seed=5)).exp()
    torch.testing.assert_close(shrunk(rough, squared, 60_000), rough, rtol=1e-3, atol=0)
    assert shrunk(rough, squared, 0) is rough


def test_under_the_measured_spectrum_the_best_network_says_nothing():
    """Gaussian data about 0: the Wiener filter alone is E[x_0 | x_t], at every time."""
    stats = facts_of(normal(*SHAPE).exp(), torch.zeros(SHAPE).double())
    recipe = METHODS["soft"](SHAPE, stats, prediction="spectrum")
    silent = NetworkDenoiser(recipe.process, recipe.parametrization, Zero())
    exact = NetworkDenoiser(
        recipe.process, x0, gaussian(recipe.process, torch.zeros(SHAPE).double(), stats.cov())
    )
    x = normal(3, *SHAPE, seed=6)
    for t in (0.05, 0.4, 1.0):
        torch.testing.assert_close(silent(x, time(t)).mean, exact(x, time(t)).mean)


# Noise scales.


@pytest.mark.parametrize("white", [True, False])
def test_the_largest_distance_is_brute_force_s(white):
    """All pairs by scipy, in the metric of the noise; bounds hold it where not all are seen."""
    x = normal(300, *SHAPE, seed=7).float()
    colour = None if white else power_law(SHAPE)
    rows = (x if colour is None else colour.inv()(x)).flatten(1).double()
    truth = scipy.spatial.distance.pdist(rows.numpy()).max()
    pick = lambda some: x[torch.as_tensor(list(some))]  # noqa: E731
    found = farthest(pick, 300, colour, chunk=70)
    assert found.low == found.high == pytest.approx(truth, rel=1e-6) and found.beyond == 0
    bounds = farthest(pick, 300, colour, exact=10, chunk=70)
    assert bounds.low <= truth * (1 + 1e-6) and truth <= bounds.high and bounds.beyond > 0
    assert bounds.low > 0.95 * truth


def test_distances_of_too_little_are_refused():
    with pytest.raises(ValueError, match="two images or more; got 1"):
        farthest(lambda some: torch.zeros(len(some), 4), 1)
    with pytest.raises(ValueError, match="not finite"):
        farthest(lambda some: torch.full((len(some), 4), math.nan), 3)


# Predictions.

PREDICTED = ("ancestral", "ddim", "ddim:eta=0.5", "momentum", "euler", "heun", "euler-maruyama")


@pytest.mark.parametrize("process", ["vp", "blurring", "coloured", "haar"])
@pytest.mark.parametrize("name", PREDICTED)
def test_predicted_moments_are_the_dense_recursion_s(name, process):
    """With a mean: each step as matrices, by the exact denoiser of N(m, S)."""
    process, kernel = PROCESSES[process], samplers.kernel(name)
    basis, grid = basis_of(process), uniform_grid(4)
    stats = facts_of(0.3 * normal(*SHAPE).exp(), normal(*SHAPE, seed=1))
    predictor = Predictor(process, stats)
    cov = predictor.cov
    mean = stats.basis.synthesize(stats.mean)
    denoiser = NetworkDenoiser(process, x0, gaussian(process, mean, cov))
    signal, noise = process.signal.at(time(1.0)), process.cov(time(1.0))
    units = torch.eye(20).double().reshape(20, *SHAPE)
    start = (signal @ cov @ signal.T + noise)(units).reshape(20, 20)
    moments = push(affine(kernel, denoiser, grid, SHAPE), signal(mean).flatten(), start)
    expected, spread = moments[-1]
    into = basis.analyze(units).reshape(20, 20).T
    found = predictor(kernel, grid)
    torch.testing.assert_close(found.mean.flatten(), into @ expected)
    torch.testing.assert_close(found.variance.flatten(), (into @ spread @ into.T).diagonal())
    off = (found.mean - into.mv(mean.flatten()).reshape(SHAPE)).square()
    off = off + (found.variance.sqrt() - cov.gain.expand(SHAPE).sqrt()).square()
    share = math.sqrt(float(off.sum() / cov.gain.expand(SHAPE).sum()))
    assert found.error == pytest.approx(share, rel=1e-9)


def test_exact_variance_is_predicted_to_be_exact():
    stats = facts_of(normal(*SHAPE).exp(), normal(*SHAPE, seed=1))
    predictor = Predictor(PROCESSES["soft"], stats)
    found = predictor(samplers.kernel("analytic-variance"), uniform_grid(3, 1.0, 0.01))
    signal = PROCESSES["soft"].signal.at(time(0.01)).gain
    total = signal**2 * stats.spectrum + PROCESSES["soft"].cov(time(0.01)).gain
    torch.testing.assert_close(found.variance, total)


def test_kernels_that_size_their_steps_by_x_are_not_predicted():
    predictor = Predictor(PROCESSES["vp"], default_statistics(SHAPE))
    with pytest.raises(ValueError, match="sizes its steps by x"):
        predictor(samplers.kernel("reverse-diffusion-pc"), uniform_grid(3))


@pytest.mark.parametrize("kernel", ["ddim", "multistep", "ancestral"])
@pytest.mark.parametrize("process", ["vp", "blurring"])
def test_the_best_grid_of_two_steps_is_brute_force_s(process, kernel):
    """The error at its one free time, against that at 40 of them."""
    predictor, chosen = (
        Predictor(PROCESSES[process], default_statistics(SHAPE)),
        samplers.kernel(kernel),
    )
    grid = predictor.best_grid(chosen, uniform_grid(2))
    tries = [torch.tensor([1.0, t, 0.0]).double() for t in np.linspace(0.02, 0.98, 40)]
    least = min(predictor(chosen, each).error for each in tries)
    assert predictor(chosen, grid).error <= least * (1 + 2e-3)


def test_the_best_grid_is_no_worse_than_those_it_starts_from():
    predictor, kernel = (
        Predictor(PROCESSES["blurring"], default_statistics(SHAPE)),
        samplers.kernel("ddim"),
    )
    grid = predictor.best_grid(kernel, uniform_grid(5))
    assert len(grid) == 6 and bool((grid.diff() < 0).all())
    starts = [uniform_grid(5), uniform_grid(5) ** 2, uniform_grid(5) ** 0.5]
    assert predictor(kernel, grid).error < 0.98 * min(predictor(kernel, g).error for g in starts)


# The command line.


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_select_train_and_sample(here, capsys):
    """From data to a clock, to a model that keeps it, to samples on a grid that was searched."""
    words = "select soft --levels 8 --candidates 40 --out chosen"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert "8 levels of 40" in shown and "Noise for data in [-1, 1]: largest" in shown
    found = json.loads((here / "chosen" / "select.json").read_text())
    assert len(found["time_warp"]) == 8 and found["epsilon"] == max(found["steps"])
    assert (here / "chosen" / "select.png").stat().st_size > 5000
    assert main(words.split()) == 2
    assert "exists. Choose another --out" in capsys.readouterr().err
    size = "--images 64 --batch 32 --width 8 --multipliers 1 --patch 1 --preview-every 0 --quiet"
    train = f"train soft --time-warp chosen/select.json --out run {size}".split()
    assert main(train) == 0 and main(train) == 0
    config = json.loads((here / "run" / "run.json").read_text())["model"]
    assert config["time_warp"] == found["time_warp"]
    assert main(["train", "--config", "run/run.json", "--dry-run"]) == 0
    assert "time_warp: 0.0," in capsys.readouterr().out
    for grid in ("auto", "uniform", "quadratic", "karras"):
        sample = f"sample run --seeds 0,1 --steps 3 --grid {grid} --out {grid}.png --quiet"
        assert main(sample.split()) == 0
    assert main("sample run --grid autp --quiet".split()) == 2
    assert "did you mean 'auto'" in capsys.readouterr().err
    assert main("evaluate run --n 20 --steps 3 --grid auto --out a.json --quiet".split()) == 0
    record = json.loads((here / "a.json").read_text())
    assert record["subject"]["grid"] == "auto" and len(record["results"][0]["grid"]) == 4
    assert main("evaluate --verify a.json".split()) == 0


@pytest.mark.parametrize("distance", ["coupled", "sliced", "features"])
def test_every_distance_selects(distance, here):
    words = f"select soft --levels 4 --candidates 9 --distance {distance} --out {distance} --quiet"
    assert main(words.split()) == 0
    clock = json.loads((here / distance / "select.json").read_text())["time_warp"]
    assert clock[0] == 0 and clock[-1] == 1 and len(clock) == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--levels 300", "--levels 300 cannot be chosen among --candidates 256"),
        ("--epsilon 1e-9", "no path of levels has all its steps within epsilon = 1e-09"),
        ("--data one.npy", "a spectrum needs two images or more; got 1"),
        ("--data same.npy", "are all equal"),
        ("--data nan.npy", "nan.npy"),
    ],
)
def test_select_says_what_is_wrong(words, sentence, here, capsys):
    rng = np.random.default_rng(0)
    np.save("one.npy", rng.integers(0, 255, (1, 8, 8), dtype=np.uint8))
    np.save("same.npy", np.full((5, 8, 8), 7, dtype=np.uint8))
    np.save("nan.npy", np.full((5, 8, 8), np.nan, dtype=np.float32))
    assert main(["select", "soft", *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and sentence in err


@pytest.mark.parametrize(
    ("clock", "sentence"),
    [
        ("0,0.5,0.4,1", "a time warp is two times or more that rise from 0 to 1"),
        ("0,x", "--time-warp needs FILE.json or numbers"),
        ("none.json", "--time-warp none.json holds no time warp"),
    ],
)
def test_bad_clocks_are_refused(clock, sentence, here, capsys):
    assert main(["train", "soft", "--time-warp", clock, "--quiet"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("side", [8, 28])
def test_nothing_is_predicted_without_noise(side):
    """The exact estimate is x_0, divided by gains that blur has all but removed: rounding."""
    stats = default_statistics((1, side, side))
    recipe = METHODS["cold"]((1, side, side), stats)
    with pytest.raises(ValueError, match="needs noise on every coefficient at t = 1"):
        grids.times(Sampler(steps=5, grid="auto"), recipe, stats)


def test_tune_ranks_and_says_what_stands_behind_it(here, capsys):
    words = "tune --steps 4,8 --methods ddpm,soft,cold --samplers ddim,ancestral,heun --out tuned"
    assert main(words.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Gaussian data, and a network without error" in shown
    found = json.loads((here / "tuned" / "tune.json").read_text())
    errors = {(row["method"], row["sampler"], row["calls"]): row["error"] for row in found["rows"]}
    assert errors["ddpm", "ddim", 8] < errors["ddpm", "ddim", 4]
    recipe = METHODS["soft"]((1, 8, 8), load("digits").stats())
    predictor = Predictor(recipe.process, load("digits").stats(), recipe.prior)
    again = predictor(samplers.kernel("ddim"), recipe.grid(8)).error
    assert errors["soft", "ddim", 8] == pytest.approx(again)
    assert any(row["sampler"] == "heun" and row["steps"] == 4 for row in found["rows"])
    assert not any(row["method"] == "cold" for row in found["rows"])
    assert "without it the exact estimate is x_0" in found["refused"]["cold, ddim"]
    assert (here / "tuned" / "tune.png").is_file()
    assert main("tune --methods sfot".split()) == 2
    assert "did you mean 'soft'" in capsys.readouterr().err
