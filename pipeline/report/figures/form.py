"""How many answers are written in steps, and how many are right with steps and without, for each condition."""

from typing import TYPE_CHECKING, Any

from pipeline.analysis.behaviour import Behaviour
from pipeline.analysis.findings import find
from pipeline.analysis.results import Results
from pipeline.report.figures.fitting import room_for
from pipeline.report.figures.panels import (
    BLUE,
    INK,
    PAPER,
    VERMILION,
    Layout,
    arms,
    legend,
    name_panel,
    name_rows,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES: dict[str, dict[str, Any]] = {
    "steps": {"color": INK, "marker": "s", "markerfacecolor": PAPER, "label": "share of answers with steps"},
    "right_given_steps": {"color": BLUE, "marker": "o", "label": "right, of those with steps"},
    "right_without_steps": {
        "color": VERMILION,
        "marker": "D",
        "markerfacecolor": PAPER,
        "label": "right, of those without",
    },
}
_OFFSETS = (-0.25, 0.0, 0.25)


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family and plain benchmark whose answers may have steps."""
    written: dict[tuple[str, str], dict[str, Behaviour]] = {}
    for found in find(results).behaviours:
        if found.benchmark in results.plain() and found.behaviour.steps is not None:
            written.setdefault((found.family, found.benchmark), {})[found.row.name] = found.behaviour
    if not written:
        return None
    rows = results.rows("main", "control")
    names = room_for(row.label for row in rows)
    figure, axes = panels(len(written), 0.75 + 0.36 * len(rows), layout, share="xy", names=names)
    for ax, ((family, benchmark), behaviours) in zip(axes, written.items(), strict=True):
        for y, row in enumerate(rows):
            behaviour = behaviours.get(row.name)
            for (name, style), offset in zip(_STYLES.items(), _OFFSETS, strict=True):
                share = getattr(behaviour, name, None)
                if share is not None:
                    bars: Any = {"markersize": 5, "capsize": 2, "linestyle": "none", "linewidth": 1}
                    ax.errorbar(100 * share.value, y + offset, xerr=arms(share), **bars | style)
        name_rows(ax, rows)
        ax.set_xlim(-3, 103)
        name_panel(ax, results, family, benchmark)
        ax.set_xlabel("per cent")
    legend(figure, axes)
    return figure
