"""The published figures, and the verdict of a run on each claim of the abstract.

Both are data: paper_tables/published.yaml, and paper_tables/claims.yaml with the rule that `judge` follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from pipeline.analysis.results import REFERENCE, Grid, Row
from pipeline.analysis.statistics import Difference, holm
from pipeline.files import ROOT

_FOLDER = ROOT / "paper_tables"
SIGNIFICANT = 0.05
REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = ("reproduced", "not reproduced", "not testable")


@lru_cache
def published() -> dict[str, Any]:
    """paper_tables/published.yaml: sources, figures, context."""
    data: dict[str, Any] = yaml.safe_load((_FOLDER / "published.yaml").read_text(encoding="utf-8"))
    return data


@lru_cache
def claims() -> dict[str, Any]:
    """paper_tables/claims.yaml: rule, claims."""
    data: dict[str, Any] = yaml.safe_load((_FOLDER / "claims.yaml").read_text(encoding="utf-8"))
    return data


def published_figures(size: str | None, benchmark: str | None, condition: str) -> list[dict[str, Any]]:
    """Figures for this size, published benchmark and condition; those of unstated size fit every size."""
    if size is None or benchmark is None:
        return []
    return [
        figure
        for figure in published()["figures"]
        if figure["size"] in (size, None)
        and figure["benchmark"] == benchmark
        and figure["condition"] == condition
    ]


@dataclass(frozen=True)
class Comparison:
    """One paired comparison of a claim; differences and the promised effect are fractions."""

    benchmark: str
    condition: str
    reference: str
    difference: Difference | None
    p_holm: float
    promised: float | None
    marks: str
    outcome: str


@dataclass(frozen=True)
class Verdict:
    """What a run says on one claim for one family."""

    family: str
    statement: str
    sentence: str
    outcome: str
    reason: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class _Test:
    """A comparison of claims.yaml resolved to rows of the grid, before Holm's correction."""

    row: Row | None
    reference: Row | None
    benchmark: str
    sign: int
    promised: float | None  # None: nothing to build on
    difference: Difference | None
    spec: dict[str, Any]


def verdicts(grid: Grid) -> list[Verdict]:
    """One verdict for each family and claim, in the order of claims.yaml."""
    found = []
    for family in grid.families:
        tests = [
            [t for spec in claim["comparisons"] for t in _tests(grid, family, spec)]
            for claim in claims()["claims"]
        ]
        p_values = [t.difference.p if t.difference else math.nan for group in tests for t in group]
        adjusted = iter(holm(p_values).tolist())
        for claim, group in zip(claims()["claims"], tests, strict=True):
            comparisons = tuple(_compare(grid, family, test, next(adjusted)) for test in group)
            outcome, reason = judge(comparisons)
            found.append(Verdict(family, claim["statement"], claim["sentence"], outcome, reason, comparisons))
    return found


def judge(comparisons: tuple[Comparison, ...]) -> tuple[str, str]:
    """The outcome of a claim from its comparisons, by the rule in claims.yaml, with a short reason."""
    based = [c for c in comparisons if c.promised is not None]
    if not comparisons or all(c.difference is None for c in comparisons):
        return NOT_TESTABLE, "the run has no cells for it"
    if any(c.outcome == NOT_REPRODUCED for c in based):
        return NOT_REPRODUCED, "an interval falls short of the promise"
    if not based:
        return NOT_TESTABLE, f"there is no difference to {REFERENCE} to build on"
    if any(c.difference is None for c in based):
        return NOT_TESTABLE, "cells are missing"
    if all(c.outcome == REPRODUCED for c in based):
        return REPRODUCED, ""
    return NOT_TESTABLE, "an interval holds both zero and the promise"


def _tests(grid: Grid, family: str, spec: dict[str, Any]) -> list[_Test]:
    row, reference = _row(grid, spec["condition"]), _row(grid, spec["reference"])
    benchmarks = [spec["benchmark"]]
    if spec.get("perturbed"):
        benchmarks = [v for v in grid.variants() if grid.benchmarks[v]["variant_of"] == spec["benchmark"]]
    sign = {"rise": 1, "fall": -1}[spec["direction"]]
    tests = []
    for benchmark in benchmarks:
        difference = None
        if row and reference and benchmark in grid.benchmarks:
            difference = grid.difference(family, row.members, reference.members, benchmark)
        promised = _promised(grid, family, spec, row, sign)
        tests.append(_Test(row, reference, benchmark, sign, promised, difference, spec))
    return tests


def _promised(grid: Grid, family: str, spec: dict[str, Any], row: Row | None, sign: int) -> float | None:
    if spec["promised"] != "measured":
        figure = next(f for f in published()["figures"] if f["id"] == spec["promised"])
        return float(figure["difference"]) / 100
    if row is None or spec["benchmark"] not in grid.benchmarks:
        return None
    plain = grid.difference(family, row.members, (REFERENCE,), spec["benchmark"])
    if plain is None or not _clear(plain, sign):
        return None
    return plain.value


def _clear(difference: Difference, sign: int) -> bool:
    """Whether the whole interval lies on this side of zero."""
    return difference.low > 0 if sign > 0 else difference.high < 0


def _compare(grid: Grid, family: str, test: _Test, p_holm: float) -> Comparison:
    outcome = NOT_TESTABLE
    marks = ""
    if test.difference and test.row and test.reference:
        benchmark = test.benchmark
        both = grid.marks(family, test.row.members, benchmark) + grid.marks(
            family, test.reference.members, benchmark
        )
        marks = "".join(dict.fromkeys(both))
    if test.difference and test.promised is not None:
        far_end = test.difference.high if test.sign > 0 else test.difference.low
        if test.difference.value * test.sign > 0 and p_holm < SIGNIFICANT:
            outcome = REPRODUCED
        elif (test.promised - far_end) * test.sign > 0:
            outcome = NOT_REPRODUCED
    spec = test.spec
    return Comparison(
        test.benchmark,
        spec["condition"],
        spec["reference"],
        test.difference,
        p_holm,
        test.promised,
        marks,
        outcome,
    )


def _row(grid: Grid, name: str) -> Row | None:
    if name in ("random", "minus_random"):
        return grid.row("random", 1 if name == "random" else -1)
    if name not in grid.conditions or not grid.is_whole(name):
        return None
    return Row(name, grid.conditions[name]["label"], (name,))
