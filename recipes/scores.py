"""Tables of scores in docs, printed from the records in docs/records.

    python recipes/scores.py             # docs/models.md's
    python recipes/scores.py --kernels   # docs/kernels.md's: FID by sampler and network calls
    python recipes/scores.py --grids     # docs/selection.md's: FID by grid
    python recipes/scores.py --spacings  # docs/kernels.md's: FID and predicted W2 by spacing
    python recipes/scores.py --predicted # docs/selection.md's: error predicted by `tune`, and FID
    python recipes/scores.py --bits      # docs/evaluation.md's: bits per dimension

One row for each result of the bundled models, of other libraries (`peer-NAME-SAMPLER-STEPS.json`)
and of real images, largest n first.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.evaluation.protocol import read

RECORDS = Path(__file__).parents[1] / "docs" / "records"
HEAD = ("| | n | steps | FID | KID | precision | recall |", "|---|---|---|---|---|---|---|")
REAL = "real training images"
CALLS = (5, 10, 20, 50)
OTHERS = (
    *("bits-", "few-", "grid-", "guidance-", "selection-", "spacing-", "zoo-"),
    *("fashion-ddpm-4-", "fashion-soft-4-"),
)
GRIDS = ("uniform", "quadratic", "karras", "auto")
BITS = {
    "uniform": "flow, uniform noise",
    "flow": "flow, decoder",
    "bound": "bound",
    "gap": "bound - flow",
}


class Row(NamedTuple):
    """One result."""

    n: int
    name: str
    steps: int
    scores: dict[str, Any]

    @property
    def line(self) -> str:
        """The row in Markdown."""
        fid, kid, precision, recall = (
            self.scores[name] for name in ("fid", "kid", "precision", "recall")
        )
        return (
            f"| {self.name} | {self.n:,} | {self.steps or ''} | {fid:.3g} | {kid:.4f} | "
            f"{precision:.3f} | {recall:.3f} |"
        )


def table() -> list[str]:
    """The lines of the table, in Markdown."""
    found = {row[:3]: row for path in sorted(RECORDS.glob("*.json")) for row in rows(path)}
    ranked = sorted(found.values(), key=lambda row: (-row.n, row.name == REAL, row.name, row.steps))
    return [*HEAD, *(row.line for row in ranked)]


def rows(path: Path) -> list[Row]:
    """The results of one record, and its floor."""
    if not path.stem.startswith(("fashion-", "peer-")) or "kernel" in path.stem:
        return []
    record = read(path)
    n = record["n"]
    floor = Row(n, REAL, 0, record["floor"])
    if path.stem.startswith("peer-"):
        _, peer, sampler, steps = path.stem.split("-")
        return [Row(n, f"{peer}, {sampler}", int(steps), record["results"][0]), floor]
    name = f"`{record['subject']['run']}`"
    return [*(Row(n, name, one["steps"], one) for one in record["results"]), floor]


def kernels() -> list[str]:
    """FID at n = 2,000 of each sampler on the bundled models, in Markdown."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for path in sorted(RECORDS.glob("*fashion-*.json")):
        if path.stem.startswith(OTHERS) or (record := read(path))["n"] != 2_000:
            continue
        for one in record["results"]:
            row = found.setdefault((record["subject"]["run"], one["sampler"]), {})
            row[one["steps"]] = one["fid"]
    lines = [
        f"| model | sampler | {' | '.join(map(str, CALLS))} |",
        f"|---|---|{'---|' * len(CALLS)}",
    ]
    for (model, kernel), row in sorted(found.items()):
        best = {c: min(r.get(c, 99.0) for (m, _), r in found.items() if m == model) for c in CALLS}
        cells = [_cell(row.get(calls), best[calls]) for calls in CALLS]
        lines.append(f"| `{model}` | {kernel} | {' | '.join(cells)} |")
    return lines


def grids() -> list[str]:
    """FID at n = 2,000 of `ddim` on each grid, in Markdown."""
    lines = [f"| model | grid | {' | '.join(map(str, CALLS[:3]))} |", "|---|---|---|---|---|"]
    for model in ("fashion-ddpm", "fashion-soft"):
        rows: dict[str, dict[int, float]] = {name: {} for name in GRIDS}
        paths = [*RECORDS.glob(f"grid-{model}-*.json"), RECORDS / f"kernel-{model}-ddim.json"]
        for path in [*paths, *RECORDS.glob(f"{model}-2000*.json")]:
            record = read(path)
            row = rows[record["subject"].get("grid") or "uniform"]
            row.update({one["steps"]: one["fid"] for one in record["results"]})
        for name, row in rows.items():
            best = {c: min(r.get(c, 99.0) for r in rows.values()) for c in CALLS[:3]}
            cells = [_cell(row.get(calls), best[calls]) for calls in CALLS[:3]]
            lines.append(f"| `{model}` | {name} | {' | '.join(cells)} |")
    return lines


