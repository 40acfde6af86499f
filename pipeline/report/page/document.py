"""One HTML page about a run: what was run, the verdicts, the tables, the figures and a browser of samples.

    document.render(results, tables, drawn, out)        writes out/report.html

The page is one file that works from disk: no outside script, style, font or picture, and a content security policy
that refuses any (and any script but its own). What models wrote is shown as text, never as markup.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from pipeline.analysis.claims import read_claims
from pipeline.analysis.findings import find
from pipeline.analysis.results import Results
from pipeline.files import sha256, write_file
from pipeline.report.figures.draw import Drawn
from pipeline.report.formats import as_html
from pipeline.report.numbers import alpha_text
from pipeline.report.page.samples import pack
from pipeline.report.sentences import verdict_reason
from pipeline.report.table import Table

_LISTED = 12  # texts that a fact shows
_FOLDER = Path(__file__).parent
_SCRIPTS = ("diff.js", "list.js", "browser.js")
_CAPTIONS = {
    "gains": "Gains over Baseline in points; hatched where they are not significant after Holm's correction.",
    "forest": "Differences to Baseline with 95 % intervals, on one scale; filled where p < 0.05 after Holm's correction.",
    "alpha_sweep": "Differences to α = 0 along α, with 95 % bands. Dots: what random vectors of v's norm do.",
    "robustness": "Gains on plain documents against gains on the same documents perturbed, with 95 % intervals.",
    "form": "Share of answers with steps, and accuracy with and without them.",
    "geometry": "Relative norm of v by layer and kind of module, in per cent.",
}


def render(results: Results, tables: Sequence[Table], drawn: Sequence[Drawn], out: Path) -> Path:
    """Write out/report.html.

    Args:
        tables: of this run.
        drawn: its figures.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_text("page.html"))
    script = "\n".join(map(_text, _SCRIPTS))
    packs = pack(results)
    labels = {family: entry.label for family, entry in results.families.items()}
    page = template.render(
        experiment=results.manifest.experiment,
        facts=_facts(results),
        problems=results.problems,
        rule={
            kind: "; ".join(f"{o}: {t}" for o, t in group.items())
            for kind, group in read_claims().rule.items()
        },
        verdicts=[
            (v, labels[v.family], verdict_reason(results, v)) for v in find(results).verdicts if v.is_in_run
        ],
        tables=[(table, as_html(table)) for table in tables],
        figures=[(f.name, _CAPTIONS[f.name], _base64(f.wide), _base64(f.narrow)) for f in drawn],
        style=_text("page.css"),
        script=script,
        script_hash=_base64(bytes.fromhex(sha256(script.encode()))),
        index=packs.index,
        packs=packs.packs,
    )
    path = out / "report.html"
    write_file(path, page.encode())
    return path


def _facts(results: Results) -> list[tuple[str, str]]:
    """What was run, as pairs of a name and a text."""
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
    for name in ("git", "host", "command"):
        facts.append((name.capitalize(), _listed(made[name] or "unknown" for made in provenance)))
    for package in sorted({name for made in provenance for name in made["versions"]}):
        facts.append((package, _listed(made["versions"].get(package, "–") for made in provenance)))
    return facts


def _listed(texts: Iterable[str]) -> str:
    """Each text once, in order; a page shows the first few."""
    distinct = list(dict.fromkeys(texts))
    more = f" and {len(distinct) - _LISTED} more" if len(distinct) > _LISTED else ""
    return ", ".join(distinct[:_LISTED]) + more


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
