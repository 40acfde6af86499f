"""The formulas against scipy, statsmodels and numbers worked by hand, and their intervals by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from pipeline.analysis.statistics import (
    holm,
    mcnemar_exact,
    mean_interval,
    mean_over_seeds,
    paired_difference,
)

EXPERIMENTS = 2000
COVERED = (0.93, 0.97)


def pair(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference and new scores of n documents with these discordant counts; the rest is half right."""
    reference, new = np.zeros(n), np.zeros(n)
    new[:gained] = 1
    reference[gained : gained + lost] = 1
    rest = slice(gained + lost, (n + gained + lost) // 2)
    reference[rest] = new[rest] = 1
    return reference, new


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_statsmodels(gained: int, lost: int) -> None:
    expected = mcnemar([[3, gained], [lost, 5]], exact=True).pvalue
    assert mcnemar_exact(gained, lost) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_by_hand() -> None:
    # 1 against 7 of 8 discordant: 2 (C(8,0) + C(8,1)) / 2^8.
    assert mcnemar_exact(1, 7) == pytest.approx(2 * 9 / 256)
    assert mcnemar_exact(0, 0) == 1.0


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_holm_equals_statsmodels(count: int) -> None:
    rng = np.random.default_rng(count)
    for p_values in (rng.random(count), rng.random(count) ** 6, np.repeat(0.01, count)):
        np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12)


def test_holm_passes_over_what_was_not_tested() -> None:
    adjusted = holm([0.04, math.nan, 0.01])
    assert math.isnan(adjusted[1])
    np.testing.assert_allclose(adjusted[[0, 2]], [0.04, 0.02])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 300))
def test_a_share_has_wilson_s_interval(n: int, right: int) -> None:
    right = min(n, right)
    low, high = proportion_confint(right, n, method="wilson")
    found = mean_interval([1] * right + [0] * (n - right))
    assert (found.low, found.high) == pytest.approx((max(0, low), min(1, high)), abs=1e-9)


def test_paired_interval_of_a_worked_example() -> None:
    # 1 gained and 7 lost of 21, with the shares (1 + 1) / (21 + 2) and (7 + 1) / (21 + 2).
    found = paired_difference(*pair(1, 7, 21))
    up, down = 2 / 23, 8 / 23
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 23)
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((-0.508, -0.013), abs=5e-4)
    assert (found.gained, found.lost, found.test) == (1, 7, "McNemar")


def test_graded_scores_get_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40) + 0.1
    found, expected = paired_difference(a, b), stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.test == "t"


def test_clustered_standard_error_equals_statsmodels() -> None:
    rng = np.random.default_rng(2)
    clusters = rng.integers(0, 12, size=200)
    difference = rng.choice([-1.0, 0.0, 1.0], size=200) + 0.2 * (clusters % 3)
    fit = OLS(difference, np.ones(200)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "df_correction": True}, use_t=True
    )
    found = paired_difference(np.zeros(200), difference, clusters)
    assert found.se == pytest.approx(float(fit.bse[0]))
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]))
    assert found.p == pytest.approx(float(fit.pvalues[0]))


def test_clusters_of_one_document_change_nothing() -> None:
    scores = pair(9, 4, 80)
    assert paired_difference(*scores, clusters=np.arange(80)) == paired_difference(*scores)


def test_mean_over_seeds_has_student_s_interval() -> None:
    values = [0.61, 0.58, 0.66]
    found = mean_over_seeds(values)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)


def test_one_seed_and_one_cluster_give_no_interval() -> None:
    assert math.isnan(mean_over_seeds([0.5]).low)
    one_cluster = paired_difference(*pair(5, 1, 20), clusters=np.zeros(20))
    assert one_cluster.value == pytest.approx(0.2)
    assert math.isnan(one_cluster.low)
    assert math.isnan(one_cluster.p)


