"""One HTML page about a run: what was run, the verdicts, the tables, the figures and a browser of samples.

    report.render(manifest, results, out)        writes out/report.html

The page is self-contained: no outside script, style, font or picture, and a content security policy that
refuses any (and any script but its own). What models wrote is shown as text, never as markup. The browser has
the documents whose score differs between Baseline and another main or control condition, at most ``EMBEDDED``
of them, spread over the comparisons and said so where some are left out; each comparison is compressed and
unpacked when it is chosen.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.analysis import claims
from pipeline.analysis.results import MARKS, REFERENCE, Cell, Grid, load
from pipeline.errors import UserError
from pipeline.files import write_file
from pipeline.records import Sample, read_record
from pipeline.report import figures
from pipeline.report.formats import as_html
from pipeline.report.tables import build, verdict_reason

EMBEDDED = 20_000  # documents in the browser of samples
_TEMPLATE = Path(__file__).with_name("page.html")
_CAPTIONS = {
    "alpha_sweep": "Accuracy along α, with 95 % bands.",
    "forest": "Differences to Baseline with 95 % intervals; filled where p < 0.05 after Holm's correction.",
    "geometry": "Relative norm of v by layer and kind of module.",
    "length": "Accuracy against mean answer length.",
    "robustness": "Paired drop on each adversarial variant, with its 95 % interval.",
}


def render(manifest: dict[str, Any], results: Path, out: Path, drawn: list[Path] | None = None) -> Path:
    """Write out/report.html; `drawn` is what `figures.render` returned for this run, if it was called."""
    import jinja2

    grid = load(manifest, results)
    if drawn is None:
        drawn = figures.render(manifest, results, out)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    script = _TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
    packs = list(_packs(grid))
    page = template.render(
        experiment=manifest["experiment"],
        facts=_facts(grid),
        problems=grid.problems,
        rule=claims.claims()["rule"],
        verdicts=[(v, grid.families[v.family]["label"], verdict_reason(v)) for v in claims.verdicts(grid)],
        tables=[(table, as_html(table)) for table in build(grid)],
        figures=[(p.stem, _CAPTIONS[p.stem], _base64(p.read_bytes())) for p in drawn if p.suffix == ".png"],
        marks=MARKS,
        script=script,
        script_hash=_base64(hashlib.sha256(script.encode()).digest()),
        index=_base64(_packed([about for about, _ in packs])),
        packs=[_base64(_packed(documents)) for _, documents in packs],
    )
    path = out / "report.html"
    write_file(path, page.encode())
    return path


def _facts(grid: Grid) -> list[tuple[str, str]]:
    """What was run, as pairs of a name and a text."""
    cells = [cell for _, cell in grid.unique_cells().values()]
    planned = len(set(grid.planned.values()))
    started = sorted(cell.provenance["started"] for cell in cells)
    facts = [
        ("Targets", _listed(info["label"] for info in grid.families.values())),
        ("Benchmarks", _listed(grid.benchmarks[b]["label"] for b in grid.plain())),
        ("Adversarial variants", _listed(grid.benchmarks[b]["label"] for b in grid.variants()) or "none"),
        ("Conditions", _listed(row.label for row in grid.rows("main", "control"))),
        ("α", ", ".join(f"{alpha:g}".replace("-", "−") for alpha, _ in grid.sweep()) or "no sweep"),
        ("Cells", f"{len(cells)} of {planned} evaluated, {sum(len(cell.docs) for cell in cells)} answers"),
        ("Started", f"{started[0]} to {started[-1]}" if started else "–"),
    ]
    for name in ("git", "host", "command"):
        facts.append((name.capitalize(), _listed(cell.provenance[name] or "unknown" for cell in cells)))
    for package in sorted({name for cell in cells for name in cell.provenance["versions"]}):
        facts.append((package, _listed(cell.provenance["versions"].get(package, "–") for cell in cells)))
    return facts


def _listed(texts: Any) -> str:
    """Each text once, in order; a page shows the first few."""
    distinct = list(dict.fromkeys(texts))
    more = f" and {len(distinct) - 12} more" if len(distinct) > 12 else ""
    return ", ".join(distinct[:12]) + more


def _packs(grid: Grid) -> Iterator[tuple[dict[str, Any], list[list[Any]]]]:
    """For each family, benchmark and condition: what the comparison is, and its changed documents."""
    places = []
    # The paper's +Vector comes first, so that the page opens with it.
    rows = sorted(
        grid.rows("main", "control"), key=lambda row: grid.conditions[row.name]["weights"] != "vector"
    )
    for family in grid.families:
        for benchmark in grid.benchmarks:
            old = grid.cell(family, (REFERENCE,), benchmark)
            for row in rows:
                for name in row.members:
                    new = grid.cell(family, (name,), benchmark)
                    if old and new and old.key != new.key:
                        places.append((family, benchmark, name, old, new, _changed(old, new)))
    cap = _cap([len(changed) for *_, changed in places])
    texts: dict[str, dict[Any, Sample]] = {}
    for family, benchmark, name, old, new, changed in places:
        shown = changed[:cap]
        texts = {old.key: texts.get(old.key) or _samples(grid, old)}  # of one benchmark at a time
        new_texts = _samples(grid, new) if shown else {}
        documents = [_pair(doc, texts[old.key][doc], new_texts[doc]) for doc in shown]
        info = grid.benchmarks[benchmark]
        parent = f"{grid.benchmarks[info['variant_of']]['label']}: " if info["variant_of"] else ""
        about = {
            "family": grid.families[family]["label"],
            "benchmark": parent + info["label"],
            "condition": grid.conditions[name]["label"],
            "reference": grid.conditions[REFERENCE]["label"],
            "changed": len(changed),
            "of": len(old.docs),
        }
        yield about, documents


def _changed(old: Cell, new: Cell) -> list[Any]:
    """Documents that both cells have and score differently."""
    scores = dict(zip(new.docs, new.score.tolist(), strict=True))
    pairs = zip(old.docs, old.score.tolist(), strict=True)
    return [doc for doc, score in pairs if doc in scores and scores[doc] != score]


def _cap(sizes: list[int]) -> int:
    """The most documents that one comparison may show so that all together show at most ``EMBEDDED``."""
    low, high = 0, max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(s, middle) for s in sizes) <= EMBEDDED else (low, middle - 1)
    return low


def _samples(grid: Grid, cell: Cell) -> dict[Any, Sample]:
    record = read_record(grid.results, cell.key)
    if record is None:
        raise UserError(f"record {cell.key[:12]} vanished while the report was made; render again")
    return dict(zip(cell.docs, record.samples(), strict=True))


def _pair(doc: Any, old: Sample, new: Sample) -> list[Any]:
    """One document for the page's script: name, target, prompt, the other prompt or null, two answers."""
    name = f"{doc[0]} {doc[1]}" if doc[0] is not None else f"{doc[1]}"
    other = new["prompt"] if new["prompt"] != old["prompt"] else None
    return [
        name + (f".{doc[2]}" if doc[2] else ""),
        old["target"],
        old["prompt"],
        other,
        _answer(old),
        _answer(new),
    ]


def _answer(sample: Sample) -> list[Any]:
    extracted = "; ".join(f"{name}: {text}" for name, text in sample["extracted"].items())
    return [sample["score"], sample["output"], extracted, sample["tokens"], sample["finish"]]


def _packed(data: Any) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
