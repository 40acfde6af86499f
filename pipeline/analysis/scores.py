"""The scores of one cell, document by document, and how cells are paired.

    scores = read_scores(Path("results"), key)
    difference(scores, others)

Documents are paired by subtask and source, whatever their order. The texts of samples are not kept: the report reads
those that it shows again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from pipeline.analysis import paired, units
from pipeline.analysis import traits as trait
from pipeline.analysis.design import Codes, Design, Floats, codes, design
from pipeline.analysis.estimate import Difference
from pipeline.analysis.guessing import sameness
from pipeline.analysis.traits import Traits, traits_of
from pipeline.errors import UserError
from pipeline.manifest import BenchmarkEntry
from pipeline.records import Record, Sample, read_record

FLAG_SHARE = 0.1  # above this share of truncated or unreadable answers a cell is marked
ONE_ANSWER = 0.9  # from this share of equal answers on a model gives one answer to all

Positions = Codes
Source = tuple[str | None, int]  # (subtask, source_doc)
Doc = tuple[str | None, int, int]  # (subtask, source_doc, which of the documents made from that source)
Labels = Mapping[Doc, int]  # documents of one label depend on each other


@dataclass(frozen=True)
class CellScores:
    """The numbers of one record, or of several averaged by document; sequences run in document order."""

    key: str
    docs: tuple[Doc, ...]
    sources: tuple[Source, ...]
    targets: tuple[str, ...]
    units: Codes  # codes from 0: documents of one code depend on each other
    is_stratified: bool  # whether the benchmark's number is the mean over its fixed subtasks
    score: Floats
    tokens: Floats
    traits: Traits | None = field(repr=False)  # None where options were scored
    record: Record | None  # None for an average
    metrics: Mapping[str, Floats] = field(
        default_factory=dict, repr=False
    )  # the score under each that is kept

    @cached_property
    def design(self) -> Design:
        """How these documents were drawn."""
        strata = codes([str(subtask) for subtask, _ in self.sources]) if self.is_stratified else None
        return design(len(self.docs), clusters=self.units, strata=strata)

    @property
    def mean(self) -> float:
        """The benchmark's number: the mean over documents, or over the subtasks' means."""
        return self.design.mean(self.score)

    @cached_property
    def sameness(self) -> float:
        """Share of the answers that are the most frequent one (of each subtask); 0 where options were scored."""
        if self.traits is None or len(self.docs) < 2:
            return 0.0
        return sameness(self.traits.answers, [subtask or "" for subtask, _ in self.sources])

    @property
    def flags(self) -> str:
        """Marks that the record earns by itself."""
        if self.record is None:
            return ""
        metrics = self.record.metrics
        marks = {
            "t": metrics["share_truncated"] > FLAG_SHARE,
            "x": metrics["share_not_extracted"] > FLAG_SHARE,
            "o": self.sameness >= ONE_ANSWER,
            "h": abs(metrics["score"] - float(self.score.mean())) > 1e-6,
        }
        return "".join(mark for mark, raised in marks.items() if raised)

    def subset(self, kept: Positions) -> "CellScores":
        """The cell on some of its documents, given by position."""
        return replace(
            self,
            docs=tuple(self.docs[i] for i in kept),
            sources=tuple(self.sources[i] for i in kept),
            targets=tuple(self.targets[i] for i in kept),
            units=codes(self.units[kept]),
            score=self.score[kept],
            tokens=self.tokens[kept],
            traits=self.traits.subset(kept) if self.traits else None,
            metrics={name: values[kept] for name, values in self.metrics.items()},
        )

    def on(self, docs: Sequence[Doc]) -> "CellScores":
        """The cell on these documents, in their order; it must have them all."""
        return self if self.docs == tuple(docs) else self.subset(positions(self.docs, docs))

    def drawn(self, labels: Labels, is_stratified: bool) -> "CellScores":
        """The cell with its documents in these units; a document without a label stands alone."""
        named = [labels.get(doc, -1 - i) for i, doc in enumerate(self.docs)]
        return replace(self, units=codes(named), is_stratified=is_stratified)


def read_scores(results: Path, key: str) -> CellScores | None:
    """The scores of a record, remembered while its files stay as they are; None if there is no such record.

    Its documents count as independent until `CellScores.drawn` says otherwise.

    Raises:
        UserError: if the record is damaged or has no samples.
    """
    return _read(results, key, _stamp(results, key))


def independent_units(results: Path, key: str, entry: BenchmarkEntry) -> Labels:
    """Which of a record's documents are copies of each other: of one source, one template, or nearly one prompt.

    Args:
        entry: the benchmark of the record; of generated documents the templates are looked for.
    """
    return _units(results, key, entry.cluster, entry.generated, _stamp(results, key))


def common(cells: Sequence[CellScores]) -> list[CellScores]:
    """The cells on the documents that all of them have, in one order."""
    first = cells[0]
    if all(cell.docs == first.docs for cell in cells):
        return list(cells)
    have = set(first.docs).intersection(*(cell.docs for cell in cells[1:]))
    docs = [doc for doc in first.docs if doc in have]
    return [cell.on(docs) for cell in cells]


def average(cells: Sequence[CellScores]) -> CellScores:
    """Mean score, length and traits of each document over cells of one benchmark, on the documents that all have."""
    shared = common(cells)
    traits = [cell.traits for cell in shared if cell.traits]
    return replace(
        shared[0],
        key="+".join(cell.key for cell in cells),
        score=np.mean([cell.score for cell in shared], axis=0),
        tokens=np.mean([cell.tokens for cell in shared], axis=0),
        traits=trait.average(traits) if traits else None,
        record=None,
        metrics={
            name: np.mean([cell.metrics[name] for cell in shared], axis=0)
            for name in shared[0].metrics
            if all(name in cell.metrics for cell in shared)
        },
    )


def difference(old: CellScores, new: CellScores, level: float | None = None) -> Difference | None:
    """Paired difference new - old over the documents that both cells have; None when they share none.

    Args:
        level: at which the detectable difference is computed; None leaves it out.
    """
    a, b = common([old, new])
    return paired.difference(a.score, b.score, a.design, level) if len(a.docs) else None


def positions(have: Sequence[Doc], asked: Sequence[Doc]) -> Positions:
    """Index in `have` of each document that is asked for, -1 where it is absent."""
    if have == asked:
        return np.arange(len(have))
    index = {doc: i for i, doc in enumerate(have)}
    return np.array([index.get(doc, -1) for doc in asked], dtype=np.intp)


def _stamp(results: Path, key: str) -> tuple[int, ...]:
    """Changes when the record's files change, so that remembered scores are never stale."""
    stats = [path.stat() for path in sorted((results / "cells" / key).glob("*"))]
    return tuple(n for stat in stats for n in (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4096)
def _read(results: Path, key: str, stamp: tuple[int, ...]) -> CellScores | None:
    record = read_record(results, key)
    if record is None:
        return None
    samples = record.samples()
    if not samples:
        raise UserError(
            f"record {key[:12]} has no samples; delete its folder and run the evaluate stage again"
        )
    return CellScores(
        key=key,
        docs=_docs(samples),
        sources=tuple((s["subtask"], s["source_doc"]) for s in samples),
        targets=tuple(str(s["target"]) for s in samples),
        units=np.arange(len(samples)),
        is_stratified=False,
        score=np.array([s["score"] for s in samples], dtype=float),
        tokens=np.array([s["tokens"] for s in samples], dtype=float),
        traits=traits_of(samples, record.metrics["metric"]),
        record=record,
        metrics=_metrics(samples),
    )


def _metrics(samples: Sequence[Sample]) -> dict[str, Floats]:
    """The score of each document (n,) under every metric that all of them have."""
    names = [name for name in samples[0]["scores"] if all(name in s["scores"] for s in samples)]
    return {name: np.array([s["scores"][name] for s in samples], dtype=float) for name in names}


def _docs(samples: Sequence[Sample]) -> tuple[Doc, ...]:
    made: Counter[Source] = Counter()
    docs: list[Doc] = []
    for sample in samples:
        source = (sample["subtask"], sample["source_doc"])
        docs.append((*source, made[source]))
        made[source] += 1
    return tuple(docs)


@lru_cache(maxsize=256)
def _units(
    results: Path, key: str, cluster: str | None, is_generated: bool, stamp: tuple[int, ...]
) -> dict[Doc, int]:
    record = read_record(results, key)
    assert record is not None, f"record {key[:12]} was there"
    samples = record.samples()
    prompts, subtasks = [s["prompt"] for s in samples], [str(s["subtask"]) for s in samples]
    kinds = [units.near_duplicates(prompts, subtasks)]
    if cluster == "source_doc":
        kinds.append(codes([f"{s['subtask']} {s['source_doc']}" for s in samples]))
    if is_generated:
        kinds.append(units.templates([f"{s}: {p}" for s, p in zip(subtasks, prompts, strict=True)]))
        kinds.append(units.skeletons([str(s["target"]) for s in samples]))
    return dict(zip(_docs(samples), units.merge(*kinds).tolist(), strict=True))
