"""Line charts as PNG files: what `select` and `tune` show, by matplotlib.

Imported late: drawing takes a second to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sfumato import files


class Panel(NamedTuple):
    """One chart (final).

    Attributes:
        title, across, up: its words.
        lines: x and y of each line, by its name; a name that starts with "_" is not in the legend.
        marks: whether the points are marked.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    marks: bool = False


def save(panels: Sequence[Panel], target: str | Path) -> None:
    """Draw the panels side by side into `target`, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y) in panel.lines.items():
            axes.plot(x, y, "o-" if panel.marks else "-", markersize=3, label=name)
        axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
        if any(not name.startswith("_") for name in panel.lines):
            axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    files.write(target, lambda part: figure.savefig(part, dpi=100, format="png"))
