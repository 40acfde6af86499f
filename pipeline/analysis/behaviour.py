"""What v does to answers: their length and form, and how much of a gain is form and how much is right answers.

    behaviour(results, "micro", row, "gsm8k")              length, steps, form, accuracy given steps, unreadable, cut
    decomposition(results, "micro", row, reference, "gsm8k")   the gain, in parts that add up to it

Each document that both rows answered is in one part, by what changed in how its answer is written: steps were newly
written (or left out), it became readable (or unreadable), it came into the expected form (or left it); the rest is
written as before. The difference in score over the documents of a part is that part's share of the gain, so the parts
add up to the gain exactly, and each has a paired interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.analysis.design import Floats
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.paired import score
from pipeline.analysis.repeats import mean_difference, mean_score
from pipeline.analysis.results import Pair, Results, Row
from pipeline.analysis.scores import CellScores
from pipeline.analysis.traits import Traits

STEPS, READABLE, FORM, SAME = ("steps", "readable", "expected form", "written as before")
PARTS = (STEPS, READABLE, FORM, SAME)


@dataclass(frozen=True)
class Behaviour:
    """How a row writes its answers on a benchmark: shares are fractions, the length is in tokens.

    None where it has no meaning: steps of programs, a form where only one filter reads the answer. `sameness` is the
    share of answers that are the most frequent one (of each subtask).
    """

    length: Estimate
    steps: Estimate | None
    in_form: Estimate | None
    unreadable: Estimate
    cut: Estimate
    right_given_steps: Estimate | None
    right_without_steps: Estimate | None
    right_given_readable: Estimate | None
    sameness: float


@dataclass(frozen=True)
class Part:
    """A part of a gain: the documents whose answers changed in this way, and the points that they are worth."""

    name: str  # one of PARTS
    documents: float  # share of all documents
    difference: Difference  # adds up to the gain over the parts; `gained` and `lost` count its documents

    @property
    def net(self) -> int:
        return self.difference.gained - self.difference.lost


@dataclass(frozen=True)
class Decomposition:
    """A gain of one row over another, in parts. `form` is all but what is written as before."""

    family: str
    row: str
    reference: str
    benchmark: str
    total: Difference
    parts: tuple[Part, ...]  # of PARTS, those that some document is in
    form: Difference
    answers: Difference  # right answers among those that are written as before
    newly_stepped: (
        int  # of the documents that became right, how many are answered with steps and were not before
    )

    def part(self, name: str) -> Part | None:
        return next((part for part in self.parts if part.name == name), None)


def behaviour(results: Results, family: str, row: Row, benchmark: str) -> Behaviour | None:
    """How a row writes; None where a cell is missing or options were scored."""
    cells = results.repetitions(family, row, benchmark)
    if not cells or any(cell.traits is None for cell in cells):
        return None
    length = results.length(family, row, benchmark)
    assert length is not None, "the cell is there"
    traits = [cell.traits for cell in cells if cell.traits is not None]
    has_steps = not np.isnan(traits[0].steps).any()

    def share(of: Sequence[Floats]) -> Estimate:
        return mean_score(of, cells[0].design)

    return Behaviour(
        length=length,
        steps=share([t.steps for t in traits]) if has_steps else None,
        in_form=None if np.isnan(traits[0].in_form).any() else share([t.in_form for t in traits]),
        unreadable=share([1.0 - t.readable for t in traits]),
        cut=share([t.cut for t in traits]),
        right_given_steps=_right_where(cells, [t.steps for t in traits]) if has_steps else None,
        right_without_steps=_right_where(cells, [1.0 - t.steps for t in traits]) if has_steps else None,
        right_given_readable=_right_where(cells, [t.readable for t in traits]),
        sameness=float(np.mean([cell.sameness for cell in cells])),
    )


def decomposition(
    results: Results, family: str, row: Row, reference: Row, benchmark: str
) -> Decomposition | None:
    """A gain in parts; None where there is no difference to take apart, or options were scored."""
    pairs = results.pairs(family, row, reference, benchmark)
    total = results.difference(family, row, reference, benchmark)
    if total is None or not pairs or any(new.traits is None or old.traits is None for new, old in pairs):
        return None
    kinds = np.stack([_kinds(new.traits, old.traits) for new, old in pairs if new.traits and old.traits])
    changes = np.stack([new.score - old.score for new, old in pairs])
    parts = tuple(
        Part(name, float((kinds == i).mean()), _difference(pairs, changes * (kinds == i)))
        for i, name in enumerate(PARTS)
        if (kinds == i).any()
    )
    same = kinds == PARTS.index(SAME)
    form, answers = _difference(pairs, changes * ~same), _difference(pairs, changes * same)
    stepped = np.stack(
        [_newly_stepped(new.traits, old.traits) for new, old in pairs if new.traits and old.traits]
    )
    newly = int(((changes.mean(axis=0) > 0) & (stepped.mean(axis=0) == 1)).sum())
    return Decomposition(family, row.name, reference.name, benchmark, total, parts, form, answers, newly)


def decompositions(results: Results) -> list[Decomposition]:
    """Every main and control row against Baseline, on every benchmark and variant."""
    return results.remembered(
        "decompositions",
        lambda: [
            found
            for family in results.families
            for row in results.rows("main", "control")
            for benchmark in results.benchmarks
            if (found := decomposition(results, family, row, results.reference, benchmark)) is not None
        ],
    )


def _kinds(new: Traits, old: Traits) -> Floats:
    """Of each document the first way in which its answer is written otherwise, as an index of PARTS."""
    steps = np.nan_to_num(new.steps) != np.nan_to_num(old.steps)
    in_form = np.nan_to_num(new.in_form) != np.nan_to_num(old.in_form)
    return np.select([steps, new.readable != old.readable, in_form], [0, 1, 2], 3).astype(float)


def _newly_stepped(new: Traits, old: Traits) -> Floats:
    """1 where an answer has steps that it did not have before."""
    return (np.nan_to_num(new.steps) > np.nan_to_num(old.steps)).astype(float)


def _difference(pairs: Sequence[Pair], changes: Floats) -> Difference:
    return mean_difference(changes, pairs[0][0].design, level=None)


def _right_where(cells: Sequence[CellScores], has: Sequence[Floats]) -> Estimate | None:
    """Mean score over the documents with a trait (all of their answers), seeds taken together; None without any."""
    average = np.mean([cell.score for cell in cells], axis=0)
    kept = np.flatnonzero(np.mean(has, axis=0) == 1.0)
    return score(average[kept], cells[0].design.subset(kept)) if len(kept) else None
