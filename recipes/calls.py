"""FID against network calls, of the bundled models and of other libraries: docs/calls.png.

    python recipes/calls.py

Drawn from docs/records alone. Curves are of 2,000 samples. The other libraries were measured on
500, where every FID is higher, so our own of 500 are marked beside them.
"""

from __future__ import annotations

import json
from pathlib import Path

from sfumato import files
from sfumato.evaluation.protocol import read

DOCS = Path(__file__).parents[1] / "docs"
RECORDS = DOCS / "records"
COLOURS = {"fashion-soft": "tab:blue", "fashion-ddpm": "tab:orange"}
SAMPLERS = {"fashion-soft": "ddim", "fashion-ddpm": "unipc"}
"""The sampler of each model that docs/choosing.md recommends."""
Points = list[list[float]]
"""[network calls, FID] of one curve, by rising calls."""


def curves() -> dict[str, Points]:
    """What is drawn, by name."""
    found: dict[str, dict[int, float]] = {}
    for model, sampler in SAMPLERS.items():
        few = read(RECORDS / f"few-{model}-2000.json")["results"]
        more = read(RECORDS / f"kernel-{model}-{sampler}.json")["results"]
        if sampler == "ddim":
            for path in RECORDS.glob(f"{model}-2000*.json"):
                more += [row for row in read(path)["results"] if row["sampler"] == sampler]
        rows = [row for row in few if row["row"] == sampler] + more
        found[f"{model}, {sampler}"] = {row["network_calls"]: row["fid"] for row in rows}
        students = [row for row in few if row["row"] == "distilled"]
        found[f"{model}, distilled"] = {row["network_calls"]: row["fid"] for row in students}
        small = read(RECORDS / f"{model}-500.json")["results"]
        found[f"{model}, ddim, n = 500"] = {row["network_calls"]: row["fid"] for row in small}
    for path in sorted(RECORDS.glob("peer-*.json")):
        _, peer, sampler, calls = path.stem.split("-")
        peer = {"ddp": "denoising-diffusion-pytorch"}.get(peer, peer)
        fid = read(path)["results"][0]["fid"]
        found[f"{peer}, {sampler}, n = 500"] = {int(calls): fid}
    return {name: [list(pair) for pair in sorted(row.items())] for name, row in found.items()}


def draw(target: Path) -> None:
    """The picture; the numbers that are drawn are in its metadata, for the tests to compare."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    theirs = iter(("s", "D"))
    for name, points in curves().items():
        model = name.partition(",")[0]
        colour = COLOURS.get(model, "black")
        how = {"color": colour, "marker": "o", "markersize": 4, "label": name}
        if "n = 500" in name:
            marker = "o" if model in COLOURS else next(theirs)
            how |= {"linestyle": "", "marker": marker, "markersize": 7, "markerfacecolor": "none"}
        elif "distilled" in name:
            how |= {"linestyle": "--"}
        axes.plot(*zip(*points, strict=True), **how)
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="FID")
    calls = (1, 2, 4, 8, 20, 50, 100)
    axes.set_xticks(calls, map(str, calls))
    fids = (1, 2, 5, 10, 20)
    axes.set_yticks(fids, map(str, fids))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    about = {"Description": json.dumps(curves()), "Software": None}
    files.write(target, lambda part: figure.savefig(part, dpi=100, format="png", metadata=about))


if __name__ == "__main__":
    draw(DOCS / "calls.png")
