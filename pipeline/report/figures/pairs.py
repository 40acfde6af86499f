"""Donor pairs side by side: the gain of v in each, their mean, and how far the pairs differ."""

from typing import TYPE_CHECKING, Any

from pipeline.analysis.comparisons import SIGNIFICANT
from pipeline.analysis.pairs import Pairs, pairs
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
    name_lines,
    panels,
    reach,
    scale_points,
    title_panel,
)
from pipeline.report.numbers import percent
from pipeline.report.sentences import p_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: Results, layout: Layout) -> "Figure | None":
    """One panel for each size and benchmark, a line for each pair, the mean of all below them."""
    found = pairs(results)
    if not found:
        return None
    most = max(len(one.effects) for one in found)
    labels = [[results.families[effect.family].label for effect in one.effects] for one in found]
    figure, axes = panels(
        len(found),
        0.95 + 0.2 * (most + 1),
        layout,
        share="x",
        names=room_for(name for of in labels for name in of),
    )
    for ax, one, names in zip(axes, found, labels, strict=True):
        ax.axvline(0, color=INK, linewidth=1)
        bars: Any = {"markersize": 5, "capsize": 2, "linestyle": "none"}
        for y, effect in enumerate(one.effects):
            is_significant = effect.p_holm < SIGNIFICANT
            style: Any = {"color": BLUE, "marker": "o", "markerfacecolor": BLUE if is_significant else PAPER}
            label = "+v, p < 0.05 (Holm)" if is_significant else "+v, not significant"
            ax.errorbar(100 * effect.gain.value, y, xerr=arms(effect.gain), label=label, **bars | style)
        mean: Any = bars | {"color": VERMILION, "marker": "D"}
        ax.errorbar(100 * one.mean.value, len(names), xerr=arms(one.mean), label="mean over pairs", **mean)
        name_lines(ax, [*names, "mean"])
        title_panel(ax, *_title(results, one))
        ax.set_xlabel("difference, points")
    everything = [e for one in found for e in (*(effect.gain for effect in one.effects), one.mean)]
    legend(figure, axes, scale_points(axes, "x", reach(everything)))
    return figure


def _title(results: Results, one: Pairs) -> tuple[str, str]:
    """The benchmark and the size; below them how much the pairs differ."""
    spread = one.heterogeneity
    test = f", {p_text(one.p_spread)}" if one.p_spread == one.p_spread else ""
    name = results.label(one.benchmark) + (f", {one.size}" if one.size else "")
    return name, f"spread I² {percent(spread.i2)} %{test}"
