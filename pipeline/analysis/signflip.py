"""The exact sign-flip test: under the null hypothesis each independent unit might as well have had the other sign.

Fisher's randomisation test for paired data (The Design of Experiments, 1935, section 21). With right and wrong answers
and independent documents it is the exact McNemar test; with clusters the unit is the cluster's sum. It assumes
nothing of the sums' distribution or of the correlation within clusters. The price: with u units that changed no
p is below 2^(1-u), so that five clusters cannot reach p < 0.05, however large the effect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

SMALLEST = 1e-14  # the tail comes from a Fourier transform, whose rounding error is below this
_DENOMINATORS = 60  # sums that are multiples of a common fraction are compared without rounding
_LATTICE = 1 << 16  # the largest sum of all steps: the points of the null distribution
_FINEST = 4096  # otherwise, steps to the largest sum


def sign_flip(sums: ArrayLike) -> float:
    """Two-sided exact p of the hypothesis that each of these sums (units,) is as likely with either sign."""
    s = np.asarray(sums, dtype=float)
    size = np.abs(s)
    s = s[size > 1e-12 * max(size.max(initial=0.0), 1e-300)]
    if len(s) == 0:
        return 1.0
    steps = _steps(s)
    if (np.abs(steps) == abs(steps[0])).all():
        return mcnemar_exact(int((steps > 0).sum()), int((steps < 0).sum()))
    return _tail(steps)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p: a fair coin over the discordant documents (Fagerland et al. 2013)."""
    n = gained + lost
    return 1.0 if n == 0 else min(1.0, 2 * float(bdtr(min(gained, lost), n, 0.5)))


def smallest_p(units: float) -> float:
    """The smallest p that so many units can give: all change alike."""
    return float(min(1.0, 2.0 ** (1.0 - units)))


def _steps(sums: NDArray[np.float64]) -> NDArray[np.int64]:
    """The sums as whole numbers: exactly where they are multiples of a fraction, else rounded.

    The test of the rounded sums is exact too: only the statistic differs, by less than a step for each unit.
    """
    unit = np.abs(sums).min()
    for denominator in range(1, _DENOMINATORS + 1):
        steps = sums / unit * denominator
        whole = np.rint(steps)
        if np.abs(whole).sum() > _LATTICE:
            break
        if np.abs(steps - whole).max() < 1e-6:
            return whole.astype(np.int64)
    relative = sums / np.abs(sums).max()
    return np.rint(relative * min(_FINEST, _LATTICE / np.abs(relative).sum())).astype(np.int64)


def _tail(steps: NDArray[np.int64]) -> float:
    """P(|sum of the steps with random signs| is at least what was found), from the characteristic function.

    (total + sum) / 2 is the sum of the sizes that kept their sign, so half of the lattice is enough.
    """
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    total, found = int((sizes * counts).sum()), abs(int(steps.sum()))
    points = 1 << total.bit_length()
    turns = np.arange(points // 2 + 1)
    angle = np.pi * np.arange(2 * points) / points  # looked up: cosines of large angles are slow
    cosine, sine = np.cos(angle), np.sin(angle)
    transform = np.ones(len(turns))
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        transform *= _power(cosine[turns * size % (2 * points)], count)
    shift = turns * total % (2 * points)
    chances = np.fft.irfft(transform * (cosine[shift] - 1j * sine[shift]), n=points)[: total + 1]
    upper = float(chances[(total + found + 1) // 2 :].sum())
    return float(min(1.0, max(2.0 * upper, smallest_p(float(counts.sum())), SMALLEST)))


def _power(x: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    """By squaring: several times faster than numpy's power of floats."""
    result = np.ones_like(x)
    while exponent:
        if exponent & 1:
            result = result * x
        x, exponent = x * x, exponent >> 1
    return result
