"""Our gains beside the authors' own, condition by condition, where the run repeats their experiments."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.analysis.authors import Beside, beside
from pipeline.analysis.results import Results
from pipeline.report.figures.fitting import room_for
from pipeline.report.figures.panels import (
    BLUE,
    INK,
    VERMILION,
    Layout,
    arms,
    legend,
    name_lines,
    name_panel,
    panels,
    reach,
    scale_points,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family and benchmark that the authors report."""
    return picture(results, beside(results), layout)


def picture(results: Results, found: Sequence[Beside], layout: Layout) -> "Figure | None":
    """Gains of ours with their intervals, theirs as crosses; a line for each condition under each prompt."""
    places: dict[tuple[str, str], list[Beside]] = {}
    for one in found:
        if one.gain is not None and one.gain_theirs is not None:
            places.setdefault((one.theirs.family, one.theirs.benchmark), []).append(one)
    if not places:
        return None
    labels = [[f"{one.row.label}, {one.theirs.setting}" for one in lines] for lines in places.values()]
    most = max(map(len, labels))
    figure, axes = panels(
        len(places),
        0.8 + 0.24 * most,
        layout,
        share="x",
        names=room_for(name for of in labels for name in of),
    )
    for ax, ((family, benchmark), lines), names in zip(axes, places.items(), labels, strict=True):
        ax.axvline(0, color=INK, linewidth=1)
        for y, one in enumerate(lines):
            assert one.gain is not None and one.gain_theirs is not None, "places hold those that have both"
            style: Any = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 2, "linestyle": "none"}
            ax.errorbar(100 * one.gain.value, y, xerr=arms(one.gain), label="ours", **style)
            ax.plot(100 * one.gain_theirs, y + 0.25, "x", color=VERMILION, markersize=6, label="the authors'")
        name_lines(ax, names)
        name_panel(ax, results, family, benchmark)
        ax.set_xlabel("difference, points")
    furthest = max(
        reach([one.gain for one in found if one.gain is not None]),
        *(100 * abs(one.gain_theirs) for one in found if one.gain_theirs is not None),
    )
    legend(figure, axes, scale_points(axes, "x", furthest))
    return figure
