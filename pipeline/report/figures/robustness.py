"""The gain on plain documents beside the gain on the same documents perturbed, for each condition, on one scale."""

from typing import TYPE_CHECKING, Any

from pipeline.analysis.findings import find
from pipeline.analysis.results import REFERENCE, Results
from pipeline.report.figures.fitting import room_for
from pipeline.report.figures.panels import (
    BLUE,
    INK,
    PAPER,
    QUIET,
    Layout,
    arms,
    legend,
    name_panel,
    name_rows,
    panels,
    reach,
    scale_points,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLAIN: Any = {
    "color": QUIET,
    "marker": "s",
    "markerfacecolor": PAPER,
    "label": "gain on the plain documents",
}
_PERTURBED: Any = {"color": BLUE, "marker": "o", "label": "gain on the same documents, perturbed"}


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family and variant."""
    rows = [row for row in results.rows("main") if row.name != REFERENCE]
    places = []
    for family in results.families:
        for variant in results.variants():
            gains = {
                found.row.name: (found.persistence.gain_plain, found.persistence.gain)
                for found in find(results).persisting
                if (found.family, found.variant) == (family, variant)
            }
            if gains:
                places.append((family, variant, gains))
    if not places:
        return None
    figure, axes = panels(
        len(places), 0.75 + 0.32 * len(rows), layout, share="xy", names=room_for(row.label for row in rows)
    )
    for ax, (family, variant, gains) in zip(axes, places, strict=True):
        ax.axvline(0, color=INK, linewidth=1)
        for y, row in enumerate(rows):
            for gain, offset, style in zip(
                gains.get(row.name, ()), (-0.16, 0.16), (_PLAIN, _PERTURBED), strict=False
            ):
                ax.errorbar(
                    100 * gain.value,
                    y + offset,
                    xerr=arms(gain),
                    markersize=5,
                    capsize=2,
                    linestyle="none",
                    **style,
                )
        name_rows(ax, rows)
        name_panel(ax, results, family, variant)
        ax.set_xlabel("difference, points")
    everything = [gain for *_, gains in places for both in gains.values() for gain in both]
    legend(figure, axes, scale_points(axes, "x", reach(everything)))
    return figure
