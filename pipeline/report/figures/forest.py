"""Differences to Baseline with their intervals, on one scale; filled where p < 0.05 after Holm's correction."""

from typing import TYPE_CHECKING, Any

from pipeline.analysis.published import published_figures
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
    reach,
    scale_points,
)
from pipeline.report.gains import Gains, gains

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family and plain benchmark."""
    return picture(results, gains(results), layout)


def picture(results: Results, found: Gains, layout: Layout, published: bool = True) -> "Figure | None":
    """The forest of any differences between rows of a run; with what the paper reports of them."""
    plain = [b for b in found.benchmarks if b in results.plain()]
    places = [
        (f, b) for f in results.families for b in plain if any(found.at(f, row, b) for row in found.rows)
    ]
    if not places:
        return None
    rows = found.rows
    figure, axes = panels(
        len(places), 0.75 + 0.2 * len(rows), layout, share="xy", names=room_for(row.label for row in rows)
    )
    for ax, (family, benchmark) in zip(axes, places, strict=True):
        ax.axvline(0, color=INK, linewidth=1)
        for y, row in enumerate(rows):
            compared = found.at(family, row, benchmark)
            if compared is None:
                continue
            style: Any = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 2, "linestyle": "none"}
            style["markerfacecolor"] = BLUE if compared.is_significant else PAPER
            style["label"] = "p < 0.05 (Holm)" if compared.is_significant else "not significant"
            ax.errorbar(100 * compared.difference.value, y, xerr=arms(compared.difference), **style)
            for reported in published_figures(results, family, row, benchmark) if published else ():
                if reported.difference is not None:
                    ax.plot(
                        reported.difference, y + 0.25, "x", color=VERMILION, markersize=6, label="published"
                    )
        name_rows(ax, rows)
        name_panel(ax, results, family, benchmark)
        ax.set_xlabel("difference, points")
    note = scale_points(axes, "x", reach([compared.difference for compared in found.compared.values()]))
    legend(figure, axes, note)
    return figure
