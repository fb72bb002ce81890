"""Line charts as PNG files, drawn by `select` and `tune` with matplotlib, where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

from sfumato import files
from sfumato.notes import Note


@final
class Panel(NamedTuple):
    """One chart.

    Attributes:
        title, across, up: its title and the labels of the x and y axes.
        lines: x and y of each line, by its name; a name that starts with "_" is not in the legend.
        marks: whether the points are marked.
        logs: whether both axes are logarithmic.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    marks: bool = False
    logs: bool = False


def save(panels: Sequence[Panel], target: str | Path) -> None:
    """Draw the panels side by side into `target`, whole or not at all.

    Without matplotlib, an extra of the package, a note says that there is no chart.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        cure = "Install it: pip install 'sfumato[charts]'."
        told = Note(f"{target} is not drawn, without matplotlib ({error}). {cure}")
        warnings.warn(told, stacklevel=2)
        return
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y) in panel.lines.items():
            axes.plot(x, y, "o-" if panel.marks else "-", markersize=3, label=name)
        if panel.logs:
            axes.set(xscale="log", yscale="log")
            known = sorted({x for across, _ in panel.lines.values() for x in across})
            axes.set_xticks(known, [f"{x:g}" for x in known])
            axes.set_xticks([], minor=True)
        axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
        if any(not name.startswith("_") for name in panel.lines):
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    files.write(target, lambda part: figure.savefig(part, dpi=100, format="png"))
