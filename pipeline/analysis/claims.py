"""The verdict of a run on each claim of the abstract: paper_tables/claims.yaml, with the rule that `judge` follows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import yaml

from pipeline.analysis.comparisons import SIGNIFICANT
from pipeline.analysis.published import PAPER_TABLES, published
from pipeline.analysis.results import REFERENCE, Results, Row, in_order
from pipeline.analysis.statistics import Difference, holm

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = ("reproduced", "not reproduced", "not testable")
NO_CELLS = "the run has no cells for it"
MEASURED = "measured"  # promised is what the run itself finds on the plain documents


@dataclass(frozen=True)
class ClaimedComparison:
    """condition - reference on a benchmark, or on all of its variants, in a direction."""

    benchmark: str
    condition: str
    reference: str
    direction: Literal["rise", "fall"]
    promised: str  # the id of a published figure, or MEASURED
    perturbed: bool = False

    @property
    def sign(self) -> int:
        return {"rise": 1, "fall": -1}[self.direction]


@dataclass(frozen=True)
class Claim:
    """A sentence of the abstract, and the comparisons that test it."""

    id: str
    statement: str
    sentence: str
    comparisons: tuple[ClaimedComparison, ...]


@dataclass(frozen=True)
class Claims:
    """All of paper_tables/claims.yaml."""

    rule: dict[str, str]  # what each outcome means
    claims: tuple[Claim, ...]


@lru_cache
def read_claims() -> Claims:
    data = yaml.safe_load((PAPER_TABLES / "claims.yaml").read_text(encoding="utf-8"))
    claims = [
        Claim(**entry | {"comparisons": tuple(ClaimedComparison(**c) for c in entry["comparisons"])})
        for entry in data["claims"]
    ]
    return Claims(data["rule"], tuple(claims))


@dataclass(frozen=True)
class Comparison:
    """One paired comparison of a claim; differences and the promised effect are fractions."""

    benchmark: str
    condition: str
    reference: str
    difference: Difference | None
    p_holm: float
    promised: float | None  # None: nothing to build on
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
    """A claimed comparison on one benchmark of the run, before Holm's correction."""

    claimed: ClaimedComparison
    benchmark: str
    difference: Difference | None
    promised: float | None
    marks: str

    @property
    def p(self) -> float:
        return self.difference.p if self.difference else math.nan

    def corrected(self, p_holm: float) -> Comparison:
        return Comparison(
            self.benchmark,
            self.claimed.condition,
            self.claimed.reference,
            self.difference,
            p_holm,
            self.promised,
            self.marks,
            self._outcome(p_holm),
        )

    def _outcome(self, p_holm: float) -> str:
        if self.difference is None or self.promised is None:
            return NOT_TESTABLE
        sign = self.claimed.sign
        far_end = self.difference.high if sign > 0 else self.difference.low
        if self.difference.value * sign > 0 and p_holm < SIGNIFICANT:
            return REPRODUCED
        return NOT_REPRODUCED if (self.promised - far_end) * sign > 0 else NOT_TESTABLE


def verdicts(results: Results) -> list[Verdict]:
    """One verdict for each family and claim, in the order of claims.yaml."""
    found = []
    for family in results.families:
        tests = {
            claim: [test for claimed in claim.comparisons for test in _tests(results, family, claimed)]
            for claim in read_claims().claims
        }
        p_values = holm([test.p for group in tests.values() for test in group]).tolist()
        remaining = iter(p_values)
        for claim, group in tests.items():
            comparisons = tuple(test.corrected(next(remaining)) for test in group)
            outcome, reason = judge(comparisons)
            found.append(Verdict(family, claim.statement, claim.sentence, outcome, reason, comparisons))
    return found


def judge(comparisons: tuple[Comparison, ...]) -> tuple[str, str]:
    """The outcome of a claim from its comparisons, by the rule in claims.yaml, with a short reason."""
    based = [c for c in comparisons if c.promised is not None]
    if not comparisons or all(c.difference is None for c in comparisons):
        return NOT_TESTABLE, NO_CELLS
    if any(c.outcome == NOT_REPRODUCED for c in based):
        return NOT_REPRODUCED, "an interval falls short of the promise"
    if not based:
        return NOT_TESTABLE, f"there is no difference to {REFERENCE} to build on"
    if any(c.difference is None for c in based):
        return NOT_TESTABLE, "cells are missing"
    if all(c.outcome == REPRODUCED for c in based):
        return REPRODUCED, ""
    return NOT_TESTABLE, "an interval holds both zero and the promise"


def _tests(results: Results, family: str, claimed: ClaimedComparison) -> Iterator[_Test]:
    row, reference = _row(results, claimed.condition), _row(results, claimed.reference)
    benchmarks = [claimed.benchmark]
    if claimed.perturbed:
        benchmarks = [v for v in results.variants() if results.benchmarks[v].variant_of == claimed.benchmark]
    promised = _promised(results, family, claimed, row)
    for benchmark in benchmarks:
        difference, marks = None, ""
        if row and reference and benchmark in results.benchmarks:
            difference = results.difference(family, row, reference, benchmark)
        if row and reference and difference:
            both = (results.marks(family, one, benchmark) for one in (row, reference))
            marks = in_order("".join(both))
        yield _Test(claimed, benchmark, difference, promised, marks)


def _promised(results: Results, family: str, claimed: ClaimedComparison, row: Row | None) -> float | None:
    """The promised difference as a fraction; None where it is to be measured and there is no clear one."""
    if claimed.promised != MEASURED:
        figure = next(f for f in published().figures if f.id == claimed.promised)
        assert figure.difference is not None, f"{figure.id} has no difference"
        return figure.difference / 100
    if row is None or claimed.benchmark not in results.benchmarks:
        return None
    plain = results.difference(family, row, results.reference, claimed.benchmark)
    if plain is None:
        return None
    is_clear = plain.low > 0 if claimed.sign > 0 else plain.high < 0
    return plain.value if is_clear else None


def _row(results: Results, name: str) -> Row | None:
    """The row that a claim names: a condition, or the random control of a sign."""
    if name in ("random", "minus_random"):
        return results.row("random", 1 if name == "random" else -1)
    if name not in results.conditions or results.conditions[name].kind == "sum":
        return None
    return results.named(name)
