"""The results of a run in memory: its manifest with the scores of every record, read once for all that is rendered.

    results = read_results(read_manifest(Path("results/runs/micro.json")), Path("results"))
    results.difference("micro", results.named("vector"), results.reference, "gsm8k")

A missing or damaged record becomes one line in `results.problems` and a hole, never a stop.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.guessing import Guessing, guessing
from pipeline.analysis.paired import number
from pipeline.analysis.repeats import mean_difference, mean_score
from pipeline.analysis.robustness import Robustness, Sources, beside_their_sources, robustness
from pipeline.analysis.scores import (
    FLAG_SHARE,
    ONE_ANSWER,
    CellScores,
    Labels,
    average,
    common,
    independent_units,
    read_scores,
)
from pipeline.analysis.units import Units, count
from pipeline.errors import UserError
from pipeline.manifest import BenchmarkEntry, ConditionEntry, FamilyEntry, Manifest, Place

REFERENCE = "baseline"
THINK = "think"  # the prompt condition of the paper
FEW_UNITS = 10

Found = TypeVar("Found")
Pair = tuple[CellScores, CellScores]  # new, reference

MARKS = {
    "m": "missing: planned, but no record has been written (or not for every seed)",
    "d": "damaged: the record fails its check and is left out",
    "p": "partial: fewer documents than the fullest cell of this column",
    "l": "limited: only the first documents of the benchmark were evaluated",
    "t": f"more than {FLAG_SHARE:.0%} of the answers hit the token limit",
    "x": f"from more than {FLAG_SHARE:.0%} of the answers nothing could be extracted",
    "o": f"one answer to all: {ONE_ANSWER:.0%} of the answers or more are the same (of each subtask)",
    "c": f"fewer than {FEW_UNITS} independent units, so the interval is wide and a test can hardly find anything",
    "h": "the record's headline score is not the mean of its samples",
    "n": '"Think step by step." cannot act in this form of the benchmark',
    "g": "computed on another GPU than the cell that it is compared with",
}


def in_order(marks: str) -> str:
    """Each mark once, in the order of MARKS."""
    return "".join(mark for mark in MARKS if mark in marks)


@dataclass(frozen=True)
class Row:
    """A row of a table: one condition, or the seeds of one random control, averaged document by document."""

    name: str  # the first of `members`
    label: str
    members: tuple[str, ...]
    entry: ConditionEntry = field(compare=False)  # of the first; the others differ in their seed alone

    @property
    def seeds(self) -> int | None:
        """Over how many seeds the row is averaged; None where there is nothing random in it."""
        return len(self.members) if len(self.members) > 1 or self.entry.seed is not None else None


@dataclass(frozen=True)
class Sweep:
    """A condition at several α, with those other rows of the run that lie on the same line."""

    name: str  # the condition of the configuration; empty where the run has one sweep, of the whole vector
    label: str  # of that condition; empty likewise
    points: tuple[tuple[float, Row], ...]  # (α, row), ascending

    def at(self, alpha: float) -> Row | None:
        return dict(self.points).get(alpha)


@dataclass(frozen=True)
class Results:
    """Scores by (family, condition, benchmark), and what can be asked of them."""

    manifest: Manifest
    folder: Path
    cells: Mapping[Place, CellScores]
    absent: Mapping[Place, str]  # the mark of each planned cell without scores: m or d
    problems: tuple[str, ...]  # one line for each record that is missing or damaged

    @property
    def families(self) -> Mapping[str, FamilyEntry]:
        return self.manifest.families

    @property
    def benchmarks(self) -> Mapping[str, BenchmarkEntry]:
        return self.manifest.benchmarks

    @property
    def conditions(self) -> Mapping[str, ConditionEntry]:
        return self.manifest.conditions

    @cached_property
    def planned(self) -> dict[Place, str]:
        """The key of every cell."""
        return {cell.place: cell.key for cell in self.manifest.cells}

    # ---- benchmarks ----

    def plain(self) -> list[str]:
        return [name for name, benchmark in self.benchmarks.items() if benchmark.variant_of is None]

    def variants(self) -> list[str]:
        return [name for name, benchmark in self.benchmarks.items() if benchmark.variant_of is not None]

    def plain_of(self, variant: str) -> str:
        """The plain benchmark of a variant."""
        plain = self.benchmarks[variant].variant_of
        assert plain is not None, f"{variant} is not a variant"
        return plain

    def forms(self) -> list[list[str]]:
        """Benchmarks and variants, each with the other forms of it that the run has behind it."""
        found: dict[str, list[str]] = {}
        for name, entry in self.benchmarks.items():
            first = entry.form_of if entry.form_of in self.benchmarks else None
            found.setdefault(first or name, []).append(name)
        return [sorted(names, key=lambda name: name != first) for first, names in found.items()]

    def label(self, benchmark: str, joint: str = ": ") -> str:
        """A benchmark's label; a variant's after that of its plain benchmark."""
        entry = self.benchmarks[benchmark]
        if entry.variant_of is None:
            return entry.label
        return f"{self.benchmarks[entry.variant_of].label}{joint}{entry.label}"

    # ---- rows ----

    def rows(self, *roles: str) -> list[Row]:
        """Conditions of these roles in the manifest's order; those that differ in their seed alone are one row."""
        members: dict[str, list[str]] = {}
        for name, condition in self.conditions.items():
            if condition.role in roles:
                members.setdefault(condition.row, []).append(name)
        rows = []
        for names in members.values():
            entry = self.conditions[names[0]]
            label = entry.label if len(names) == 1 else f"{entry.row_label} (mean of {len(names)})"
            rows.append(Row(names[0], label, tuple(names), entry))
        return rows

    def named(self, condition: str) -> Row:
        """One condition as a row of its own.

        Raises:
            KeyError: if the run has no such condition.
        """
        entry = self.conditions[condition]
        return Row(condition, entry.label, (condition,), entry)

    @cached_property
    def reference(self) -> Row:
        """The row that others are compared with; of a run without it, a row without cells."""
        if REFERENCE in self.conditions:
            return self.named(REFERENCE)
        nothing_added = ConditionEntry(
            REFERENCE, REFERENCE, REFERENCE, REFERENCE, "target", (), "plain", "main"
        )
        return Row(REFERENCE, REFERENCE, (REFERENCE,), nothing_added)

    def row(self, kind: str, sign: int = 0, prompt: str = "plain") -> Row | None:
        """The first main or control row of this kind of weights, this sign of α (0: any) and this prompt."""
        for row in self.rows("main", "control"):
            alpha = row.entry.alpha or 0.0
            if sign in (0, (alpha > 0) - (alpha < 0)) and (row.entry.kind, row.entry.prompt) == (
                kind,
                prompt,
            ):
                return row
        return None

    def again(self, row: Row) -> Row | None:
        """The row that asks another once more, in another order and other batches; None where the run has none."""
        known = row.entry
        for other in self.rows("again"):
            if (other.entry.start, other.entry.terms, other.entry.prompt) == (
                known.start,
                known.terms,
                known.prompt,
            ):
                return other
        return None

    def sweeps(self) -> list[Sweep]:
        """The lines along α; rows of other roles join the line that they lie on, such as the bare target at α = 0."""
        origins: dict[str, list[Row]] = {}
        for row in self.rows("sweep"):
            if row.entry.alpha is not None:
                origins.setdefault(row.entry.origin, []).append(row)
        is_only_one = len(origins) == 1
        found = []
        for origin, swept in origins.items():
            others = [row for row in self.rows("main", "control") if self._is_on_line(row, swept[0])]
            points: dict[float, Row] = {}
            for row in swept + others:
                points.setdefault(row.entry.alpha or 0.0, row)
            label = swept[0].entry.origin_label or origin
            names = ("", "") if is_only_one and swept[0].entry.kind == "vector" else (origin, label)
            found.append(Sweep(*names, tuple(sorted(points.items(), key=lambda point: point[0]))))
        return found

    def _is_on_line(self, row: Row, swept: Row) -> bool:
        """Whether a row differs from a swept one in its α alone; what nothing is added to has α = 0."""
        if (row.entry.start, row.entry.prompt) != (swept.entry.start, swept.entry.prompt):
            return False
        return not row.entry.terms or self._direction(row) == self._direction(swept)

    def _direction(self, row: Row) -> tuple[object, ...]:
        """What α is multiplied with; a row of several terms has no one α, and a direction of its own."""
        terms = row.entry.terms
        if len(terms) != 1:
            return terms
        return terms[0].family, terms[0].part, [self.conditions[name].seed for name in row.members]

    # ---- cells ----

    def cell(self, family: str, row: Row, benchmark: str) -> CellScores | None:
        """The cell of a row, averaged over those of its members that exist."""
        found = [
            cell
            for name in row.members
            if (cell := self.cells.get(Place(family, name, benchmark))) is not None
        ]
        return None if not found else found[0] if len(found) == 1 else average(found)

    def unique_cells(self) -> dict[str, tuple[Place, CellScores]]:
        """Each record once, under the first place that uses it."""
        unique: dict[str, tuple[Place, CellScores]] = {}
        for place, cell in self.cells.items():
            unique.setdefault(cell.key, (place, cell))
        return unique

    def is_planned(self, family: str, row: Row, benchmark: str) -> bool:
        return any(Place(family, name, benchmark) in self.planned for name in row.members)

    def marks(self, family: str, row: Row, *benchmarks: str) -> str:
        """Footnote marks (keys of MARKS) of a row's planned cells, in a fixed order."""
        marks = ""
        for place in (Place(family, name, benchmark) for name in row.members for benchmark in benchmarks):
            marks += self.absent.get(place, "") + "n" * self._thinks_in_vain(place)
            if (cell := self.cells.get(place)) is not None:
                limited = self.benchmarks[place.benchmark].limit is not None
                partial = len(cell.docs) < self._most_documents[family, place.benchmark]
                marks += cell.flags + "l" * limited + "p" * partial
        return in_order(marks + self.gpu_marks(family, (row, self.reference), *benchmarks))

    def gpu_marks(self, family: str, rows: Iterable[Row], *benchmarks: str) -> str:
        """The mark of cells that are compared although they were computed on GPUs of several models."""
        names = [name for row in rows for name in row.members]
        cells = (self.cells.get(Place(family, name, of)) for name in names for of in benchmarks)
        records = [cell.record for cell in cells if cell is not None and cell.record is not None]
        models = {gpu["model"] for record in records if (gpu := record.provenance.get("gpu")) is not None}
        return "g" * (len(models) > 1)

    def _thinks_in_vain(self, place: Place) -> bool:
        """Whether a cell is asked to think where that cannot act."""
        is_asked = self.conditions[place.condition].prompt == THINK
        return is_asked and self.benchmarks[place.benchmark].cannot_think is not None

    def header_marks(self, benchmark: str) -> str:
        """Marks of a whole column."""
        units = self.units(benchmark)
        return "c" if units is not None and units.units < min(FEW_UNITS, units.documents) else ""

    @cached_property
    def _most_documents(self) -> dict[tuple[str, str], int]:
        """Of the cells of each family and benchmark."""
        most: dict[tuple[str, str], int] = {}
        for place, cell in self.cells.items():
            column = (place.family, place.benchmark)
            most[column] = max(most.get(column, 0), len(cell.docs))
        return most

    # ---- documents ----

    def units(self, benchmark: str) -> Units | None:
        """How many documents a benchmark has, and how many independent units they make; None without a cell."""
        cell = next((cell for place, cell in self.cells.items() if place.benchmark == benchmark), None)
        return None if cell is None else count(cell.units)

    def guessing(self, benchmark: str) -> Guessing:
        """What a model that knows nothing scores: as configured where options are scored, else from the answers."""
        configured = self.benchmarks[benchmark].chance
        for place, cell in self.cells.items():
            if place.benchmark == benchmark and cell.traits is not None:
                strata = [subtask or "" for subtask, _ in cell.sources] if cell.is_stratified else None
                found = guessing(cell.targets, strata)
                return Guessing(max(configured, found.chance), max(configured, found.majority))
        return Guessing(configured, configured)

    # ---- numbers ----

    def repetitions(self, family: str, row: Row, benchmark: str) -> list[CellScores]:
        """The cells of a row's members that exist, on the documents that all of them have."""
        places = (Place(family, name, benchmark) for name in row.members)
        found = [self.cells[place] for place in places if place in self.cells]
        return common(found) if found else []

    def value(self, family: str, row: Row, benchmark: str) -> Estimate | None:
        """Mean score of a row's cell, over its seeds where it has several."""
        cells = self.repetitions(family, row, benchmark)
        return mean_score([cell.score for cell in cells], cells[0].design) if cells else None

    def length(self, family: str, row: Row, benchmark: str) -> Estimate | None:
        """Mean length of a row's answers in tokens."""
        cell = self.cell(family, row, benchmark)
        return None if cell is None else number(cell.tokens, cell.design)

    def pairs(self, family: str, new: Row, reference: Row, benchmark: str) -> list[Pair]:
        """The cells that a difference is between, on the documents that all have: (new, reference) by seed.

        A row of several seeds is paired with each of the other's, or with the same seed of it. Empty where a cell is
        missing, no document is shared, or both rows are the same cell.
        """
        if new.members == reference.members:
            return []
        places = [
            (Place(family, a, benchmark), Place(family, b, benchmark))
            for a in new.members
            for b in reference.members
            if min(len(new.members), len(reference.members)) == 1
            or self.conditions[a].seed == self.conditions[b].seed
        ]
        found = [(self.cells[a], self.cells[b]) for a, b in places if a in self.cells and b in self.cells]
        if not found or all(a.key == b.key for a, b in found):
            return []
        cells = common([cell for pair in found for cell in pair])
        if not cells[0].docs:
            return []
        return list(zip(cells[::2], cells[1::2], strict=True))

    def difference(
        self, family: str, new: Row, reference: Row, benchmark: str, level: float | None = None
    ) -> Difference | None:
        """Paired difference of two rows; None where `pairs` is empty.

        Args:
            level: at which the detectable difference is computed; None leaves it out.
        """
        asked = (family, new.members, reference.members, benchmark, level)
        if asked not in self._differences:
            pairs = self.pairs(family, new, reference, benchmark)
            self._differences[asked] = (
                mean_difference([a.score - b.score for a, b in pairs], pairs[0][0].design, level=level)
                if pairs
                else None
            )
        return self._differences[asked]

    @cached_property
    def _differences(self) -> dict[tuple[object, ...], Difference | None]:
        return {}

    def remembered(self, name: str, find: Callable[[], Found]) -> Found:
        """What `find` gives for these results, found once under this name."""
        if name not in self._remembered:
            self._remembered[name] = find()
        return self._remembered[name]

    @cached_property
    def _remembered(self) -> dict[str, Any]:
        return {}

    def sources(self, family: str, row: Row, variant: str) -> Sources | None:
        """A row's perturbed documents beside their sources; None where a cell is missing or no source is shared."""
        plain = self.plain_of(variant)
        is_reference = row.members == self.reference.members
        rows = [row] if is_reference else [row, self.reference]
        cells = [self.cell(family, one, benchmark) for one in rows for benchmark in (plain, variant)]
        return beside_their_sources(cells, self.guessing(variant).chance)

    def robustness(self, family: str, row: Row, variant: str) -> Robustness | None:
        """Plain against perturbed documents of one row; None where one of the two is missing."""
        found = self.sources(family, row, variant)
        return None if found is None else robustness([found])


