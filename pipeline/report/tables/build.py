"""The paper's tables from the records alone.

    tables = build(read_results(manifest, folder))
    paths = [path for table in tables for path in formats.write(table, out)]

Accuracies and differences are in per cent and percentage points. Markdown and LaTeX round for the reader; the CSV
beside them holds every number behind the table. Rendering again gives the same bytes.
"""

from pipeline.analysis.results import Results
from pipeline.report.table import Table
from pipeline.report.tables import (
    adversarial,
    alpha_sweep,
    answers,
    authors,
    controls,
    cost,
    geometry,
    main,
    metrics,
    pairs,
)

FIRST = (main, metrics, answers, adversarial, controls, alpha_sweep)  # of every run
OF_SOME = (pairs, authors)  # of runs with several donor pairs, or with the authors' families
LAST = (geometry, cost)


def build(results: Results) -> list[Table]:
    """The tables of a run, in the order of the report."""
    some = [module.table(results) for module in OF_SOME if module.applies(results)]
    return [*(one.table(results) for one in FIRST), *some, *(one.table(results) for one in LAST)]
