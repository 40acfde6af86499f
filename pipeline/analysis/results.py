"""The grid of a run in memory: its manifest with the scores of every record, read once for all renderers.

    grid = load(read_manifest(Path("results/runs/micro.json")), Path("results"))
    grid.difference("micro", ("vector",), ("baseline",), "gsm8k")

A missing or damaged record becomes one line in ``grid.problems`` and a hole in the grid, never a stop. The
texts of samples are not kept: the report reads those that it shows again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.statistics import Difference, Estimate, mean_interval, paired_difference
from pipeline.errors import UserError
from pipeline.records import Cost, Inputs, Metrics, Provenance, Record, read_record

REFERENCE = "baseline"
FLAG_SHARE = 0.1  # above this share of truncated or unreadable answers a cell is marked
FEW_CLUSTERS = 10

MARKS = {
    "m": "missing: planned, but no record has been written (or not for every seed)",
    "d": "damaged: the record fails its check and is left out",
    "p": "partial: fewer documents than the fullest cell of this column",
    "l": "limited: only the first documents of the benchmark were evaluated",
    "t": f"more than {FLAG_SHARE:.0%} of the answers hit the token limit",
    "x": f"from more than {FLAG_SHARE:.0%} of the answers nothing could be extracted",
    "c": f"fewer than {FEW_CLUSTERS} clusters of documents, so the interval is rough",
    "h": "the record's headline score is not the mean of its samples",
}

Source = tuple[str | None, int]  # (subtask, source_doc)
Doc = tuple[str | None, int, int]  # (subtask, source_doc, which of the documents made from that source)


@dataclass(frozen=True)
class Cell:
    """The numbers of one record; every sequence runs over its documents in document order."""

    key: str
    docs: tuple[Doc, ...]
    sources: tuple[Source, ...]
    targets: tuple[str, ...]
    clusters: NDArray[np.intp] | None
    score: NDArray[np.float64]
    tokens: NDArray[np.float64]
    metrics: Metrics
    cost: Cost
    provenance: Provenance
    inputs: Inputs

    @property
    def flags(self) -> str:
        """Marks that the cell earns by itself."""
        marks = {
            "t": self.metrics["share_truncated"] > FLAG_SHARE,
            "x": self.metrics["share_not_extracted"] > FLAG_SHARE,
            "h": abs(self.metrics["score"] - float(self.score.mean())) > 1e-6,
        }
        return "".join(mark for mark, raised in marks.items() if raised)


class Row(NamedTuple):
    """A row of a table: one condition, or the seeds of one random control, averaged document by document."""

    name: str
    label: str
    members: tuple[str, ...]


class Grid:
    """Cells by (family, condition, benchmark), and what can be asked of them."""

    def __init__(self, manifest: dict[str, Any], results: Path) -> None:
        self.manifest, self.results = manifest, results
        self.families: dict[str, dict[str, Any]] = manifest["families"]
        self.benchmarks: dict[str, dict[str, Any]] = manifest["benchmarks"]
        self.conditions: dict[str, dict[str, Any]] = manifest["conditions"]
        self.planned: dict[tuple[str, str, str], str] = {}
        self.problems: list[str] = []
        self.cells: dict[tuple[str, str, str], Cell] = {}
        self._state: dict[tuple[str, str, str], str] = {}
        seen: dict[str, tuple[Cell | None, str]] = {}
        for entry in manifest["cells"]:
            place = (entry["family"], entry["condition"], entry["benchmark"])
            key = self.planned[place] = entry["key"]
            if key not in seen:
                seen[key] = self._read(place, key)
            cell, self._state[place] = seen[key]
            if cell is not None:
                self.cells[place] = cell
        self._fullest: dict[tuple[str, str], int] = {}
        for (family, _, benchmark), cell in self.cells.items():
            column = (family, benchmark)
            self._fullest[column] = max(self._fullest.get(column, 0), len(cell.docs))

    def _read(self, place: tuple[str, str, str], key: str) -> tuple[Cell | None, str]:
        cluster = self.benchmarks[place[2]]["cluster"]
        try:
            cell = _cell(self.results, key, cluster, _stamp(self.results, key))
        except UserError as error:
            self.problems.append(f"{' / '.join(place)}: {error}")
            return None, "d"
        if cell is None:
            self.problems.append(
                f"{' / '.join(place)}: no record {key[:12]} yet; run the evaluate stage to make it"
            )
            return None, "m"
        return cell, ""

    def rows(self, *roles: str) -> list[Row]:
        """Conditions of these roles in the manifest's order; seeds of a random control are one row."""
        grouped: dict[tuple[Any, ...], list[str]] = {}
        for name, condition in self.conditions.items():
            if condition["role"] in roles:
                stem = condition["label"].partition(" (seed")[0]
                seeds = (
                    stem,
                    condition["weights"],
                    condition["alpha"],
                    condition["prompt"],
                    condition["role"],
                )
                grouped.setdefault(seeds if condition["seed"] is not None else (name,), []).append(name)
        rows = []
        for names in grouped.values():
            label = self.conditions[names[0]]["label"]
            if len(names) > 1:
                label = f"{label.partition(' (seed')[0]} (mean of {len(names)})"
            rows.append(Row(names[0], label, tuple(names)))
        return rows

    def is_whole(self, condition: str) -> bool:
        """Whether its weights have no part of a vector in them, and no sum of several."""
        return bool(self.conditions[condition].get("whole", True))

    def row(self, weights: str, alpha_sign: int = 0, prompt: str = "plain") -> Row | None:
        """The main or control row with these weights, this sign of α (0: any) and this prompt; of whole vectors."""
        for row in self.rows("main", "control"):
            condition = self.conditions[row.name]
            sign = int(np.sign(condition["alpha"] or 0))
            fits = self.is_whole(row.name) and alpha_sign in (0, sign)
            if fits and condition["weights"] == weights and condition["prompt"] == prompt:
                return row
        return None

    def sweep(self) -> list[tuple[float, str]]:
        """(α, condition) of target + α·v, v whole, ascending; without a sweep condition the bare target is α = 0."""
        swept = [c for c in self.conditions.values() if c["role"] == "sweep"]
        if not swept:
            return []
        found: dict[float, str] = {}
        for name, condition in sorted(self.conditions.items(), key=lambda item: item[1]["role"] != "sweep"):
            own = condition["weights"] in ("vector", "target") and self.is_whole(name)
            if own and condition["prompt"] == swept[0]["prompt"]:
                found.setdefault(float(condition["alpha"] or 0), name)
        return sorted(found.items())

    def plain(self) -> list[str]:
        return [name for name, benchmark in self.benchmarks.items() if benchmark["variant_of"] is None]

    def variants(self) -> list[str]:
        return [name for name, benchmark in self.benchmarks.items() if benchmark["variant_of"] is not None]

    def cell(self, family: str, members: tuple[str, ...], benchmark: str) -> Cell | None:
        """The cell of a row, averaged over those of its members that exist."""
        cells = [self.cells[p] for m in members if (p := (family, m, benchmark)) in self.cells]
        return None if not cells else cells[0] if len(cells) == 1 else _average(cells)

    def is_planned(self, family: str, members: tuple[str, ...], benchmark: str) -> bool:
        return any((family, member, benchmark) in self.planned for member in members)

    def marks(self, family: str, members: tuple[str, ...], benchmark: str) -> str:
        """Footnote marks (keys of ``MARKS``) of a planned cell, in a fixed order."""
        marks: set[str] = set()
        for member in members:
            place = (family, member, benchmark)
            marks.update(self._state.get(place, ""))
            if (cell := self.cells.get(place)) is not None:
                marks.update(cell.flags)
                if self.benchmarks[benchmark]["limit"] is not None:
                    marks.add("l")
                if len(cell.docs) < self._fullest[family, benchmark]:
                    marks.add("p")
        return "".join(mark for mark in MARKS if mark in marks)

    def header_marks(self, benchmark: str) -> str:
        """Marks of a whole column."""
        clusters = [cell.clusters for place, cell in self.cells.items() if place[2] == benchmark]
        return "c" if any(c is not None and c.max() + 1 < min(FEW_CLUSTERS, len(c)) for c in clusters) else ""

    def value(self, family: str, members: tuple[str, ...], benchmark: str) -> Estimate | None:
        """Mean score of a row's cell."""
        cell = self.cell(family, members, benchmark)
        return None if cell is None else mean_interval(cell.score, cell.clusters)

    def difference(
        self, family: str, members: tuple[str, ...], reference: tuple[str, ...], benchmark: str
    ) -> Difference | None:
        """Paired difference of two rows; None where a cell is missing or both rows are the same cell."""
        new, old = (self.cell(family, members, benchmark), self.cell(family, reference, benchmark))
        return None if new is None or old is None or new.key == old.key else difference(old, new)

    def robustness(self, family: str, members: tuple[str, ...], variant: str) -> Robustness | None:
        """Plain against perturbed documents of one row, and what is left of its gain there."""
        plain = self.benchmarks[variant]["variant_of"]
        cells = [
            self.cell(family, row, benchmark)
            for row in (members, (REFERENCE,))
            for benchmark in (plain, variant)
        ]
        new_plain, new_perturbed, old_plain, old_perturbed = cells
        if new_plain is None or new_perturbed is None:
            return None
        at_perturbed, at_plain = _join(new_perturbed.sources, new_plain.docs)
        if not len(at_perturbed):
            return None
        clusters = _source_clusters(new_perturbed, new_plain, at_perturbed, at_plain)
        a, b = new_plain.score[at_plain], new_perturbed.score[at_perturbed]
        drop = paired_difference(a, b, clusters)
        result = Robustness(mean_interval(a, clusters), mean_interval(b, clusters), drop, None, None, None)
        if old_plain is None or old_perturbed is None or members == (REFERENCE,):
            return result
        ids = [new_perturbed.docs[i] for i in at_perturbed]
        source_ids = [new_plain.docs[i] for i in at_plain]
        old_b = _positions(old_perturbed.docs, ids)
        old_a = _positions(old_plain.docs, source_ids)
        both = (old_a >= 0) & (old_b >= 0)
        if not both.any():
            return result
        kept = clusters[both]
        a0, b0 = old_plain.score[old_a[both]], old_perturbed.score[old_b[both]]
        gain_plain = paired_difference(a0, a[both], kept)
        gain = paired_difference(b0, b[both], kept)
        change = paired_difference(a[both] - a0, b[both] - b0, kept)
        return Robustness(result.plain, result.perturbed, drop, gain_plain, gain, change)

    def unique_cells(self) -> dict[str, tuple[tuple[str, str, str], Cell]]:
        """Each record once, under the first place that uses it."""
        unique: dict[str, tuple[tuple[str, str, str], Cell]] = {}
        for place, cell in self.cells.items():
            unique.setdefault(cell.key, (place, cell))
        return unique


