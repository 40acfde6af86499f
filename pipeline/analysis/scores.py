"""The scores of one cell, document by document, and how two cells are paired.

    scores = read_scores(Path("results"), key, cluster=None)
    difference(scores, others)

Documents are paired by subtask and source, whatever their order. The texts of samples are not kept: the report reads
those that it shows again.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.statistics import Difference, paired_difference
from pipeline.errors import UserError
from pipeline.records import Record, read_record

FLAG_SHARE = 0.1  # above this share of truncated or unreadable answers a cell is marked

Positions = NDArray[np.intp]
Source = tuple[str | None, int]  # (subtask, source_doc)
Doc = tuple[str | None, int, int]  # (subtask, source_doc, which of the documents made from that source)


@dataclass(frozen=True)
class CellScores:
    """The numbers of one record, or of several averaged by document; sequences run in document order."""

    key: str
    docs: tuple[Doc, ...]
    sources: tuple[Source, ...]
    targets: tuple[str, ...]
    clusters: Positions | None  # codes from 0 of the groups in which documents depend on each other
    score: NDArray[np.float64]
    tokens: NDArray[np.float64]
    record: Record | None  # None for an average

    @property
    def flags(self) -> str:
        """Marks that the record earns by itself."""
        if self.record is None:
            return ""
        metrics = self.record.metrics
        marks = {
            "t": metrics["share_truncated"] > FLAG_SHARE,
            "x": metrics["share_not_extracted"] > FLAG_SHARE,
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
            clusters=None if self.clusters is None else self.clusters[kept],
            score=self.score[kept],
            tokens=self.tokens[kept],
        )


def read_scores(results: Path, key: str, cluster: str | None) -> CellScores | None:
    """The scores of a record, remembered while its files stay as they are; None if there is no such record.

    Args:
        cluster: the field of a sample by which documents are not independent; None: each stands alone.

    Raises:
        UserError: if the record is damaged or has no samples.
    """
    return _read(results, key, cluster, _stamp(results, key))


def average(cells: Sequence[CellScores]) -> CellScores:
    """Mean score and length of each document over cells of one benchmark, on the documents that all have."""
    first = cells[0]
    at = [positions(cell.docs, first.docs) for cell in cells]
    kept = np.flatnonzero(np.all([p >= 0 for p in at], axis=0))
    return replace(
        first.subset(kept),
        key="+".join(cell.key for cell in cells),
        score=np.mean([cell.score[p[kept]] for cell, p in zip(cells, at, strict=True)], axis=0),
        tokens=np.mean([cell.tokens[p[kept]] for cell, p in zip(cells, at, strict=True)], axis=0),
        record=None,
    )


def difference(old: CellScores, new: CellScores) -> Difference | None:
    """Paired difference new - old over the documents that both cells have; None when they share none."""
    at_new = positions(new.docs, old.docs)
    both = at_new >= 0
    if not both.any():
        return None
    clusters = None if old.clusters is None else old.clusters[both]
    return paired_difference(old.score[both], new.score[at_new[both]], clusters)


def positions(have: Sequence[Doc], asked: Sequence[Doc]) -> Positions:
    """Index in `have` of each document that is asked for, -1 where it is absent."""
    if have == asked:
        return np.arange(len(have))
    index = {doc: i for i, doc in enumerate(have)}
    return np.array([index.get(doc, -1) for doc in asked], dtype=np.intp)


def codes(labels: Iterable[Hashable]) -> Positions:
    """A number for each label, counted from 0 in the order of their first appearance."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.intp)


def _stamp(results: Path, key: str) -> tuple[int, ...]:
    """Changes when the record's files change, so that remembered scores are never stale."""
    stats = [path.stat() for path in sorted((results / "cells" / key).glob("*"))]
    return tuple(n for stat in stats for n in (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4096)
def _read(results: Path, key: str, cluster: str | None, stamp: tuple[int, ...]) -> CellScores | None:
    record = read_record(results, key)
    if record is None:
        return None
    samples = record.samples()
    if not samples:
        raise UserError(
            f"record {key[:12]} has no samples; delete its folder and run the evaluate stage again"
        )
    sources = tuple((s["subtask"], s["source_doc"]) for s in samples)
    made: Counter[Source] = Counter()
    docs: list[Doc] = []
    for source in sources:
        docs.append((*source, made[source]))
        made[source] += 1
    clusters = None
    if cluster is not None:
        clusters = codes(sources if cluster == "source_doc" else [s["subtask"] for s in samples])
    return CellScores(
        key=key,
        docs=tuple(docs),
        sources=sources,
        targets=tuple(str(s["target"]) for s in samples),
        clusters=clusters,
        score=np.array([s["score"] for s in samples], dtype=float),
        tokens=np.array([s["tokens"] for s in samples], dtype=float),
        record=record,
    )
