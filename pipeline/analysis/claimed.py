"""What the claims of the abstract ask of a run: rows of its own in place of the names in paper_tables/claims.yaml.

These questions were asked beforehand, so they are corrected among themselves (`comparisons.claimed`,
`persisting.persisting`); every other comparison is corrected with the rest.
"""

from typing import NamedTuple

from pipeline.analysis.claims import read_claims
from pipeline.analysis.results import Results, Row


class Asked(NamedTuple):
    """A comparison that a claim names, on a plain benchmark."""

    new: Row
    reference: Row
    benchmark: str


def claimed_row(results: Results, name: str) -> Row | None:
    """The row that a claim names: a condition, or the random control of a sign; None where the run has no such row."""
    if name in ("random", "minus_random"):
        return results.row("random", 1 if name == "random" else -1)
    if name not in results.conditions or results.conditions[name].kind == "sum":
        return None
    return results.named(name)


def asked_on_plain(results: Results) -> list[Asked]:
    """Every comparison on a plain benchmark that a claim names and the run has rows for, each once."""
    asked: dict[Asked, None] = {}
    for claim in read_claims().claims:
        for c in claim.comparisons:
            new, reference = claimed_row(results, c.condition), claimed_row(results, c.reference)
            if new and reference and not c.perturbed and c.benchmark in results.benchmarks:
                asked[Asked(new, reference, c.benchmark)] = None
    return list(asked)


def asked_on_variants(results: Results) -> dict[tuple[str, str], Row]:
    """Rows of which a claim says that their gain persists, by the row's name and the variant."""
    asked: dict[tuple[str, str], Row] = {}
    for claim in read_claims().claims:
        for c in claim.comparisons:
            row = claimed_row(results, c.condition) if c.perturbed else None
            if row is not None:
                for variant in results.variants():
                    if results.plain_of(variant) == c.benchmark:
                        asked[row.name, variant] = row
    return asked