def spacings() -> list[str]:
    """FID at n = 2,000 and W2 of `ddim` by the spacing of a chain of 1,000 levels, in Markdown."""
    import sfumato as sf
    from sfumato.corruption.statistics import default_statistics
    from sfumato.methods.spacing import SPACINGS, spaced

    model, kernel = sf.from_pretrained("fashion-ddpm"), sf.kernels.reverse(sf.couplings.ddim(0.0))
    linear = sf.METHODS["ddpm"](model.shape, betas="linear")
    predictors = {
        "W2, Fashion-MNIST": sf.Predictor(model.recipe.process, model.stats, model.recipe.prior),
        "W2, 1/f^2, linear betas": sf.Predictor(
            linear.process, default_statistics(model.shape), linear.prior
        ),
    }
    lines = [f"| | spacing | {' | '.join(map(str, CALLS))} |", f"|---|---|{'---|' * len(CALLS)}"]
    for name in SPACINGS:
        fids: dict[int, float] = {}
        for path in RECORDS.glob(f"spacing-fashion-ddpm-{name}*.json"):
            fids |= {one["steps"]: one["fid"] for one in read(path)["results"]}
        lines.append(f"| FID | {name} | {' | '.join(f'{fids[n]:.3g}' for n in CALLS)} |")
    for what, predictor in predictors.items():
        for name, spacing in SPACINGS.items():
            errors = (predictor(kernel, spaced(1000, spacing)(n)).error for n in CALLS)
            lines.append(f"| {what} | {name} | {' | '.join(f'{x:.4f}' for x in errors)} |")
    return lines


def bits() -> list[str]:
    """Bits per dimension of each record, with standard errors, in Markdown."""
    lines = [f"| model | n | {' | '.join(BITS.values())} |", "|---|---|" + "---|" * len(BITS)]
    for path in sorted(RECORDS.glob("bits-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found = [record["bits_per_dim"][name] for name in BITS]
        cells = [f"{row['mean']:.3f} ± {row['standard_error']:.3f}" for row in found]
        lines.append(f"| {path.stem[5:]} | {record['n']} | {' | '.join(cells)} |")
    return lines


def predicted() -> tuple[list[str], float, int]:
    """Error that `tune` predicts beside FID, in Markdown; rank correlation; number of pairs."""
    from scipy.stats import spearmanr

    import sfumato as sf
    from sfumato.sampling.samplers import kernel as kernel_of

    found: dict[tuple[str, str, int], tuple[float, float]] = {}
    for path in sorted(RECORDS.glob("*fashion-*.json")):
        if path.stem.startswith(OTHERS) or (record := read(path))["n"] != 2_000:
            continue
        model = sf.from_pretrained(record["subject"]["run"])
        predictor = sf.Predictor(model.recipe.process, model.stats, model.recipe.prior)
        for one in record["results"]:
            if one["steps"] in CALLS[1:]:
                kernel = kernel_of(one["sampler"])
                error = predictor(kernel, model.recipe.grid(one["steps"])).error
                key = record["subject"]["run"], one["sampler"], one["steps"]
                found[key] = error, one["fid"]
    pairs = sorted({key[:2] for key in found})
    steps = CALLS[1:]
    head = " | ".join(f"{n}: W2 | FID" for n in steps)
    lines = [f"| model | sampler | {head} |", "|---|---|" + "---|" * 2 * len(steps)]
    for model, kernel in pairs:
        row = (found.get((model, kernel, n)) for n in steps)
        cells = (f"{cell[0]:.4f} | {cell[1]:.3g}" if cell else " | " for cell in row)
        lines.append(f"| `{model}` | {kernel} | {' | '.join(cells)} |")
    errors, fids = zip(*found.values(), strict=True)
    return lines, float(spearmanr(errors, fids).statistic), len(found)


def _cell(fid: float | None, best: float) -> str:
    if fid is None:
        return ""
    return f"**{fid:.3g}**" if fid <= best else f"{fid:.3g}"


def main() -> None:
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    for made in (table, kernels, grids, spacings, predicted, bits):
        flag, text = f"--{made.__name__}", (made.__doc__ or "").split("\n")[0]
        which.add_argument(flag, dest="made", action="store_const", const=made, help=text)
    made = parser.parse_args().made or table
    if made is predicted:
        lines, correlation, count = predicted()
        print("\n".join(lines), f"\nrank correlation {correlation:.2f}, n = {count}")
    else:
        print("\n".join(made()))


if __name__ == "__main__":
    main()
