"""Differences to α = 0 along α with 95 % bands, on one scale; random vectors of equal norm are a band of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from math import floor, log10
from typing import TYPE_CHECKING, Any

from pipeline.analysis.estimate import Difference
from pipeline.analysis.results import Results, Sweep
from pipeline.report.figures.panels import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    VERMILION,
    Layout,
    compress,
    label_rows,
    legend,
    name_panel,
    panels,
    reach,
    scale_points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SWEEPS = ((BLUE, "o", "-"), (PURPLE, "s", "--"), (GREEN, "^", "-."), (ORANGE, "v", ":"))

_LINEAR_TO = 20.0  # times the smallest α that is not 0, up to which a linear scale tells points apart

# (α, difference to α = 0), ascending; None: the same cell, no difference.
Curve = list[tuple[float, Difference | None]]


@dataclass(frozen=True)
class _Place:
    """What one panel shows."""

    family: str
    benchmark: str
    curves: list[Curve]  # one for each sweep of the run; empty where it has none here
    noise: list[Difference]  # of random vectors of equal norm, added and subtracted


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each family and benchmark, a curve for each sweep."""
    places = list(filter(None, (_place(results, f, b) for f in results.families for b in results.benchmarks)))
    if not places:
        return None
    figure, axes = panels(len(places), 2.2, layout, share="xy")
    for ax, place in zip(axes, places, strict=True):
        _noise(ax, place.noise)
        ax.axhline(0, color=INK, linewidth=1)
        for sweep, curve, style in zip(results.sweeps(), place.curves, cycle(_SWEEPS), strict=False):
            if curve:
                _curve(ax, sweep, curve, *style)
        _chance(ax, results, place)
        name_panel(ax, results, place.family, place.benchmark)
        ax.set_xlabel("α")
    everything = [d for place in places for curve in place.curves for _, d in curve if d]
    note = scale_points(axes, "y", reach([*everything, *(d for place in places for d in place.noise)]))
    label_rows(axes, "difference, points")
    alphas = [alpha for place in places for curve in place.curves for alpha, _ in curve]
    legend(figure, axes, "\n".join(filter(None, (note, _scale_alphas(axes, alphas)))))
    return figure


def _scale_alphas(axes: "list[Axes]", alphas: Sequence[float]) -> str:
    """Spread α where a linear scale would put most points on one place; returns the note that says so."""
    sizes = sorted(abs(alpha) for alpha in alphas if alpha)
    if not sizes or sizes[-1] <= _LINEAR_TO * sizes[0]:
        return ""
    powers = [10.0**n for n in range(floor(log10(sizes[0])), floor(log10(sizes[-1])) + 1)]
    for ax in axes:
        compress(ax, "x", sizes[0], [0.0, *powers, *(-power for power in powers)])
    return f"α compressed beyond ±{sizes[0]:g}"


def _place(results: Results, family: str, benchmark: str) -> _Place | None:
    curves = [_differences(results, sweep, family, benchmark) for sweep in results.sweeps()]
    if not any(curves):
        return None
    rows = [row for sign in (1, -1) if (row := results.row("random", sign))]
    noise = [results.difference(family, row, results.reference, benchmark) for row in rows]
    return _Place(family, benchmark, curves, [found for found in noise if found])


def _differences(results: Results, sweep: Sweep, family: str, benchmark: str) -> Curve:
    """(α, difference to α = 0); empty where there are not two points to draw a line between."""
    zero = sweep.at(0.0) or results.reference
    if results.cell(family, zero, benchmark) is None:
        return []
    curve: Curve = []
    for alpha, row in sweep.points:
        if results.cell(family, row, benchmark) is not None:
            curve.append((alpha, results.difference(family, row, zero, benchmark)))
    return curve if len(curve) > 1 else []


def _curve(ax: "Axes", sweep: Sweep, curve: Curve, colour: str, marker: str, line: str) -> None:
    alphas = [alpha for alpha, _ in curve]
    values, low, high = (
        [100 * getattr(d, end) if d else 0.0 for _, d in curve] for end in ("value", "low", "high")
    )
    ax.fill_between(alphas, low, high, color=colour, alpha=0.22, linewidth=0, label="95 % interval")
    label = sweep.label or "target + α·v"
    ax.plot(alphas, values, line, color=colour, marker=marker, markersize=4, label=label)


def _noise(ax: "Axes", noise: list[Difference]) -> None:
    """From the lowest to the highest end of the intervals of random vectors."""
    if noise:
        ends = [100 * end for d in noise for end in (d.low, d.high) if end == end] or [
            100 * d.value for d in noise
        ]
        style: Any = {"color": VERMILION, "linewidth": 0.8, "linestyle": "--", "alpha": 0.3}
        ax.axhspan(min(ends), max(ends), label="random vectors of v's norm, ±", **style)


def _chance(ax: "Axes", results: Results, place: _Place) -> None:
    chance, base = (
        results.benchmarks[place.benchmark].chance,
        results.value(place.family, results.reference, place.benchmark),
    )
    if chance and base:
        ax.axhline(100 * (chance - base.value), color=QUIET, linestyle=":", linewidth=1, label="chance")
