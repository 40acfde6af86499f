"""Holm's correction: the p values of one set of tests, so that any false star in the set has a chance of 5 %."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.analysis.estimate import Difference


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p values (Holm 1979); NaN entries stay NaN and count for nothing."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * steps))
    return adjusted


def adjusted(differences: Iterable[Difference]) -> NDArray[np.float64]:
    """Adjusted p values of differences that share a correction.

    The correction is of the tests. The interval is not corrected; it says at its own confidence whether zero is left out,
    so that a difference whose interval holds zero is never significant.
    """
    found = list(differences)
    return np.maximum(holm([one.p_test for one in found]), [one.p for one in found])
