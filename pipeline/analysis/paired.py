"""Mean scores and paired differences with intervals and tests that hold with few units, few changes and strata.

    score(scores, design)                      a mean score within [0, 1]
    difference(reference, new, design)         new - reference over the same documents
    change(gain_perturbed - gain_plain, design, scale=2)     a difference in differences

What is done, and why these methods were chosen: docs/statistics.md, with the coverage that was measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pipeline.analysis import intervals
from pipeline.analysis.design import Design, total
from pipeline.analysis.estimate import Difference, Estimate
from pipeline.analysis.intervals import CONFIDENCE, Floats
from pipeline.analysis.power import LEVEL, detectable
from pipeline.analysis.signflip import sign_flip, smallest_p


def score(scores: ArrayLike, design: Design, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of scores (n,), each in [0, 1], with Agresti and Coull's interval at the effective size.

    Strata count with their own spread alone. A single unit of several documents gives no interval (NaN).
    """
    x = np.asarray(scores, dtype=float)
    spread, within = _smoothed(x, design)
    value, size, variance = design.mean(x), spread / within, within
    if design.clustered:
        between, freedom = design.variance(x)
        largest = design.count if _all_alike(x) else size
        parts = [(between, freedom)]
        size = float(intervals.effective_size(spread, parts, largest, confidence, design.alike))
        variance = max(between, within) if freedom else math.nan
    low, high = intervals.share(value, size, confidence)
    return Estimate(value, math.sqrt(variance), float(low), float(high), len(x))


def number(values: ArrayLike, design: Design, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of numbers without bounds (n,), such as lengths, with Student's interval over the units."""
    x = np.asarray(values, dtype=float)
    value, (variance, freedom) = design.mean(x), design.variance(x)
    low, high = intervals.numbers(value, variance, freedom, confidence)
    return Estimate(value, math.sqrt(variance), float(low), float(high), len(x))


def difference(
    reference: ArrayLike,
    new: ArrayLike,
    design: Design,
    level: float | None = LEVEL,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Mean of new - reference (both (n,), scores in [0, 1] of the same documents in the same order).

    Args:
        level: at which `detectable` is computed: 0.05 over the number of tests, for the first step of Holm's.
    """
    d = np.asarray(new, dtype=float) - np.asarray(reference, dtype=float)
    return change(d, design, level=level, confidence=confidence)


def change(
    d: ArrayLike,
    design: Design,
    scale: float = 1.0,
    level: float | None = LEVEL,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Mean of differences (n,) that lie in [-scale, scale], against zero.

    The test is the exact sign flip over the units (documents: McNemar's). The interval is that of
    `intervals.paired` at the effective size, so that it is never narrower than with independent documents; where
    every document of a clustered design changed alike, the clusters count as one document each.

    Test and interval agree: p < 0.05 needs that both leave zero out, and the interval reaches to zero where the test
    does not reject, unless there are too few units for it ever to reject.
    """
    x = np.asarray(d, dtype=float) / scale
    mean, square = design.mean(x), design.mean(x**2)
    spread, size, freedom = square - mean**2, design.effective, math.inf
    between, largest = math.nan, size
    variance = _with_two(mean, square, size)
    if design.clustered:
        between, freedom = design.variance(x, rare=True)
        largest = design.count if mean and _all_alike(x) else size
        variance = max(between, variance) if freedom else math.nan

    def size_at(asked: ArrayLike) -> Floats:
        if not design.clustered:
            return np.asarray(design.effective)
        return intervals.effective_size(spread, [(between, freedom)], largest, asked, design.alike)

    size = float(size_at(confidence))
    p_test = sign_flip(design.sums(x)) if freedom else math.nan
    is_mcnemar = _is_mcnemar(x, design)
    # Where McNemar's test rejects this interval leaves zero out by itself, so that p is the test's alone.
    p_interval = 0.0 if is_mcnemar else float(intervals.p_value(mean, square, size_at))
    can_reject = smallest_p(design.count) < 1.0 - confidence
    found = agree(
        intervals.paired(mean, square, size, confidence), p_test, p_interval, can_reject, confidence
    )
    strict = float(size_at(1.0 - (level or LEVEL)))
    smallest = detectable(
        strict, square, level, units=design.count, independent=design.effective, freedom=freedom
    )
    return Difference(
        value=scale * mean,
        se=scale * math.sqrt(variance),
        low=scale * found.low,
        high=scale * found.high,
        n=len(x),
        p=found.p,
        p_test=p_test,
        test="McNemar" if is_mcnemar else "sign flip",
        gained=int((x > 0).sum()),
        lost=int((x < 0).sum()),
        detectable=scale * smallest.effect,
        units=design.count,
        freedom=freedom,
        effective=size,
        assumed=smallest.discordance,
    )


class Agreed(NamedTuple):
    """The ends of an interval, and a p value that is below one less its confidence only if it leaves zero out."""

    low: float
    high: float
    p: float


def agree(
    ends: tuple[Floats, Floats],
    p_test: float,
    p_interval: float,
    can_reject: bool = True,
    confidence: float = CONFIDENCE,
) -> Agreed:
    """A test and an interval of another method as one: both together leave zero out, or neither does.

    Both are right by themselves: so the larger p rejects no more often, and the interval that reaches to zero covers no
    less. Where the test can reject nothing, the interval stays as it is.
    """
    low, high = (float(end) for end in ends)
    if can_reject and p_test >= 1.0 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    p = max(p_test, p_interval)
    return Agreed(low, high, max(p, 1.0 - confidence) if low <= 0.0 <= high else p)


def _with_two(mean: float, square: float, size: float) -> float:
    """Variance of the mean of independent documents with one more gain and one more loss, so never zero."""
    return ((square * size + 2) / (size + 2) - (mean * size / (size + 2)) ** 2) / (size + 2)


def _smoothed(x: Floats, design: Design) -> tuple[float, float]:
    """Spread of one score, and variance of the mean, if documents are independent.

    Each stratum gets half a document with 0 and half with 1 (Jeffreys), so that a stratum whose documents
    all agree is not taken for one without spread. Unstratified, the ratio of the two is the number of documents.
    """
    sizes = np.bincount(design.strata)
    means = (total(design.strata, x) + 0.5) / (sizes + 1)
    squares = (total(design.strata, x**2) + 0.5) / (sizes + 1)
    shares = total(design.strata, design.weights)
    overall = float(shares @ means)
    return overall * (1.0 - overall), float((shares**2) @ ((squares - means**2) / sizes))


def _all_alike(x: Floats) -> bool:
    """Whether every document says the same, so that nothing speaks against perfect correlation within clusters."""
    return bool((x == x[0]).all())


def _is_mcnemar(x: Floats, design: Design) -> bool:
    """Whether single documents with equal weights rise, fall or stay: then the sign-flip test is McNemar's."""
    alike = not design.clustered and bool((design.sizes == design.sizes[0]).all())
    return alike and bool(np.isin(x, (-1.0, 0.0, 1.0)).all())
