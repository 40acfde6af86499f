"""What the figures share: panels side by side or stacked, colours, scales, legends and error bars."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.analysis.estimate import Estimate
from pipeline.analysis.results import Results, Row

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
    down = -(-count // across)
    width = min(layout.width, 1.1 + names + 2.1 * max(across, 1.6))
    figure = Figure(figsize=(width, 0.6 + height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex="x" in share, sharey="y" in share)
    found = axes.ravel().tolist()
    for ax in found[count:]:
        ax.remove()
    for ax in found[:count]:
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, found[:count]


def short(text: str, longest: int = 30) -> str:
    """A label that leaves room for what is drawn; the tables have the whole."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def panel_title(results: Results, family: str, benchmark: str) -> str:
    """The benchmark; the family is named where there are several."""
    labels = results.label(benchmark, ":\n").split("\n")
    if len(results.families) > 1:
        labels = [results.families[family].label, *labels]
    return "\n".join(map(short, labels))


def room_for(names: Iterable[str]) -> float:
    """Inches that names on the left take."""
    return 0.06 * max((len(short(name)) for name in names), default=0)


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
            handles.setdefault(short(str(label), 40), handle)
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
            getattr(ax, f"set_{name}scale")("asinh", linear_width=_LINEAR)
            axis = getattr(ax, f"{name}axis")
            low, high = getattr(ax, f"get_{name}lim")()
            axis.set_ticks([tick for tick in _TICKS if min(low, high) <= tick <= max(low, high)])
            axis.set_minor_locator(_no_ticks())
            axis.set_major_formatter(lambda tick, _: f"{tick:.0f}".replace("-", "−"))
    return f"scale compressed beyond ±{_LINEAR:g} points"


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
