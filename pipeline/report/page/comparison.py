"""One HTML page about two runs: how they were made, what changed, cell by cell, and both answers to each document.

comparison.render(match(a, b), Path("out"))        writes out/compare.html and the figures
"""

from functools import partial
from pathlib import Path

from pipeline.analysis.results import Row
from pipeline.analysis.scores import CellScores
from pipeline.files import write_file
from pipeline.report.compare import Runs, sentences, table
from pipeline.report.figures import draw, forest, gains
from pipeline.report.formats import as_html
from pipeline.report.gains import Gains, arranged
from pipeline.report.page.opening import heat_maps
from pipeline.report.page.samples import Group, Packs, link, packs_of
from pipeline.report.page.skeleton import fill, pictures

_CAPTIONS = {
    "compare_gains": "B − A in points; hatched where it is not significant after Holm's correction.",
    "compare_forest": "B − A with 95 % intervals, on one scale; filled where p < 0.05 after Holm's correction.",
}


def render(runs: Runs, out: Path) -> list[Path]:
    """Write the page and its figures under `out`; return the paths."""
    found = _changes(runs)
    drawn = draw.write(
        {
            "compare_gains": partial(gains.picture, runs.a, found),
            "compare_forest": partial(forest.picture, runs.a, found, published=False),
        },
        out,
    )
    made = table(runs)
    page = fill(
        "comparison.html",
        _packs(runs),
        names=[run.manifest.experiment for run in (runs.a, runs.b)],
        made=sentences(runs),
        maps=heat_maps(runs.a, found, _lead),
        figures=pictures(drawn, _CAPTIONS),
        table=made,
        body=as_html(made),
    )
    path = out / "compare.html"
    write_file(path, page)
    return [*(one for figure in drawn for one in figure.paths), path]


def _changes(runs: Runs) -> Gains:
    """B − A of every condition, each seed by itself."""
    names = [name for name in runs.a.conditions if any(place.condition == name for place in runs.found)]
    compared = {(p.family, p.condition, p.benchmark): one for p, one in runs.found.items()}
    return arranged(runs.a, [runs.a.named(name) for name in names], compared)


def _lead(family: str, row: Row, benchmark: str) -> str:
    return link(family, benchmark, f"a:{row.name}", f"b:{row.name}", show="changed")


def _packs(runs: Runs) -> Packs:
    """Both cells of every pair; a condition of run A is named a:…, of run B b:…."""
    cells: dict[tuple[str, str], dict[str, CellScores]] = {}
    for place, (old, new) in runs.pairs.items():
        group = cells.setdefault((place.family, place.benchmark), {})
        group[f"a:{place.condition}"], group[f"b:{place.condition}"] = old, new
    labels = {
        f"{letter}:{name}": f"{letter.upper()}: {entry.label}"
        for letter, run in (("a", runs.a), ("b", runs.b))
        for name, entry in run.conditions.items()
    }
    first = next((place.condition for place in runs.found), next(iter(runs.pairs)).condition)
    groups = [Group(family, benchmark, of) for (family, benchmark), of in cells.items()]
    return packs_of(groups, runs.a, labels, f"a:{first}", f"b:{first}")
