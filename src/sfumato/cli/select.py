"""`sfumato select METHOD`: levels of a method's corruption, chosen from data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from sfumato.cli import common, kinds, signatures
from sfumato.cli.common import pick
from sfumato.cli.parser import Namespace, Parser, first, resolved, settings
from sfumato.cli.signatures import Signature
from sfumato.errors import Refused
from sfumato.limits import CANDIDATES, whole
from sfumato.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.corruption.process import Process
    from sfumato.corruption.statistics import DataStatistics
    from sfumato.methods.recipe import Recipe
    from sfumato.training.data import Data

ABOUT = (
    "Choose the levels of a method's corruption from data: steps of equal distance between the "
    "marginals. Writes FOLDER/select.json and select.png; train with --time-warp "
    "FOLDER/select.json."
)
WITHOUT = "select needs a method first, as in sfumato select soft; there are {}."
DISTANCES = ("wasserstein", "coupled", "sliced", "features")
SAMPLE = 1000
"""Number of images for distances sliced and of features."""


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


@final
class Chosen(NamedTuple):
    """Levels by the distances between the marginals.

    Attributes:
        warp: times of the chosen levels, along the method's own path.
        steps: the distance of each step between them.
        before: the same for as many levels, evenly spaced in time.
        even: the times of as many levels with steps of equal distance.
    """

    warp: list[float]
    steps: list[float]
    before: list[float]
    even: list[float]


def _select(name: str, method: Signature, values: Namespace) -> None:
    from sfumato import files
    from sfumato.threads import threads
    from sfumato.training.data import load

    out = Path(values.out)
    target = common.check_new(out / "select.json")
    whole("candidates", values.candidates, 2, CANDIDATES)
    if values.levels > values.candidates:
        raise Refused(
            f"--levels {values.levels} cannot be chosen among --candidates {values.candidates}."
        )
    files.check_writable(target)
    with threads(values.threads or 1):
        data = load(values.data, values.split, **common.asked(values))
        data, _ = common.latents(data, values)
        if values.distance == "features":
            data.record.check_pictures("--distance features")
        recipe, chosen = _chosen(name, pick(values, method.parameters), data, values)
        record = _record(name, pick(values, method.parameters), data, chosen, values)
        _draw(out / "select.png", values.distance, chosen)
        # Last: where it is, all of the work is done.
        files.write(target, json.dumps(record, indent=2) + "\n")
        if not values.quiet:
            print(
                f"{target}: {len(chosen.warp)} levels of {values.candidates}, no step above "
                f"{max(chosen.steps):.4g} (before: {max(chosen.before):.4g})"
            )
            _noise_scales(data, recipe.process)
            latent = f" --latent {values.latent}" if values.latent else ""
            print(
                f"Train with them: sfumato train {name} --data {values.data}{latent} --time-warp "
                f"{target}"
            )


def _chosen(
    name: str, parameters: Mapping[str, Any], data: Data, values: Namespace
) -> tuple[Recipe, Chosen]:
    """The method's recipe on these data, and the levels chosen along its path."""
    import torch

    from sfumato.corruption import select
    from sfumato.methods import lookup
    from sfumato.methods.recipe import with_time_warp

    stats = data.stats()
    if not float(stats.spectrum.max()) > 1e-12:
        raise Refused(
            f"the images of {values.data} are all equal; there are no distances to select by."
        )
    build, _ = lookup.method(name)
    recipe = build(data.record.shape, stats, **parameters)
    with_time_warp(recipe, (0.0, 1.0))  # refuses methods whose levels cannot be moved
    process = select.still(recipe.process, 0.0) if recipe.own_noise else recipe.process
    times = torch.linspace(0, 1, values.candidates, dtype=torch.float64)
    distances = _distances(process, data, stats, times, values)
    if values.epsilon is not None:
        path = select.shortest(distances, values.epsilon)
    else:
        path = select.select(distances, values.levels)
    plain = torch.linspace(0, values.candidates - 1, len(path)).round().long().tolist()
    before, steps = (
        [float(distances[i, j]) for i, j in itertools.pairwise(way)] for way in (plain, path)
    )
    even = select.time_warp(times, select.steady(distances, len(path)))
    return recipe, Chosen(select.time_warp(times, path), steps, before, even)


