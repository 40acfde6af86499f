"""Seeds, families and persistence: coverage by simulation, and every outcome from made-up answers."""

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from benchmarks.draws import crossed_differences
from pipeline.analysis import intervals
from pipeline.analysis.design import design
from pipeline.analysis.paired import change
from pipeline.analysis.persistence import Decision, Persistence, decide, persistence, share_left
from pipeline.analysis.repeats import (
    against_seeds,
    crossed,
    crossed_variance,
    mean_difference,
    mean_score,
    place,
)

N = 300


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [0.0, 3.0])
def test_the_interval_against_random_vectors_holds_the_seeds_variation(seeds: int, of_seed: float) -> None:
    x = crossed_differences(np.random.default_rng(1), 1000, seeds, N, 0.1, of_seed, 0.7)
    parts = crossed_variance(x / N, design(N).blocks)
    mean, square = x.mean(axis=1).mean(axis=-1), np.square(x.mean(axis=1)).mean(axis=-1)

    def size(confidence: ArrayLike) -> intervals.Floats:
        return intervals.effective_size(square - mean**2, parts, N, confidence)

    low, high = intervals.paired(mean, square, size(0.95))
    holds_zero = (low <= 0) & (high >= 0)
    assert np.mean(holds_zero) >= 0.93
    p = intervals.p_value(mean, square, size)
    assert np.mean(p < 0.05) <= 0.06
    np.testing.assert_array_equal(p >= 0.05, holds_zero)
    if of_seed:  # what the interval over documents alone would miss
        low, high = intervals.paired(mean, square, N)
        assert np.mean((low <= 0) & (high >= 0)) < 0.8


def test_variance_of_a_mean_over_seeds_and_documents_by_hand() -> None:
    x = np.array([[1.0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]])
    (seeds, seed_df), (documents, _) = crossed(x, design(4))
    residual = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
    shared = np.square(residual).sum() / (2 * 3) / 12
    assert (seeds, seed_df) == (pytest.approx(x.mean(axis=1).var(ddof=1) / 3), 2)
    assert documents == pytest.approx(max(x.mean(axis=0).var(ddof=1) / 4 - shared, 0))


def test_one_seed_has_the_interval_of_its_documents() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [30, 10, 260])
    assert mean_difference(d[None], design(N)) == change(d, design(N))


def test_against_seeds_is_the_mean_of_the_differences() -> None:
    rng = np.random.default_rng(2)
    v, seeds = (rng.random(N) < 0.6) * 1.0, (rng.random((5, N)) < 0.4) * 1.0
    found = against_seeds(v, seeds, design(N))
    assert found.value == pytest.approx(v.mean() - seeds.mean())
    assert found.p < 0.01
    assert found.low > 0
    assert 0 < found.detectable < found.value


def test_p_is_below_five_per_cent_where_the_inner_interval_leaves_zero_out() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        x = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=(4, 60))
        found = mean_difference(x, design(60), level=None)
        assert found.p < 0.05 or found.low <= 0 <= found.high


def test_seeds_that_agree_are_no_certainty() -> None:
    x = np.tile(np.repeat([1.0, 0.0], [3, 297]), (5, 1))
    found = mean_difference(x, design(N))
    assert found.low < 0
    assert found.p > 0.05
    score = mean_score(np.ones((5, 40)), design(40))
    assert score.low < score.value == score.high == 1.0


def test_families_that_differ_widen_the_mean_score() -> None:
    rng = np.random.default_rng(4)
    skills = np.array([0.3, 0.5, 0.7])[:, None]
    scores = (rng.random((3, N)) < skills) * 1.0
    apart, alike = mean_score(scores, design(N)), mean_score((rng.random((3, N)) < 0.5) * 1.0, design(N))
    assert 0 <= apart.low < apart.high <= 1
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


def test_place_among_seeds() -> None:
    found = place(-0.3, [0.1, -0.2, 0.3, 0.05, -0.4])
    assert (found.as_far, found.of, found.p) == (2, 5, 0.5)
    assert place(0.9, [0.1, 0.2, 0.3, 0.4]).p == 1 / 5


# ---- persistence ----


def answers(right: float, n: int = 1000, order: int = 0) -> np.ndarray:
    """Scores of which this share is right, in an order of their own."""
    return np.random.default_rng(order).permutation(np.arange(n) < right * n) * 1.0


def case(plain0: float, plain: float, perturbed0: float, perturbed: float, n: int = 1000) -> Persistence:
    scores = [answers(right, n, order) for order, right in enumerate((plain0, plain, perturbed0, perturbed))]
    return persistence(*scores, design(n))


@pytest.mark.parametrize(
    ("shares", "n", "outcome"),
    [
        ((0.3, 0.6, 0.3, 0.6), 1000, "yes"),
        ((0.3, 0.6, 0.3, 0.42), 1000, "in part"),
        ((0.3, 0.45, 0.3, 0.405), 1000, "at least in part"),
        ((0.3, 0.6, 0.3, 0.3), 1000, "no"),
        ((0.3, 0.6, 0.3, 0.1), 1000, "reversed"),
        ((0.3, 0.6, 0.01, 0.01), 1000, "floor"),
        ((0.3, 0.3, 0.3, 0.3), 1000, "no gain"),
        ((0.6, 0.3, 0.6, 0.3), 1000, "a loss"),
        ((0.3, 0.7, 0.3, 0.45), 60, "cannot tell"),
    ],
)
def test_outcomes(shares: tuple[float, float, float, float], n: int, outcome: str) -> None:
    assert decide([case(*shares, n)])[0].outcome == outcome


def test_holm_s_correction_runs_over_all_cases() -> None:
    one = case(0.3, 0.36, 0.3, 0.36)
    alone, together = decide([one])[0], decide([one] * 4)[0]
    assert alone.outcome == "at least in part"
    assert together == Decision("no gain", *(min(1.0, 4 * p) for p in (alone.p_plain, alone.p_gain, 1.0)))
    assert decide([]) == []


def test_the_share_that_is_left_has_fieller_s_interval() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(500):
        plain = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.65, 0.3], size=400)
        kept = plain * (rng.random(400) < 0.6)
        found = share_left(plain, kept, design(400))
        inside += found.low <= 0.6 <= found.high
    assert 0.93 <= inside / 500 <= 0.98


def test_no_gain_leaves_the_share_open() -> None:
    plain, perturbed = answers(0.5) - answers(0.51, order=1), answers(0.4) - answers(0.3, order=1)
    found = share_left(plain, perturbed, design(1000))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert math.isnan(share_left(np.zeros(10), np.ones(10), design(10)).value)


def test_fieller_by_hand() -> None:
    # (b - r a)^2 <= 4 (v_b + r^2 v_a) with a = 1, b = 0.5, v_a = v_b = 0.01: 0.96 r^2 - r + 0.21 <= 0.
    low, high = intervals.fieller(0.5, 1.0, np.diag([0.01, 0.01]), 2.0)
    root = math.sqrt(1 - 4 * 0.96 * 0.21)
    assert (low, high) == pytest.approx(((1 - root) / 1.92, (1 + root) / 1.92))
