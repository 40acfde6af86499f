"""The paper's tables from the records alone.

    tables = build(read_results(manifest, folder))
    paths = [path for table in tables for path in formats.write(table, out)]

Accuracies and differences are in per cent and percentage points. Markdown and LaTeX round for the reader; the CSV
beside them holds every number behind the table. Rendering again gives the same bytes.
"""

from pipeline.analysis.results import Results
from pipeline.report.table import Table
from pipeline.report.tables import adversarial, alpha_sweep, answers, controls, cost, geometry, main

ALL = (main, answers, adversarial, controls, alpha_sweep, geometry, cost)


def build(results: Results) -> list[Table]:
    """The tables of a run."""
    return [made.table(results) for made in ALL]
