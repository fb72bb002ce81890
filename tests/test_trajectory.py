"""What is seen of a process or a sampler: the sampler's own x_t and estimates, and spectra."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import sfumato as sf
from sfumato import trajectory
from sfumato.errors import Refused
from sfumato.restoration import APART, simulated

pytestmark = pytest.mark.filterwarnings("ignore::sfumato.sampling.sample.Diverged")

SHAPE = (1, 8, 8)
CLASSES = ("cat", "dog", "eel")
RECORD = sf.Record("pets", SHAPE, classes=CLASSES)
SMALL = sf.UNetOptions(width=8, multipliers=(1,), patch=1)


def model(method: str = "ddpm", conditional: bool = False) -> sf.Model:
    """A model whose weights are random, so that its estimates depend on all that it is told."""
    torch.manual_seed(0)
    drop = 0.1 if conditional else 0.0
    made = sf.Model(
        sf.Config(method, RECORD, {}, SMALL, conditional=conditional, drop_classes=drop)
    )
    with torch.no_grad():
        for weight in made.denoiser.backbone.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


def test_corrupted_has_one_noise_at_all_times():
    process = sf.METHODS["soft"](SHAPE).process
    x0 = torch.rand(2, *SHAPE) * 2 - 1
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    seen = trajectory.corrupted(process, x0, times, seed=5)
    eps = torch.stack(
        [torch.randn(SHAPE, generator=torch.Generator().manual_seed(5 + i)) for i in range(2)]
    )
    assert seen.shape == (2, 3, *SHAPE) and torch.equal(seen[:, 0], x0)
    for i in (1, 2):
        torch.testing.assert_close(seen[:, i], process.corrupt(x0, times[i], eps))


@pytest.mark.parametrize(
    ("conditional", "clip", "guidance"),
    [(False, False, 0.0), (False, True, 0.0), (True, False, 0.0), (True, True, 3.0)],
)
def test_the_estimates_are_those_that_the_sampler_steps_by(conditional, clip, guidance):
    """DDIM typed again takes each x_t by its estimate to the next; the last estimate is the end."""
    made = model(conditional=conditional)
    classes = [2, 0] if conditional else None
    seen: list[trajectory.Moment] = []
    sampler = sf.Sampler("ddim", 6, "uniform")
    told = {"clip": clip, "guidance": guidance}
    drawn = trajectory.watch(made, [3, 9], seen.append, sampler, classes, **told)
    assert torch.equal(drawn, made.sample([3, 9], sampler, classes, **told))
    assert [moment.done for moment in seen] == list(range(7))
    assert [moment.time for moment in seen] == made.times(sampler).tolist()
    process = made.recipe.process
    for now, after in itertools.pairwise(seen):
        assert now.estimate is not None
        if after.time == 0:
            torch.testing.assert_close(after.x, now.estimate, rtol=1e-5, atol=1e-5)
            continue
        (c, s), (c_, s_) = (
            (float(process.signal.at(t).gain), float(process.noise.at(t).gain))
            for t in map(torch.tensor, (now.time, after.time))
        )
        stepped = c_ * now.estimate + s_ / s * (now.x - c * now.estimate)
        torch.testing.assert_close(after.x, stepped, rtol=1e-4, atol=1e-4)
    assert seen[-1].estimate is seen[-1].x


def test_guidance_and_classes_change_what_is_seen():
    made = model(conditional=True)

    def first(cls: int, weight: float) -> torch.Tensor:
        seen: list[trajectory.Moment] = []
        trajectory.watch(made, [1], seen.append, sf.Sampler("ddim", 3), [cls], guidance=weight)
        assert seen[0].estimate is not None
        return seen[0].estimate

    plain = first(0, 0.0)
    assert (first(1, 0.0) - plain).abs().max() > 1e-3
    assert (first(0, 4.0) - plain).abs().max() > 1e-3


def test_few_moments_are_even_and_keep_both_ends():
    seen: list[trajectory.Moment] = []
    trajectory.watch(model(), [0], seen.append, sf.Sampler("ddim", 20), moments=5)
    assert [moment.done for moment in seen] == [0, 5, 10, 15, 20]
    with pytest.raises(Refused, match="two moments or more"):
        trajectory.watch(model(), [0], seen.append, moments=1)


def test_what_sees_may_stop_the_sampler():
    made = model()
    done = []

    def see(moment: trajectory.Moment) -> None:
        done.append(moment.done)
        if moment.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trajectory.watch(made, [0], see, sf.Sampler("ddim", 9))
    assert done == [0, 1, 2]
    assert made.sample([0], sf.Sampler("ddim", 9)).isfinite().all()


@pytest.mark.parametrize("rule", ["spectrum", "dps"])
def test_a_restoration_is_seen_on_its_way(rule):
    made = model("soft")
    operator = sf.measurement("box:2,2,6,6", SHAPE)
    y = simulated(torch.rand(1, *SHAPE) * 2 - 1, operator, 0.05, seed=1)
    seen: list[trajectory.Moment] = []
    told = {"rule": rule, "scale": 0.1}
    sampler = sf.Sampler("ddim", 4)
    drawn = trajectory.watch_restoration(
        made, y, operator, 0.05, seen.append, [4, 5], sampler, **told
    )
    assert torch.equal(drawn, sf.restore(made, y, operator, 0.05, [4, 5], sampler, **told))
    assert [moment.done for moment in seen] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(seen[-1].x, drawn[0])
    torch.testing.assert_close(seen[-2].estimate, seen[-1].x, rtol=1e-4, atol=1e-4)


def test_simulated_noise_is_none_of_a_samples():
    x0 = torch.zeros(2, *SHAPE)
    y = simulated(x0, sf.measurement("identity", SHAPE), 0.5, seed=3)
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(APART + 4))
    torch.testing.assert_close(y[1], 0.5 * expected)


def test_the_spectrum_of_white_noise_is_flat():
    noise = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    frequency, power = trajectory.spectrum(noise)
    assert frequency.shape == power.shape and len(power) <= trajectory.BANDS
    assert 0 < frequency[0] < frequency[-1] <= math.sqrt(0.5)
    assert (power - 1).abs().max() < 0.2


def test_the_spectrum_of_a_wave_is_at_its_frequency():
    """cos(pi k (x + 1/2) / n) has k / (2 n) cycles per pixel, and n^2 / 2 as its one power."""
    n, k, bands = 32, 12, 16
    wave = torch.cos(torch.pi * k * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    frequency, power = trajectory.spectrum(wave.expand(1, 1, n, n), bands)
    largest = int(power.argmax())
    width = math.sqrt(0.5) * (n - 1) / n / bands
    assert abs(float(frequency[largest]) - k / (2 * n)) <= width / 2
    squares = torch.arange(n, dtype=torch.float64).square()
    reach = (squares[:, None] + squares).sqrt() / (2 * n)
    inside = ((reach - frequency[largest]).abs() <= width / 2).sum()
    assert float(power[largest]) == pytest.approx(n * n / 2 / int(inside), rel=1e-6)
