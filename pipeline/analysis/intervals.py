"""Intervals that keep their meaning at the edges: shares within [0, 1], paired differences within [-1, 1].

Each takes the size of a sample of independent documents; a clustered or stratified sample comes with its
effective size, after Korn and Graubard 1998 (Survey Methodology 24): the size at which independent documents would
have the same variance, with Student's quantile for the normal one. Every function takes arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Part = tuple[ArrayLike, ArrayLike]  # a variance and its degrees of freedom
_ROUNDING = 1e-13  # a variance below this is zero: 10,000 documents of which one changed have 1e-8
_GRID = np.arange(1, 32) / 32  # points between two ends that are asked at once
_ROUNDS = 8  # of them: to 1e-12
_SMALLEST_LOG = -35.0  # of a p value: below the rounding error of the quantiles


def normal_quantile(confidence: ArrayLike) -> Floats:
    return np.asarray(ndtri((1 + np.asarray(confidence)) / 2), dtype=float)


def student_quantile(freedom: ArrayLike, confidence: ArrayLike) -> Floats:
    """Two-sided quantile of Student's t; NaN where there are no degrees of freedom."""
    df = np.asarray(freedom, dtype=float)
    return np.where(df > 0, stdtrit(np.where(df > 0, df, 1.0), (1 + np.asarray(confidence)) / 2), np.nan)


def effective_size(
    spread: ArrayLike,
    parts: Sequence[Part],
    largest: ArrayLike,
    confidence: ArrayLike,
    alike: ArrayLike = 0.0,
) -> Floats:
    """Independent documents of this spread (variance of one) whose mean is known as well.

    Args:
        parts: the variance of the mean as a sum, each part with degrees of freedom of its own; none of them is
            taken for better known than it is (as in Cochran's test of 1964, which errs on the safe side).
        largest: the size if the documents are independent: dependence only ever takes away, so that a
            variance of zero by chance claims no certainty.
        alike: the number of units, if the documents of each are all alike (`Design.alike`): the last part, which is
            that of the documents, is no larger than that makes it, however badly it is known.

    NaN where a part has no degrees of freedom.
    """
    z, units = normal_quantile(confidence), np.asarray(alike, dtype=float)
    known = [np.asarray(v) * (student_quantile(df, confidence) / z) ** 2 for v, df in parts]
    quantile = student_quantile(np.where(units > 1, units - 1.0, 1.0), confidence)
    with np.errstate(over="ignore", invalid="ignore"):  # at a level of 1e-200 the quantile has no square
        most = np.asarray(spread) / np.maximum(units, 1.0) * (quantile / z) ** 2
    known[-1] = np.minimum(known[-1], np.where((units > 1) & ~np.isnan(most), most, np.inf))
    inflated = np.asarray(sum(known), dtype=float)
    some = inflated > _ROUNDING
    size = np.where(some, np.minimum(np.asarray(spread) / np.where(some, inflated, 1.0), largest), largest)
    return np.where(np.isnan(inflated), np.nan, size)


