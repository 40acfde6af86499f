"""Two runs side by side: paired differences B − A of the cells that both have, and what else differs.

    python -m pipeline compare results/runs/a.json results/runs/b.json [out=FOLDER]   (make compare A=… B=…)

For two donors, two revisions, two versions of vLLM. Cells are matched by family, condition and benchmark
(families by their order where no name is common), documents by subtask and source; a document whose target
differs is left out and counted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipeline.analysis.comparisons import Compared, corrected
from pipeline.analysis.estimate import Difference
from pipeline.analysis.results import MARKS, Results
from pipeline.analysis.scores import CellScores, Positions, difference
from pipeline.errors import UserError
from pipeline.manifest import Place
from pipeline.report.facts import difference_facts
from pipeline.report.formats import as_text
from pipeline.report.numbers import DASH, percent
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import difference_text

Pair = tuple[CellScores, CellScores]  # of A and of B
_LONGEST = 60  # characters of a value that differs


def compare(a: Results, b: Results) -> Table:
    """The table of two runs; its notes list what differs in their inputs and provenance.

    Raises:
        UserError: when the runs have no evaluated cell in common.
    """
    families = _matched_families(a, b)
    pairs: dict[Place, Pair] = {}
    for place in sorted(a.cells, key=lambda place: _order(a, place)):
        other = b.cells.get(place._replace(family=families.get(place.family, "")))
        if other is not None:
            pairs[place] = (a.cells[place], other)
    if not pairs:
        raise UserError("the runs have no evaluated cell in common; compare runs of one grid of conditions")
    left_out = 0
    found: dict[Place, Difference] = {}
    for place, (old, new) in pairs.items():
        kept = _same_targets(old, new)
        left_out += len(old.docs) - len(kept)
        if old.key != new.key and len(kept) and (change := difference(old.subset(kept), new)):
            found[place] = change
    table = _table(a, pairs, corrected(found))
    renamed = [f"{x} with {y}" for x, y in families.items() if x != y]
    table.notes = [
        "A and B: accuracy in per cent; B − A: points, paired by document, with the 95 % interval; = the "
        f"same record. * p < 0.05 after Holm's correction over {len(found)} comparisons.",
        *(f"{mark}: {MARKS[mark]}." for mark in table.marks()),
        *([f"Families are matched by their order: {', '.join(renamed)}."] if renamed else []),
        *([f"Left out: {left_out} documents that B lacks or has with another target."] if left_out else []),
        *_only_in_one(a, b),
        *a.problems,
        *b.problems,
        *(f"differs: {line}" for line in differing(list(pairs.values()))),
    ]
    return table


def terminal(table: Table) -> str:
    """The table and its notes as plain text."""
    lines: list[str] = []
    for title, rows in table.blocks:
        lines += [title, *as_text(table.header, rows), ""]
    return "\n".join([*lines, *table.notes])


def differing(pairs: Sequence[Pair]) -> list[str]:
    """What differs in inputs and provenance between paired cells, one line for each field."""
    values: dict[str, Counter[tuple[str, str]]] = {}
    for old, new in pairs:
        x, y = _origin(old), _origin(new)
        for path in dict.fromkeys([*x, *y]):
            left, right = x.get(path, DASH), y.get(path, DASH)
            if left != right and path != "provenance.started":
                values.setdefault(path, Counter())[_short(left), _short(right)] += 1
    lines = []
    for path, counts in sorted(values.items()):
        (left, right), _ = counts.most_common(1)[0]
        total = sum(counts.values())
        scope = "in all cells" if total == len(pairs) else f"in {total} of {len(pairs)} cells"
        several = f", and {len(counts) - 1} other pairs of values" if len(counts) > 1 else ""
        lines.append(f"{path}: {left} → {right} {scope}{several}")
    return lines or ["nothing in inputs or provenance"]


def _table(a: Results, pairs: Mapping[Place, Pair], found: Mapping[Place, Compared]) -> Table:
    benchmarks = list(dict.fromkeys(place.benchmark for place in pairs))
    table = Table("compare", "Two runs compared, cell by cell", [Text("Condition"), Text("")])
    table.header += [Text(a.label(benchmark)) for benchmark in benchmarks]
    for family, entry in a.families.items():
        lines = []
        for condition in dict.fromkeys(place.condition for place in pairs if place.family == family):
            of_a, of_b, changes = [Text("A")], [Text("B")], [Text("B − A")]
            for benchmark in benchmarks:
                place = Place(family, condition, benchmark)
                pair, change = pairs.get(place), found.get(place)
                if pair is None:
                    for texts in (of_a, of_b, changes):
                        texts.append(Text(DASH))
                    continue
                same = pair[0].key == pair[1].key
                scores = [cell.mean for cell in pair]
                for texts, score, cell in zip((of_a, of_b), scores, pair, strict=True):
                    texts.append(Text(percent(score), cell.flags))
                changes.append(Text("=") if same else difference_text(change))
                facts: Facts = {"family": family, "condition": condition, "benchmark": benchmark}
                facts |= {"a": 100 * scores[0], "b": 100 * scores[1], "same_record": same}
                table.data.append(facts | difference_facts(change))
            lines.append(Line(Kind.value, a.conditions[condition].label, of_a))
            lines += [Line(Kind.value, "", of_b), Line(Kind.difference, "", changes)]
        if lines:
            table.blocks.append(Block(entry.label, lines))
    return table


def _order(results: Results, place: Place) -> tuple[int, ...]:
    known = (results.families, results.conditions, results.benchmarks)
    return tuple(list(names).index(name) for names, name in zip(known, place, strict=True))


def _matched_families(a: Results, b: Results) -> dict[str, str]:
    common = [name for name in a.families if name in b.families]
    if common:
        return {name: name for name in common}
    return dict(zip(a.families, b.families, strict=False))


def _only_in_one(a: Results, b: Results) -> list[str]:
    notes = []
    for what, mine, theirs in (
        ("conditions", list(a.conditions), list(b.conditions)),
        ("benchmarks", list(a.benchmarks), list(b.benchmarks)),
    ):
        for run, one, other in (("A", mine, theirs), ("B", theirs, mine)):
            if alone := [name for name in one if name not in other]:
                notes.append(f"Only in {run}: {what} {', '.join(alone)}.")
    return notes


def _same_targets(old: CellScores, new: CellScores) -> Positions:
    """Positions in `old` of the documents that `new` also has, with the same target."""
    targets = dict(zip(new.docs, new.targets, strict=True))
    pairs = zip(old.docs, old.targets, strict=True)
    return np.array([i for i, (doc, target) in enumerate(pairs) if targets.get(doc) == target], dtype=np.intp)


def _origin(cell: CellScores) -> dict[str, object]:
    """What a record was made from and by, by dotted path."""
    assert cell.record is not None, "an average has no record"
    return dict(_leaves({"inputs": cell.record.inputs, "provenance": cell.record.provenance}))


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dictionaries by dotted path; lists stay whole."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}…"
