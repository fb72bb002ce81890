"""Laws of statistics and priors: what is measured of the data, and the law of x_1 made from it."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from safetensors.torch import load_file
from scipy.stats import multivariate_normal

from cases import GENERAL, close, columns, normal, rotation, spd, time, transform
from sfumato import files
from sfumato.algebra import Dense, Diagonal, dct, hartley, pixel
from sfumato.corruption import statistics as statistics_module
from sfumato.corruption.families import Fixed, Heat, Scale
from sfumato.corruption.prior import CorruptedData, GaussianPrior, Prior, fitted, standard
from sfumato.corruption.process import Process
from sfumato.corruption.schedules import Constant, Linear
from sfumato.corruption.statistics import (
    CORNER,
    DataStatistics,
    corner,
    default_statistics,
    measure,
    space,
)
from sfumato.store import read_stats

SHAPE = (2, 9, 11)
SHAPES = [(7,), (12,), (1, 12), (1, 4, 5), SHAPE, (1, 3, 9, 2)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(shape: tuple[int, ...], count: int, seed: int = 0) -> torch.Tensor:
    """Images of a mean and unequal variances."""
    n = math.prod(shape)
    spread = 0.1 + torch.arange(n, dtype=torch.float64).reshape(shape) / n
    return spread * normal(count, *shape, seed=seed) + 0.3 * normal(*shape, seed=seed + 1)


def coefficients(x: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    axes = tuple(range(-len(space(shape)), 0))
    return scipy.fft.dctn(x.double().numpy(), axes=axes, norm="ortho")


def low(u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return u[(..., *[slice(8)] * len(space(shape)))]


def blurred(shape: tuple[int, ...], noise: float = 0.2) -> Process:
    return Process(Heat(Linear(0.0, 1.0), dct(*space(shape))), Scale(Linear(0.01, noise)))


# Statistics.


@each_shape
@pytest.mark.parametrize("size", [1, 7, 30, 100])
def test_facts_are_those_of_the_whole_set(shape, size):
    """Mean and variance of DCT coefficients by numpy, to 1e-10, for any batching."""
    x = images(shape, 30)
    found, u = measure(x.split(size), shape), coefficients(x, shape)
    np.testing.assert_allclose(found.mean, u.mean(0), atol=1e-10)
    np.testing.assert_allclose(found.spectrum, u.var(0), rtol=1e-10)
    np.testing.assert_allclose(found.low, low(u, shape), atol=1e-6)
    assert int(found.count) == 30 and found.low.dtype == torch.float32
    assert found.basis == dct(*space(shape))


def test_facts_survive_a_large_mean():
    """Variances 1e-12 around means of 1: sums of squares would lose them."""
    x = 1 + 1e-6 * normal(40, 6)
    found = measure(x.split(3), (6,))
    np.testing.assert_allclose(found.spectrum, coefficients(x, (6,)).var(0), rtol=1e-5)


def test_facts_of_any_dtype():
    x = images((1, 4, 5), 20)
    for dtype in (torch.float32, torch.float16):
        found = measure([x.to(dtype)], (1, 4, 5))
        assert found.mean.dtype == found.spectrum.dtype == torch.float64
        np.testing.assert_allclose(found.mean, coefficients(x, (1, 4, 5)).mean(0), atol=1e-3)


def test_remembered_images_are_a_uniform_subset(monkeypatch):
    """100 of 2000 rows of the data, each at most once, late ones as likely as early ones."""
    monkeypatch.setattr(statistics_module, "MEMORY", 100)
    x = torch.arange(2000.0, dtype=torch.float64).reshape(-1, 1) / 2048
    kept = measure(x.split(64), (1,)).low.flatten() * 2048
    assert torch.equal(kept, measure(x.split(7), (1,)).low.flatten() * 2048)
    assert len(set(kept.tolist())) == 100 and set(kept.tolist()) <= set(range(2000))
    sd = 2000 / math.sqrt(12 * 100)
    assert abs(float(kept.mean()) - 999.5) < 5 * sd
    thirds = np.histogram(kept, bins=4, range=(0, 2000))[0]
    assert abs(thirds - 25).max() < 5 * math.sqrt(25 * 0.75)


@each_shape
def test_typical_facts_are_those_of_natural_images(shape):
    """Mean 0, a spectrum 1 / (f^2 + f_min^2) whose mean is 1/4, and draws from it."""
    found = default_statistics(shape)
    squared = dct(*space(shape)).laplacian.numpy() + np.zeros(shape)
    assert not found.mean.any() and found.spectrum.shape == found.mean.shape == shape
    ratio = found.spectrum.numpy() * (squared + squared[squared > 0].min())
    np.testing.assert_allclose(ratio, ratio.flat[0] * np.ones(shape), rtol=1e-12)
    assert float(found.spectrum.mean()) == pytest.approx(0.25)
    draws = found.low.double()
    expected = corner(found.spectrum, len(space(shape)))
    z = (draws.var(0, correction=0) / expected - 1) / math.sqrt(2 / len(draws))
    assert draws.shape[1:] == expected.shape and abs(z).max() < 5


def test_typical_facts_of_a_single_pixel():
    assert float(default_statistics((3, 1, 1)).spectrum.mean()) == pytest.approx(0.25)


@each_shape
def test_the_corner_is_the_lowest_frequencies(shape):
    u = np.arange(float(math.prod(shape))).reshape(1, *shape)
    found = corner(torch.from_numpy(u), len(space(shape))).numpy()
    np.testing.assert_array_equal(found, low(u, shape))
    assert CORNER == 8


def test_facts_need_two_images_of_the_promised_shape():
    for batches in ([], [torch.zeros(1, 4)]):
        with pytest.raises(ValueError, match=r"a spectrum needs two images or more; got [01]\."):
            measure(batches, (4,))
    with pytest.raises(ValueError, match=r"must have shape \(1, 4, 5\); got \(3, 4, 5\)"):
        measure([torch.zeros(2, 3, 4, 5)], (1, 4, 5))


# Gaussian priors.


def gaussians() -> dict[str, tuple[GaussianPrior, np.ndarray, np.ndarray]]:
    """Priors with mean and covariance by numpy."""
    shape, one = (1, 4, 5), time(1.0)
    data = measure([images(shape, 50)], shape)
    process, d = blurred(shape), transform(dct(4, 5))
    gain = np.exp(-dct(4, 5).laplacian.numpy().ravel() / 2)
    spectrum = data.spectrum.numpy().ravel()
    colour = Diagonal(normal(4, 5), None, hartley(4, 5))
    h = transform(hartley(4, 5))
    mean = normal(*shape)
    return {
        "standard": (standard(process, shape), np.zeros(20), 0.04 * np.eye(20)),
        "fitted": (
            fitted(data, process),
            d.T @ (gain * data.mean.numpy().ravel()),
            (d.T * (gain**2 * spectrum + 0.04)) @ d,
        ),
        "coloured": (
            GaussianPrior(mean, colour),
            mean.numpy().ravel(),
            (h * np.exp(normal(4, 5).numpy().ravel())) @ h,
        ),
        "dense": (
            GaussianPrior(mean, Dense(spd(20), shape)),
            mean.numpy().ravel(),
            spd(20).numpy(),
        ),
        "crossed": (
            standard(GENERAL["crossed"].process, shape),
            np.zeros(20),
            columns(GENERAL["crossed"].process.cov(one)),
        ),
    }


@pytest.mark.parametrize("name", gaussians())
def test_gaussian_priors_draw_from_their_law(name):
    """A draw is mean + R eps with R R' = cov: read from unit draws, exactly."""
    prior, mean, cov = gaussians()[name]
    unit = torch.eye(20, dtype=torch.float64).reshape(20, 1, 4, 5)
    start = prior.sample(torch.empty(1, 1, 4, 5).double(), torch.zeros_like)
    root = (prior.sample(unit, lambda like: unit) - start).flatten(1).numpy().T
    np.testing.assert_allclose(start.flatten(), mean, atol=1e-12)
    close(root @ root.T, cov)


