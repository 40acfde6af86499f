"""The figures of a run from the records alone, as PNG and PDF.

    figures.render(manifest, results, out)

alpha_sweep (α against accuracy with 95 % bands), forest (differences to Baseline), geometry (relative norm of
v by layer and module), length (accuracy against mean answer length) and robustness (drop on adversarial
variants). Colours are Okabe and Ito's, and every series also has its own marker or line, so that grey print
and colour-blind readers lose nothing. Rendering again gives the same bytes. A figure without data is not
drawn, and an older one is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis import claims
from pipeline.analysis.results import REFERENCE, Grid, load
from pipeline.analysis.statistics import Estimate, mean_interval
from pipeline.errors import UserError
from pipeline.files import write_file
from pipeline.report.tables import compare_all, geometry_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def render(manifest: dict[str, Any], results: Path, out: Path) -> list[Path]:
    """Write every figure that the run has data for; return the paths, PNG and PDF in turn."""
    import matplotlib
    from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401  (a part of the import that takes long)

    grid = load(manifest, results)
    written = []
    defaults: Any = matplotlib.rcParamsDefault  # not the reader's own style
    with matplotlib.rc_context(defaults | STYLE):
        for name, draw in _FIGURES.items():
            paths = [out / f"{name}.png", out / f"{name}.pdf"]
            figure = draw(grid)
            if figure is None:
                for path in paths:
                    path.unlink(missing_ok=True)
                continue
            png, pdf = BytesIO(), BytesIO()
            figure.savefig(png, format="png", metadata={"Software": None})
            figure.set_layout_engine("none")  # laid out once for both files
            undated: Any = {"CreationDate": None, "Producer": None, "Creator": None}
            figure.savefig(pdf, format="pdf", metadata=undated)
            for path, file in zip(paths, (png, pdf), strict=True):
                write_file(path, file.getvalue())
            written += paths
    return written


def alpha_sweep(grid: Grid) -> Figure | None:
    """α against accuracy with a 95 % band, one panel for each family and benchmark."""
    sweep = grid.sweep()
    panels = [
        (family, benchmark, points)
        for family in grid.families
        for benchmark in grid.benchmarks
        if len(points := list(_along(grid, family, benchmark, sweep))) > 1
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels), height=2.3)
    for ax, (family, benchmark, points) in zip(axes, panels, strict=True):
        alphas = [alpha for alpha, _ in points]
        low, high = [100 * e.low for _, e in points], [100 * e.high for _, e in points]
        ax.fill_between(alphas, low, high, color=SKY, alpha=0.35, linewidth=0, label="95 % interval")
        ax.plot(
            alphas,
            [100 * e.value for _, e in points],
            color=BLUE,
            marker="o",
            markersize=4,
            label="target + α·v",
        )
        reference = grid.value(family, (dict(sweep).get(0.0, REFERENCE),), benchmark)
        if reference:
            ax.axhline(100 * reference.value, color=BLACK, linestyle="--", linewidth=1, label="α = 0")
        for sign in (1, -1):
            row = grid.row("random", sign)
            noise = grid.value(family, row.members, benchmark) if row else None
            if row and noise:
                alpha = float(grid.conditions[row.name]["alpha"])
                _bar(ax, alpha, noise, color=VERMILION, marker="D", label="random vector of equal norm")
        if chance := grid.benchmarks[benchmark]["chance"]:
            ax.axhline(100 * chance, color="#666666", linestyle=":", linewidth=1, label="chance")
        ax.set_title(_name(grid, family, benchmark))
        ax.set_xlabel("α")
    _label_rows(axes, "accuracy, %")
    _legend(figure, axes)
    return figure


def forest(grid: Grid) -> Figure | None:
    """Differences to Baseline with intervals; filled where p < 0.05 after Holm's correction."""
    rows = [row for row in grid.rows("main", "control") if row.name != REFERENCE]
    compared = compare_all(grid, rows, grid.plain())
    panels = [
        (f, b) for f in grid.families for b in grid.plain() if any(p[0] == f and p[2] == b for p in compared)
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels), height=0.9 + 0.24 * len(rows), sharey=True)
    for ax, (family, benchmark) in zip(axes, panels, strict=True):
        ax.axvline(0, color=BLACK, linewidth=1)
        for y, row in enumerate(rows):
            found = compared.get((family, row.name, benchmark))
            if found is None:
                continue
            difference, p_holm = found
            filled = p_holm < claims.SIGNIFICANT
            style: Any = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 2, "linestyle": "none"}
            style["markerfacecolor"] = BLUE if filled else "white"
            style["label"] = "p < 0.05 (Holm)" if filled else "not significant"
            ax.errorbar(100 * difference.value, y, xerr=_arms(difference), **style)
            size, name = grid.families[family]["published_size"], grid.benchmarks[benchmark]["published"]
            for figure_ in claims.published_figures(size, name, row.name):
                if "difference" in figure_:
                    ax.plot(figure_["difference"], y, "x", color=VERMILION, markersize=6, label="published")
        ax.set_yticks(range(len(rows)), [row.label for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_title(_name(grid, family, benchmark))
        ax.set_xlabel("difference, points")
    _legend(figure, axes)
    return figure


def length(grid: Grid) -> Figure | None:
    """Accuracy against mean answer length; the sweep is a line with some of its α beside it."""
    rows = [row for row in grid.rows("main", "control")]
    panels = [
        (family, benchmark)
        for family in grid.families
        for benchmark in grid.plain()
        if any((c := grid.cell(family, row.members, benchmark)) and c.tokens.any() for row in rows)
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels), height=2.6)
    for ax, (family, benchmark) in zip(axes, panels, strict=True):
        swept = [(a, c) for a, name in grid.sweep() if (c := grid.cell(family, (name,), benchmark))]
        x, y = [c.tokens.mean() for _, c in swept], [100 * c.score.mean() for _, c in swept]
        ax.plot(
            x, y, color="#888888", linewidth=1, marker=".", zorder=1, label="sweep of α" if swept else None
        )
        told = {swept[0][0], 0.0, 1.0, swept[-1][0]} if swept else set()
        for (alpha, _), at_x, at_y in zip(swept, x, y, strict=True):
            text = f"α = {alpha:g}".replace("-", "−") if alpha in told else ""
            ax.annotate(text, (at_x, at_y), (3, 3), textcoords="offset points", fontsize=7, color="#444444")
        colours = (BLACK, BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
        for i, row in enumerate(rows):
            cell = grid.cell(family, row.members, benchmark)
            if cell is not None:
                spread = mean_interval(cell.tokens, cell.clusters)
                value = mean_interval(cell.score, cell.clusters)
                style: Any = {"color": colours[i % len(colours)], "marker": MARKERS[i % len(MARKERS)]}
                style |= {"markersize": 5, "linewidth": 0.7, "linestyle": "none", "label": row.label}
                across = [[max(end, 0.0)] for end in (spread.value - spread.low, spread.high - spread.value)]
                ax.errorbar(spread.value, 100 * value.value, xerr=across, yerr=_arms(value), **style)
        ax.set_title(_name(grid, family, benchmark))
        ax.set_xlabel("mean answer length, tokens")
    _label_rows(axes, "accuracy, %")
    _legend(figure, axes)
    return figure


def robustness(grid: Grid) -> Figure | None:
    """Paired drop on each adversarial variant, with its interval."""
    rows = grid.rows("main")
    panels = [
        (family, variant, found)
        for family in grid.families
        for variant in grid.variants()
        if (found := {r.name: d for r in rows if (d := grid.robustness(family, r.members, variant))})
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels), height=0.9 + 0.28 * len(rows), sharey=True)
    for ax, (family, variant, found) in zip(axes, panels, strict=True):
        ax.axvline(0, color=BLACK, linewidth=1)
        for y, row in enumerate(rows):
            if row.name in found:
                drop = found[row.name].drop
                colour = BLACK if row.name == REFERENCE else BLUE
                ax.errorbar(
                    100 * drop.value, y, xerr=_arms(drop), color=colour, marker="o", capsize=2, markersize=5
                )
        ax.set_yticks(range(len(rows)), [row.label for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_title(_name(grid, family, variant))
        ax.set_xlabel("perturbed − plain, points")
    return figure


def geometry(grid: Grid) -> Figure | None:
    """Heat map of ‖v‖ / ‖θ‖ by layer and kind of module."""
    import numpy as np

    reports = {}
    for family in grid.families:
        try:
            reports[family] = [c for c in geometry_report(grid, family)["cells"] if "layer" in c]
        except UserError:
            continue  # the geometry table says so
    reports = {family: cells for family, cells in reports.items() if cells}
    if not reports:
        return None
    kinds = list(dict.fromkeys(cell["module"] for cells in reports.values() for cell in cells))
    figure, axes = _panels(len(reports), height=0.9 + 0.22 * len(kinds), columns=2, sharey=True)
    for ax, (family, cells) in zip(axes, reports.items(), strict=True):
        layers = sorted({cell["layer"] for cell in cells})
        norms = np.full((len(kinds), len(layers)), np.nan)
        for cell in cells:
            if cell["relative_norm"] is not None:
                norms[kinds.index(cell["module"]), layers.index(cell["layer"])] = 100 * cell["relative_norm"]
        image = ax.imshow(norms, aspect="auto", cmap="cividis", interpolation="nearest")
        ax.grid(visible=False)
        if len(layers) <= 12:
            middle = (np.nanmin(norms) + np.nanmax(norms)) / 2
            for (y, x), norm in np.ndenumerate(norms):
                if not np.isnan(norm):
                    colour = "white" if norm < middle else "black"
                    ax.text(x, y, f"{norm:.2g}", ha="center", va="center", fontsize=7, color=colour)
        step = max(1, len(layers) // 14)
        ax.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        ax.set_yticks(range(len(kinds)), kinds)
        ax.set_xlabel("layer")
        ax.set_title(grid.families[family]["label"])
        figure.colorbar(image, ax=ax, label="‖v‖ / ‖θ‖, %")
    return figure


_FIGURES = {
    "alpha_sweep": alpha_sweep,
    "forest": forest,
    "geometry": geometry,
    "length": length,
    "robustness": robustness,
}


def _along(
    grid: Grid, family: str, benchmark: str, sweep: list[tuple[float, str]]
) -> Iterator[tuple[float, Estimate]]:
    for alpha, name in sweep:
        value = grid.value(family, (name,), benchmark)
        if value is not None:
            yield alpha, value


def _panels(
    count: int, height: float, columns: int = COLUMNS, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `columns` side by side; `height` is one panel's, in inches."""
    from matplotlib.figure import Figure

    across = min(columns, count)
    down = -(-count // across)
    figure = Figure(figsize=(1.2 + 2.3 * max(across, 1.6), 0.5 + height * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=sharey).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _name(grid: Grid, family: str, benchmark: str) -> str:
    """A panel's title; the family is named where there are several."""
    info = grid.benchmarks[benchmark]
    label = info["label"]
    if info["variant_of"] is not None:
        label = f"{grid.benchmarks[info['variant_of']]['label']}:\n{label}"
    return f"{grid.families[family]['label']}\n{label}" if len(grid.families) > 1 else label


def _label_rows(axes: list[Axes], text: str) -> None:
    for ax in axes:
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(text)


def _legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend under all panels, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)))


def _arms(estimate: Estimate) -> list[list[float]]:
    """Distances to the interval's ends, in points, as matplotlib wants them; rounding can make one of them −1e-16."""
    ends = (estimate.value - estimate.low, estimate.high - estimate.value)
    return [[max(100 * end, 0.0)] for end in ends]


def _bar(ax: Axes, x: float, estimate: Estimate, *, color: str, marker: str, label: str) -> None:
    ax.errorbar(
        x, 100 * estimate.value, yerr=_arms(estimate), color=color, marker=marker, markerfacecolor="white",
        markersize=5, capsize=2, linestyle="none", label=label,
    )  # fmt: skip
