"""What the figures share: panels, colours, axes, legends and error bars."""

from typing import TYPE_CHECKING, Any

from pipeline.analysis.estimate import Estimate
from pipeline.analysis.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
MARKERS = "osD^vPX*<>hp"
COLUMNS = 4  # panels side by side
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,  # labels are data
    "pdf.fonttype": 42,
    "savefig.dpi": 150,
}


def panels(
    count: int, height: float, columns: int = COLUMNS, sharey: bool = False
) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` panels, at most `columns` side by side; `height` is one panel's, in inches."""
    from matplotlib.figure import Figure

    across = min(columns, count)
    down = -(-count // across)
    figure = Figure(figsize=(1.2 + 2.3 * max(across, 1.6), 0.5 + height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=sharey).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def panel_title(results: Results, family: str, benchmark: str) -> str:
    """The benchmark; the family is named where there are several."""
    label = results.label(benchmark, ":\n")
    return f"{results.families[family].label}\n{label}" if len(results.families) > 1 else label


def label_rows(axes: "list[Axes]", text: str) -> None:
    """Label the vertical axis of the first panel in each row."""
    for ax in axes:
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(text)


def legend(figure: "Figure", axes: "list[Axes]") -> None:
    """One legend under all panels, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)))


def arms(estimate: Estimate, unit: float = 100) -> list[list[float]]:
    """Distances to the interval's ends, as matplotlib takes them; rounding can make one of them −1e-16.

    Args:
        unit: what they are multiplied with; 100 makes points of fractions.
    """
    ends = (estimate.value - estimate.low, estimate.high - estimate.value)
    return [[max(unit * end, 0.0)] for end in ends]
