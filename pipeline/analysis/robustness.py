"""Whether a score, and a gain over the reference, holds on perturbed documents: paired by source document."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.analysis.scores import CellScores, Doc, Positions, codes, positions
from pipeline.analysis.statistics import (
    Difference,
    Estimate,
    mean_interval,
    mean_over_seeds,
    paired_difference,
)


@dataclass(frozen=True)
class Robustness:
    """One row on a perturbed benchmark, over the perturbed documents and their sources.

    `drop` is perturbed - plain; `gain_plain` and `gain` are row - reference on plain and perturbed documents; `change`
    is gain - gain_plain, the difference in differences. None: the reference is missing.
    """

    plain: Estimate
    perturbed: Estimate
    drop: Difference
    gain_plain: Difference | None
    gain: Difference | None
    change: Difference | None


SHARES = ("plain", "perturbed")  # fields of a Robustness: scores
CHANGES = ("drop", "gain_plain", "gain", "change")  # and differences of scores
MEASURES = SHARES + CHANGES


def robustness(
    plain: CellScores, perturbed: CellScores, reference: tuple[CellScores, CellScores] | None
) -> Robustness | None:
    """Plain against perturbed documents of one row, and what is left of its gain there; None if no source is shared.

    Args:
        reference: the plain and the perturbed cell of the row that gains are counted from.
    """
    at_perturbed, at_plain = _pairs(perturbed, plain)
    if not len(at_perturbed):
        return None
    # The plain benchmark's clusters where it has some (the coarser ones), else the source documents.
    clusters = (
        plain.clusters[at_plain]
        if plain.clusters is not None
        else codes(perturbed.sources[i] for i in at_perturbed)
    )
    a, b = plain.score[at_plain], perturbed.score[at_perturbed]
    drop = paired_difference(a, b, clusters)
    result = Robustness(mean_interval(a, clusters), mean_interval(b, clusters), drop, None, None, None)
    if reference is None:
        return result
    old_plain, old_perturbed = reference
    at_old_perturbed = positions(old_perturbed.docs, [perturbed.docs[i] for i in at_perturbed])
    at_old_plain = positions(old_plain.docs, [plain.docs[i] for i in at_plain])
    both = (at_old_plain >= 0) & (at_old_perturbed >= 0)
    if not both.any():
        return result
    kept = clusters[both]
    a0, b0 = old_plain.score[at_old_plain[both]], old_perturbed.score[at_old_perturbed[both]]
    gain_plain = paired_difference(a0, a[both], kept)
    gain = paired_difference(b0, b[both], kept)
    change = paired_difference(a[both] - a0, b[both] - b0, kept)
    return Robustness(result.plain, result.perturbed, drop, gain_plain, gain, change)


def mean_robustness(found: Sequence[Robustness]) -> dict[str, Estimate | None]:
    """The mean of each of MEASURES over families, with Student's t interval; None where no family has it."""
    means: dict[str, Estimate | None] = {}
    for measure in MEASURES:
        values = [e.value for one in found if (e := getattr(one, measure)) is not None]
        means[measure] = mean_over_seeds(values) if values else None
    return means


def persists(gain_plain: Estimate | None, gain: Estimate | None) -> str | None:
    """Whether a gain is there on the perturbed documents, in words; None where there is no reference."""
    if gain_plain is None or gain is None:
        return None
    if gain_plain.high < 0:
        return "a loss"
    return "yes" if gain.low > 0 else "reversed" if gain.high < 0 else "not shown"


def _pairs(perturbed: CellScores, plain: CellScores) -> tuple[Positions, Positions]:
    """Positions of the perturbed documents whose source is among the plain ones, and of those sources."""
    first_of_source: list[Doc] = [(*source, 0) for source in perturbed.sources]
    at_plain = positions(plain.docs, first_of_source)
    at_perturbed = np.flatnonzero(at_plain >= 0)
    return at_perturbed, at_plain[at_perturbed]
