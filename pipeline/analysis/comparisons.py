"""What is compared with what: differences between rows with Holm's correction, and means over repeated families."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from pipeline.analysis.results import Results, Row
from pipeline.analysis.statistics import Difference, Estimate, holm, mean_over_seeds

SIGNIFICANT = 0.05

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
    """A paired difference with its p value after Holm's correction over all comparisons of its table."""

    difference: Difference
    p_holm: float

    @property
    def is_significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


def compare(
    results: Results, contrasts: Iterable[Contrast], benchmarks: Sequence[str]
) -> dict[Pairing, Compared]:
    """Every contrast in every family on every benchmark, where both cells are there; Holm over all of them."""
    found: dict[Pairing, Difference] = {}
    for new, reference in contrasts:
        for family in results.families:
            for benchmark in benchmarks:
                difference = results.difference(family, new, reference, benchmark)
                if difference is not None:
                    found[Pairing(family, new.name, reference.name, benchmark)] = difference
    return corrected(found)


def corrected(found: Mapping[Key, Difference]) -> dict[Key, Compared]:
    """Differences with Holm's correction over all of them."""
    p_values = holm([difference.p for difference in found.values()]).tolist()
    return {key: Compared(found[key], p) for key, p in zip(found, p_values, strict=True)}


def against(rows: Iterable[Row], reference: Row) -> list[Contrast]:
    return [(row, reference) for row in rows]


def control_rows(results: Results) -> list[Row]:
    """The controls, beside the rows that they are controls of."""
    beside = [results.row("target"), results.row("vector", 1), results.row("vector", 1, "think")]
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
        (results.row("vector", 1, "think"), results.row("target", 0, "think")),
    ]
    return [(new, reference) for new, reference in pairs if new and reference]


# ---- means over families that are trained independently of each other ----


class Mean(NamedTuple):
    """A mean over the families that have a number, with Student's t interval; None where none has it."""

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
    return _mean(results.value(family, row, benchmark) for family in families)


def mean_difference(
    results: Results, families: Iterable[str], row: Row, reference: Row, benchmark: str
) -> Mean:
    return _mean(results.difference(family, row, reference, benchmark) for family in families)


def _mean(found: Iterable[Estimate | None]) -> Mean:
    values = [estimate.value for estimate in found if estimate is not None]
    return Mean(mean_over_seeds(values) if values else None, len(values))