def test_equal_answers_do_not_claim_certainty() -> None:
    for clusters in (None, np.repeat(np.arange(5), 10)):
        found = paired_difference(*pair(0, 0, 50), clusters=clusters)
        assert found.value == 0
        assert found.p == 1.0
        assert found.low < 0 < found.high
        perfect = mean_interval(np.ones(50), clusters)
        assert perfect.low < perfect.value == perfect.high == 1.0


@pytest.mark.parametrize(
    ("n", "discordant", "points"),
    [
        (164, 0.05, 4.9),
        (164, 0.1, 6.9),
        (1000, 0.05, 2.0),
        (1000, 0.1, 2.8),
        (1319, 0.05, 1.7),
        (6511, 0.1, 1.1),
    ],
)
def test_detectable_difference_of_the_real_benchmarks(n: int, discordant: float, points: float) -> None:
    half = round(n * discordant / 2)
    assert 100 * paired_difference(*pair(half, half, n)).detectable == pytest.approx(points, abs=0.1)


def test_detectable_difference_is_found_with_80_percent_power() -> None:
    rng = np.random.default_rng(3)
    n, discordant = 1000, 0.1
    half = round(n * discordant / 2)
    effect = paired_difference(*pair(half, half, n)).detectable
    chances = [(discordant + effect) / 2, (discordant - effect) / 2, 1 - discordant]
    counts = rng.multinomial(n, chances, EXPERIMENTS)
    power = np.mean([mcnemar_exact(int(gained), int(lost)) < 0.05 for gained, lost, _ in counts])
    assert 0.72 < power < 0.88  # the exact test is a little conservative


@pytest.mark.parametrize(("n", "gain", "loss"), [(164, 0.06, 0.03), (500, 0.15, 0.10), (1000, 0.03, 0.03)])
def test_paired_interval_covers_the_truth(n: int, gain: float, loss: float) -> None:
    rng = np.random.default_rng(4)
    counts = rng.multinomial(n, [gain, loss, 1 - gain - loss], EXPERIMENTS)
    found = [paired_difference(*pair(int(gained), int(lost), n)) for gained, lost, _ in counts]
    covered = np.mean([d.low <= gain - loss <= d.high for d in found])
    assert COVERED[0] <= covered <= COVERED[1]


def clustered_experiments() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Reference, new, clusters: 27 subtasks of 20 documents with gains around +10 points."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(27), 20)
    experiments = []
    for _ in range(EXPERIMENTS):
        difficulty = rng.random(len(clusters))
        gain = 0.1 + 0.1 * rng.choice([-1, 1], 27)[clusters]
        experiments.append(((difficulty < 0.4) * 1.0, (difficulty < 0.4 + gain) * 1.0, clusters))
    return experiments


def test_clustered_interval_covers_the_truth_and_a_plain_one_does_not() -> None:
    experiments = clustered_experiments()
    clustered = [paired_difference(*e) for e in experiments]
    plain = [paired_difference(a, b) for a, b, _ in experiments]
    assert COVERED[0] <= np.mean([d.low <= 0.1 <= d.high for d in clustered]) <= COVERED[1]
    assert np.mean([d.low <= 0.1 <= d.high for d in plain]) < 0.85


def test_interval_of_a_mean_covers_the_truth() -> None:
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(27), 20)
    alone = together = 0
    for _ in range(EXPERIMENTS):
        found = mean_interval((rng.random(164) < 0.7) * 1.0)
        alone += found.low <= 0.7 <= found.high
        skill = rng.uniform(0.4, 0.8, 27)[clusters]
        found = mean_interval((rng.random(len(clusters)) < skill) * 1.0, clusters)
        together += found.low <= 0.6 <= found.high
    assert COVERED[0] <= alone / EXPERIMENTS <= COVERED[1]
    assert COVERED[0] <= together / EXPERIMENTS <= COVERED[1]


def test_interval_over_seeds_covers_the_truth() -> None:
    rng = np.random.default_rng(7)
    found = [mean_over_seeds(rng.normal(0.5, 0.03, 3)) for _ in range(EXPERIMENTS)]
    assert COVERED[0] <= np.mean([e.low <= 0.5 <= e.high for e in found]) <= COVERED[1]
