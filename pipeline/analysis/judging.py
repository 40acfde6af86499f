"""The outcome of one comparison: ours against a published figure, against nothing, or on perturbed documents.

    judge(difference, p_holm, sign, figure=0.049, size=1319, level=0.005)     Judgement("agrees", …)

Nothing goes from a good outcome to a bad one at p = 0.05: between an effect that is shown and one that is excluded
lies *cannot tell*.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.analysis import intervals, persistence
from pipeline.analysis.estimate import Difference
from pipeline.analysis.power import LEVEL, documents_needed
from pipeline.analysis.signflip import smallest_p

AGREES, SMALLER, LARGER = ("agrees", "smaller than published", "larger than published")
FOUND, NO_EFFECT, OPPOSITE, CANNOT_TELL = ("found here too", "no effect found", "opposite", "cannot tell")
NOT_IN_RUN = "not in this run"
UNDECIDED = 0.2  # a p value from 0.05 to this neither shows an effect nor speaks for none
NOTICEABLE = 0.05  # where no figure is published: an effect of this size should not go unnoticed

PERSISTS = {
    persistence.YES: "persists",
    persistence.AT_LEAST_IN_PART: "persists at least in part",
    persistence.IN_PART: "persists in part",
    persistence.NO: "does not persist",
    persistence.REVERSED: "reversed",
    persistence.FLOOR: "nothing could persist",
    persistence.NO_GAIN: "no gain to persist",
    persistence.LOSS: "no gain to persist",
    persistence.OPEN: CANNOT_TELL,
}
SHOWN = (AGREES, SMALLER, LARGER, FOUND, OPPOSITE)  # outcomes of a difference that the test shows
# The least favourable outcome stands for a claim of several comparisons.
WORST_FIRST = (
    OPPOSITE, "reversed", NO_EFFECT, "does not persist", CANNOT_TELL, "no gain to persist", "nothing could persist",
    "persists in part", SMALLER, "persists at least in part", LARGER, AGREES, FOUND, "persists",
)  # fmt: skip


class Ends(NamedTuple):
    """The ends of an interval, as fractions."""

    low: float
    high: float


@dataclass(frozen=True)
class Judgement:
    """The outcome of one comparison, with the interval that the published figure has, and what would tell more."""

    outcome: str
    published: Ends | None = None  # the figure's own sampling error
    gap: Ends | None = None  # ours less the published figure
    needed: int | None = (
        None  # documents with which it could be told; None where it can, or more than a million
    )


def judge(
    ours: Difference, p_holm: float, sign: int, figure: float | None, size: int | None, level: float = LEVEL
) -> Judgement:
    """Hold a difference against a published one, or against zero alone.

    Args:
        sign: of the claimed direction.
        figure: the published difference as a fraction; None where there is none.
        size: documents behind it; None: as many as ours.
        level: of the test after Holm's correction, for the documents that are needed.
    """
    is_shown = p_holm < LEVEL
    could_be_found = smallest_p(ours.units) < level  # else that nothing is found says nothing
    may_be_none = ours.low <= 0 <= ours.high and p_holm >= UNDECIDED and could_be_found
    is_small = (ours.high if sign > 0 else -ours.low) < NOTICEABLE
    if figure is None:
        if is_shown:
            return Judgement(FOUND if ours.value * sign > 0 else OPPOSITE)
        if may_be_none and is_small:
            return Judgement(NO_EFFECT)
        return Judgement(CANNOT_TELL, needed=_needed(ours, NOTICEABLE, level))
    reported = published_interval(figure, size or ours.n, ours)
    gap = less(ours, figure, reported)
    if is_shown and ours.value * sign < 0:
        return Judgement(OPPOSITE, reported, gap)
    is_below, is_above = (gap.high < 0, gap.low > 0) if sign > 0 else (gap.low > 0, gap.high < 0)
    if is_shown:
        return Judgement(SMALLER if is_below else LARGER if is_above else AGREES, reported, gap)
    if may_be_none and (is_below if figure else is_small):  # below a published zero lies no smaller effect
        return Judgement(NO_EFFECT, reported, gap)
    return Judgement(CANNOT_TELL, reported, gap, _needed(ours, abs(figure) or NOTICEABLE, level))


def published_interval(figure: float, size: int, ours: Difference) -> Ends:
    """The sampling error that a published difference must have: on its documents, as many changing as in ours."""
    changed = min(1.0, max(abs(figure), (ours.gained + ours.lost) / ours.n))
    low, high = intervals.paired(figure, changed, size)
    return Ends(min(float(low), figure), max(float(high), figure))


def less(ours: Difference, figure: float, reported: Ends) -> Ends:
    """Interval of ours less the published difference, by the method of variance estimates recovery.

    Zou and Donner 2008 (Statistics in Medicine 27). Both are taken for independent; where they share documents it is
    wider than it need be.
    """
    gap = ours.value - figure
    low = gap - math.hypot(ours.value - ours.low, reported.high - figure)
    return Ends(low, gap + math.hypot(ours.high - ours.value, figure - reported.low))


def worst(outcomes: list[str]) -> str:
    """The least favourable of several outcomes."""
    return min(outcomes, key=WORST_FIRST.index)


def _needed(ours: Difference, effect: float, level: float) -> int | None:
    """Documents like ours with which an effect would be found; None where it is found already."""
    found = documents_needed(effect, (ours.gained + ours.lost) / ours.n, level)
    if found is None or not ours.effective > 0:
        return None
    needed = math.ceil(found * ours.n / min(ours.effective, ours.n))
    return needed if needed > ours.n else None
