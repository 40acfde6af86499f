"""One HTML page about a run: what was found, the gains, the verdicts, tables, figures and a browser of samples.

document.render(results, tables, drawn, out)        writes out/report.html
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.analysis.claims import read_claims
from pipeline.analysis.results import Results
from pipeline.files import write_file
from pipeline.report.figures.draw import Drawn
from pipeline.report.formats import as_html
from pipeline.report.gains import gains
from pipeline.report.numbers import alpha_text
from pipeline.report.page.opening import absent_claims, changed_from_reference, claims, heat_maps
from pipeline.report.page.samples import pack
from pipeline.report.page.skeleton import fill, pictures
from pipeline.report.sentences import pair_notes, what_was_found
from pipeline.report.table import Table

_LISTED = 12  # texts that a fact shows
_CAPTIONS = {
    "gains": "Gains over Baseline in points; hatched where they are not significant after Holm's correction.",
    "forest": "Differences to Baseline with 95 % intervals, on one scale; filled where p < 0.05 after Holm's correction.",
    "alpha_sweep": "Differences to α = 0 along α, with 95 % bands. The orange band: random vectors of v's norm.",
    "robustness": "Gains on plain documents beside gains on the same documents perturbed, with 95 % intervals.",
    "form": "Share of answers that are written in steps, and how many are right with steps and without, with 95 % intervals.",
    "pairs": "Gains of v by donor pair with 95 % intervals, their mean over pairs and documents, and their spread.",
    "authors": "Our gains with 95 % intervals beside the authors' own scores, under each prompt of ours.",
    "geometry": "Relative norm of v by layer and kind of module, in per cent.",
}


def render(results: Results, tables: Sequence[Table], drawn: Sequence[Drawn], out: Path) -> Path:
    """Write out/report.html.

    Args:
        tables: of this run.
        drawn: its figures.
    """
    facts, versions = _facts(results)
    page = fill(
        "page.html",
        pack(results),
        experiment=results.manifest.experiment,
        found=what_was_found(results),
        pairs=pair_notes(results),
        maps=heat_maps(results, gains(results), changed_from_reference(results)),
        claims=claims(results, tables),
        absent=absent_claims(results),
        rule=read_claims().rule,
        facts=facts,
        versions=versions,
        problems=results.problems,
        tables=[(table, as_html(table)) for table in tables],
        figures=pictures(drawn, _CAPTIONS),
    )
    path = out / "report.html"
    write_file(path, page)
    return path


Facts = list[tuple[str, str]]  # name and text


def _facts(results: Results) -> tuple[Facts, Facts]:
    """What was run, and with which versions."""
    cells = [cell for _, cell in results.unique_cells().values()]
    provenance = [cell.record.provenance for cell in cells if cell.record is not None]
    planned = len(set(results.planned.values()))
    started = sorted(made["started"] for made in provenance)
    alphas = dict.fromkeys(alpha_text(alpha) for sweep in results.sweeps() for alpha, _ in sweep.points)
    facts = [
        ("Targets", _listed(entry.label for entry in results.families.values())),
        ("Benchmarks", _listed(results.benchmarks[b].label for b in results.plain())),
        ("Adversarial variants", _listed(results.benchmarks[b].label for b in results.variants()) or "none"),
        ("Conditions", _listed(row.label for row in results.rows("main", "control"))),
        ("α", ", ".join(alphas) or "no sweep"),
        ("Cells", f"{len(cells)} of {planned} evaluated, {sum(len(cell.docs) for cell in cells)} answers"),
        ("Started", f"{started[0]} to {started[-1]}" if started else "–"),
    ]
    versions = [
        (name.capitalize(), _listed(made[name] or "unknown" for made in provenance))
        for name in ("git", "host", "command")
    ]
    for package in sorted({name for made in provenance for name in made["versions"]}):
        versions.append((package, _listed(made["versions"].get(package, "–") for made in provenance)))
    return facts, versions


def _listed(texts: Iterable[str]) -> str:
    """Each text once, in order; a page shows the first few."""
    distinct = list(dict.fromkeys(texts))
    more = f" and {len(distinct) - _LISTED} more" if len(distinct) > _LISTED else ""
    return ", ".join(distinct[:_LISTED]) + more
