"""What the browser of samples reads: every answer of a run, packed by cell, and a link to any of them.

    packs = pack(results)
    link("micro", "gsm8k", "baseline", "vector", "17")      #sample=micro/gsm8k/baseline/vector/17

Each record is packed once, whatever it is compared with, and so is each set of questions; the page unpacks the two
cells that a reader compares and pairs their documents by name. All documents are listed with their scores. Texts are
kept of at most `TEXTS` answers, spread over the benchmarks: of a benchmark with more, documents that some condition
scores differently from the reference come first. What is left out is named with the file that has it.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.analysis.results import Results, Row
from pipeline.analysis.scores import CellScores, Doc
from pipeline.analysis.traits import has_steps
from pipeline.evaluate.samples import NOT_EXTRACTED
from pipeline.records import Sample

TEXTS = 40_000  # answers whose texts the page holds

Column = list[str] | list[str | None] | list[float] | list[int] | list[list[float] | None]
Columns = dict[str, Column]


@dataclass(frozen=True)
class Packs:
    """The index and the packs that it counts, each as base64 of compressed JSON."""

    index: str
    packs: list[str]


@dataclass(frozen=True)
class Group:
    """The cells of one family and benchmark, by condition; the reference's first, where there is one."""

    family: str
    benchmark: str
    cells: dict[str, CellScores]

    @property
    def documents(self) -> int:
        return max(len(cell.docs) for cell in self.cells.values())

    @property
    def records(self) -> int:
        return len({cell.key for cell in self.cells.values()})


def link(family: str, benchmark: str, old: str, new: str, doc: str = "", show: str = "") -> str:
    """The fragment of the page's address that opens a comparison, or one document of it.

    Args:
        show: which documents are listed, such as "changed" (the choices are in page.html).
    """
    parts = [quote(part, safe="") for part in (family, benchmark, old, new, doc) if part]
    return f"#sample={'/'.join(parts)}" + (f"&show={show}" if show else "")


def conditions(results: Results) -> list[str]:
    """Conditions whose answers are shown: main and control, each seed by itself, in the manifest's order."""
    return [name for row in results.rows("main", "control") for name in row.members]


def pack(results: Results) -> Packs:
    """Everything that the browser of samples shows of a run."""
    labels = {name: results.named(name).label for name in conditions(results)}
    return packs_of(list(_groups(results)), results, labels, results.reference.name, opening(results))


def packs_of(
    groups: Sequence[Group],
    results: Results,
    labels: Mapping[str, str],
    reference: str,
    opening: str | None,
) -> Packs:
    """The packs of cells that are compared with each other within each group.

    Args:
        results: for the labels of families and benchmarks; labels: of conditions.
        reference, opening: the conditions that the browser opens with.
    """
    cap = _cap([group.documents for group in groups], [group.records for group in groups])
    packs: dict[str, int] = {}  # each once, with its number
    cells = []
    for group in groups:
        kept = _kept(group, cap)
        done: dict[str, tuple[int, int]] = {}
        for condition, cell in group.cells.items():
            if cell.key not in done:
                assert cell.record is not None, "an average has no samples"
                samples = dict(zip(cell.docs, cell.record.samples(), strict=True))
                metric = cell.record.metrics["metric"]
                both = (_answers(samples, kept, metric), _questions(samples, kept))
                answers, questions = (packs.setdefault(packed(columns), len(packs)) for columns in both)
                done[cell.key] = (answers, questions)
            cells.append([group.family, group.benchmark, condition, *done[cell.key], cell.key])
    index = {
        "families": {name: entry.label for name, entry in results.families.items()},
        "benchmarks": {name: results.label(name) for name in results.benchmarks},
        "conditions": labels,
        "reference": reference,
        "opening": opening,
        "cells": cells,
    }
    return Packs(packed(index), list(packs))


def opening(results: Results) -> str | None:
    """The condition that the browser opens with: the first that adds a vector, which is the paper's +Vector."""
    rows = [row for row in results.rows("main", "control") if row.name != results.reference.name]
    return min(rows, key=lambda row: not _adds_a_vector(row)).name if rows else None


