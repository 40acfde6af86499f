"""Accuracy along the scaling coefficient α, for every benchmark that has a sweep."""

from dataclasses import replace
from typing import NamedTuple

from pipeline.analysis.comparisons import against, compare, gains
from pipeline.analysis.results import Results, Row, Sweep
from pipeline.report.numbers import alpha_text
from pipeline.report.table import Block, Facts, Table
from pipeline.report.tables.accuracy import Accuracies, footnotes, header


class _Curve(NamedTuple):
    """A sweep with its rows named by their α."""

    name: str
    label: str
    alphas: list[float]
    rows: list[Row]
    reference: Row


def table(results: Results) -> Table:
    """Accuracy by α, each against that at α = 0; a block for each sweep where there are several."""
    curves = [_curve(results, sweep) for sweep in results.sweeps() or [Sweep("", "", ())]]
    benchmarks = _benchmarks(results)
    contrasts = [contrast for curve in curves for contrast in against(curve.rows, curve.reference)]
    compared = compare(results, contrasts, benchmarks, gains(results))
    title = "Accuracy in per cent along the scaling coefficient α"
    made = Table("alpha_sweep", title, header(results, "α", benchmarks))
    accuracies = Accuracies(results, made, benchmarks, compared)
    for family, entry in results.families.items():
        for curve in curves:
            lines = []
            for alpha, row in zip(curve.alphas, curve.rows, strict=True):
                lines += accuracies.lines(family, row, curve.reference)
                named: Facts = {"alpha": alpha} | ({"sweep": curve.name} if curve.name else {})
                made.data += [facts | named for facts in accuracies.facts(family, row, curve.reference)]
            made.blocks.append(Block(", ".join(filter(None, [entry.label, curve.label])), lines))
    for curve in curves:
        accuracies.add_means(curve.rows, curve.reference, of=curve.label)
    if not results.sweeps():
        made.notes.append("The run has no sweep.")
    made.notes += footnotes(results, made, compared)
    return made


def _curve(results: Results, sweep: Sweep) -> _Curve:
    rows = [replace(row, label=f"α = {alpha_text(alpha)}") for alpha, row in sweep.points]
    alphas = [alpha for alpha, _ in sweep.points]
    return _Curve(sweep.name, sweep.label, alphas, rows, sweep.at(0.0) or results.reference)


def _benchmarks(results: Results) -> list[str]:
    """Those that a swept condition is asked on; of a run without a sweep, the plain ones."""
    swept = results.rows("sweep")
    asked = [
        benchmark
        for benchmark in results.benchmarks
        if any(results.is_planned(family, row, benchmark) for family in results.families for row in swept)
    ]
    return asked or results.plain()
