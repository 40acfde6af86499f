"""A heat map of gains over Baseline: conditions by benchmarks and variants, hatched where not significant."""

from typing import TYPE_CHECKING, Any

from pipeline.analysis.results import Results
from pipeline.report.figures.fitting import room_for, short
from pipeline.report.figures.panels import BLUE, ON_DARK, ON_LIGHT, QUIET, VERMILION, Layout
from pipeline.report.gains import Gains, gains
from pipeline.report.numbers import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.35  # of a row, between groups
_SLANTED = 1.5  # inches of a label above a column, at most
_NUMBER = 0.42  # inches across that a number takes at 8 points
_FULL = 20.0  # points at which a cell has its full colour
_DEEPEST = 0.85  # of that colour, so that black text on it is legible
_WHITE = 0xFE  # a white that stays white on a dark page


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family, below each other."""
    return picture(results, gains(results), layout)


def picture(results: Results, found: Gains, layout: Layout) -> "Figure | None":
    """The heat map of any differences between rows of a run."""
    from matplotlib.figure import Figure

    families = found.families
    if not families:
        return None
    rows = len(found.rows) + _GAP * (len(found.groups) - 1)
    names = room_for(row.label for row in found.rows)
    width = min(layout.width, 0.8 + names + 0.95 * len(found.benchmarks))
    size = 8 * min(1.0, (width - names - 0.6) / len(found.benchmarks) / _NUMBER)
    figure = Figure(figsize=(width, len(families) * (1.35 + 0.24 * rows)), layout="constrained")
    axes = figure.subplots(len(families), 1, squeeze=False).ravel().tolist()
    for ax, family in zip(axes, families, strict=True):
        _panel(ax, results, found, family, layout, size)
        if len(results.families) > 1:
            ax.set_xlabel(short(results.families[family].label, max(1.0, width - names - 0.6)), color=QUIET)
    return figure


def shade(points: float) -> tuple[str, str]:
    """Colour of a cell and of its text for a difference in points: blue for a gain, vermilion for a loss."""
    depth = _DEEPEST * min(1.0, abs(points) / _FULL) ** 0.5
    full = BLUE if points >= 0 else VERMILION
    parts = [round(_WHITE + depth * (int(full[i : i + 2], 16) - _WHITE)) for i in (1, 3, 5)]
    linear = [(part / 255) ** 2.2 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Black has the better contrast from here on: (1 + 0.05) / (l + 0.05) = (l + 0.05) / 0.05.
    is_dark = luminance < 0.179
    return "#" + "".join(f"{part:02x}" for part in parts), ON_DARK if is_dark else ON_LIGHT


def _panel(ax: "Axes", results: Results, found: Gains, family: str, layout: Layout, size: float) -> None:
    from matplotlib.patches import Rectangle

    y, ticks = 0.0, []
    for group in found.groups.values():
        for row in group:
            ticks.append((y + 0.5, short(row.label)))
            for x, benchmark in enumerate(found.benchmarks):
                compared = found.at(family, row, benchmark)
                if compared is None:
                    continue
                fill, ink = shade(100 * compared.difference.value)
                style: Any = {"facecolor": fill, "edgecolor": "#fefefe", "linewidth": 1}
                ax.add_patch(Rectangle((x, y), 1, 1, **style))
                if not compared.is_significant:
                    hatch: Any = {
                        "facecolor": "none",
                        "edgecolor": "#b0b0b0",
                        "linewidth": 0,
                        "hatch": "////",
                    }
                    ax.add_patch(Rectangle((x, y), 1, 1, **hatch))
                ax.text(
                    x + 0.5,
                    y + 0.5,
                    signed(compared.difference.value),
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=size,
                )
            y += 1
        y += _GAP
    ax.set_xlim(0, len(found.benchmarks))
    ax.set_ylim(y - _GAP, 0)
    ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    ax.set_xticks(
        [x + 0.5 for x in range(len(found.benchmarks))],
        [
            "\n".join(short(line, _SLANTED, 8) for line in results.label(b, ":\n").split("\n"))
            for b in found.benchmarks
        ],
    )
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=8)
    for label in ax.get_xticklabels():
        label.set_rotation(60 if layout.is_narrow else 30)
        label.set_horizontalalignment("left")
        label.set_rotation_mode("anchor")
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
