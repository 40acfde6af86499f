"""One HTML page about a run: what was run, the verdicts, the tables, the figures and a browser of samples.

    page.render(results, tables, drawn, out)        writes out/report.html

The page is self-contained: no outside script, style, font or picture, and a content security policy that
refuses any (and any script but its own). What models wrote is shown as text, never as markup. The browser has
the documents whose score differs between Baseline and another main or control condition, at most `EMBEDDED`
of them, spread over the comparisons and said so where some are left out; each comparison is compressed and
unpacked when it is chosen.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipeline.analysis.claims import read_claims
from pipeline.analysis.findings import find
from pipeline.analysis.results import MARKS, Results, Row
from pipeline.analysis.scores import CellScores, Doc
from pipeline.files import sha256, write_file
from pipeline.records import Sample
from pipeline.report.formats import as_html
from pipeline.report.numbers import alpha_text
from pipeline.report.sentences import verdict_reason
from pipeline.report.table import Table

EMBEDDED = 20_000  # documents in the browser of samples
_LISTED = 12  # texts that a fact shows
_TEMPLATE = Path(__file__).with_name("page.html")
_CAPTIONS = {
    "alpha_sweep": "Accuracy along α, with 95 % bands.",
    "forest": "Differences to Baseline with 95 % intervals; filled where p < 0.05 after Holm's correction.",
    "geometry": "Relative norm of v by layer and kind of module.",
    "length": "Accuracy against mean answer length.",
    "robustness": "Paired drop on each adversarial variant, with its 95 % interval.",
}


def render(results: Results, tables: Sequence[Table], drawn: Sequence[Path], out: Path) -> Path:
    """Write out/report.html.

    Args:
        tables: of this run.
        drawn: the files of its figures; the PNGs among them are embedded.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    script = _TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
    packs = list(_packs(results))
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
        figures=[(p.stem, _CAPTIONS[p.stem], _base64(p.read_bytes())) for p in drawn if p.suffix == ".png"],
        marks=MARKS,
        script=script,
        script_hash=_base64(bytes.fromhex(sha256(script.encode()))),
        index=_base64(_packed([about for about, _ in packs])),
        packs=[_base64(_packed(documents)) for _, documents in packs],
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


# ---- the browser of samples ----

Packed = str | float | None | list["Packed"]  # of what the page's script reads


@dataclass(frozen=True)
class _Change:
    """A condition beside the reference on one benchmark, and the documents that they score differently."""

    family: str
    benchmark: str
    row: Row
    old: CellScores
    new: CellScores
    docs: list[Doc]


def _packs(results: Results) -> Iterator[tuple[dict[str, str | int], list[Packed]]]:
    """For each family, benchmark and condition: what the comparison is, and its changed documents."""
    changes = list(_changes(results))
    cap = _cap([len(change.docs) for change in changes])
    texts: dict[str, dict[Doc, Sample]] = {}
    for change in changes:
        shown = change.docs[:cap]
        old, new = change.old, change.new
        texts = {old.key: texts.get(old.key) or _samples(old)}  # of one benchmark at a time
        new_texts = _samples(new) if shown else {}
        about: dict[str, str | int] = {
            "family": results.families[change.family].label,
            "benchmark": results.label(change.benchmark),
            "condition": change.row.label,
            "reference": results.reference.label,
            "changed": len(change.docs),
            "of": len(old.docs),
        }
        yield about, [_pair(doc, texts[old.key][doc], new_texts[doc]) for doc in shown]


def _changes(results: Results) -> Iterator[_Change]:
    # Those that add the vector come first, so that the page opens with the paper's +Vector.
    rows = sorted(results.rows("main", "control"), key=lambda row: not _adds_a_vector(row))
    single = [results.named(name) for row in rows for name in row.members]
    for family in results.families:
        for benchmark in results.benchmarks:
            old = results.cell(family, results.reference, benchmark)
            for row in single:
                new = results.cell(family, row, benchmark)
                if old and new and old.key != new.key:
                    yield _Change(family, benchmark, row, old, new, _changed(old, new))


def _adds_a_vector(row: Row) -> bool:
    return any(term.seed is None for term in row.entry.terms)


def _changed(old: CellScores, new: CellScores) -> list[Doc]:
    """Documents that both cells have and score differently."""
    scores = dict(zip(new.docs, new.score.tolist(), strict=True))
    pairs = zip(old.docs, old.score.tolist(), strict=True)
    return [doc for doc, score in pairs if doc in scores and scores[doc] != score]


def _cap(sizes: Sequence[int]) -> int:
    """The most documents that one comparison may show so that all together show at most `EMBEDDED`."""
    low, high = 0, max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(s, middle) for s in sizes) <= EMBEDDED else (low, middle - 1)
    return low


def _samples(cell: CellScores) -> dict[Doc, Sample]:
    assert cell.record is not None, "an average has no samples"
    return dict(zip(cell.docs, cell.record.samples(), strict=True))


def _pair(doc: Doc, old: Sample, new: Sample) -> Packed:
    """One document for the page's script: name, target, prompt, the other prompt or null, two answers."""
    subtask, source, which = doc
    name = f"{source}" if subtask is None else f"{subtask} {source}"
    other = new["prompt"] if new["prompt"] != old["prompt"] else None
    return [
        name + (f".{which}" if which else ""),
        old["target"],
        old["prompt"],
        other,
        _answer(old),
        _answer(new),
    ]


def _answer(sample: Sample) -> Packed:
    extracted = "; ".join(f"{name}: {text}" for name, text in sample["extracted"].items())
    return [sample["score"], sample["output"], extracted, sample["tokens"], sample["finish"]]


def _packed(data: Sequence[object]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