@pytest.mark.parametrize("name", gaussians())
def test_gaussian_priors_have_scipys_density(name):
    prior, mean, cov = gaussians()[name]
    x = normal(3, 1, 4, 5)
    expected = multivariate_normal(mean, cov).logpdf(x.flatten(1))
    np.testing.assert_allclose(prior.log_prob(x), expected, rtol=1e-9)


# Corrupted data.


def corrupted(
    shape: tuple[int, ...], count: int = 12
) -> tuple[CorruptedData, DataStatistics, Process]:
    process = blurred(shape)
    data = measure([images(shape, count)], shape)
    return CorruptedData(data, process), data, process


def drawn(prior: Prior, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(n, *prior.shape, dtype=torch.float64)
    return prior.sample(like, lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype))


def law(shape: tuple[int, ...], data: DataStatistics) -> tuple[np.ndarray, ...]:
    """Gains, centres (n, *shape) and spread around them of x_0: images if kept, Gaussian else."""
    squared = dct(*space(shape)).laplacian.numpy() + np.zeros(shape)
    kept = np.zeros(shape, dtype=bool)
    kept[(..., *[slice(8)] * len(space(shape)))] = True
    centres = np.tile(data.mean.numpy(), (len(data.low), *[1] * len(shape)))
    centres[:, kept] = data.low.double().flatten(1)
    return np.exp(-squared / 2), centres, np.where(kept, 0.0, data.spectrum.numpy())


