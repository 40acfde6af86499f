"""Gains over Baseline in every condition, on every benchmark and variant, in the order and the groups that are shown.

    found = gains(results)
    found.at("micro", row, "gsm8k")

The heat map, the forest and the opening of the report read this, so that they show the same numbers with the same marks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.analysis.comparisons import Compared, Pairing
from pipeline.analysis.comparisons import gains as tested
from pipeline.analysis.results import Results, Row


@dataclass(frozen=True)
class Gains:
    """Paired differences to the reference, corrected together."""

    groups: Mapping[str, list[Row]]  # rows under their title; groups without rows are left out
    benchmarks: list[str]  # plain ones, each followed by its variants
    reference: Row
    compared: Mapping[Pairing, Compared]

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups.values() for row in group]

    def at(self, family: str, row: Row, benchmark: str) -> Compared | None:
        return self.compared.get(Pairing(family, row.name, self.reference.name, benchmark))


def gains(results: Results) -> Gains:
    """Every main and control row of a run against its reference."""
    rows = [row for row in results.rows("main", "control") if row.name != results.reference.name]
    groups: dict[str, list[Row]] = {"with v": [], "donors": [], "controls": []}
    for row in rows:
        groups[_group(row)].append(row)
    benchmarks = [
        name
        for plain in results.plain()
        for name in (plain, *(v for v in results.variants() if results.plain_of(v) == plain))
    ]
    return Gains(
        {title: found for title, found in groups.items() if found},
        benchmarks,
        results.reference,
        tested(results),
    )


def _group(row: Row) -> str:
    if row.entry.start in ("sft", "grpo"):
        return "donors"
    return "with v" if any(term.seed is None for term in row.entry.terms) else "controls"