@dataclass(frozen=True)
class Robustness:
    """One row on a perturbed benchmark, over the perturbed documents and their sources.

    ``drop`` is perturbed - plain; ``gain_plain`` and ``gain`` are row - reference on plain and perturbed
    documents; ``change`` is gain - gain_plain, the difference in differences. None: the reference is missing.
    """

    plain: Estimate
    perturbed: Estimate
    drop: Difference
    gain_plain: Difference | None
    gain: Difference | None
    change: Difference | None


def load(manifest: dict[str, Any], results: Path) -> Grid:
    """Read every record that the manifest names; unchanged records are remembered, so repeating is cheap."""
    return Grid(manifest, results)


def difference(old: Cell, new: Cell) -> Difference | None:
    """Paired difference new - old over the documents that both cells have; None when they share none."""
    at_new = _positions(new.docs, old.docs)
    both = at_new >= 0
    if not both.any():
        return None
    clusters = None if old.clusters is None else old.clusters[both]
    return paired_difference(old.score[both], new.score[at_new[both]], clusters)


def _stamp(results: Path, key: str) -> tuple[int, ...]:
    """Changes when the record's files change, so that remembered cells are never stale."""
    stats = [path.stat() for path in sorted((results / "cells" / key).glob("*"))]
    return tuple(n for stat in stats for n in (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4096)
def _cell(results: Path, key: str, cluster: str | None, stamp: tuple[int, ...]) -> Cell | None:
    record: Record | None = read_record(results, key)
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
        clusters = _codes(sources if cluster == "source_doc" else [s["subtask"] for s in samples])
    return Cell(
        key=key,
        docs=tuple(docs),
        sources=sources,
        targets=tuple(str(s["target"]) for s in samples),
        clusters=clusters,
        score=np.array([s["score"] for s in samples], dtype=float),
        tokens=np.array([s["tokens"] for s in samples], dtype=float),
        metrics=record.metrics,
        cost=record.cost,
        provenance=record.provenance,
        inputs=record.inputs,
    )


def _codes(labels: Any) -> NDArray[np.intp]:
    known: dict[Any, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.intp)


def _positions(have: tuple[Doc, ...], wanted: tuple[Doc, ...] | list[Doc]) -> NDArray[np.intp]:
    """Index in ``have`` of each wanted document, -1 where it is absent."""
    if have == wanted:
        return np.arange(len(have))
    index = {doc: i for i, doc in enumerate(have)}
    return np.array([index.get(doc, -1) for doc in wanted], dtype=np.intp)


def _join(
    sources: tuple[Source, ...], plain_docs: tuple[Doc, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the perturbed documents whose source is among the plain ones, and of those sources."""
    at_plain = _positions(plain_docs, [(*source, 0) for source in sources])
    at_perturbed = np.flatnonzero(at_plain >= 0)
    return at_perturbed, at_plain[at_perturbed]


def _source_clusters(
    perturbed: Cell, plain: Cell, at_perturbed: NDArray[np.intp], at_plain: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The plain benchmark's clusters where it has some (the coarser ones), else the source documents."""
    if plain.clusters is not None:
        return plain.clusters[at_plain]
    return _codes([perturbed.sources[i] for i in at_perturbed])


def subset(cell: Cell, kept: NDArray[np.intp]) -> Cell:
    """The cell on some of its documents, given by position."""
    return replace(
        cell,
        docs=tuple(cell.docs[i] for i in kept),
        sources=tuple(cell.sources[i] for i in kept),
        targets=tuple(cell.targets[i] for i in kept),
        clusters=None if cell.clusters is None else cell.clusters[kept],
        score=cell.score[kept],
        tokens=cell.tokens[kept],
    )


def _average(cells: list[Cell]) -> Cell:
    """Mean score and length of each document over cells of one benchmark, on the documents that all have."""
    first = cells[0]
    positions = [_positions(cell.docs, first.docs) for cell in cells]
    kept = np.flatnonzero(np.all([p >= 0 for p in positions], axis=0))
    score = np.mean([cell.score[p[kept]] for cell, p in zip(cells, positions, strict=True)], axis=0)
    tokens = np.mean([cell.tokens[p[kept]] for cell, p in zip(cells, positions, strict=True)], axis=0)
    key = "+".join(cell.key for cell in cells)
    nothing: dict[str, Any] = {"metrics": {}, "cost": {}, "provenance": {}, "inputs": {}}
    return replace(subset(first, kept), key=key, score=score, tokens=tokens, **nothing)