def packed(data: Mapping[str, object]) -> str:
    """Data as the page's script unpacks it: base64 of compressed JSON, the same bytes every time."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    compressed = gzip.compress(text.encode("utf-8", "surrogatepass"), compresslevel=6, mtime=0)
    return base64.b64encode(compressed).decode("ascii")


def _groups(results: Results) -> Iterator[Group]:
    names = sorted(conditions(results), key=lambda name: name != results.reference.name)
    for family in results.families:
        for benchmark in results.benchmarks:
            rows = {name: results.cell(family, results.named(name), benchmark) for name in names}
            cells = {name: cell for name, cell in rows.items() if cell is not None}
            if cells:
                yield Group(family, benchmark, cells)


def _adds_a_vector(row: Row) -> bool:
    return any(term.seed is None for term in row.entry.terms)


def _kept(group: Group, cap: int) -> set[Doc]:
    """The documents whose texts the page holds: those with changed scores first, then in the benchmark's order."""
    reference, *others = group.cells.values()
    before = dict(zip(reference.docs, reference.score.tolist(), strict=True))
    changed = {
        doc
        for cell in others
        for doc, score in zip(cell.docs, cell.score.tolist(), strict=True)
        if before.get(doc, score) != score
    }
    docs = dict.fromkeys(doc for cell in group.cells.values() for doc in cell.docs)
    return set(sorted(docs, key=lambda doc: doc not in changed)[:cap])


def _cap(sizes: Sequence[int], weights: Sequence[int]) -> int:
    """The most documents of one group so that all together keep at most `TEXTS` answers.

    Args:
        sizes: documents of each group; weights: how many answers each of them has.
    """
    low, high = 0, max(sizes, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        texts = sum(min(size, middle) * weight for size, weight in zip(sizes, weights, strict=True))
        low, high = (middle, high) if texts <= TEXTS else (low, middle - 1)
    return low


def name_of(doc: Doc) -> str:
    """A document's name on the page and in links."""
    subtask, source, which = doc
    return (f"{source}" if subtask is None else f"{subtask} {source}") + (f".{which}" if which else "")


def _questions(samples: Mapping[Doc, Sample], kept: set[Doc]) -> Columns:
    """Documents by column; without its text (null) where the page does not hold it."""
    return {
        "name": [name_of(doc) for doc in samples],
        "target": [s["target"] if doc in kept else None for doc, s in samples.items()],
        "prompt": [s["prompt"] if doc in kept else None for doc, s in samples.items()],
    }


def _answers(samples: Mapping[Doc, Sample], kept: set[Doc], metric: str) -> Columns:
    """Answers by column, in the order of the documents; flags are the letters of `_flags`."""
    columns: Columns = {
        "score": [_number(s["score"]) for s in samples.values()],
        "tokens": [_number(s["tokens"]) for s in samples.values()],
        "flags": [_flags(s, metric) for s in samples.values()],
        "output": [s["output"] if doc in kept else None for doc, s in samples.items()],
        "extracted": [_extracted(s) if doc in kept else None for doc, s in samples.items()],
    }
    if any("loglikelihoods" in s for s in samples.values()):
        columns["options"] = [s.get("loglikelihoods") for s in samples.values()]
    return columns


def _flags(sample: Sample, metric: str) -> str:
    """s: with steps; c: cut at the token limit; u: unreadable, the benchmark's filter could not extract an answer."""
    is_written = sample["finish"] != "scored" and not metric.startswith("pass")
    cut = sample["finish"] == "length"
    unreadable = sample["extracted"].get(metric.rsplit(",", 1)[-1]) == NOT_EXTRACTED
    return "s" * (is_written and has_steps(sample["output"])) + "c" * cut + "u" * unreadable


def _extracted(sample: Sample) -> str:
    readings = "; ".join(f"{name}: {text}" for name, text in sample["extracted"].items())
    others = sample.get("answers", [])[1:]
    return readings + (f"; the first of {len(others) + 1} answers" if others else "")


def _number(value: float) -> float:
    """A whole number without its decimal point, which is shorter in JSON."""
    return int(value) if value == int(value) else value
