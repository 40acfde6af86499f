"""Set two runs side by side (pipeline/report/compare.py).

    python -m pipeline compare results/runs/a.json results/runs/b.json
    python -m pipeline compare results/runs/a.json elsewhere/runs/b.json out=FOLDER     files too

Each manifest lies in its results folder, under runs/. What changed is printed, in two sentences and a table; `out` also
gets the table as Markdown, LaTeX and CSV, figures, and a page with both answers to every document.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.analysis.results import Results, read_results
from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from pipeline.report import formats
from pipeline.report.compare import match, table, terminal
from pipeline.report.page import comparison


def show(arguments: Sequence[str]) -> str:
    """The table of two runs as text; `arguments` are their manifests, and `out=FOLDER`.

    Raises:
        UserError: for a manifest that cannot be read, or runs without an evaluated cell in common.
    """
    manifests = [argument for argument in arguments if not argument.startswith("out=")]
    folders = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    if len(manifests) != 2 or len(folders) > 1 or "" in folders:
        raise UserError(
            f"compare: expected two manifests and at most one out=FOLDER, found {' '.join(arguments) or 'nothing'};"
            " write python -m pipeline compare results/runs/a.json results/runs/b.json"
        )
    runs = match(*map(_results, manifests))
    for folder in folders:
        formats.write(table(runs), Path(folder))
        comparison.render(runs, Path(folder))
    return terminal(runs)


def _results(manifest: str) -> Results:
    path = Path(manifest)
    return read_results(read_manifest(path), path.resolve().parent.parent)
