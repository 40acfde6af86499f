"""Do several donor pairs have one effect? Their spread against what the documents alone would make of it.

    found = heterogeneity(differences, design)     differences (k, n) of k families on the same documents
    found.q, found.p, found.i2, found.tau

Cochran's Q takes the effects for independent. Ours are not: all pairs answer the same documents, and often beside one
Baseline. So Q is the Wald statistic of the contrasts between families with their whole covariance, estimated over the
independent units, and referred to Hotelling's distribution (1931); of independent effects it is Cochran's. I² is the
share of the spread that documents do not explain (Higgins and Thompson 2002), τ the standard deviation between pairs.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtrc, ndtr

from pipeline.analysis.design import Design, Floats, total

_QUANTILE = 1.96


@dataclass(frozen=True)
class Heterogeneity:
    """Spread of k effects; `i2` with its 95 % interval is a share, `tau` a fraction like the effects.

    `p` is the larger of the test's and of the level at which the interval of I² leaves zero out, so that both agree; NaN
    where there are too few independent units for so many families.
    """

    families: int
    q: float
    freedom: int
    p: float
    i2: float
    i2_low: float
    i2_high: float
    tau: float


def heterogeneity(differences: ArrayLike, design: Design) -> Heterogeneity:
    """The spread of the mean differences of k > 1 families (k, n) over the design's documents.

    Raises:
        ValueError: for a single family.
    """
    x = np.asarray(differences, dtype=float)
    k = len(x)
    if k < 2:
        raise ValueError("one family has no spread")
    means = np.array([design.mean(row) for row in x])
    covariance, freedom = _covariance(x, design)
    contrasts = _contrasts(k)
    spread = contrasts @ covariance @ contrasts.T
    between = contrasts @ means
    q = float(between @ np.linalg.solve(spread, between))
    above = freedom - (k - 1) + 1
    statistic = q * above / (freedom * (k - 1)) if above > 0 else math.nan
    p = max(float(fdtrc(k - 1, above, statistic)), _i2_level(q, k - 1)) if above > 0 else math.nan
    low, high = _i2_ends(q, k - 1)
    return Heterogeneity(
        families=k,
        q=q,
        freedom=k - 1,
        p=p,
        i2=_i2(q, k - 1),
        i2_low=low,
        i2_high=high,
        tau=math.sqrt(max(0.0, (float(between @ between) - float(np.trace(spread))) / (k - 1))),
    )


def _covariance(x: Floats, design: Design) -> tuple[Floats, float]:
    """Covariance (k, k) of the means over independent units, and its degrees of freedom.

    One more gain and one more loss for each family, as in `intervals.paired`: equal answers claim no certainty.
    """
    blocks, stratum = design.blocks, design.blocks.stratum
    if np.bincount(stratum).min() < 2:
        stratum = np.zeros_like(stratum)
    leverage = blocks.weight / total(stratum, blocks.weight)[stratum]
    sums = np.stack([design.sums(row) for row in x])
    means = np.stack([total(stratum, row) for row in sums])[:, stratum]
    residual = (sums - leverage * means) / np.sqrt(np.maximum(1.0 - leverage, 1e-12))
    extra = 2.0 / (design.effective + 2) ** 2
    return residual @ residual.T + extra * np.eye(len(x)), float(design.count - (stratum.max() + 1))


def _contrasts(k: int) -> Floats:
    """Orthonormal contrasts (k - 1, k): what is left of k effects without their mean."""
    rows = [np.concatenate([np.ones(i), [-i], np.zeros(k - i - 1)]) for i in range(1, k)]
    return np.stack([row / np.linalg.norm(row) for row in rows])


def _i2(q: float, freedom: int) -> float:
    return max(0.0, 1.0 - freedom / q) if q > 0 else 0.0


def _i2_ends(q: float, freedom: int) -> tuple[float, float]:
    """The test-based interval of Higgins and Thompson (2002), from the logarithm of H."""
    if (se := _log_h_error(q, freedom)) is None:
        return 0.0, 1.0
    h = math.sqrt(max(q, 1e-12) / freedom)
    ends = (h * math.exp(-_QUANTILE * se), h * math.exp(_QUANTILE * se))
    low, high = (max(0.0, 1.0 - 1.0 / end**2) for end in ends)
    return low, high


def _i2_level(q: float, freedom: int) -> float:
    """The smallest level at which that interval leaves zero out."""
    se = _log_h_error(q, freedom)
    if se is None or q <= freedom:
        return 1.0
    return 2.0 * float(ndtr(-0.5 * math.log(q / freedom) / se))


def _log_h_error(q: float, freedom: int) -> float | None:
    """Standard error of the logarithm of H; None for two families with hardly a spread, which say nothing of it."""
    k = freedom + 1
    if q > k:
        return 0.5 * (math.log(q) - math.log(freedom)) / (math.sqrt(2 * q) - math.sqrt(2 * k - 3))
    if k > 2:
        return math.sqrt(1 / (2 * (k - 2)) * (1 - 1 / (3 * (k - 2) ** 2)))
    return None
