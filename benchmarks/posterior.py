"""Restoration's samples against the exact posterior, where it is known: a mixture in 8 x 8 pixels.

    python benchmarks/posterior.py [--methods soft ddpm] [--steps 40] [--samples 64]

Data are a mixture of 8 Gaussians whose covariances share the DCT basis, so that the denoiser and
p(x_0 | y) are exact; each method of restoration knows the data's mean and spectrum only. Columns:
sliced W2 to exact samples (`floor`: between two sets of exact samples), distance of the means over
the norm of the exact one, variance over the exact, and how often exact draws lie within the central
90 % of each method's samples, over all pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.algebra import Diagonal, MatrixFree, Operator, dct, pixel
from sfumato.corruption.statistics import default_statistics
from sfumato.estimation.denoise import NetworkDenoiser
from sfumato.estimation.oracle import Mixture
from sfumato.estimation.predictions import x0
from sfumato.estimation.restored import Restored
from sfumato.methods import METHODS
from sfumato.methods.recipe import Recipe
from sfumato.sampling import samplers
from sfumato.sampling.sample import Seeds, sample

SHAPE, N, PARTS = (1, 8, 8), 64, 8
NOISE = 0.05
TRUTHS = 6
BASIS = dct(8, 8)
ROWS = [
    ("spectrum", 1.0),
    ("pigdm", 1.0),
    ("dps", 0.3),
    ("dps", 1.0),
    ("dps", 3.0),
    ("replacement", 1.0),
]


class Law(NamedTuple):
    """A mixture of Gaussians on flattened signals."""

    weights: Tensor
    means: Tensor
    covs: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        part = torch.multinomial(self.weights, count, True, generator=generator)
        eps = torch.randn(count, N, generator=generator, dtype=torch.float64)
        roots = torch.linalg.cholesky(self.covs + 1e-12 * torch.eye(N))
        return self.means[part] + torch.einsum("bij,bj->bi", roots[part], eps)

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    def given(self, a: Tensor, y: Tensor) -> Law:
        """The posterior for y = a x + noise."""
        total = a @ self.covs @ a.T + NOISE**2 * torch.eye(len(a))
        gain = self.covs @ a.T @ torch.linalg.inv(total)
        off = y - self.means @ a.T
        quadratic = torch.einsum("ki,kij,kj->k", off, torch.linalg.inv(total), off)
        logs = self.weights.log() - 0.5 * (quadratic + torch.logdet(total))
        moved = self.means + torch.einsum("kij,kj->ki", gain, off)
        return Law(torch.softmax(logs, 0), moved, self.covs - gain @ a @ self.covs)


def data(generator: torch.Generator) -> tuple[Law, list[Diagonal]]:
    """The mixture, and its covariances as operators."""
    squared = BASIS.laplacian
    power = 1 / (squared + squared[squared > 0].min())
    power = 0.25 * power / power.mean()
    drawn = torch.randn(PARTS, *SHAPE, generator=generator, dtype=torch.float64)
    means = BASIS.synthesize(drawn * (0.6 * power).sqrt())
    wobble = torch.randn(PARTS, 8, 8, generator=generator, dtype=torch.float64)
    covs = [Diagonal((0.4 * power).log() + w / 2, None, BASIS) for w in wobble]
    weights = torch.full((PARTS,), 1 / PARTS, dtype=torch.float64)
    matrices = torch.stack([cov.matrix(SHAPE) for cov in covs])
    return Law(weights, means.flatten(1), matrices), covs


def operators() -> Iterator[tuple[str, Operator]]:
    """Measurements: a blur, a hidden box, averages of 2 x 2."""
    hole = torch.ones(8, 8, dtype=torch.float64)
    hole[2:6, 2:6] = 0
    yield "blur 1.5", Diagonal(-(1.5**2) / 2 * BASIS.laplacian, None, BASIS)
    yield "box", Diagonal(hole.log(), None, pixel(8, 8))
    yield (
        "down 2",
        MatrixFree(
            lambda x: torch.nn.functional.avg_pool2d(x, 2),
            lambda z: z.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4,
        ),
    )


def sliced(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """Sliced W2 over 128 directions, of two sets of one size."""
    ways = torch.randn(N, 128, generator=generator, dtype=torch.float64)
    ways = torch.nn.functional.normalize(ways, dim=0)
    apart = (a @ ways).sort(0).values - (b @ ways).sort(0).values
    return float(apart.square().mean().sqrt())


class Row(NamedTuple):
    """Averages over the measurements."""

    w2: float
    mean: float
    variance: float
    coverage: float


def row(drawn: Tensor, exact: Tensor, law: Law, generator: torch.Generator) -> Row:
    """Of one measurement: samples (k, N) against as many exact ones."""
    low, high = drawn.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    inside = ((exact >= low) & (exact <= high)).double().mean()
    apart = (drawn.mean(0) - law.mean).norm() / law.mean.norm()
    spread = drawn.var(0).sum() / exact.var(0).sum()
    return Row(sliced(drawn, exact, generator), float(apart), float(spread), float(inside))


def compare(method: str, sampler: str, steps: int, samples: int) -> None:
    """Print the table of one process."""
    generator = torch.Generator().manual_seed(1)
    law, covs = data(generator)
    recipe = METHODS[method](SHAPE)
    centred = law.means - law.mean
    total = (law.weights[:, None, None] * law.covs).sum(0) + centred.T @ (
        law.weights[:, None] * centred
    )
    units = BASIS.synthesize(torch.eye(N, dtype=torch.float64).reshape(N, *SHAPE)).flatten(1)
    spectrum = torch.diag(units @ total @ units.T).reshape(SHAPE)
    mean = BASIS.analyze(law.mean.reshape(SHAPE))
    stats = default_statistics(SHAPE)._replace(mean=mean, spectrum=spectrum)
    oracle = Mixture(recipe.process, law.means.reshape(-1, *SHAPE), covs)
    base = NetworkDenoiser(recipe.process, x0, oracle, stats)
    print(f"\n{method}, {sampler}, {steps} steps, {TRUTHS} measurements, {samples} samples of each")
    print("\n| | | sliced W2 | mean | variance | coverage |\n|---|---|---|---|---|---|")
    for name, operator in operators():
        matrix = torch.stack(
            [
                operator(unit.reshape(1, *SHAPE)).flatten()
                for unit in torch.eye(N, dtype=torch.float64)
            ],
            1,
        )
        y = operator(law.draw(TRUTHS, generator).reshape(-1, *SHAPE))
        y = y + NOISE * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        laws = [law.given(matrix, one) for one in y.flatten(1)]
        exact = [one.draw(samples, generator) for one in laws]
        again = [one.draw(samples, generator) for one in laws]
        show(
            name,
            "exact samples",
            [row(*each, generator) for each in zip(again, exact, laws, strict=True)],
        )
        task = Task(base, recipe, operator, y.repeat_interleave(samples, 0), sampler, steps)
        x0_ = law.draw(len(task.y), generator).reshape(-1, *SHAPE)
        for how, scale in ROWS:
            told = how if how != "dps" else f"dps, scale {scale:g}"
            found = zip(task.drawn(how, scale), exact, laws, strict=True)
            show(name, told, [row(*each, generator) for each in found])
        found = zip(task.drawn("spectrum", 1.0, x0_), exact, laws, strict=True)
        show(name, "spectrum, x_1 not given y", [row(*each, generator) for each in found])


class Task(NamedTuple):
    """What is restored: y (truths * samples, *measured), rows of one measurement together."""

    base: NetworkDenoiser
    recipe: Recipe
    operator: Operator
    y: Tensor
    sampler: str
    steps: int

    def drawn(self, rule: str, scale: float, x0: Tensor | None = None) -> list[Tensor]:
        """Samples of each measurement, (samples, N); from x_1 of `x0` instead of one given y."""
        restored = Restored(self.base, self.operator, self.y, NOISE, rule, scale)
        streams = Seeds(range(len(self.y)))
        like = torch.zeros(len(self.y), *SHAPE, dtype=torch.float64)
        if x0 is None:
            x1 = restored.start(like, streams)
        else:
            x1 = self.recipe.process.corrupt(x0, 1.0, streams(like))
        grid = self.recipe.grid(self.steps)
        out = sample(samplers.kernel(self.sampler), restored, x1, grid, streams)
        return [*out.flatten(1).chunk(TRUTHS)]


def show(operator: str, method: str, rows: list[Row]) -> None:
    """Print a line of the table."""
    found = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    told = [f"{found[0]:.3f}", f"{found[1]:.2f}", f"{found[2]:.2f}", f"{100 * found[3]:.0f} %"]
    print(f"| {operator} | {method} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["soft", "ddpm"])
    parser.add_argument("--sampler", default="ancestral")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=64)
    asked = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    for method in asked.methods:
        compare(method, asked.sampler, asked.steps, asked.samples)
