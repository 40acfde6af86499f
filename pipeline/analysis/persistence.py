"""Whether a gain persists on perturbed documents, decided by the difference in differences.

    cases = [persistence(plain0, plain1, perturbed0, perturbed1, design(n, sources)), …]
    for case, decision in zip(cases, decide(cases)): …

The null hypotheses of one table share Holm's correction: of each case that the plain gain is zero, that the perturbed
gain is zero, and that both gains are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.analysis import intervals
from pipeline.analysis.design import Design
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.holm import adjusted
from pipeline.analysis.intervals import CONFIDENCE, Floats
from pipeline.analysis.power import LEVEL
from pipeline.analysis.repeats import crossed, mean_difference, mean_score

NEAR_CHANCE = 0.05  # a baseline less than this above chance has nothing that a perturbation could take
KEPT = 0.5  # "yes" needs that more than this share of the gain is left, by the share's interval
YES, AT_LEAST_IN_PART, IN_PART, NO, REVERSED = ("yes", "at least in part", "in part", "no", "reversed")
FLOOR, NO_GAIN, LOSS, OPEN = ("floor", "no gain", "a loss", "cannot tell")


@dataclass(frozen=True)
class Share:
    """The share of a gain that is left, with its interval (Fieller's); infinite where the gain may be zero."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Persistence:
    """One condition on a perturbed benchmark against the reference, over documents and their sources.

    `gain_plain` and `gain` are condition - reference on plain and on perturbed documents, `change` is gain -
    gain_plain, `share` is gain / gain_plain; `reference` is the reference's perturbed score.
    """

    gain_plain: Difference
    gain: Difference
    change: Difference
    share: Share
    reference: Estimate
    chance: float


@dataclass(frozen=True)
class Decision:
    """The outcome, one of the words above, and the p values after Holm's correction that decide it."""

    outcome: str
    p_plain: float
    p_gain: float
    p_change: float


def persistence(
    plain_reference: ArrayLike,
    plain: ArrayLike,
    perturbed_reference: ArrayLike,
    perturbed: ArrayLike,
    design: Design,
    chance: float = 0.0,
    level: float | None = LEVEL,
    confidence: float = CONFIDENCE,
) -> Persistence:
    """Gains of one condition on perturbed documents and on their sources, pair by pair.

    Args:
        plain_reference, plain, perturbed_reference, perturbed: scores of reference and condition, (n,), or (k, n)
            of k families that are averaged.
        chance: score of guessing on the perturbed documents.
    """
    a0, a, b0, b = (
        np.atleast_2d(np.asarray(x, dtype=float))
        for x in (plain_reference, plain, perturbed_reference, perturbed)
    )
    return Persistence(
        mean_difference(a - a0, design, 1.0, level, confidence),
        mean_difference(b - b0, design, 1.0, level, confidence),
        mean_difference((b - b0) - (a - a0), design, 2.0, level, confidence),
        share_left(a - a0, b - b0, design, confidence),
        mean_score(b0, design, confidence),
        chance,
    )


def decide(cases: Sequence[Persistence], level: float = LEVEL) -> list[Decision]:
    """The outcome of each case, after Holm's correction over all of them.

    - a loss, no gain: on the plain documents already; nothing could persist.
    - yes: a gain on the perturbed documents, most of the plain one by the interval of `share`, and no sign that
      it is smaller.
    - at least in part: a gain, and no sign that it is smaller, but less than most of it may be left.
    - in part: a gain, and smaller (`share` says by how much).
    - no: smaller, and no gain is shown. reversed: a loss.
    - floor: no gain is shown, and the reference is near chance, so that nothing could be.
    - cannot tell: neither a gain nor a change is shown.
    """
    tests = [difference for c in cases for difference in (c.gain_plain, c.gain, c.change)]
    p_values = adjusted(tests).reshape(-1, 3)
    return [
        Decision(_outcome(case, *(row < level).tolist()), *row.tolist())
        for case, row in zip(cases, p_values, strict=True)
    ]


def share_left(
    plain: ArrayLike, perturbed: ArrayLike, design: Design, confidence: float = CONFIDENCE
) -> Share:
    """Mean of `perturbed` over mean of `plain` (gains by document, both (n,) or (k, n)), with Fieller's interval."""
    a, b = (np.atleast_2d(np.asarray(x, dtype=float)) for x in (plain, perturbed))
    mean_a, mean_b = design.mean(a.mean(axis=0)), design.mean(b.mean(axis=0))
    if mean_a == 0:
        return Share(math.nan, -math.inf, math.inf)
    covariance, freedom = _covariance(a, b, design)
    if not freedom:
        return Share(mean_b / mean_a, math.nan, math.nan)
    quantile = float(intervals.student_quantile(freedom, confidence))
    low, high = intervals.fieller(mean_b, mean_a, covariance, quantile)
    return Share(mean_b / mean_a, float(low), float(high))


def _covariance(a: Floats, b: Floats, design: Design) -> tuple[Floats, float]:
    """Covariance (2, 2) of the means of b and a (k, n), and degrees of freedom; never below that of independent documents.

    Variances of the sum and of the difference give the covariance. Independent documents get one more gain and one
    more loss each, as in `intervals.paired`.
    """
    size = design.effective

    def of(x: Floats) -> float:
        mean = design.mean(x.mean(axis=0))
        floor = (design.mean(x.mean(axis=0) ** 2) - mean**2) / size
        if len(x) > 1:
            return max(sum(float(variance) for variance, _ in crossed(x, design)), floor)
        return max(design.variance(x[0])[0], floor) if design.clustered else floor

    shared = (of(b + a) - of(b - a)) / 4
    extra = 2.0 / (size + 2) ** 2
    freedom = min(design.variance(x[0])[1] for x in (a, b)) if design.clustered else size - 1
    if len(a) > 1:
        freedom = min(freedom, len(a) - 1.0)
    return np.array([[of(b) + extra, shared], [shared, of(a) + extra]]), freedom


def _outcome(case: Persistence, plain: bool, gain: bool, change: bool) -> str:
    """The word for a case, from which of its three hypotheses are rejected."""
    if not (plain and case.gain_plain.value > 0):
        return LOSS if plain else NO_GAIN
    if gain:
        if case.gain.value < 0:
            return REVERSED
        if change and case.change.value < 0:
            return IN_PART
        return YES if case.share.low > KEPT else AT_LEAST_IN_PART
    if case.reference.value < case.chance + NEAR_CHANCE:
        return FLOOR
    return NO if change and case.change.value < 0 else OPEN
