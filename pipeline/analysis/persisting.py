"""What is left of each row's gain on each variant, decided once for tables, verdicts, figures and sentences."""

from dataclasses import dataclass

from pipeline.analysis.claimed import asked_on_variants
from pipeline.analysis.persistence import Decision, Persistence, decide
from pipeline.analysis.results import Results, Row


@dataclass(frozen=True)
class Persisting:
    """What is left of a row's gain on a variant, and the decision after Holm's correction over `tests` tests."""

    family: str
    row: Row
    variant: str
    persistence: Persistence
    decision: Decision
    is_claimed: bool  # whether a claim of the abstract asks for it
    tests: int


def persisting(results: Results) -> list[Persisting]:
    """Every main row but Baseline on every variant, in the order of the manifest.

    What the claims name is one set of tests in each family, all the rest is another.
    """
    return results.remembered("persisting", lambda: _persisting(results))


def _persisting(results: Results) -> list[Persisting]:
    claimed = asked_on_variants(results)
    rows = {row.name: row for row in results.rows("main")} | {row.name: row for row in claimed.values()}
    cases: dict[tuple[str, str, str], Persistence] = {}
    for family in results.families:
        for name, row in rows.items():
            for variant in results.variants():
                robustness = results.robustness(family, row, variant)
                if robustness and robustness.persistence:
                    cases[family, name, variant] = robustness.persistence
    sets: dict[str | None, list[tuple[str, str, str]]] = {}
    for case in cases:
        family, name, variant = case
        sets.setdefault(family if (name, variant) in claimed else None, []).append(case)
    decided: dict[tuple[str, str, str], tuple[Decision, int]] = {}
    for members in sets.values():
        decisions = decide([cases[case] for case in members])
        decided |= {case: (one, 3 * len(members)) for case, one in zip(members, decisions, strict=True)}
    return [
        Persisting(family, rows[name], variant, case, decision, (name, variant) in claimed, tests)
        for (family, name, variant), case in cases.items()
        for decision, tests in [decided[family, name, variant]]
    ]
