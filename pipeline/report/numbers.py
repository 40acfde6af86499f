"""How numbers are written: per cent and percentage points, intervals, signs, counts, lists."""

import math
from collections.abc import Sequence

from pipeline.analysis.comparisons import Compared
from pipeline.analysis.estimate import Estimate

DASH = "–"
_LOPSIDED = 0.2  # from this part of the half width on, the middle of an interval is not its estimate


def percent(share: float) -> str:
    """A share in per cent, without the sign."""
    return DASH if math.isnan(share) else f"{100 * share:.1f}"


def signed(difference: float) -> str:
    """A difference of shares in percentage points, with a typographic sign."""
    if math.isnan(difference):
        return DASH
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else minus(text)


def interval(estimate: Estimate) -> str:
    """A difference with its 95 % interval."""
    if math.isnan(estimate.low):
        return f"{signed(estimate.value)} (no interval)"
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def plus_minus(estimate: Estimate) -> str:
    """A mean with half of its 95 % interval's width; with both ends where it is far from symmetric."""
    half = (estimate.high - estimate.low) / 2
    if math.isnan(half):
        return percent(estimate.value)
    if abs((estimate.high + estimate.low) / 2 - estimate.value) > _LOPSIDED * half:
        return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"
    return f"{percent(estimate.value)} ± {percent(half)}"


def star(compared: Compared) -> str:
    """The star of a significant difference."""
    return "*" if compared.is_significant else ""


def alpha_text(alpha: float) -> str:
    """A scaling coefficient, as short as it is exact enough to read."""
    return minus(f"{alpha:g}")


def count(number: int) -> str:
    """A whole number in groups of three digits."""
    return f"{number:,}".replace(",", "\u202f")


def significant_digits(value: float | None) -> str:
    """A number of any size; a dash where there is none."""
    return DASH if value is None else minus(f"{value:.4g}")


def listed(texts: Sequence[str]) -> str:
    """Texts joined as a sentence has them: `A, B and C`; a comma before the last where one holds an "and" itself."""
    if len(texts) < 2:
        return "".join(texts)
    is_nested = any(" and " in text for text in texts)
    return f"{', '.join(texts[:-1])}{',' if is_nested else ''} and {texts[-1]}"


def minus(text: str) -> str:
    """Text with typographic minus signs."""
    return text.replace("-", "−")
