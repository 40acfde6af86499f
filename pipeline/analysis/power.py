"""What a test can find: power of the exact McNemar test with its discreteness, and the smallest detectable difference.

The number of documents that change is random: power is averaged over it (unconditional power; Duffy 1984, Biometrics
40). Clustered documents enter with their effective size at the test's level, which holds Student's t quantile for
the degrees of freedom there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrik, gammaln, ndtr, ndtri, xlogy

from pipeline.analysis.intervals import CONFIDENCE, normal_quantile, student_quantile
from pipeline.analysis.signflip import smallest_p

LEVEL = 0.05
POWER = 0.8
_STEPS = 20  # of bisection: to a millionth
_LARGE, _MOST_DOCUMENTS = 20_000, 1_000_000


@dataclass(frozen=True)
class Detectable:
    """The smallest true difference that is found; NaN where none can be. `discordance` is the share of
    documents that is taken to change, one way or the other, beneath it."""

    effect: float
    discordance: float


def detectable(
    n: float,
    discordance: float,
    level: float | None = LEVEL,
    power: float = POWER,
    units: float = math.inf,
    independent: float | None = None,
    freedom: float = math.inf,
) -> Detectable:
    """The smallest difference that a test of `n` documents at `level` finds with this power.

    Args:
        n: documents, or the effective size.
        discordance: share of the documents that changed. Where none did, the upper end of its 95 % interval
            is assumed (Clopper and Pearson 1934). A difference larger than it raises it.
        level: None for a caller that does not ask (NaN).
        units: independent units; where they are too few for the level, nothing is detectable.
        independent: the size if documents were independent, where `n` is smaller. Units that differ in how much they
            change do so the more, the larger the change: an effect above the discordance raises the design effect.
        freedom: degrees of freedom of the variance behind `n`. The median of a variance is below its mean.
    """
    if level is None or not n >= 1:
        return Detectable(math.nan, discordance)
    share = discordance if discordance > 0 else 1.0 - ((1.0 - CONFIDENCE) / 2) ** (1.0 / n)
    documents = max(independent or n, n)
    extra = (
        documents / (n * (1 - 2 / (9 * max(freedom, 1.0))) ** 3) - 1
    )  # beyond that of independent documents
    is_unanimous = (
        smallest_p(units) <= level < 2 * smallest_p(units)
    )  # one unit the other way, and p is above the level
    quantile = student_quantile(freedom, 1 - level) if math.isfinite(freedom) else normal_quantile(1 - level)
    narrower = float(
        (quantile / normal_quantile(1 - level)) ** 2
    )  # n holds this quantile, units' signs do not

    def is_found(effect: float) -> bool:
        size, changed = documents / (1 + extra * max(effect / share, 1.0)), max(share, effect)
        if (
            is_unanimous
            and _all_one_way(effect - 0.5 * units / documents, changed, size * narrower, units) < power
        ):
            return False
        return _power(int(size), level, effect, changed) >= power

    if smallest_p(units) >= level or not is_found(1.0):
        return Detectable(math.nan, share)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return Detectable(high, max(share, high))


def _all_one_way(effect: float, discordance: float, size: float, units: float) -> float:
    """Chance that the sums of all units have the sign of the effect, by the normal distribution.

    Args:
        effect: less half a document of each unit: a sum of zero has no sign.
    """
    of_unit = math.sqrt(max(discordance - effect**2, 1e-12) / size * units)
    return float(ndtr(effect / of_unit) ** units)


def mcnemar_power(n: float, effect: float, discordance: float, level: float = LEVEL) -> float:
    """Chance that the exact McNemar test of `n` documents finds a difference.

    Args:
        effect: true share of gains less that of losses.
        discordance: true share of gains plus that of losses, at least the effect.
    """
    return _power(int(n), level, abs(effect), max(abs(effect), discordance))


@lru_cache(maxsize=1024)
def documents_needed(
    effect: float, discordance: float, level: float = LEVEL, power: float = POWER
) -> int | None:
    """Independent documents with which the exact McNemar test finds a true difference with this power.

    Args:
        discordance: share of documents that change; a larger effect raises it.

    From Miettinen's formula (1968) upwards, in steps of 1 %; the formula alone beyond 20,000 documents, where the
    exact test is hardly another. None: more than a million.
    """
    share = max(discordance, effect)
    z, z_power = float(ndtri(1 - level / 2)), float(ndtri(power))
    needed = (z * math.sqrt(share) + z_power * math.sqrt(share - effect**2)) ** 2 / effect**2
    while needed < _LARGE and mcnemar_power(needed, effect, share, level) < power:
        needed = max(needed + 1, 1.01 * needed)
    return math.ceil(needed) if needed <= _MOST_DOCUMENTS else None


def _power(n: int, level: float, effect: float, discordance: float) -> float:
    """Power of the exact test: over the numbers of documents that may change, but for those with no chance to speak of."""
    share = min(discordance, 1.0)
    spread = 8 * math.sqrt(n * share * (1 - share)) + 10
    first, last = max(0, int(n * share - spread)), min(n, int(n * share + spread))
    changed = np.arange(first, last + 1)
    critical = _critical(level, 1 << last.bit_length())[first : last + 1]
    ways = gammaln(n + 1) - gammaln(changed + 1) - gammaln(n - changed + 1)
    chance = np.exp(ways + xlogy(changed, share) + xlogy(n - changed, 1 - share))
    down = min(max((1 - effect / share) / 2, 0.0), 1.0) if share else 0.5
    inside = np.maximum(critical, 0)
    found = bdtr(inside, changed, down) + bdtr(inside, changed, 1 - down)
    return float(chance @ np.where(critical < 0, 0.0, np.minimum(found, 1.0)))


@lru_cache(maxsize=64)
def _critical(level: float, size: int) -> NDArray[np.float64]:
    """For 0, 1, … `size` - 1 documents that change: how many of them at most go against the trend where the test rejects.

    -1 where it rejects in no case.
    """
    changed = np.arange(size)
    guess = np.nan_to_num(np.floor(bdtrik(level / 2, changed, 0.5)), nan=-1.0)
    guess = np.where(2 * bdtr(np.maximum(guess, 0), changed, 0.5) > level, guess - 1, guess)
    return np.where(2 * bdtr(np.zeros(size), changed, 0.5) > level, -1.0, guess)
