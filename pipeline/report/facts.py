"""The numbers behind a table's entries, unrounded: lines of its CSV, in per cent and points."""

from pipeline.analysis.comparisons import Compared
from pipeline.analysis.estimate import Estimate
from pipeline.analysis.published import published_figures
from pipeline.analysis.results import Results, Row
from pipeline.report.table import Facts


def cell_facts(results: Results, family: str, row: Row, benchmark: str, compared: Compared | None) -> Facts:
    """A row's cell, and its difference to what it is compared with."""
    entry, cell = results.benchmarks[benchmark], results.cell(family, row, benchmark)
    metrics = cell.record.metrics if cell and cell.record else None
    return {
        "family": family,
        "group": results.families[family].group,
        "benchmark": benchmark,
        "variant_of": entry.variant_of,
        "condition": row.name,
        "label": row.label,
        "alpha": row.entry.alpha,
        "seeds": row.seeds,
        "limit": entry.limit,
        "marks": results.marks(family, row, benchmark),
        **estimate_facts(results.value(family, row, benchmark)),
        "mean_tokens": float(cell.tokens.mean()) if cell else None,
        "share_truncated": metrics["share_truncated"] if metrics else None,
        "share_not_extracted": metrics["share_not_extracted"] if metrics else None,
        **difference_facts(compared),
    }


def estimate_facts(estimate: Estimate | None, prefix: str = "") -> Facts:
    """An estimate with its interval, under names that begin with `prefix`."""
    names = (f"{prefix}value", f"{prefix}se", f"{prefix}low", f"{prefix}high")
    facts: Facts = dict.fromkeys(names)
    if estimate:
        numbers = (estimate.value, estimate.se, estimate.low, estimate.high)
        facts = {name: 100 * number for name, number in zip(names, numbers, strict=True)}
    return facts | {f"{prefix}n": estimate.n if estimate else None}


def difference_facts(compared: Compared | None) -> Facts:
    """A difference with its test."""
    difference = compared.difference if compared else None
    return {
        **estimate_facts(difference, "difference_"),
        "gained": difference.gained if difference else None,
        "lost": difference.lost if difference else None,
        "test": difference.test if difference else None,
        "p": difference.p if difference else None,
        "p_holm": compared.p_holm if compared else None,
        "detectable": 100 * difference.detectable if difference else None,
        "units": difference.units if difference else None,
    }


def published_facts(results: Results, family: str, row: Row, benchmark: str) -> Facts:
    """What the paper reports for a cell, in its own units: points and per cent."""
    figures = published_figures(results, family, row, benchmark)
    facts: Facts = {"published_difference": None, "published_score": None}
    for figure in figures:
        if figure.difference is not None:
            facts["published_difference"] = figure.difference
        if figure.score is not None:
            facts["published_score"] = figure.score
    sources = dict.fromkeys(source for figure in figures for source in figure.source)
    return facts | {"published_source": " ".join(sources) or None}
