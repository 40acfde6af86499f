"""What an analysis says of a number: an estimate with its interval, and a paired difference with its test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95 % interval; `n` is the number of documents.

    In the units of the scores (fractions; tables multiply by 100). `se`, `low` and `high` are NaN where a single
    unit gives no measure of spread.
    """

    value: float
    se: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, new minus reference, with its test and with what its interval rests on.

    `p_test` is two-sided and not adjusted, by `test`; Holm's correction runs over it. `p` is the larger of it and of
    the level at which the interval leaves zero out, so that p < 0.05 never stands beside an interval that holds zero.
    `gained` and `lost` count the documents whose score rose and fell;
    `detectable` is the smallest true difference that this test finds with 80 % power in documents like these (NaN
    where too few units can show any, or where it was not asked for). `units` are independent; `freedom` is that of
    the variance between them (infinite where documents are independent); `effective` is the size of an equally
    informative sample of independent documents; `assumed` is the share of documents that `detectable` takes to change.
    """

    p: float
    p_test: float
    test: str
    gained: int
    lost: int
    detectable: float
    units: int
    freedom: float
    effective: float
    assumed: float
