"""Every metric that a record keeps, on the same answers: its mean, and its difference to Baseline.

    for found in measured(results, "micro", row, "gsm8k"):
        found.metric, found.is_headline, found.value, found.difference

The headline metric alone is tested, elsewhere (`comparisons.gains`). The others say what a stricter or another reading of
the same answers would give, so nothing here has a test.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.repeats import mean_difference, mean_score
from pipeline.analysis.results import Results, Row


@dataclass(frozen=True)
class Measured:
    """A row's score under one metric, and its paired difference to Baseline; fractions."""

    metric: str  # "metric,filter" as lm-eval names it; avg@k and pass@k where answers are sampled
    is_headline: bool
    value: Estimate
    difference: Difference | None  # None for Baseline itself, and where its cell lacks the metric


def headline(results: Results, benchmark: str) -> str | None:
    """The metric of a benchmark's score; None where it has no record."""
    for place, cell in results.cells.items():
        if place.benchmark == benchmark and cell.record is not None:
            return cell.record.metrics["metric"]
    return None


def metrics_of(results: Results, benchmarks: Iterable[str]) -> list[str]:
    """Every metric that cells of these benchmarks keep, the headline of each benchmark before its others."""
    found: dict[str, None] = {}
    for benchmark in benchmarks:
        kept = [
            name
            for place, cell in results.cells.items()
            if place.benchmark == benchmark
            for name in cell.metrics
        ]
        first = headline(results, benchmark)
        found |= dict.fromkeys(sorted(dict.fromkeys(kept), key=lambda name: name != first))
    return list(found)


def measured(results: Results, family: str, row: Row, benchmark: str) -> list[Measured]:
    """A row's cell under every metric that it keeps; empty where the cell is missing."""
    cells = results.repetitions(family, row, benchmark)
    if not cells:
        return []
    pairs = results.pairs(family, row, results.reference, benchmark)
    first, found = headline(results, benchmark), []
    for name in metrics_of(results, [benchmark]):
        if not all(name in cell.metrics for cell in cells):
            continue
        difference = None
        if pairs and all(name in cell.metrics for pair in pairs for cell in pair):
            changes = [new.metrics[name] - old.metrics[name] for new, old in pairs]
            difference = mean_difference(changes, pairs[0][0].design, level=None)
        value = mean_score([cell.metrics[name] for cell in cells], cells[0].design)
        found.append(Measured(name, name == first, value, difference))
    return found
