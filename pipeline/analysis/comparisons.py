"""What is compared with what: differences between rows with Holm's correction, and means over repeated families."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.holm import holm
from pipeline.analysis.power import LEVEL
from pipeline.analysis.repeats import mean_difference as over_repetitions
from pipeline.analysis.repeats import mean_score
from pipeline.analysis.results import THINK, Results, Row
from pipeline.analysis.scores import CellScores, average, common

SIGNIFICANT = LEVEL

Contrast = tuple[Row, Row]  # a row, and the row that it is compared with
Key = TypeVar("Key", bound=Hashable)


class Pairing(NamedTuple):
    """Two rows of a family on one benchmark, by the rows' names."""

    family: str
    new: str
    reference: str
    benchmark: str


@dataclass(frozen=True)
class Compared:
    """A paired difference with its p value after Holm's correction over all comparisons that share it."""

    difference: Difference
    p_holm: float

    @property
    def is_significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


def compare(
    results: Results, contrasts: Iterable[Contrast], benchmarks: Sequence[str]
) -> dict[Pairing, Compared]:
    """Every contrast in every family on every benchmark, where both cells are there; Holm over all of them.

    What is detectable is so at the level of the correction's first step.
    """
    asked = {
        Pairing(family, new.name, reference.name, benchmark): (family, new, reference, benchmark)
        for new, reference in contrasts
        for family in results.families
        for benchmark in benchmarks
        if results.pairs(family, new, reference, benchmark)
    }
    level = SIGNIFICANT / max(len(asked), 1)
    found = {pairing: results.difference(*places, level) for pairing, places in asked.items()}
    return corrected({pairing: one for pairing, one in found.items() if one is not None})


def gains(results: Results) -> dict[Pairing, Compared]:
    """Every main and control row against Baseline, on every benchmark and variant: one set of tests, one correction.

    Tables, figures and the report show the same stars because all of them read this.
    """
    rows = results.rows("main", "control")
    return results.remembered(
        "gains", lambda: compare(results, against(rows, results.reference), list(results.benchmarks))
    )


def corrected(found: Mapping[Key, Difference]) -> dict[Key, Compared]:
    """Differences with Holm's correction over all of them."""
    p_values = holm([difference.p for difference in found.values()]).tolist()
    return {key: Compared(found[key], p) for key, p in zip(found, p_values, strict=True)}


def against(rows: Iterable[Row], reference: Row) -> list[Contrast]:
    return [(row, reference) for row in rows]


def control_rows(results: Results) -> list[Row]:
    """The controls, beside the rows that they are controls of."""
    beside = [results.row("target"), results.row("vector", 1), results.row("vector", 1, THINK)]
    beside.append(results.row("vector", -1))
    names = {row.name for row in [*results.rows("control"), *beside] if row}
    return [row for row in results.rows("main", "control") if row.name in names]


def control_contrasts(results: Results) -> list[Contrast]:
    """Pairs of rows that a reader of the paper compares directly, of those that the run has."""
    vector, minus = results.row("vector", 1), results.row("vector", -1)
    pairs = [
        (vector, results.row("random", 1)),
        (minus, results.row("random", -1)),
        (vector, results.row("sft")),
        (vector, results.row("grpo")),
        (results.row("grpo"), results.row("sft")),
        (results.row("vector", 1, THINK), results.row("target", 0, THINK)),
    ]
    return [(new, reference) for new, reference in pairs if new and reference]


# ---- means over families that are trained independently of each other ----


class Mean(NamedTuple):
    """A mean over the families that have a number, over trainings and documents; None where none has it."""

    estimate: Estimate | None
    families: int  # how many have it


def repeated_families(results: Results) -> dict[str, list[str]]:
    """Families trained independently of each other, by the group's name, where there are two or more."""
    groups: dict[str, list[str]] = {}
    for family, entry in results.families.items():
        if entry.group is not None:
            groups.setdefault(entry.group, []).append(family)
    return {group: families for group, families in groups.items() if len(families) > 1}


def mean_value(results: Results, families: Iterable[str], row: Row, benchmark: str) -> Mean:
    found = [cell for family in families if (cell := results.cell(family, row, benchmark)) is not None]
    if not found or not (cells := common(found))[0].docs:
        return Mean(None, 0)
    return Mean(mean_score([cell.score for cell in cells], cells[0].design), len(cells))


def mean_difference(
    results: Results, families: Iterable[str], row: Row, reference: Row, benchmark: str
) -> Mean:
    found: list[tuple[CellScores, CellScores]] = []
    for family in families:
        if pairs := results.pairs(family, row, reference, benchmark):
            found.append((average([new for new, _ in pairs]), average([old for _, old in pairs])))
    if not found:
        return Mean(None, 0)
    cells = common([cell for pair in found for cell in pair])
    if not cells[0].docs:
        return Mean(None, 0)
    changes = [new.score - old.score for new, old in zip(cells[::2], cells[1::2], strict=True)]
    return Mean(over_repetitions(changes, cells[0].design, level=None), len(found))
