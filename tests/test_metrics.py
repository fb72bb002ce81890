"""Laws of metrics: scipy's matrix square root, a retyped MMD, brute-force double loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from cases import normal
from sfumato.evaluation import metrics
from sfumato.evaluation.metrics import DensityCoverage, PrecisionRecall, frechet, kernel, radii


def sets(n: int = 60, m: int = 45, d: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Two correlated, shifted sets, no basis diagonal for either."""
    mix = normal(d, d, seed=2)
    return normal(n, d) @ mix, normal(m, d, seed=1) @ mix.T * 0.8 + 0.4


def test_frechet_is_scipy_s():
    """In float64 with scipy.linalg.sqrtm, to 1e-6 relative; more features than images too."""
    for n, m, d in ((60, 45, 7), (400, 300, 32)):
        real, fake = sets(n, m, d)
        a, b = real.numpy(), fake.numpy()
        cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(cov_a @ cov_b).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
        assert frechet(real, fake) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_gaussians_is_their_closed_form():
    """Two sets with exact moments: |shift|^2 + sum (a - b)^2 for commuting deviations a, b."""
    n = 50
    white = torch.linalg.qr(normal(n, 4) - normal(n, 4).mean(0)).Q * math.sqrt(n - 1)
    white = white - white.mean(0)
    white = white @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(white.T)))
    a, b = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 1.0, 1.5, 0.2]).double()
    shift = torch.tensor([1.0, 0.0, -2.0, 0.5]).double()
    expected = float(shift.square().sum() + (a - b).square().sum())
    assert frechet(white * a, white * b + shift) == pytest.approx(expected, rel=1e-8)


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD^2 with the cubic kernel, as double loops."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    m = len(x)
    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(m) for j in range(m) if i != j)
    across = sum(k(a, b) for a in x for b in y)
    return within / (m * (m - 1)) - 2 * across / m**2


def test_kernel_is_a_retyped_mmd():
    """Subsets as large as both sets leave nothing to chance."""
    real, fake = sets(30, 30)
    found = kernel(real, fake, subsets=2)
    assert found.mean == pytest.approx(mmd(real.numpy(), fake.numpy()), rel=1e-9)
    assert found.deviation < 1e-9 * abs(found.mean)


def test_kernel_s_subsets_come_from_the_seed():
    """The same seed gives the same number, another another, and the global stream stays."""
    real, fake = sets()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    values = [kernel(real, fake, seed, subsets=5, size=20).mean for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(before, torch.get_rng_state())


def brute(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """All four by their definitions, one distance at a time."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))

    def reach(points: np.ndarray) -> list[float]:
        return [
            sorted(distance(a, b) for j, b in enumerate(points) if j != i)[k - 1]
            for i, a in enumerate(points)
        ]

    near_real, near_fake = reach(real), reach(fake)
    inside = [[distance(f, r) <= near_real[i] for i, r in enumerate(real)] for f in fake]
    back = [[distance(r, f) <= near_fake[j] for j, f in enumerate(fake)] for r in real]
    return {
        "precision": float(np.mean([any(row) for row in inside])),
        "recall": float(np.mean([any(row) for row in back])),
        "density": float(np.sum(inside)) / (k * len(fake)),
        "coverage": float(np.mean([any(row[i] for row in inside) for i in range(len(real))])),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_are_a_double_loop(k, monkeypatch):
    """In blocks of rows that divide neither set."""
    monkeypatch.setattr(metrics, "ROWS", 13)
    real, fake = sets()
    expected = brute(real.numpy(), fake.numpy(), k)
    for metric in (PrecisionRecall(k), DensityCoverage(k)):
        for part in real.split(20):
            metric.update(part, real=True)
        metric.update(fake, real=False)
        for name, value in metric.compute().items():
            assert float(value) == pytest.approx(expected[name], abs=1e-12)


def test_neighbours_of_equal_sets():
    """A set covers itself: each of its points lies in its own ball; disjoint far sets have none."""
    real, _ = sets()
    for other, share in ((real, 1.0), (real + 1e4, 0.0)):
        for metric in (PrecisionRecall(), DensityCoverage()):
            metric.update(real, real=True)
            metric.update(other, real=False)
            found = {name: float(value) for name, value in metric.compute().items()}
            density = found.pop("density", share)
            assert set(found.values()) == {share}
            # Each point lies in its own ball and is a neighbour of k others on average.
            assert density == (0 if share == 0 else pytest.approx(density)) and density >= share


def test_radii_in_float32_far_from_the_origin():
    """Distances are differences of large squares: `sets` moves both to the real mean first."""
    real, fake = sets()
    near, far = PrecisionRecall(), PrecisionRecall()
    for metric, shift in ((near, 0.0), (far, 300.0)):
        metric.update((real + shift).float(), real=True)
        metric.update((fake + shift).float(), real=False)
    assert near.compute() == far.compute()


def test_radii_count_others_only():
    """Duplicates are neighbours at distance 0; a point is not its own neighbour."""
    line = torch.tensor([[0.0], [0.0], [3.0], [7.0]]).double()
    assert radii(line, 1).tolist() == [0.0, 0.0, 9.0, 16.0]
    assert radii(line, 2).tolist() == [9.0, 9.0, 9.0, 49.0]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda r, f: frechet(r[:1], f), "2 real images or more"),
        (lambda r, f: frechet(r, f[:, :3]), "one extractor for both"),
        (lambda r, f: kernel(r, f[:1]), "2 samples or more"),
        (lambda r, f: PrecisionRecall(0), "k of 1 or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(act, sentence):
    with pytest.raises(ValueError, match=sentence):
        act(*sets())


def test_too_few_rows_for_k_neighbours():
    real, fake = sets(3, 3)
    metric = PrecisionRecall(3)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with pytest.raises(ValueError, match="4 real images or more"):
        metric.compute()
