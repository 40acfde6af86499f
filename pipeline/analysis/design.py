"""How the documents of a benchmark were drawn: their weights, the independent units and the fixed strata.

    design(1319)                                   GSM8K: every document stands alone
    design(100, clusters=templates)                copies of a template are one unit
    design(6511, strata=subtasks)                  BBH: the mean over its 27 fixed subtasks
    sample_of(subtasks)                            BBH's subtasks as a sample of subtasks

A cluster is a random draw: its documents rise and fall together, so that it counts as one unit. A stratum is
fixed: another sample would have the same strata, and the spread between them is no error.

The variance of a weighted mean is the cluster-robust one with the small-sample correction CR2 and the degrees of
freedom of Bell and McCaffrey 2002 (Survey Methodology 28; Imbens and Kolesár 2016; Pustejovsky and Tipton 2018),
lowered where a few units carry the spread: the variance of a variance grows with the kurtosis of what is summed.
Every function takes leading axes, so that the simulations of benchmarks/coverage.py run this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]


@dataclass(frozen=True)
class Design:
    """Of each document (n,) as codes from 0 on: its unit, its stratum, and the part that the mean is taken over.

    The mean is the mean of the parts' means: one part for a plain mean.
    """

    units: Codes
    strata: Codes
    parts: Codes

    @cached_property
    def sizes(self) -> Codes:
        """Documents of each part."""
        return np.bincount(self.parts)

    @cached_property
    def weights(self) -> Floats:
        """Weights (n,) of the documents in the mean; they sum to one."""
        return 1.0 / (len(self.sizes) * self.sizes[self.parts])

    @cached_property
    def count(self) -> int:
        """Number of independent units."""
        return int(self.units.max()) + 1

    @cached_property
    def clustered(self) -> bool:
        """Whether some unit holds more than one document."""
        return self.count < len(self.units)

    @cached_property
    def effective(self) -> float:
        """Documents that would say as much with equal weights, if all were independent (Kish 1965)."""
        return float(len(self.sizes) ** 2 / (1.0 / self.sizes).sum())

    @cached_property
    def alike(self) -> float:
        """Units that would say as much with equal weights, if the documents of each were all alike (Kish 1965)."""
        return float(1.0 / np.square(total(self.units, self.weights)).sum())

    @cached_property
    def blocks(self) -> Blocks:
        """What the variance needs to know of the units."""
        return Blocks(
            total(self.units, self.weights),
            total(self.units, self.weights**2),
            self.strata[np.unique(self.units, return_index=True)[1]],
        )

    def subset(self, kept: Codes) -> Design:
        """Of some of the documents, given by position."""
        return Design(codes(self.units[kept]), codes(self.strata[kept]), codes(self.parts[kept]))

    def mean(self, x: Floats) -> float:
        return float((total(self.parts, x) / self.sizes).mean())

    def sums(self, x: Floats) -> Floats:
        """Weighted sums of `x` by unit (units,); together they give the mean."""
        return total(self.units, self.weights * x)

    def variance(self, x: Floats, rare: bool = False) -> tuple[float, float]:
        """Variance of the mean of `x`, and its degrees of freedom; NaN and 0 where there is one unit.

        Args:
            rare: as in `robust_variance`.
        """
        variance, freedom = robust_variance(self.sums(x), self.blocks, rare)
        return float(variance), float(freedom)


@dataclass(frozen=True)
class Blocks:
    """Of each unit: its weight, the sum of its documents' squared weights, its stratum (each (units,))."""

    weight: Floats
    square: Floats
    stratum: Codes


def design(n: int, clusters: ArrayLike | None = None, strata: ArrayLike | None = None) -> Design:
    """Documents with equal weights, or with equal weights of the strata where there are some.

    Args:
        clusters: (n,) labels of documents that depend on each other; a label is read within its stratum.
        strata: (n,) labels of fixed parts; the mean is then the mean over them.

    Raises:
        ValueError: without documents.
    """
    if n == 0:
        raise ValueError("no documents")
    parts = np.zeros(n, dtype=np.intp) if strata is None else codes(strata)
    units = np.arange(n) if clusters is None else codes(clusters)
    if clusters is not None and strata is not None:
        units = codes(units * (parts.max() + 1) + parts)
    return Design(units, strata=parts, parts=parts)