def share(p: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Interval of a share, within [0, 1]: Agresti and Coull 1998.

    Wilson's interval with the width that is safe where the share is near 0 or 1 (Brown, Cai and DasGupta 2001);
    with the effective size also for clustered samples (Dean and Pagano 2015).
    """
    z2 = normal_quantile(confidence) ** 2
    size = np.asarray(n, dtype=float) + z2
    centre = (np.asarray(p) * np.asarray(n) + z2 / 2) / size
    half = np.sqrt(z2 * centre * (1 - centre) / size)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def paired(
    mean: ArrayLike, square: ArrayLike, n: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Interval of a mean of paired differences, each in [-1, 1].

    Args:
        mean: of the differences.
        square: mean of their squares; of right and wrong answers, the share of documents that changed.
        n: size, or effective size.

    The outer ends of two intervals: Bonett and Price 2012 (one more gain, one more loss), which agrees with the exact
    McNemar test where few documents change, and Tango's score interval (1998), whose far end holds where all
    change alike. Graded differences enter as the gains and losses of the same mean and mean square.
    """
    m, q, size = (np.asarray(x, dtype=float) for x in (mean, square, n))
    z = normal_quantile(confidence)
    centre = m * size / (size + 2)
    half = z * np.sqrt(np.maximum((q * size + 2) / (size + 2) - centre**2, 0.0) / (size + 2))
    low, high = _score_ends(m, q, size, z)
    return np.maximum(np.minimum(low, centre - half), -1.0), np.minimum(np.maximum(high, centre + half), 1.0)


def p_value(mean: ArrayLike, square: ArrayLike, size: Callable[[Floats], ArrayLike]) -> Floats:
    """The smallest level at which the interval of `paired` leaves zero out; NaN where it has no size.

    Args:
        mean, square: as in `paired`.
        size: the effective size at a confidence, which may have one axis more, in front.
    """
    m, q = np.asarray(mean, dtype=float), np.asarray(square, dtype=float)
    known = np.asarray(size(np.asarray(CONFIDENCE)), dtype=float)
    smallest = np.full(np.broadcast_shapes(m.shape, q.shape, known.shape), _SMALLEST_LOG)

    def holds_zero(log_level: Floats) -> Bools:
        confidence = 1.0 - np.exp(log_level)
        return ~_excludes_zero(m, q, np.asarray(size(confidence), dtype=float), confidence)

    _, level = _turn(holds_zero, smallest, np.zeros_like(smallest))
    return np.where(np.isnan(known), np.nan, np.exp(level))


def numbers(
    mean: ArrayLike, variance: ArrayLike, freedom: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Student's interval, for numbers without bounds (lengths of answers)."""
    half = student_quantile(freedom, confidence) * np.sqrt(variance)
    return np.asarray(mean) - half, np.asarray(mean) + half


def fieller(
    numerator: float, denominator: float, covariance: NDArray[np.float64], quantile: float
) -> tuple[float, float]:
    """Interval of a ratio of two estimates (Fieller 1954); infinite where the denominator may be zero."""
    spread_n, shared, spread_d = covariance[0, 0], covariance[0, 1], covariance[1, 1]
    q2 = quantile**2
    a, b, c = (
        denominator**2 - q2 * spread_d,
        numerator * denominator - q2 * shared,
        numerator**2 - q2 * spread_n,
    )
    if not a > 0:
        return -math.inf, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


def _excludes_zero(m: Floats, q: Floats, n: Floats, confidence: ArrayLike) -> Bools:
    """Whether both intervals of `paired` leave zero out: under a difference of zero Tango's variance is q."""
    z = normal_quantile(confidence)
    centre = m * n / (n + 2)
    variance = np.maximum((q * n + 2) / (n + 2) - centre**2, 0.0) / (n + 2)
    return np.asarray((np.abs(centre) > z * np.sqrt(variance)) & (n * m**2 > z**2 * q))


def _score_ends(m: Floats, q: Floats, n: Floats, z: Floats) -> tuple[Floats, Floats]:
    """The differences at which Tango's score statistic is ±z."""
    gain, loss = (q + m) / 2, (q - m) / 2
    sign = np.array([-1.0, 1.0]).reshape((2,) + (1,) * m.ndim)
    inner, outer = m + 0.0 * (sign + n), sign + 0.0 * (m + n)

    def is_within(difference: Floats) -> Bools:
        return np.asarray(n * (m - difference) ** 2 <= z**2 * _null_variance(gain, loss, difference))

    _, ends = _turn(is_within, inner, outer)
    return ends[0], ends[1]


def _turn(holds: Callable[[Floats], Bools], first: Floats, last: Floats) -> tuple[Floats, Floats]:
    """Where a condition turns between two ends: the last place at which it holds, and the first at which it does not.

    A bisection of several halvings at a time: for few numbers, NumPy asks a grid of places as fast as one.

    Args:
        holds: of places (31, *shape); at `first` (*shape) it is taken to hold, and at `last` not to.
    """
    points = _GRID.reshape((-1,) + (1,) * first.ndim)
    for _ in range(_ROUNDS):
        width = last - first
        number = holds(first + width * points).sum(axis=0)
        first, last = first + width * (number / 32), first + width * ((number + 1) / 32)
    return first, last


def _null_variance(gain: Floats, loss: Floats, difference: Floats) -> Floats:
    """Variance of one difference with the shares of gains and losses fitted under this true difference."""
    b = 2.0 * difference - (gain + loss) - (gain - loss) * difference
    c = -loss * difference * (1.0 - difference)
    fitted = (np.sqrt(np.maximum(b * b - 8.0 * c, 0.0)) - b) / 4.0
    return 2.0 * fitted + difference * (1.0 - difference)