@each_shape
def test_corrupted_data_has_the_density_of_the_mixture(shape):
    """log mean_j N(x_1; C_1 m_j, C_1 R C_1' + V_1), R the spectrum where no image was kept."""
    prior, data, _ = corrupted(shape)
    gain, centres, rest = law(shape, data)
    x = 0.5 * normal(3, *shape)
    u = coefficients(x, shape).reshape(3, -1)
    cov = np.diag((gain**2 * rest + 0.04).ravel())
    logs = [multivariate_normal((gain * c).ravel(), cov).logpdf(u) for c in centres]
    expected = scipy.special.logsumexp(logs, axis=0) - math.log(len(centres))
    np.testing.assert_allclose(prior.log_prob(x), expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [(12,), SHAPE], ids=str)
def test_corrupted_data_has_the_moments_of_the_mixture(shape):
    """z-tests at 5 sigma of mean and variance of each coefficient of 4000 draws."""
    prior, data, _ = corrupted(shape)
    gain, centres, rest = law(shape, data)
    n = 4000
    u = coefficients(drawn(prior, n), shape)
    means = gain * centres
    mean, within = means.mean(0), gain**2 * rest + 0.04
    off = means - mean
    variance = (off**2).mean(0) + within
    fourth = (off**4).mean(0) + 6 * (off**2).mean(0) * within + 3 * within**2
    z_mean = (u.mean(0) - mean) / np.sqrt(variance / n)
    z_variance = ((u - mean) ** 2).mean(0) - variance
    z_variance = z_variance / np.sqrt((fourth - variance**2) / n)
    assert abs(z_mean).max() < 5 and abs(z_variance).max() < 5


def test_corrupted_data_chooses_every_image_alike():
    """Without noise to speak of, a draw is one blurred image; each comes 1 time in 12."""
    shape = (1, 4, 5)
    data = measure([images(shape, 12)], shape)
    prior = CorruptedData(data, blurred(shape, noise=1e-6))
    gain, centres, _ = law(shape, data)
    u = coefficients(drawn(prior, 3000), shape).reshape(3000, 1, -1)
    distance = abs(u - (gain * centres).reshape(12, -1)).max(-1)
    assert (distance.min(1) < 1e-4).all()
    counts = np.bincount(distance.argmin(1), minlength=12)
    assert abs(counts - 250).max() < 5 * math.sqrt(250)