def sample_of(groups: ArrayLike) -> Design:
    """Groups (n,) with equal weights as a random sample of groups: each is one unit."""
    units = codes(groups)
    return Design(units, strata=np.zeros(len(units), dtype=np.intp), parts=units)


def total(groups: Codes, x: ArrayLike) -> Floats:
    """Sums of `x` (n,) by group."""
    return np.asarray(np.bincount(groups, weights=x), dtype=float)


def codes(labels: ArrayLike) -> Codes:
    """Labels as codes from 0 on."""
    return np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)


def robust_variance(sums: Floats, blocks: Blocks, rare: bool = False) -> tuple[Floats, Floats]:
    """CR2 variance of a weighted mean and its degrees of freedom.

    Args:
        sums: (..., units) weighted sums of the values by unit.
        rare: whether the values are zero but for some events (differences of paired answers are, scores are not).

    A stratum with a single unit shows no spread within: all strata are then taken as one (collapsed strata,
    Cochran 1977, 5A.12), which counts the spread between them as error and so errs on the safe side.
    """
    units = sums.shape[-1]
    if units < 2:
        return np.full(sums.shape[:-1], np.nan), np.zeros(sums.shape[:-1])
    stratum = blocks.stratum
    if np.bincount(stratum).min() < 2:
        stratum = np.zeros_like(stratum)
    leverage = blocks.weight / total(stratum, blocks.weight)[stratum]
    means = sums.sum(axis=-1, keepdims=True)
    if stratum.max():
        member = stratum[:, None] == np.arange(stratum.max() + 1)
        means = (sums @ member)[..., stratum]
    residual = (sums - leverage * means) / np.sqrt(1.0 - leverage)
    variance = np.square(residual).sum(axis=-1)
    share = np.square(blocks.square).sum() / blocks.square.sum() ** 2
    excess = _excess_kurtosis(residual / np.sqrt(blocks.square))
    normal = _bell_mccaffrey(leverage, blocks.square, stratum)
    lowered = 1.0 / (1.0 / normal + excess * share / 2.0)
    if rare:
        lowered = np.maximum(lowered, np.minimum(normal, 2.0 * _participating(residual)))
    return variance, lowered


def _bell_mccaffrey(leverage: Floats, square: Floats, stratum: Codes) -> float:
    """tr(B)² / tr(B²) for B the covariance of the units' adjusted residuals if documents were independent.

    Within a stratum B[g, h] = c[g] c[h] (k[g] [g = h] - l[g] k[h] - l[h] k[g] + l[g] l[h] K), with leverages l,
    c = (1 - l)^-1/2, squared weights k and their sum K; the sums over all pairs are products of sums.
    """
    c2 = 1.0 / (1.0 - leverage)

    k_sum, p = total(stratum, square), total(stratum, c2 * leverage**2)
    q, r = total(stratum, c2 * square**2), total(stratum, c2 * leverage * square)
    diagonal = leverage**2 * k_sum[stratum] - 2 * leverage * square
    trace = float((c2 * (square + diagonal)).sum())
    squares = float((2 * p * q + 2 * r**2 + (k_sum * p) ** 2 - 4 * k_sum * p * r).sum())
    squares += float((c2**2 * ((square + diagonal) ** 2 - diagonal**2)).sum())
    return trace**2 / squares


def _participating(x: Floats) -> Floats:
    """How many of the values carry the sum of squares (over the last axis): 1 where one value is all of it.

    The variance of a sum of squares that m rare events make has 2m degrees of freedom, whatever the sizes of the
    units; one kurtosis for units of all sizes would give less.
    """
    second, fourth = np.square(x).sum(axis=-1), np.power(x, 4).sum(axis=-1)
    return np.where(fourth > 0, second**2 / np.where(fourth > 0, fourth, 1.0), 1.0)


def _excess_kurtosis(x: Floats) -> Floats:
    """Sample excess kurtosis G2 over the last axis (Joanes and Gill 1998), 0 where negative or not defined."""
    n = x.shape[-1]
    if n < 4:
        return np.zeros(x.shape[:-1])
    second, fourth = np.square(x).sum(axis=-1), np.power(x, 4).sum(axis=-1)
    plain = n * fourth / np.where(second > 0, second, 1.0) ** 2 - 3.0
    corrected = ((n + 1) * plain + 6.0) * (n - 1) / ((n - 2) * (n - 3))
    return np.where(second > 0, np.maximum(corrected, 0.0), 0.0)