def _record(
    name: str, parameters: Mapping[str, Any], data: Data, chosen: Chosen, values: Namespace
) -> dict[str, Any]:
    """The content of `select.json`: the time warp, and all that it depends on."""
    return {
        "method": name,
        "parameters": parameters,
        "data": data.record.to_dict(),
        "distance": values.distance,
        "extractor": values.extractor if values.distance == "features" else None,
        "seed": values.seed,
        "candidates": values.candidates,
        "epsilon": max(chosen.steps),
        "time_warp": chosen.warp,
        "steps": chosen.steps,
        "equal_distance_time_warp": chosen.even,
    }


def _draw(target: Path, distance: str, chosen: Chosen) -> None:
    """Levels against t, and the distance of each step before and after."""
    from sfumato import charts

    count = len(chosen.warp)
    place = [k / (count - 1) for k in range(count)]
    lines = {
        "selected": (place, chosen.warp),
        "equal distance": (place, chosen.even),
        "own": ([0, 1], [0, 1]),
    }
    levels = charts.Panel("levels", "t", "the method's own t", lines)
    numbers = range(1, count)
    lines = {"before": (numbers, chosen.before), "selected": (numbers, chosen.steps)}
    each = charts.Panel(f"{distance} distance of each step", "step", "distance", lines, marks=True)
    charts.save([levels, each], target)


def _distances(
    process: Process, data: Data, stats: DataStatistics, times: Tensor, values: Namespace
) -> Tensor:
    """Between the marginals at candidate times, (T, T)."""
    import torch

    from sfumato.corruption import select

    kind = values.distance
    if kind in ("wasserstein", "coupled"):
        measure = select.gaussian if kind == "wasserstein" else select.coupled
        return measure(process, stats, times)
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
    """Print levels and step size by NCSNv2's techniques, for the process's noise on these data."""
    import math

    import torch

    from sfumato.algebra.operators import Diagonal, scaled
    from sfumato.corruption.spread import EXACT, farthest, looks
    from sfumato.methods.ncsn import ratio, step_size

    noise = process.noise.at(torch.ones((), dtype=torch.float64))
    colour = None
    if isinstance(noise, Diagonal) and float(noise.gain.std(correction=0)) > 0:
        colour = scaled(1 / float(noise.gain.square().mean().sqrt())) @ noise
    with bar("images compared", looks(len(data)), quiet=False) as advance:

        def batch(rows: Sequence[int]) -> Tensor:
            advance(len(rows))
            return data.batch(rows)

        far = farthest(batch, len(data), colour)
    size = math.prod(data.record.shape)
    low = 0.02
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
    common.data_options(parser)
    common.latent_option(parser, "choose levels for")
    parser.option("out", kinds.PATH, f"out/select-{name.rpartition(':')[2]}", "the folder")
    parser.option("levels", kinds.POSITIVE, 32, "levels to choose, including both ends")
    parser.option("candidates", kinds.POSITIVE, 256, "evenly spaced times to choose from")
    text = "largest distance of a step; as many levels as that needs, whatever --levels says"
    parser.option("epsilon", kinds.optional(kinds.NUMBER), None, text)
    text = (
        "wasserstein (exact for Gaussian data of the measured spectrum), coupled (the bound by the "
        "same image), sliced (of 1,000 images), features (Frechet, of an extractor's)"
    )
    parser.option("distance", kinds.choice(*DISTANCES), "wasserstein", text)
    extractor = "of features: auto (the classifier for this data set), FILE.py:NAME, or pca"
    parser.option("extractor", kinds.TEXT, "auto", extractor)
    common.seed_option(parser, "of the images and directions of sliced and features")
    common.threads_option(parser, "one, the fastest for many small operations")
    if method is not None:
        parser.options(method.parameters, f"the method {name}")
    parser.about_the_call()
    return parser