def test_a_class_starts_from_its_own_images():
    """Each of its images alike; of a class without one, from none of them."""
    shape, n = (1, 4, 5), 3000
    labels = torch.arange(12) % 3
    data = measure([images(shape, 12)], shape, labels)
    assert torch.equal(data.labels, labels)
    prior, plain = (
        CorruptedData(f, blurred(shape, 1e-6)) for f in (data, data._replace(labels=None))
    )
    gain, centres, _ = law(shape, data)

    def drawn_of(prior: Prior, classes: torch.Tensor | None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        like = torch.empty(n, *shape, dtype=torch.float64)
        return prior.sample(
            like, lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype), classes
        )

    def nearest(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        distance = abs(coefficients(x, shape).reshape(n, 1, -1) - (gain * centres).reshape(12, -1))
        return distance.max(-1).argmin(1), distance.max(-1).min(1)

    asked = torch.arange(n) % 4
    which, far = nearest(drawn_of(prior, asked))
    known = asked.numpy() < 3
    assert (which[known] % 3 == asked.numpy()[known]).all() and (far[known] < 1e-4).all()
    assert abs(np.bincount(which[known]) - n / 16).max() < 5 * math.sqrt(n / 16)
    assert (far[~known] > 1e-2).all()
    # Without a class asked for, or without labels, as ever.
    assert torch.equal(drawn_of(prior, None), drawn_of(plain, None))
    assert torch.equal(drawn_of(plain, asked), drawn_of(plain, None))


def test_labels_are_those_of_the_images_remembered(monkeypatch):
    monkeypatch.setattr(statistics_module, "MEMORY", 100)
    x = torch.arange(2000.0, dtype=torch.float64).reshape(-1, 1) / 2048
    found = measure(x.split(64), (1,), torch.arange(2000))
    assert torch.equal(found.low.flatten() * 2048, found.labels.float())
    fewer = found.remembering(7)
    assert torch.equal(fewer.low, found.low[:7]) and torch.equal(fewer.labels, found.labels[:7])
    with pytest.raises(ValueError, match="3 labels for 2000 images"):
        measure(x.split(64), (1,), torch.arange(3))


def test_facts_of_before_have_neither_labels_nor_values(tmp_path):
    """Files of statistics hold what was measured, and load without what was not."""
    old = measure([images((1, 4, 5), 12)], (1, 4, 5))._replace(values=None)
    files.write_tensors(old.tensors(), tmp_path / "facts.safetensors")
    assert set(load_file(tmp_path / "facts.safetensors")) == {"mean", "spectrum", "low", "count"}
    found = read_stats(tmp_path)
    assert found.labels is None and found.values is None and torch.equal(found.low, old.low)


def streams(seeds: list[int]):
    """randn_like whose row i is drawn from a stream of its own."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def randn_like(x: torch.Tensor) -> torch.Tensor:
        rows = [torch.randn(x.shape[1:], generator=g, dtype=x.dtype) for g in generators]
        return torch.stack(rows)

    return randn_like


@each_shape
def test_each_row_depends_on_its_own_stream_only(shape):
    """The image of a seed is the same alone and in any company."""
    gaussian = GaussianPrior(torch.zeros(shape), Diagonal(torch.zeros(()).double()))
    for prior in (corrupted(shape)[0], gaussian):
        together = prior.sample(torch.empty(3, *shape).double(), streams([5, 6, 7]))
        alone = prior.sample(torch.empty(1, *shape).double(), streams([6]))
        torch.testing.assert_close(together[1:2], alone)
        assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_priors_answer_in_the_dtype_asked_for(dtype):
    shape = (1, 4, 5)
    for prior in (corrupted(shape)[0], standard(blurred(shape), shape)):
        x = prior.sample(torch.empty(2, *shape, dtype=dtype), torch.randn_like)
        assert x.shape == (2, *shape) and x.dtype == dtype
        assert prior.log_prob(x).dtype == dtype and prior.log_prob(x).shape == (2,)


# Refusals and words.


def test_corrupted_data_has_a_density_in_the_dct_only():
    """It can be drawn from under any process."""
    data = measure([images((1, 4, 5), 5)], (1, 4, 5))
    heat, white = Heat(Linear(0.0, 1.0), dct(4, 5)), Scale(Constant(0.1))
    free = GENERAL["matrix-free"].process.signal
    for process in (
        Process(Heat(Linear(0.0, 1.0), hartley(4, 5)), white),
        Process(Heat(Linear(0.0, 1.0), dct(5, 4)), white),
        Process(heat, Fixed(Diagonal(torch.zeros(4, 5).double(), None, pixel(4, 5)))),
        Process(Scale(Constant(0.0)), free),
        GENERAL["crossed"].process,
    ):
        with pytest.raises(ValueError, match=r"diagonal in the DCT basis at t = 1. Use GaussianPr"):
            CorruptedData(data, process).log_prob(images((1, 4, 5), 2))
    found = CorruptedData(data, Process(Scale(Constant(1.0)), white)).log_prob(images((1, 4, 5), 2))
    assert bool(found.isfinite().all())


def test_priors_without_noise_have_no_density():
    """Draws are fine; a density would be infinite or nothing."""
    shape = (1, 4, 5)
    data = measure([images(shape, 5)], shape)
    silent = Process(Heat(Linear(0.0, 1.0), dct(4, 5)), Scale(Constant(0.0)))
    hole = Diagonal(torch.full((4, 5), -math.inf).double(), None, dct(4, 5))
    for prior in (CorruptedData(data, silent), GaussianPrior(torch.zeros(shape), hole)):
        x = prior.sample(torch.empty(2, *shape).double(), torch.randn_like)
        assert torch.isfinite(x).all()
        with pytest.raises(
            ValueError, match=r"density of x_1 needs noise .* Give the noise a floor"
        ):
            prior.log_prob(x)


def test_gaussian_priors_need_a_positive_covariance():
    with pytest.raises(ValueError, match="no root of a negative eigenvalue"):
        GaussianPrior(torch.zeros(6), Dense(-spd(6), (6,)))
    flat = rotation(6)[:, :5]
    with pytest.raises(ValueError, match=r"density of x_1 needs noise|is singular to rounding"):
        GaussianPrior(torch.zeros(6), Dense(flat @ flat.T, (6,))).log_prob(torch.zeros(1, 6))


def test_priors_say_what_they_are():
    assert repr(corrupted((1, 4, 5))[0]) == "CorruptedData(12 images, shape=(1, 4, 5))"
    assert repr(standard(blurred((6,)), (6,))) == "GaussianPrior(shape=(6,))"
