"""`sfumato select METHOD`: levels of a method's corruption, chosen from data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from sfumato.cli import kinds, reading, signatures
from sfumato.cli.parser import Parser, first, resolved, settings
from sfumato.cli.progress import bar
from sfumato.cli.signatures import Signature
from sfumato.cli.train import pick

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.corruption.facts import Facts
    from sfumato.corruption.process import Process
    from sfumato.training.data import Data

ABOUT = (
    "Choose the levels of a method's corruption from data: steps of equal distance between the "
    "marginals. Writes FOLDER/select.json and select.png; train with --clock FOLDER/select.json."
)
WITHOUT = "select needs a method first, as in sfumato select soft; there are {}."
DISTANCES = ("wasserstein", "coupled", "sliced", "features")
SAMPLE = 1000
"""Images that sliced distances and those of features look at."""


def run(argv: Sequence[str]) -> None:
    """Select as the command line says."""
    found = settings(argv)
    name, rest = first(argv, found, "method", WITHOUT.format(", ".join(signatures.methods())))
    if name is None:
        _parser("METHOD", None).print_help()
        return
    method = signatures.method(name)
    parser = _parser(name, method)
    values = parser.read(rest, found)
    if values.dry_run:
        print(resolved(parser, values, method=name))
        return
    _select(name, method, values)


def _select(name: str, method: Signature, values: Namespace) -> None:
    from sfumato.threads import threads

    with threads(values.threads or 1):
        _selected(name, method, values)


def _selected(name: str, method: Signature, values: Namespace) -> None:
    import torch

    from sfumato import files
    from sfumato.corruption import select
    from sfumato.methods import lookup
    from sfumato.methods.recipe import reclocked
    from sfumato.training.data import load

    out = Path(values.out)
    target = out / "select.json"
    if target.exists():
        raise ValueError(f"{target} exists. Choose another --out.")
    if values.levels > values.candidates:
        raise ValueError(
            f"--levels {values.levels} cannot be chosen among --candidates {values.candidates}."
        )
    files.check_writable(target)
    data = load(values.data, values.split, **reading.asked(values))
    if values.distance == "features":
        data.record.check_pictures("--distance features")
    facts = data.facts()
    if not float(facts.spectrum.max()) > 1e-12:
        raise ValueError(f"the images of {values.data} are all alike; there is nothing to go by.")
    build, _ = lookup.method(name)
    recipe = build(data.record.shape, facts, **pick(values, method.parameters))
    reclocked(recipe, (0.0, 1.0))  # refuses methods whose levels cannot be moved
    process = select.still(recipe.process, 0.0) if recipe.own_noise else recipe.process
    times = torch.linspace(0, 1, values.candidates, dtype=torch.float64)
    distances = _distances(process, data, facts, times, values)
    if values.epsilon is not None:
        path = select.shortest(distances, values.epsilon)
    else:
        path = select.select(distances, values.levels)
    clock = select.clock(times, path)
    plain = torch.linspace(0, values.candidates - 1, len(path)).round().long().tolist()
    before, steps = (
        [float(distances[i, j]) for i, j in itertools.pairwise(way)] for way in (plain, path)
    )
    even = select.clock(times, select.steady(distances, len(path)))
    record = {
        "method": name,
        "parameters": pick(values, method.parameters),
        "data": data.record.to_dict(),
        "distance": values.distance,
        "extractor": values.extractor if values.distance == "features" else None,
        "seed": values.seed,
        "candidates": values.candidates,
        "epsilon": max(steps),
        "clock": clock,
        "steps": steps,
        "equal_distance_clock": even,
    }
    files.write(target, json.dumps(record, indent=2) + "\n")
    _draw(out / "select.png", values.distance, clock, even, before, steps)
    if not values.quiet:
        print(
            f"{target}: {len(clock)} levels of {values.candidates}, no step above "
            f"{max(steps):.4g} (before: {max(before):.4g})"
        )
        _noise_scales(data, recipe.process)
        print(f"Train with them: sfumato train {name} --data {values.data} --clock {target}")


def _draw(
    target: Path,
    distance: str,
    clock: Sequence[float],
    even: Sequence[float],
    before: Sequence[float],
    steps: Sequence[float],
) -> None:
    """Levels against t, and the distance of each step before and after."""
    from sfumato import charts

    place = [k / (len(clock) - 1) for k in range(len(clock))]
    lines = {"selected": (place, clock), "equal distance": (place, even), "own": ([0, 1], [0, 1])}
    levels = charts.Panel("levels", "t", "the method's own t", lines)
    count = range(1, len(steps) + 1)
    lines = {"before": (count, before), "selected": (count, steps)}
    each = charts.Panel(f"{distance} distance of each step", "step", "distance", lines, marks=True)
    charts.save([levels, each], target)


def _distances(
    process: Process, data: Data, facts: Facts, times: Tensor, values: Namespace
) -> Tensor:
    """Between the marginals at candidate times, (T, T)."""
    import torch

    from sfumato.corruption import select

    kind = values.distance
    if kind in ("wasserstein", "coupled"):
        measure = select.gaussian if kind == "wasserstein" else select.coupled
        return measure(process, facts, times)
    generator = torch.Generator().manual_seed(values.seed)
    chosen = torch.randperm(len(data), generator=generator)[:SAMPLE]
    x0 = data.batch(chosen)
    if kind == "sliced":
        return select.sliced(process, x0, times, seed=values.seed)
    from sfumato.evaluation.extractor import choose
    from sfumato.pictures import to_uint8

    real = torch.from_numpy(to_uint8(x0)).permute(0, 3, 1, 2).contiguous()
    extractor = choose(values.extractor, data.record, real)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float32)
    means, covs = [], []
    with bar("candidates", len(times), values.quiet) as advance:
        for t in times:
            pixels = torch.from_numpy(to_uint8(process.corrupt(x0, t, eps))).permute(0, 3, 1, 2)
            seen = extractor.features(pixels.contiguous()).double()
            means.append(seen.mean(0))
            covs.append(torch.cov(seen.T))
            advance(1)
    return select.bures(torch.stack(means), torch.stack(covs))


def _noise_scales(data: Data, process: Process) -> None:
    """Print what NCSNv2's techniques ask of noise of the process's colour on these data."""
    import math

    import torch

    from sfumato.algebra.operators import Diagonal, scaled
    from sfumato.corruption.spread import EXACT, farthest, looks
    from sfumato.methods.ncsn import ratio, step_size

    noise, colour = process.noise.at(torch.ones((), dtype=torch.float64)), None
    if isinstance(noise, Diagonal) and float(noise.gain.std(correction=0)) > 0:
        colour = scaled(1 / float(noise.gain.square().mean().sqrt())) @ noise
    with bar("images looked at", looks(len(data)), quiet=False) as advance:

        def batch(rows: Sequence[int]) -> Tensor:
            advance(len(rows))
            return data.batch(rows)

        far = farthest(batch, len(data), colour)
    size, low = math.prod(data.record.shape), 0.02
    gamma = ratio(size)
    count = 1 + math.ceil(math.log(far.low / low) / math.log(gamma))
    span = f"{far.low:.4g}" if far.beyond == 0 else f"{far.low:.4g} to {far.high:.4g}"
    how = " in the metric of the method's noise" if colour is not None else ""
    if far.beyond:
        how += (
            f" (more than {EXACT} images: found and bounded; at most {far.beyond:.0e} of all "
            "pairs are further apart than the random ones)"
        )
    print(
        f"Noise for data in [-1, 1]: largest {span}{how}; {count} levels down to {low:g}, Langevin "
        f"steps of {step_size(gamma, 5):.3g} V, five at each level"
    )


def _parser(name: str, method: Signature | None) -> Parser:
    parser = Parser(f"select {name}", ABOUT)
    reading.data_options(parser)
    parser.option("out", kinds.PATH, f"out/select-{name.rpartition(':')[2]}", "the folder")
    parser.option("levels", kinds.POSITIVE, 32, "levels to choose, both ends with them")
    parser.option("candidates", kinds.POSITIVE, 256, "times that they are chosen among, evenly")
    text = "largest distance of a step; as many levels as that needs, whatever --levels says"
    parser.option("epsilon", kinds.optional(kinds.NUMBER), None, text)
    text = (
        "wasserstein (exact for Gaussian data of the measured spectrum), coupled (the bound by the "
        "same image), sliced (of 1,000 images), features (Frechet, of an extractor's)"
    )
    parser.option("distance", kinds.choice(*DISTANCES), "wasserstein", text)
    extractor = "of features: auto (the classifier for this data set), FILE.py:NAME, or pca"
    parser.option("extractor", kinds.TEXT, "auto", extractor)
    parser.option("seed", kinds.NATURAL, 0, "of the images and directions of sliced and features")
    threads = "of the processor (default: one, which serves many small operations best)"
    parser.option("threads", kinds.optional(kinds.POSITIVE), None, threads)
    if method is not None:
        parser.options(method.parameters, f"the method {name}")
    parser.about_the_call()
    return parser
