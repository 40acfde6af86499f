"""What the figures share: panels side by side or stacked, colours, scales, legends and error bars."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.analysis.estimate import Estimate
from pipeline.analysis.results import Results, Row
from pipeline.report.figures.fitting import room_for, short, ticks_that_fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which the colour-blind can tell apart
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
)  # fmt: skip
# Of what takes the page's colours: black and white on paper, the other way round on a dark screen.
INK, PAPER, GRID, QUIET = "#000000", "#ffffff", "#dddddd", "#666666"
ON_LIGHT, ON_DARK = "#010101", "#fefefe"  # text on a cell of a heat map, whatever the page's colours
SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, QUIET)
MARKERS = "osD^vPX*<>hp"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; `fitting` measures it
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "text.parse_math": False,  # labels are data
    "pdf.fonttype": 42,
    "svg.hashsalt": "figures",  # names of parts that are the same every time
    "savefig.dpi": 150,
}
_COMPRESSED = 40.0  # points; where differences reach further, the scale is linear near zero only
_LINEAR = 5.0  # points around zero that such a scale leaves as they are, roughly
_TICKS = (-100, -50, -20, -5, 0, 5, 20, 50, 100)
_EDGE = 0.35  # inches beside a panel that are not its own: its neighbour's ticks and what separates them
_NARROWEST = 1.5  # inches of a panel
_LEGEND = 2.8  # inches of a label in the legend, at most


@dataclass(frozen=True)
class Layout:
    """How wide a figure may be."""

    columns: int  # panels side by side
    width: float  # inches, at most

    @property
    def is_narrow(self) -> bool:
        return self.columns == 1


WIDE = Layout(columns=4, width=10.4)  # a page, print
NARROW = Layout(columns=1, width=3.8)  # a phone


def panels(
    count: int, height: float, layout: Layout, *, share: Sequence[str] = (), names: float = 0.0
) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` panels.

    Args:
        height: of one panel, inches.
        share: "x", "y": axes that all panels have in common; ticks are named at the figure's edge, on a phone in each.
        names: room for the names on the left, inches.
    """
    from matplotlib.figure import Figure

    across = min(layout.columns, count)
    while across > 1 and layout.width / across - _EDGE - names / (across if "y" in share else 1) < _NARROWEST:
        across -= 1
    down = -(-count // across)
    all_names = names * (1 if "y" in share else across)
    width = min(layout.width, 1.1 + all_names + 2.1 * max(across, 1.6))
    figure = Figure(figsize=(width, 0.6 + height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex="x" in share, sharey="y" in share)
    found = axes.ravel().tolist()
    for ax in found[count:]:
        ax.remove()
    for ax in found[:count]:
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, found[:count]


def panel_width(ax: "Axes") -> float:
    """Inches of a panel, about; its rows are named before."""
    grid, figure = ax.get_subplotspec(), ax.figure
    assert grid is not None, "panels are subplots"
    across, first = grid.get_gridspec().ncols, figure.axes[0]
    # Rows that all panels have in common are named in the first alone.
    is_shared = first.get_shared_y_axes().joined(first, figure.axes[-1])
    names = room_for(label.get_text() for label in (first if is_shared else ax).get_yticklabels())
    return float(figure.get_figwidth()) / across - _EDGE - names / (across if is_shared else 1)  # type: ignore[union-attr]


def title_panel(ax: "Axes", *lines: str) -> None:
    """Write lines above a panel, each cut where it would meet the next panel's."""
    room = panel_width(ax) + _EDGE / 2
    ax.set_title("\n".join(short(line, room) for line in lines))


def name_panel(ax: "Axes", results: Results, family: str, benchmark: str) -> None:
    """Write the benchmark above a panel; the family is named where there are several."""
    labels = results.label(benchmark, ":\n").split("\n")
    title_panel(ax, *([results.families[family].label] if len(results.families) > 1 else []), *labels)


def label_rows(axes: "list[Axes]", text: str) -> None:
    """Label the vertical axis of the first panel in each row."""
    for ax in axes:
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(text)


def name_rows(ax: "Axes", rows: Sequence[Row]) -> None:
    """Rows from the top down on the vertical axis."""
    name_lines(ax, [row.label for row in rows])


def name_lines(ax: "Axes", labels: Sequence[str]) -> None:
    """Labels from the top down on the vertical axis."""
    ax.set_yticks(range(len(labels)), [short(label) for label in labels])
    ax.set_ylim(len(labels) - 0.5, -0.5)


def legend(figure: "Figure", axes: "list[Axes]", note: str = "") -> None:
    """One legend under all panels, each label once, in as many columns as fit; a note stands above it."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(short(str(label), min(_LEGEND, figure.get_figwidth() - 0.8)), handle)
    column = 0.6 + 0.075 * max(map(len, handles), default=0)  # inches
    columns = max(1, min(len(handles), int(figure.get_figwidth() / column)))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, title=note or None,
        title_fontsize=8,
    )  # fmt: skip


def scale_points(axes: "list[Axes]", names: str, furthest: float) -> str:
    """Set the scale of differences on the axes named ("x", "xy"); returns the note that says how it differs from a plain one.

    Args:
        furthest: the largest difference or end of an interval, in points.
    """
    if furthest <= _COMPRESSED:
        return ""
    for ax in axes:
        for name in names:
            compress(ax, name, _LINEAR, _TICKS)
    return f"scale compressed beyond ±{_LINEAR:g} points"


def compress(ax: "Axes", name: str, linear: float, ticks: Sequence[float]) -> None:
    """A scale of one axis ("x" or "y") that is linear near zero and logarithmic beyond, with those of the ticks that fit.

    Args:
        linear: the part around zero that stays as it is, roughly.
    """
    getattr(ax, f"set_{name}scale")("asinh", linear_width=linear)
    axis = getattr(ax, f"{name}axis")
    low, high = sorted(math.asinh(end / linear) for end in getattr(ax, f"get_{name}lim")())
    length = panel_width(ax) if name == "x" else panel_height(ax)
    inside = [tick for tick in ticks if low <= math.asinh(tick / linear) <= high]
    fitting = ticks_that_fit(
        inside,
        lambda tick: length * (math.asinh(tick / linear) - low) / (high - low),
        _tick_name,
        across=name == "x",
    )
    axis.set_ticks(fitting)
    axis.set_minor_locator(_no_ticks())
    axis.set_major_formatter(lambda tick, _: _tick_name(tick))


def panel_height(ax: "Axes") -> float:
    """Inches of a panel without its title and what is written below it, about."""
    grid = ax.get_subplotspec()
    assert grid is not None, "panels are subplots"
    return max(0.5, float(ax.figure.get_figheight()) / grid.get_gridspec().nrows - 1.1)  # type: ignore[union-attr]


def _tick_name(tick: float) -> str:
    return f"{tick:g}".replace("-", "−")


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def arms(estimate: Estimate, unit: float = 100) -> list[list[float]]:
    """Distances to the interval's ends, as matplotlib takes them; rounding can make one of them −1e-16.

    Args:
        unit: what they are multiplied with; 100 makes points of fractions.
    """
    ends = (estimate.value - estimate.low, estimate.high - estimate.value)
    return [[max(unit * end, 0.0)] for end in ends]


def reach(estimates: Sequence[Estimate]) -> float:
    """The furthest end of an interval from zero, in points."""
    ends = [100 * abs(end) for one in estimates for end in (one.low, one.high, one.value) if end == end]
    return max(ends, default=0.0)
