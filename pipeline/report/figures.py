"""The figures of a run from the records alone, as PNG and PDF.

    figures.render(results, out)

alpha_sweep (α against accuracy with 95 % bands), forest (differences to Baseline), geometry (relative norm of
v by layer and module), length (accuracy against mean answer length) and robustness (drop on adversarial
variants). Every series has its own marker or line beside its colour, so that grey print and colour-blind readers
lose nothing. Rendering again gives the same bytes. A figure without data is not drawn, and an older one is removed.
"""

from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.analysis.comparisons import Pairing, against, compare
from pipeline.analysis.estimate import Estimate
from pipeline.analysis.published import published_figures
from pipeline.analysis.results import REFERENCE, Results, Row, Sweep
from pipeline.analysis.vectors import geometry_of
from pipeline.errors import UserError
from pipeline.files import write_file
from pipeline.report.numbers import alpha_text
from pipeline.report.panels import (
    BLACK,
    BLUE,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    arms,
    label_rows,
    legend,
    panel_title,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SWEEPS = (  # colours of line and band, and the marker
    (BLUE, SKY, "o"),
    (PURPLE, PURPLE, "s"),
    (GREEN, GREEN, "^"),
    (ORANGE, ORANGE, "v"),
)


def render(results: Results, out: Path) -> list[Path]:
    """Write every figure that the run has data for; return the paths, PNG and PDF in turn."""
    import matplotlib
    from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401  (a part of the import that takes long)

    written = []
    defaults: Any = matplotlib.rcParamsDefault  # not the reader's own style
    with matplotlib.rc_context(defaults | STYLE):
        for name, draw in _FIGURES.items():
            paths = [out / f"{name}.png", out / f"{name}.pdf"]
            figure = draw(results)
            if figure is None:
                for path in paths:
                    path.unlink(missing_ok=True)
                continue
            for path, data in zip(paths, _saved(figure), strict=True):
                write_file(path, data)
            written += paths
    return written


def _saved(figure: "Figure") -> tuple[bytes, bytes]:
    """The figure as PNG and PDF, without anything that differs from one time to the next."""
    png, pdf = BytesIO(), BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")  # laid out once for both files
    undated: Any = {"CreationDate": None, "Producer": None, "Creator": None}
    figure.savefig(pdf, format="pdf", metadata=undated)
    return png.getvalue(), pdf.getvalue()


def alpha_sweep(results: Results) -> "Figure | None":
    """α against accuracy with a 95 % band, one panel for each family and benchmark, a curve for each sweep."""
    places = [
        (family, benchmark, curves)
        for family in results.families
        for benchmark in results.benchmarks
        if any(curves := [_curve(results, sweep, family, benchmark) for sweep in results.sweeps()])
    ]
    if not places:
        return None
    figure, axes = panels(len(places), height=2.3)
    for ax, (family, benchmark, curves) in zip(axes, places, strict=True):
        for sweep, curve, style in zip(results.sweeps(), curves, cycle(_SWEEPS), strict=False):
            _draw_curve(ax, sweep, curve, *style)
        for reference in _references(results):
            if at_zero := results.value(family, reference, benchmark):
                ax.axhline(100 * at_zero.value, color=BLACK, linestyle="--", linewidth=1, label="α = 0")
        for row in (results.row("random", 1), results.row("random", -1)):
            noise = results.value(family, row, benchmark) if row else None
            if row and row.entry.alpha is not None and noise:
                ax.errorbar(
                    row.entry.alpha, 100 * noise.value, yerr=arms(noise), color=VERMILION, marker="D",
                    markerfacecolor="white", markersize=5, capsize=2, linestyle="none",
                    label="random vector of equal norm",
                )  # fmt: skip
        if chance := results.benchmarks[benchmark].chance:
            ax.axhline(100 * chance, color="#666666", linestyle=":", linewidth=1, label="chance")
        ax.set_title(panel_title(results, family, benchmark))
        ax.set_xlabel("α")
    label_rows(axes, "accuracy, %")
    legend(figure, axes)
    return figure


Curve = list[tuple[float, Estimate]]


def _curve(results: Results, sweep: Sweep, family: str, benchmark: str) -> Curve:
    """(α, accuracy) of a sweep, ascending; empty where there are not two points to draw a line between."""
    points = [(alpha, results.value(family, row, benchmark)) for alpha, row in sweep.points]
    curve = [(alpha, value) for alpha, value in points if value is not None]
    return curve if len(curve) > 1 else []


def _draw_curve(ax: "Axes", sweep: Sweep, curve: Curve, colour: str, light: str, marker: str) -> None:
    if not curve:
        return
    alphas, values = [alpha for alpha, _ in curve], [100 * e.value for _, e in curve]
    low, high = [100 * e.low for _, e in curve], [100 * e.high for _, e in curve]
    ax.fill_between(alphas, low, high, color=light, alpha=0.35, linewidth=0, label="95 % interval")
    label = sweep.label or "target + α·v"
    ax.plot(alphas, values, color=colour, marker=marker, markersize=4, label=label)


def _references(results: Results) -> list[Row]:
    """The rows at α = 0, each once."""
    at_zero = [sweep.at(0.0) or results.reference for sweep in results.sweeps()]
    return list(dict.fromkeys(at_zero))


def forest(results: Results) -> "Figure | None":
    """Differences to Baseline with intervals; filled where p < 0.05 after Holm's correction."""
    rows = [row for row in results.rows("main", "control") if row.name != REFERENCE]
    compared = compare(results, against(rows, results.reference), results.plain())
    compared_in = {(pairing.family, pairing.benchmark) for pairing in compared}
    places = [(f, b) for f in results.families for b in results.plain() if (f, b) in compared_in]
    if not places:
        return None
    figure, axes = panels(len(places), height=0.9 + 0.24 * len(rows), sharey=True)
    for ax, (family, benchmark) in zip(axes, places, strict=True):
        ax.axvline(0, color=BLACK, linewidth=1)
        for y, row in enumerate(rows):
            found = compared.get(Pairing(family, row.name, REFERENCE, benchmark))
            if found is None:
                continue
            style: Any = {"color": BLUE, "marker": "o", "markersize": 5, "capsize": 2, "linestyle": "none"}
            style["markerfacecolor"] = BLUE if found.is_significant else "white"
            style["label"] = "p < 0.05 (Holm)" if found.is_significant else "not significant"
            ax.errorbar(100 * found.difference.value, y, xerr=arms(found.difference), **style)
            for reported in published_figures(results, family, row, benchmark):
                if reported.difference is not None:
                    ax.plot(reported.difference, y, "x", color=VERMILION, markersize=6, label="published")
        _name_rows(ax, rows)
        ax.set_title(panel_title(results, family, benchmark))
        ax.set_xlabel("difference, points")
    legend(figure, axes)
    return figure


def length(results: Results) -> "Figure | None":
    """Accuracy against mean answer length; each sweep is a line with some of its α beside it."""
    rows = results.rows("main", "control")
    places = [
        (family, benchmark)
        for family in results.families
        for benchmark in results.plain()
        if any((c := results.cell(family, row, benchmark)) and c.tokens.any() for row in rows)
    ]
    if not places:
        return None
    figure, axes = panels(len(places), height=2.6)
    for ax, (family, benchmark) in zip(axes, places, strict=True):
        for sweep, line in zip(results.sweeps(), cycle(("-", "--", ":", "-.")), strict=False):
            _draw_lengths(ax, results, sweep, line, family, benchmark)
        colours = (BLACK, BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
        for row, colour, marker in zip(rows, cycle(colours), cycle(MARKERS), strict=False):
            cell = results.cell(family, row, benchmark)
            if cell is not None:
                spread = results.length(family, row, benchmark)
                value = results.value(family, row, benchmark)
                assert spread is not None and value is not None, "the cell is there"
                style: Any = {"color": colour, "marker": marker, "markersize": 5}
                style |= {"linewidth": 0.7, "linestyle": "none", "label": row.label}
                ax.errorbar(spread.value, 100 * value.value, xerr=arms(spread, 1), yerr=arms(value), **style)
        ax.set_title(panel_title(results, family, benchmark))
        ax.set_xlabel("mean answer length, tokens")
    label_rows(axes, "accuracy, %")
    legend(figure, axes)
    return figure


def _draw_lengths(ax: "Axes", results: Results, sweep: Sweep, line: str, family: str, benchmark: str) -> None:
    """Length and accuracy along a sweep, with the ends, 0 and 1 named."""
    swept = [(a, c) for a, row in sweep.points if (c := results.cell(family, row, benchmark)) is not None]
    if not swept:
        return
    x, y = [c.tokens.mean() for _, c in swept], [100 * c.mean for _, c in swept]
    label = f"sweep: {sweep.label}" if sweep.label else "sweep of α"
    ax.plot(x, y, line, color="#888888", linewidth=1, marker=".", zorder=1, label=label)
    named = {swept[0][0], 0.0, 1.0, swept[-1][0]}
    for (alpha, _), at_x, at_y in zip(swept, x, y, strict=True):
        text = f"α = {alpha_text(alpha)}" if alpha in named else ""
        ax.annotate(text, (at_x, at_y), (3, 3), textcoords="offset points", fontsize=7, color="#444444")


def robustness(results: Results) -> "Figure | None":
    """Paired drop on each adversarial variant, with its interval."""
    rows = results.rows("main")
    places = [
        (family, variant, found)
        for family in results.families
        for variant in results.variants()
        if (found := {r.name: d for r in rows if (d := results.robustness(family, r, variant))})
    ]
    if not places:
        return None
    figure, axes = panels(len(places), height=0.9 + 0.28 * len(rows), sharey=True)
    for ax, (family, variant, found) in zip(axes, places, strict=True):
        ax.axvline(0, color=BLACK, linewidth=1)
        for y, row in enumerate(rows):
            if row.name in found:
                drop = found[row.name].drop
                style: Any = {"color": BLACK if row.name == REFERENCE else BLUE, "marker": "o"}
                ax.errorbar(100 * drop.value, y, xerr=arms(drop), capsize=2, markersize=5, **style)
        _name_rows(ax, rows)
        ax.set_title(panel_title(results, family, variant))
        ax.set_xlabel("perturbed − plain, points")
    return figure


def _name_rows(ax: "Axes", rows: list[Row]) -> None:
    """Rows from the top down on the vertical axis."""
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)


def geometry(results: Results) -> "Figure | None":
    """Heat map of ‖v‖ / ‖θ‖ by layer and kind of module."""
    import numpy as np

    reports = {}
    for family in results.families:
        try:
            cells = [cell for cell in geometry_of(results, family)["cells"] if "layer" in cell]
        except UserError:
            continue  # the geometry table says so
        if cells:
            reports[family] = cells
    if not reports:
        return None
    kinds = list(dict.fromkeys(cell["module"] for cells in reports.values() for cell in cells))
    figure, axes = panels(len(reports), height=0.9 + 0.22 * len(kinds), columns=2, sharey=True)
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
        ax.set_title(results.families[family].label)
        figure.colorbar(image, ax=ax, label="‖v‖ / ‖θ‖, %")
    return figure


_FIGURES = {
    "alpha_sweep": alpha_sweep,
    "forest": forest,
    "geometry": geometry,
    "length": length,
    "robustness": robustness,
}
