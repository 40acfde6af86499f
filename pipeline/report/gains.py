"""Differences in every condition, on every benchmark and variant, in the order and the groups that are shown.

    found = gains(results)                          over Baseline
    found.at("micro", row, "gsm8k")

The heat map, the forest and the opening of the report read this, so that they show the same numbers with the same marks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.analysis.comparisons import Compared
from pipeline.analysis.comparisons import gains as tested
from pipeline.analysis.results import Results, Row


@dataclass(frozen=True)
class Gains:
    """Paired differences, corrected together."""

    groups: Mapping[str, list[Row]]  # rows under their title; groups without rows are left out
    benchmarks: list[str]  # plain ones, each followed by its variants
    compared: Mapping[tuple[str, str, str], Compared]  # by family, row's name and benchmark

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups.values() for row in group]

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(family for family, *_ in self.compared))

    def at(self, family: str, row: Row, benchmark: str) -> Compared | None:
        return self.compared.get((family, row.name, benchmark))


def gains(results: Results) -> Gains:
    """Every main and control row of a run against its reference."""
    rows = [row for row in results.rows("main", "control") if row.name != results.reference.name]
    compared = {(p.family, p.new, p.benchmark): one for p, one in tested(results).items()}
    return arranged(results, rows, compared)


def arranged(results: Results, rows: list[Row], compared: Mapping[tuple[str, str, str], Compared]) -> Gains:
    """Differences in the groups and the order that are shown; benchmarks without any are left out."""
    groups: dict[str, list[Row]] = {"": [], "with v": [], "donors": [], "controls": []}
    for row in rows:
        groups[_group(results, row)].append(row)
    benchmarks = [
        name
        for plain in results.plain()
        for name in (plain, *(v for v in results.variants() if results.plain_of(v) == plain))
        if any(benchmark == name for *_, benchmark in compared)
    ]
    return Gains({title: found for title, found in groups.items() if found}, benchmarks, compared)


def _group(results: Results, row: Row) -> str:
    if row.name == results.reference.name:
        return ""
    if row.entry.start in ("sft", "grpo"):
        return "donors"
    return "with v" if any(term.seed is None for term in row.entry.terms) else "controls"
