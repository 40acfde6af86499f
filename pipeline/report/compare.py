"""Two runs side by side: paired differences B − A of the cells that both have, and what else differs.

    python -m pipeline compare results/runs/a.json results/runs/b.json [out=FOLDER]   (make compare A=… B=…)

    runs = match(a, b)
    table(runs), terminal(runs)

For two donors, two revisions, two versions of vLLM. Cells are matched by family, condition and benchmark
(families by their order where no name is common), documents by subtask and source; a document whose target
differs is left out and counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
from pipeline.report.origins import Pair, differing, how_made
from pipeline.report.table import Block, Facts, Kind, Line, Table, Text
from pipeline.report.tables.accuracy import difference_text, star_note


@dataclass(frozen=True)
class Runs:
    """Two runs, the cells that both have, and their differences."""

    a: Results
    b: Results
    families: Mapping[str, str]  # of A, with those of B that they are matched with
    pairs: Mapping[Place, Pair]  # by A's places, in A's order
    found: Mapping[Place, Compared]  # B − A, corrected together; not of equal records
    tests: int  # that the correction is over: places that share both records are one
    left_out: int  # documents that B lacks or has with another target


def match(a: Results, b: Results) -> Runs:
    """Pair the cells of two runs.

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
    differences: dict[tuple[str, str], Difference] = {}  # by records: several places may share both
    for old, new in {(old.key, new.key): (old, new) for old, new in pairs.values()}.values():
        kept = _same_targets(old, new)
        left_out += len(old.docs) - len(kept)
        if old.key != new.key and len(kept) and (change := difference(old.subset(kept), new)):
            differences[old.key, new.key] = change
    tested = corrected(differences)
    found = {
        place: tested[old.key, new.key] for place, (old, new) in pairs.items() if (old.key, new.key) in tested
    }
    return Runs(a, b, families, pairs, found, len(tested), left_out)


def table(runs: Runs) -> Table:
    """The cells of two runs; the notes list what differs in their inputs and provenance."""
    made = _table(runs.a, runs.pairs, runs.found)
    tested = [one.difference for one in runs.found.values()]
    renamed = [f"{x} with {y}" for x, y in runs.families.items() if x != y]
    made.notes = [
        "A and B: accuracy in per cent; B − A: points, paired by document, with the 95 % interval; = the "
        f"same record. * p < 0.05 after Holm's correction over {runs.tests} comparisons. {star_note(tested)}",
        *(f"{mark}: {MARKS[mark]}." for mark in made.marks()),
        *([f"Families are matched by their order: {', '.join(renamed)}."] if renamed else []),
        *(
            [f"Left out: {runs.left_out} documents that B lacks or has with another target."]
            if runs.left_out
            else []
        ),
        *_only_in_one(runs),
        *runs.a.problems,
        *runs.b.problems,
        *(f"differs: {line}" for line in differing(list(runs.pairs.values()))),
    ]
    return made


def sentences(runs: Runs) -> tuple[str, str]:
    """What changed in how the runs were made, and what changed in the scores."""
    return how_made(list(runs.pairs.values())), _what_changed(runs)


def terminal(runs: Runs) -> str:
    """What changed in two sentences, the table and its notes as plain text."""
    made, lines = table(runs), [*sentences(runs), ""]
    for title, rows in made.blocks:
        lines += [title, *as_text(made.header, rows), ""]
    return "\n".join([*lines, *made.notes])


def _what_changed(runs: Runs) -> str:
    """How many records are the same, and in how many of the others the score differs."""
    distinct = {(old.key, new.key): place for place, (old, new) in runs.pairs.items()}
    same, total = sum(old == new for old, new in distinct), len(distinct)
    if same == total:
        return f"All {total} records that both runs have are the same."
    found = [runs.found[place] for place in distinct.values() if place in runs.found]
    shown = [one.difference.value for one in found if one.is_significant]
    up, down = sum(value > 0 for value in shown), sum(value < 0 for value in shown)
    apart = total - same - len(found)
    if not found:
        return f"Nothing can be compared: {_share_no_document(apart)}."
    moved = sum(bool(one.difference.gained or one.difference.lost) for one in found)
    return (
        f"Of {total} pairs of records, {same or 'none'} are the same; in {moved} of the other {total - same} some document is"
        f" scored differently, and after Holm's correction {up} are better in B and {down} worse"
        f"{f'; {_share_no_document(apart)}' if apart else ''}."
    )


def _share_no_document(number: int) -> str:
    """Of pairs whose documents all differ in name or target."""
    pairs = "1 pair of records shares" if number == 1 else f"{number} pairs of records share"
    return f"{pairs} no document with the same target"


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


def _only_in_one(runs: Runs) -> list[str]:
    """What one run has and the other has not; families that are matched count as one."""
    notes, (a, b) = [], (runs.a, runs.b)
    for what, mine, theirs in (
        ("families", {name: runs.families.get(name) for name in a.families}, list(b.families)),
        ("conditions", {name: name for name in a.conditions}, list(b.conditions)),
        ("benchmarks", {name: name for name in a.benchmarks}, list(b.benchmarks)),
    ):
        only_a = [name for name, other in mine.items() if other not in theirs]
        only_b = [name for name in theirs if name not in mine.values()]
        notes += [
            f"Only in {run}: {what} {', '.join(of)}." for run, of in (("A", only_a), ("B", only_b)) if of
        ]
    return notes


def _same_targets(old: CellScores, new: CellScores) -> Positions:
    """Positions in `old` of the documents that `new` also has, with the same target."""
    targets = dict(zip(new.docs, new.targets, strict=True))
    pairs = zip(old.docs, old.targets, strict=True)
    return np.array([i for i, (doc, target) in enumerate(pairs) if targets.get(doc) == target], dtype=np.intp)
