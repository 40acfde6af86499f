"""What order and batch alone move: a row that was asked again, against itself.

    for moved in noise_floor(results):
        moved.difference, moved.changed, moved.otherwise_read

Both cells have the same weights, prompt and documents, so every difference between them is noise of the engine's
arithmetic. No gain of that size means anything. It is shown, and not tested.
"""

from dataclasses import dataclass

from pipeline.analysis.estimate import Difference
from pipeline.analysis.results import Results, Row


@dataclass(frozen=True)
class Moved:
    """One row on one benchmark, asked again; the difference is the second less the first, as a fraction."""

    family: str
    row: Row
    again: Row
    benchmark: str
    difference: Difference
    otherwise_read: int | None  # documents of which another answer was read; None where options were scored

    @property
    def changed(self) -> int:
        """Documents with another score."""
        return self.difference.gained + self.difference.lost


def noise_floor(results: Results) -> list[Moved]:
    """Every row that was asked again, on every benchmark that both cells are there for."""
    return [
        moved
        for family in results.families
        for row in results.rows("main", "control")
        for benchmark in results.benchmarks
        if (moved := asked_again(results, family, row, benchmark)) is not None
    ]


def asked_again(results: Results, family: str, row: Row, benchmark: str) -> Moved | None:
    """What moved on one benchmark; None where the row was not asked again there."""
    again = results.again(row)
    pairs = results.pairs(family, again, row, benchmark) if again is not None else []
    difference = results.difference(family, again, row, benchmark) if again is not None and pairs else None
    if again is None or difference is None:
        return None
    second, first = pairs[0]
    read = None
    if first.traits is not None and second.traits is not None:
        answers = zip(first.traits.answers, second.traits.answers, strict=True)
        read = sum(one != other for one, other in answers)
    return Moved(family, row, again, benchmark, difference, read)
