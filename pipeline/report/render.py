"""All that is rendered of a run, from its records alone: tables, figures and the report.

files = render(read_results(manifest, Path("results")), Path("paper_tables/micro"))
"""

from pathlib import Path

from pipeline.analysis.results import Results
from pipeline.report import formats
from pipeline.report.figures import draw
from pipeline.report.page import document
from pipeline.report.tables.build import build


def render(results: Results, out: Path) -> dict[str, list[Path]]:
    """Write everything under `out`; returns the paths of the tables, the figures and the report, in order."""
    tables = build(results)
    written = [path for table in tables for path in formats.write(table, out)]
    drawn = draw.render(results, out)
    report = document.render(results, tables, drawn, out)
    return {
        "tables": written,
        "figures": [path for figure in drawn for path in figure.paths],
        "report": [report],
    }
