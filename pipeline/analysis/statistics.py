"""Statistics of scores by document: means, paired differences, exact McNemar, Holm, means over seeds.

Everything is in the units of the scores (fractions; the tables multiply by 100). Two cases are told apart:

- *independent binary* documents (0 or 1, no cluster holds two of them): Wilson's score interval for a mean,
  Bonett and Price's interval for a paired difference, the exact McNemar test;
- everything else: the mean of the documents (or of their differences) with the cluster-robust standard error
  of Liang and Zeger 1986 (for evaluations: Miller 2024, arXiv 2411.00640), and Student's t with
  (clusters - 1) degrees of freedom.

Not covered: intervals for very few clusters (below about ten the t interval is wide but only roughly right),
and models that share strength between benchmarks. Only `scipy.special` is imported, because `scipy.stats`
and `statsmodels` take two seconds to import; the tests compare every function here with both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri, stdtr, stdtrit

CONFIDENCE = 0.95
POWER = 0.8
_Z = float(ndtri((1 + CONFIDENCE) / 2))
_Z_POWER = _Z + float(ndtri(POWER))


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95 % interval; `n` is the number of documents (or of seeds).

    `se`, `low` and `high` are NaN where one cluster or one seed gives no measure of spread.
    """

    value: float
    se: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, new minus reference.

    `p` is two-sided and not adjusted, by `test` ("McNemar" or "t"); `gained` and `lost` count the
    documents whose score rose and fell; `detectable` is the smallest true difference that a test at 5 %
    would find with 80 % power in documents like these (NaN when no document differs).
    """

    p: float
    test: str
    gained: int
    lost: int
    detectable: float


def mean_interval(scores: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """Mean of `scores` (n,) and its 95 % interval; `clusters` (n,) labels dependent documents."""
    x = np.asarray(scores, dtype=float)
    codes = _clusters(x, clusters)
    if codes is None and _binary(x):
        return _wilson(x)
    se, freedom = _standard_error(x, codes)
    return _student(float(x.mean()), se, freedom, len(x))


def paired_difference(reference: ArrayLike, new: ArrayLike, clusters: ArrayLike | None = None) -> Difference:
    """Mean of new - reference over the same documents (both (n,), in the same order)."""
    a, b = np.asarray(reference, dtype=float), np.asarray(new, dtype=float)
    d = b - a
    codes = _clusters(d, clusters)
    gained, lost, n = int((d > 0).sum()), int((d < 0).sum()), len(d)
    if codes is None and _binary(a) and _binary(b):
        estimate = _bonett_price(gained, lost, n)
        p, test = mcnemar_exact(gained, lost), "McNemar"
        # Under the null hypothesis the mean difference has the variance (discordant share) / n.
        null_se = math.sqrt((gained + lost) / n**2)
    else:
        se, freedom = _standard_error(d, codes)
        estimate = _student(float(d.mean()), se, freedom, n)
        p, test = _t_test(estimate.value, se, freedom), "t"
        null_se = se
    detectable = _Z_POWER * null_se if null_se > 0 else math.nan
    return Difference(**estimate.__dict__, p=p, test=test, gained=gained, lost=lost, detectable=detectable)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p: a fair coin over the discordant documents (Fagerland et al. 2013)."""
    n = gained + lost
    return 1.0 if n == 0 else min(1.0, 2 * float(bdtr(min(gained, lost), n, 0.5)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p values (Holm 1979); NaN entries stay NaN and count for nothing."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * steps))
    return adjusted


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """Mean of independent repetitions (k,) with Student's t interval, for the spread between seeds alone."""
    x = np.asarray(values, dtype=float)
    se, freedom = _standard_error(x, None)
    return _student(float(x.mean()), se, freedom, len(x))


def _binary(x: NDArray[np.float64]) -> bool:
    return bool(np.isin(x, (0.0, 1.0)).all())


def _clusters(x: NDArray[np.float64], clusters: ArrayLike | None) -> NDArray[np.intp] | None:
    """Cluster codes 0..G-1, or None where documents may be taken as independent."""
    if len(x) == 0:
        raise ValueError("no documents")
    if clusters is None:
        return None
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    # Equal documents have no spread between clusters either: the interval for independent documents is then
    # the honest one, because a standard error of zero would claim certainty.
    if len(codes) == codes.max() + 1 or bool((x == x[0]).all()):
        return None
    return codes


def _standard_error(x: NDArray[np.float64], codes: NDArray[np.intp] | None) -> tuple[float, int]:
    """Cluster-robust standard error of the mean with the G / (G - 1) correction; its degrees of freedom."""
    residual = x - x.mean()
    sums = residual if codes is None else np.bincount(codes, weights=residual)
    groups = len(sums)
    if groups < 2:
        return math.nan, 0
    return math.sqrt(float(sums @ sums) * groups / (groups - 1)) / len(x), groups - 1


def _student(value: float, se: float, freedom: int, n: int) -> Estimate:
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * se if freedom else math.nan
    return Estimate(value, se, value - half, value + half, n)


def _t_test(value: float, se: float, freedom: int) -> float:
    if freedom == 0:
        return math.nan
    if se == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * float(stdtr(freedom, -abs(value / se)))


def _wilson(x: NDArray[np.float64]) -> Estimate:
    """Wilson 1927: an interval for a share that keeps its meaning at 0 and 100 %."""
    n, share = len(x), float(x.mean())
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    se = math.sqrt(share * (1 - share) / n)
    return Estimate(share, se, max(0.0, centre - half), min(1.0, centre + half), n)


def _bonett_price(gained: int, lost: int, n: int) -> Estimate:
    """Bonett and Price 2012: Laplace-adjusted Wald; recommended by Fagerland, Lydersen and Laake 2014."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    value = (gained - lost) / n
    se = math.sqrt(((gained + lost) / n - value**2) / n)
    return Estimate(value, se, max(-1.0, up - down - half), min(1.0, up - down + half), n)
