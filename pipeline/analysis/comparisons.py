"""What is compared with what: differences between rows with Holm's correction, and means over repeated families."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from pipeline.analysis.claimed import asked_on_plain
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.holm import adjusted
from pipeline.analysis.persisting import persisting
from pipeline.analysis.power import LEVEL
from pipeline.analysis.repeats import mean_difference as over_repetitions
from pipeline.analysis.repeats import mean_score
from pipeline.analysis.results import THINK, Results, Row
from pipeline.analysis.scores import CellScores, average, common
from pipeline.manifest import Place

SIGNIFICANT = LEVEL

Contrast = tuple[Row, Row]  # a row, and the row that it is compared with
_Asked = tuple[str, Row, Row, str]  # family, new, reference, benchmark
Key = TypeVar("Key", bound=Hashable)


class Pairing(NamedTuple):
    """Two rows of a family on one benchmark, by the rows' names."""

    family: str
    new: str
    reference: str
    benchmark: str


@dataclass(frozen=True)
class Compared:
    """A paired difference with its p value after Holm's correction over the `tests` that share it."""

    difference: Difference
    p_holm: float
    tests: int
    is_claimed: bool = False  # whether it is corrected with what the claims of the abstract name

    @property
    def is_significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


def claimed(results: Results) -> dict[Pairing, Compared]:
    """The comparisons on plain documents that the claims name; those of one family share a correction."""

    def find() -> dict[Pairing, Compared]:
        found: dict[Pairing, Compared] = {}
        for family in results.families:
            asked = [(family, *one) for one in asked_on_plain(results)]
            found |= {
                pairing: replace(one, is_claimed=True) for pairing, one in _tested(results, asked).items()
            }
        return found

    return results.remembered("claimed", find)


def gains(results: Results) -> dict[Pairing, Compared]:
    """Every main and control row against Baseline, on every benchmark and variant.

    A comparison has one p value, wherever it is shown: what the claims name and what decides whether a gain persists
    keep theirs (`claimed`, `persisting`), and all others share a correction.
    """
    rows = results.rows("main", "control")

    def find() -> dict[Pairing, Compared]:
        known = claimed(results) | _perturbed(results)
        return compare(results, against(rows, results.reference), list(results.benchmarks), known)

    return results.remembered("gains", find)


def contrasts(results: Results) -> dict[Pairing, Compared]:
    """The rows of the table of controls against each other, on the plain benchmarks."""
    return results.remembered(
        "contrasts",
        lambda: compare(
            results, control_contrasts(results), results.plain(), gains(results) | claimed(results)
        ),
    )


def compare(
    results: Results,
    contrasts: Iterable[Contrast],
    benchmarks: Sequence[str],
    known: Mapping[Pairing, Compared] | None = None,
) -> dict[Pairing, Compared]:
    """Every contrast in every family on every benchmark, where both cells are there.

    Args:
        known: comparisons that are tested already. One between the same records is taken from there; all others share
            a correction.
    """
    asked = [
        (family, new, reference, benchmark)
        for new, reference in contrasts
        for family in results.families
        for benchmark in benchmarks
        if results.pairs(family, new, reference, benchmark)
    ]
    before = {_records(results, pairing): one for pairing, one in (known or {}).items()}
    found: dict[Pairing, Compared] = {}
    rest: list[_Asked] = []
    for one in asked:
        pairing = _pairing(one)
        if (same := before.get(_records(results, pairing))) is not None:
            found[pairing] = same
        else:
            rest.append(one)
    found |= _tested(results, rest)
    return {pairing: found[pairing] for one in asked if (pairing := _pairing(one)) in found}


def _tested(results: Results, asked: Sequence[_Asked]) -> dict[Pairing, Compared]:
    """Comparisons that share a correction. What is detectable is so at the level of its first step."""
    present = [one for one in asked if results.pairs(*one)]
    level = SIGNIFICANT / max(len(present), 1)
    found = {_pairing(one): results.difference(*one, level) for one in present}
    return corrected({pairing: one for pairing, one in found.items() if one is not None})


def corrected(found: Mapping[Key, Difference]) -> dict[Key, Compared]:
    """Differences with Holm's correction over all of them."""
    p_values = adjusted(found.values()).tolist()
    return {key: Compared(found[key], p, len(found)) for key, p in zip(found, p_values, strict=True)}


def _perturbed(results: Results) -> dict[Pairing, Compared]:
    """The gains on perturbed documents that decide whether a gain persists."""
    return {
        Pairing(one.family, one.row.name, results.reference.name, one.variant): Compared(
            one.persistence.gain, one.decision.p_gain, one.tests, one.is_claimed
        )
        for one in persisting(results)
    }


def _pairing(asked: _Asked) -> Pairing:
    family, new, reference, benchmark = asked
    return Pairing(family, new.name, reference.name, benchmark)


def _records(results: Results, pairing: Pairing) -> tuple[object, ...]:
    """What a comparison is between: the records of both rows, which another name may stand for as well."""
    family, new, reference, benchmark = pairing
    return (family, benchmark, *(_members(results, family, name, benchmark) for name in (new, reference)))


def _members(results: Results, family: str, name: str, benchmark: str) -> tuple[str, ...]:
    """Keys of a row's records, by the name of its first member."""
    members = _rows(results).get(name, (name,))
    return tuple(results.planned.get(Place(family, member, benchmark), member) for member in members)


def _rows(results: Results) -> dict[str, tuple[str, ...]]:
    """Members of every row, by its name."""
    return results.remembered(
        "members", lambda: {row.name: row.members for row in results.rows("main", "control", "sweep")}
    )


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