def read_results(manifest: Manifest, folder: Path) -> Results:
    """Read every record that the manifest names; unchanged records are remembered, so repeating is cheap.

    Args:
        folder: the store that the records lie in, such as results/.
    """
    cells: dict[Place, CellScores] = {}
    absent: dict[Place, str] = {}
    problems: list[str] = []
    read: dict[str, CellScores | _Absent] = {}  # by key
    labels: dict[str, Labels] = {}  # by benchmark
    for planned in manifest.cells:
        place, key = planned.place, planned.key
        if key not in read:
            read[key] = _read(folder, key)
            if isinstance(found := read[key], _Absent):
                problems.append(f"{' / '.join(place)}: {found.reason}")
        if isinstance(found := read[key], _Absent):
            absent[place] = found.mark
            continue
        entry = manifest.benchmarks[place.benchmark]
        if place.benchmark not in labels:
            labels[place.benchmark] = independent_units(folder, key, entry)
        cells[place] = found
    drawn: dict[tuple[str, str], CellScores] = {}  # by key and benchmark: a record may be in several places
    for place, cell in cells.items():
        if (known := (cell.key, place.benchmark)) not in drawn:
            entry = manifest.benchmarks[place.benchmark]
            of_cell = labels[place.benchmark]
            if entry.variant_of in labels:
                of_cell = _of_sources(cell, labels[entry.variant_of])
            drawn[known] = cell.drawn(of_cell, entry.cluster == "subtask")
        cells[place] = drawn[known]
    return Results(manifest, folder, cells, absent, tuple(problems))


def _of_sources(cell: CellScores, plain: Labels) -> Labels:
    """Units of perturbed documents: those of the plain documents that they were made from."""
    others = {source: -1 - i for i, source in enumerate(dict.fromkeys(cell.sources))}
    return {doc: plain.get((*doc[:2], 0), others[doc[:2]]) for doc in cell.docs}


class _Absent(NamedTuple):
    """Why there are no scores of a key, with the mark that says so."""

    mark: str
    reason: str


def _read(folder: Path, key: str) -> CellScores | _Absent:
    try:
        scores = read_scores(folder, key)
    except UserError as error:
        return _Absent("d", str(error))
    if scores is None:
        return _Absent("m", f"no record {key[:12]} yet; run the evaluate stage to make it")
    return scores
