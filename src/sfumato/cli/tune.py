"""`sfumato tune`: which method and kernel to expect most of, for data and a number of calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from sfumato.cli import kinds, reading
from sfumato.cli.parser import Parser, resolved, settings
from sfumato.cli.progress import bar
from sfumato.names import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato.corruption.facts import Facts
    from sfumato.methods.recipe import Recipe
    from sfumato.sampling.kernels import Kernel
    from sfumato.sampling.predict import Moments, Predictor

ABOUT = (
    "Rank methods and kernels for data, with no training: the distance W2 of samples from data, "
    "exact for Gaussian data with the measured mean and spectrum and a perfect network, as a share "
    "of the data's deviation."
)
METHODS = ("ddpm", "vp", "ve", "edm", "blurring", "soft", "soft-down", "ni-ddpm")
KERNELS = (
    "ddim",
    "multistep",
    "unipc",
    "heun",
    "momentum",
    "ancestral",
    "euler-maruyama",
)
"""Without `exact-variance`, which is right on Gaussian data by construction."""
MODEL = (
    "The model behind these numbers: Gaussian data, and a network without error. On images the "
    "ranking did not hold: for seven pairs of kernel and trained model of Fashion-MNIST at 10, 20 "
    "and 50 steps its rank correlation with FID was 0.29 (n = 21), under 0.6. It tells a kernel "
    "that is hopeless at so many calls, not which of two good ones is better."
)
SHOWN, LINES, BANDS = 12, 5, 24


def run(argv: Sequence[str]) -> None:
    """Rank as the command line says."""
    parser = _parser()
    values = parser.read(argv, settings(argv))
    if values.dry_run:
        print(resolved(parser, values))
        return

    from sfumato import files
    from sfumato import methods as known
    from sfumato.threads import threads
    from sfumato.training.data import load

    for what, names, table in (
        ("method", values.methods, known.METHODS),
        ("kernel", [name.partition(":")[0] for name in values.kernels], known.KERNELS),
    ):
        for name in names:
            if name not in table:
                raise ValueError(nearest(what, name, table))
    out = Path(values.out)
    if (out / "tune.json").exists():
        raise ValueError(f"{out / 'tune.json'} exists. Choose another --out.")
    files.check_writable(out / "tune.json")
    data = load(values.data, values.split, **reading.asked(values))
    facts, rows, refused = data.facts(), [], {}
    best: dict[int, list[tuple[float, str, Moments, Predictor]]] = {n: [] for n in values.steps}
    count = len(values.methods) * len(values.kernels)
    with threads(values.threads or 1), bar("pairs", count, values.quiet) as advance:
        for method, kernel, found in _pairs(values, facts):
            if isinstance(found, str):
                refused[f"{method}, {kernel}"] = found
            else:
                for n, steps, moments, predictor in found:
                    row = {"method": method, "kernel": kernel, "calls": n, "steps": steps}
                    rows.append(row | {"error": moments.error})
                    best[n].append((moments.error, f"{method}, {kernel}", moments, predictor))
            advance(1)
    record = {"data": data.record.to_dict(), "rows": rows, "refused": refused, "model": MODEL}
    files.write(out / "tune.json", json.dumps(record, indent=2) + "\n")
    _draw(best, out / "tune.png")
    if not values.quiet:
        _show(values, {n: sorted(found, key=lambda row: row[0]) for n, found in best.items()})
        print(f"{len(refused)} pairs were refused; why is in {out / 'tune.json'}.")


def _pairs(values: Namespace, facts: Facts) -> Iterator[tuple[str, str, Any]]:
    """(method, kernel, predictions or why there are none), in turn."""
    from sfumato.methods import METHODS as known
    from sfumato.methods import lookup
    from sfumato.sampling.predict import Predictor

    for method in values.methods:
        try:
            recipe = known[method](tuple(facts.mean.shape), facts)
            predictor = Predictor(recipe.process, facts, recipe.prior)
        except (ValueError, NotImplementedError) as error:
            yield from ((method, kernel, str(error)) for kernel in values.kernels)
            continue
        for kernel in values.kernels:
            try:
                yield method, kernel, _predicted(predictor, lookup.kernel(kernel), recipe, values)
            except (ValueError, TypeError, NotImplementedError) as error:
                yield method, kernel, str(error)


def _predicted(
    predictor: Predictor, kernel: Kernel, recipe: Recipe, values: Namespace
) -> list[tuple[int, int, Moments, Predictor]]:
    """(calls, steps, moments, predictor) for each number of calls: as many steps as they allow."""
    found = []
    for calls in values.steps:
        if recipe.fixed and calls != recipe.steps:
            raise ValueError(f"this method samples in {recipe.steps} steps and no other.")
        each = predictor.calls(kernel, recipe.grid(3)) / 3
        steps = max(1, int(calls / each)) if each > 1.2 else calls
        found.append((calls, steps, predictor(kernel, recipe.grid(steps)), predictor))
    return found


def _show(values: Namespace, ranked: dict[int, list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", *(f"{n} calls" for n in ranked), title="predicted W2", title_justify="left")
    for place in range(min(SHOWN, max(len(found) for found in ranked.values()))):
        cells = [
            f"{found[place][0]:.4f}  {found[place][1]}" if place < len(found) else ""
            for found in ranked.values()
        ]
        table.add_row(str(place + 1), *cells)
    console.print(table)
    console.print(MODEL, highlight=False)


def _draw(best: dict[int, list[Any]], target: Path) -> None:
    """Spectra of samples over the data's, by frequency, for the fewest calls and the most."""
    from sfumato import charts

    panels = []
    for n in sorted({min(best), max(best)}):
        lines: dict[str, Any] = {"_": ([1.0], [1.0])}
        for _, name, moments, predictor in sorted(best[n], key=lambda row: row[0])[:LINES]:
            ratio = moments.variance / moments.data_variance
            lines[name] = _radial(predictor.basis.laplacian.sqrt(), ratio)
        up = "variance of samples over data's"
        panels.append(charts.Panel(f"{n} calls", "frequency", up, lines))
    charts.save(panels, target)


def _radial(frequency: Tensor, value: Tensor) -> tuple[list[float], list[float]]:
    """The mean in bands of frequency."""
    import torch

    flat = frequency.flatten()
    value = value.reshape(-1, len(flat)).mean(0)
    edges = torch.linspace(0, float(flat.max()), BANDS + 1, dtype=torch.float64)
    which = torch.bucketize(flat, edges[1:-1])
    counts = torch.bincount(which, minlength=BANDS)
    totals = torch.bincount(which, weights=value, minlength=BANDS)
    middle, kept = (edges[1:] + edges[:-1]) / 2, counts > 0
    return middle[kept].tolist(), (totals[kept] / counts[kept]).clamp(min=1e-12).tolist()


def _parser() -> Parser:
    parser = Parser("tune", ABOUT, MODEL)
    reading.data_options(parser)
    parser.option("out", kinds.PATH, "out/tune", "folder for tune.json and tune.png")
    steps = "numbers of network calls"
    parser.option("steps", kinds.several(kinds.POSITIVE), (5, 10, 20, 50), steps)
    parser.option("methods", kinds.several(kinds.TEXT), METHODS, "methods, as trained by default")
    parser.option("kernels", kinds.several(kinds.TEXT), KERNELS, "kernels")
    threads = "of the processor (default: one, which serves many small operations best)"
    parser.option("threads", kinds.optional(kinds.POSITIVE), None, threads)
    parser.about_the_call()
    return parser
