"""Paired differences, scores and power: against statsmodels, scipy, published examples, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.proportion import proportion_confint

from benchmarks.clustered import Clustered
from benchmarks.draws import by_document, draw
from pipeline.analysis import intervals
from pipeline.analysis.design import Blocks, design, robust_variance, sample_of
from pipeline.analysis.holm import adjusted, holm
from pipeline.analysis.paired import change, difference, number, score
from pipeline.analysis.power import detectable, mcnemar_power
from pipeline.analysis.repeats import mean_difference
from pipeline.analysis.signflip import mcnemar_exact, sign_flip, smallest_p

EXPERIMENTS = 2000
SUBTASKS = np.repeat(np.arange(4), 100)


def changes(gained: int, lost: int, n: int) -> np.ndarray:
    return np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost])


def one_more_right_in_each(subtasks: np.ndarray) -> np.ndarray:
    d = np.zeros(len(subtasks))
    d[np.unique(subtasks, return_index=True)[1]] = 1.0
    return d


# ---- certainty that nothing supports ----


def test_equal_net_changes_of_few_clusters_are_no_certainty() -> None:
    found = change(one_more_right_in_each(SUBTASKS), design(400, clusters=SUBTASKS))
    assert found.p == 2 / 2**4
    assert found.low < 0 < found.value < found.high
    assert found.se > 0


def test_clusters_that_change_as_a_whole_count_as_one_document_each() -> None:
    found = change(np.ones(30), design(30, clusters=np.repeat(np.arange(3), 10)))
    assert (found.value, found.effective, found.p) == (1.0, 3, 0.25)
    assert found.low < 0


def test_no_change_at_all_keeps_an_interval_and_a_detectable_difference() -> None:
    for clusters in (None, SUBTASKS):
        found = change(np.zeros(400), design(400, clusters=clusters))
        assert (found.value, found.p, found.gained, found.lost) == (0.0, 1.0, 0, 0)
        assert found.low < 0 < found.high
    found = change(np.zeros(400), design(400))
    assert mcnemar_power(400, found.detectable, found.assumed) == pytest.approx(0.8, abs=1e-3)


def test_equal_scores_are_no_certainty() -> None:
    clusters = np.repeat(np.arange(5), 10)
    assert score(np.ones(50), design(50)).low == pytest.approx(
        proportion_confint(50, 50, method="agresti_coull")[0]
    )
    # Five clusters that are right as a whole say no more than five documents.
    clustered = score(np.ones(50), design(50, clusters=clusters))
    assert clustered.low == pytest.approx(proportion_confint(5, 5, method="agresti_coull")[0])


def test_one_cluster_gives_no_interval_and_no_test() -> None:
    found = change(changes(5, 1, 20), design(20, clusters=np.zeros(20)))
    assert found.value == pytest.approx(0.2)
    assert all(math.isnan(x) for x in (found.low, found.high, found.se, found.p, found.detectable))
    assert math.isnan(score(np.ones(3), design(3, clusters=np.zeros(3))).low)


# ---- the variance ----


def test_cluster_variance_equals_statsmodels_for_equal_clusters() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(12), 20)
    d = rng.choice([-1.0, 0.0, 1.0], size=240) + 0.2 * (clusters % 3)
    fit = OLS(d, np.ones(240)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "df_correction": True})
    variance, freedom = design(240, clusters=clusters).variance(d)
    assert math.sqrt(variance) == pytest.approx(float(fit.bse[0]))
    assert freedom == pytest.approx(11.0, abs=1e-6)


def test_degrees_of_freedom_are_those_of_bell_and_mccaffrey() -> None:
    sizes = np.array([3, 5, 5, 20, 41, 60])
    clusters = np.repeat(np.arange(6), sizes)
    n = len(clusters)
    # By hand: B holds the covariances of the adjusted sums of residuals, for independent documents.
    member = (clusters[:, None] == np.arange(6)).astype(float)
    adjusted = (member - sizes / n).T / np.sqrt(1 - sizes / n)[:, None]
    b = adjusted @ adjusted.T
    blocks = Blocks(sizes / n, sizes / n**2, np.zeros(6, dtype=int))
    level = np.outer([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], [1.0]).T * np.sqrt(
        blocks.square
    )  # no excess kurtosis
    assert robust_variance(level, blocks)[1][0] == pytest.approx(np.trace(b) ** 2 / np.square(b).sum())


def test_a_single_large_cluster_takes_degrees_of_freedom_away() -> None:
    d = changes(30, 25, 200)
    even, uneven = np.repeat(np.arange(10), 20), np.minimum(np.arange(200) // 10, 5)
    assert design(200, clusters=uneven).variance(d)[1] < design(200, clusters=even).variance(d)[1]


def test_a_spread_that_a_few_clusters_carry_has_few_degrees_of_freedom() -> None:
    d = changes(10, 0, 200)  # all in the first of ten clusters
    freedom = design(200, clusters=np.repeat(np.arange(10), 20)).variance(d)[1]
    excess = stats.kurtosis([10.0] + [0.0] * 9, bias=False)
    assert freedom == pytest.approx(1 / (1 / 9 + excess / 20))
    spread = changes(10, 0, 200)[np.random.default_rng(1).permutation(200)]
    assert design(200, clusters=np.repeat(np.arange(10), 20)).variance(spread)[1] > freedom
    # As rare changes, which a difference consists of, they have what their number gives.
    residual = np.array([9.0] + [-1.0] * 9)
    of_events = design(200, clusters=np.repeat(np.arange(10), 20)).variance(d, rare=True)[1]
    assert of_events == pytest.approx(2 * np.square(residual).sum() ** 2 / np.power(residual, 4).sum())


def test_units_of_all_sizes_do_not_make_a_rare_change_worse_known_than_it_is() -> None:
    sizes = np.array([71, 40, 30, *[5] * 60])
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    d = np.zeros(len(clusters))
    d[[0, 75, 150, 200]] = [1.0, -1.0, 1.0, -1.0]  # four documents in four clusters
    found = change(d, design(len(d), clusters=clusters))
    assert found.freedom >= 2
    assert -0.04 < found.low < 0 < found.high < 0.04
    alike = design(len(d), clusters=clusters).alike
    assert alike == pytest.approx(len(d) ** 2 / np.square(sizes).sum())
    at_least = intervals.effective_size(0.1, [(10.0, 2.0)], len(d), 0.95, alike)
    assert at_least == pytest.approx(alike * (1.959964 / stats.t.ppf(0.975, alike - 1)) ** 2, rel=1e-5)


def test_strata_have_the_textbook_variance() -> None:
    rng = np.random.default_rng(2)
    strata = np.repeat(np.arange(3), [10, 20, 30])
    x = rng.random(60) + strata
    expected = sum(x[strata == s].var(ddof=1) / (strata == s).sum() for s in range(3)) / 9
    plan = design(60, strata=strata)
    assert plan.variance(x)[0] == pytest.approx(expected)
    assert plan.mean(x) == pytest.approx(np.mean([x[strata == s].mean() for s in range(3)]))


def test_strata_of_one_cluster_are_compared_with_each_other() -> None:
    strata = np.repeat(np.arange(5), 4)
    x = strata * 1.0
    alone = design(20, clusters=strata, strata=strata).variance(x)[0]
    assert alone == pytest.approx(np.arange(5).var(ddof=1) / 5)


def test_groups_as_a_sample_give_student_s_variance_of_their_means() -> None:
    groups = np.repeat(np.arange(4), [10, 20, 30, 40])
    x = np.random.default_rng(3).random(100)
    means = [x[groups == g].mean() for g in range(4)]
    plan = sample_of(groups)
    assert plan.mean(x) == pytest.approx(np.mean(means))
    assert plan.variance(x)[0] == pytest.approx(np.var(means, ddof=1) / 4)


def test_lengths_have_student_s_interval() -> None:
    x = np.random.default_rng(4).gamma(2.0, 50.0, 40)
    found, expected = number(x, design(40)), stats.t.interval(0.95, 39, x.mean(), stats.sem(x))
    assert found.high - found.value == pytest.approx(
        expected[1] - x.mean(), rel=0.1
    )  # fewer df for a skewed sample
    assert found.se == pytest.approx(stats.sem(x))


# ---- the test ----


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=10))
def test_sign_flip_equals_every_assignment_of_signs(sums: list[int]) -> None:
    every = [
        abs(np.dot(signs, sums)) >= abs(sum(sums)) for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    assert sign_flip(np.array(sums) / 250) == pytest.approx(np.mean(every), abs=1e-12)


def test_sign_flip_equals_scipy() -> None:
    sums = np.random.default_rng(5).normal(0.5, 1.0, 9)
    expected = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(sums) == pytest.approx(expected.pvalue, abs=2 / 2**9)  # sums are rounded to steps


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_flip_of_single_documents_is_mcnemar_s_test(gained: int, lost: int) -> None:
    found = change(changes(gained, lost, 90), design(90))
    assert found.p == mcnemar_exact(gained, lost)
    assert (found.test, found.gained, found.lost) == ("McNemar", gained, lost)


def test_unequal_strata_weigh_their_documents_in_the_test() -> None:
    # Gains of weight 1/4 each and a loss of 1/40: as far as 0.475 go the four assignments with both gains alike.
    strata = np.repeat([0, 1], [2, 20])
    found = change(np.array([1.0, 1.0, -1.0] + [0.0] * 19), design(22, strata=strata))
    assert found.value == pytest.approx(0.475)
    assert (found.p, found.test) == (pytest.approx(4 / 8), "sign flip")


def test_few_clusters_cannot_be_significant() -> None:
    assert smallest_p(5) > 0.05 > smallest_p(6)
    assert change(np.ones(500), design(500, clusters=np.repeat(np.arange(5), 100))).p == smallest_p(5)


# ---- the intervals ----


def test_paired_interval_of_a_published_example() -> None:
    # Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness: 1 gained and 7 lost of 21. Bonett and
    # Price: -0.508 to -0.013; Tango: -0.517 to -0.026. The outer ends:
    low, high = intervals.paired(-6 / 21, 8 / 21, 21)
    assert (float(low), float(high)) == pytest.approx((-0.517, -0.013), abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60))
def test_paired_interval_holds_its_estimate_and_is_symmetric(gained: int, lost: int, n: int) -> None:
    n = max(n, gained + lost)
    found, turned = change(changes(gained, lost, n), design(n)), change(changes(lost, gained, n), design(n))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((-turned.high, -turned.low), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 300))
def test_a_share_has_agresti_and_coull_s_interval(n: int, right: int) -> None:
    right = min(n, right)
    found = score([1] * right + [0] * (n - right), design(n))
    expected = proportion_confint(right, n, method="agresti_coull")
    assert (found.low, found.high) == pytest.approx((max(0.0, expected[0]), min(1.0, expected[1])), abs=1e-9)


def test_bbh_s_interval_stays_below_100_per_cent() -> None:
    # Four subtasks of two documents, as in the first run on SmolLM2: 54.0 ± 48.4 was said of such a cell.
    strata = np.repeat(np.arange(4), 2)
    scores = np.array([1, 1, 0, 0, 1, 0, 1, 1.0])
    fixed, sample = score(scores, design(8, strata=strata)), score(scores, sample_of(strata))
    for found in (fixed, sample):
        assert found.value == 0.625
        assert 0 <= found.low < found.value < found.high <= 1
    assert sample.high - sample.low > fixed.high - fixed.low


def test_the_spread_between_strata_is_no_error() -> None:
    strata = np.repeat(np.arange(27), 240)
    rng = np.random.default_rng(6)
    scores = (rng.random(len(strata)) < np.linspace(0.02, 0.98, 27)[strata]) * 1.0
    fixed, plain = score(scores, design(len(strata), strata=strata)), score(scores, design(len(strata)))
    assert fixed.value == pytest.approx(plain.value)
    assert fixed.se < 0.9 * plain.se


def test_a_cluster_is_read_within_its_stratum() -> None:
    assert design(4, clusters=["a", "a", "a", "b"], strata=[0, 0, 1, 1]).count == 3


def test_differences_of_differences_reach_two() -> None:
    d = np.array([2.0, 2.0, -1.0, 0.0, 1.0, 0.0])
    found = change(d, design(6), scale=2.0)
    assert found.value == pytest.approx(d.mean())
    assert -2 <= found.low < found.value < found.high <= 2
    assert found.test == "sign flip"


def test_averages_of_clusters_equal_the_simulated_ones() -> None:
    # The tables of docs/statistics.md come from counts by cluster; a run has documents. Both are one computation.
    sizes = np.array([4, 9, 9, 30, 30, 50])
    counts = draw(np.random.default_rng(7), 1, sizes, 0.2, 0.1, 0.1)[0]
    clusters = np.repeat(np.arange(6), sizes)
    d = by_document(sizes, counts[:, 0], counts[:, 1])
    drawn = Clustered(counts[None], sizes)
    found = change(d, design(len(d), clusters=clusters))
    assert (found.low, found.high) == pytest.approx([float(end[0]) for end in drawn.ours()])
    assert found.p_test == drawn.flipped[0]
    assert (found.p < 0.05) == drawn.stars()[0]


# ---- test and interval ----


@pytest.mark.parametrize("n", [*range(2, 30), 90, 164])
def test_where_mcnemar_s_test_rejects_the_interval_leaves_zero_out(n: int) -> None:
    gained, lost = (x.ravel() for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    inside = (gained + lost <= n) & (gained > lost)
    gained, lost = gained[inside], lost[inside]
    low, _ = intervals.paired((gained - lost) / n, (gained + lost) / n, n)
    p = np.array([mcnemar_exact(int(up), int(down)) for up, down in zip(gained, lost, strict=True)])
    assert (low[p < 0.05] > 0).all()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_test_and_interval_leave_zero_out_together(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=20))
    lean = data.draw(st.floats(-1, 1))
    seed, changed = data.draw(st.integers(0, 10_000)), data.draw(st.sampled_from([0.02, 0.1, 0.5, 1.0]))
    rng, n = np.random.default_rng(seed), sum(sizes)
    shift = rng.choice([0.0, 0.5], len(sizes)).repeat(sizes)
    d = np.where(rng.random((data.draw(st.integers(1, 3)), n)) < lean / 2 + 0.5 - shift, 1.0, -1.0)
    d = d * (rng.random(d.shape) < changed)
    drawn = design(n, clusters=np.repeat(np.arange(len(sizes)), sizes))
    found = mean_difference(d, drawn)
    holds_zero = found.low <= 0 <= found.high
    assert found.p >= found.p_test
    if found.p < 0.05:
        assert not holds_zero
    elif (
        len(d) > 1 or drawn.count > 5
    ):  # five units or fewer: no test can reject, the interval is the one to read
        assert holds_zero


def test_a_clear_sign_flip_beside_an_interval_that_holds_zero_is_no_finding() -> None:
    # Small losses in nine units and a large one in the tenth: all but one sign agree, yet the spread is wide.
    sums, sizes = [-13, -5, -4, -4, *[-1] * 10, 1, *[0] * 40], [35, 32, 56, 71, *[9] * 10, 7, *[4] * 40]
    d = np.concatenate(
        [np.repeat([np.sign(s), 0.0], [abs(s), n - abs(s)]) for s, n in zip(sums, sizes, strict=True)]
    )
    found = change(d, design(len(d), clusters=np.repeat(np.arange(len(sizes)), sizes)))
    assert found.p_test < 0.001
    assert found.low < 0 < found.high
    assert found.p > 0.05
    assert adjusted([found])[0] == found.p


def test_the_correction_is_of_the_tests_and_the_interval_s_p_is_a_floor() -> None:
    clusters = np.repeat(np.arange(12), 20)
    rng = np.random.default_rng(1)
    d = [np.where(rng.random(240) < gain, 1.0, 0.0) for gain in (0.05, 0.2, 0.4)]
    found = [change(one, design(240, clusters=clusters)) for one in d]
    expected = np.maximum(holm([one.p_test for one in found]), [one.p for one in found])
    np.testing.assert_array_equal(adjusted(found), expected)
    assert found[2].p < 0.05


# ---- coverage ----


@pytest.mark.parametrize("clusters", [3, 6, 11, 27])
@pytest.mark.parametrize(("discordance", "correlation"), [(0.02, 0.05), (0.1, 0.2), (0.3, 0.0)])
def test_the_interval_covers_with_few_clusters(clusters: int, discordance: float, correlation: float) -> None:
    sizes = np.full(clusters, 40)
    n = float(sizes.sum())
    blocks = Blocks(sizes / n, sizes / n**2, np.zeros(clusters, dtype=int))
    for gain, loss in ((0.5, 0.5), (0.75, 0.25)):
        gain, loss = gain * discordance, loss * discordance
        counts = draw(np.random.default_rng(8), EXPERIMENTS, sizes, gain, loss, correlation)
        net = (counts[..., 0] - counts[..., 1]).astype(float)
        mean, square = net.sum(axis=-1) / n, counts.sum(axis=(1, 2)) / n
        size = intervals.effective_size(square - mean**2, [robust_variance(net / n, blocks)], n, 0.95)
        low, high = intervals.paired(mean, square, size)
        assert np.mean((low <= gain - loss) & (gain - loss <= high)) >= 0.93


def test_stars_are_false_in_five_per_cent_of_clustered_experiments() -> None:
    counts = draw(np.random.default_rng(9), EXPERIMENTS, np.full(11, 40), 0.15, 0.15, 0.2)
    rate = np.mean([sign_flip(net) < 0.05 for net in (counts[..., 0] - counts[..., 1])])
    assert 0.03 < rate < 0.06


# ---- power ----


@pytest.mark.parametrize(
    ("n", "discordance", "points"), [(164, 0.05, 4.9), (164, 0.1, 7.0), (1000, 0.1, 2.9), (6511, 0.1, 1.1)]
)
def test_detectable_difference_of_the_real_benchmarks(n: int, discordance: float, points: float) -> None:
    assert 100 * detectable(n, discordance).effect == pytest.approx(points, abs=0.06)


@pytest.mark.parametrize(("n", "discordance"), [(100, 0.0), (164, 0.005), (164, 0.3), (1000, 0.05)])
@pytest.mark.parametrize("level", [0.05, 0.05 / 40])
def test_what_is_called_detectable_is_found_in_80_per_cent(n: int, discordance: float, level: float) -> None:
    least = detectable(n, discordance, level)
    gain = (least.discordance + least.effect) / 2
    rng = np.random.default_rng(10)
    counts = rng.multinomial(n, [gain, gain - least.effect, 1 - least.discordance], EXPERIMENTS)
    assert np.mean([mcnemar_exact(up, down) < level for up, down, _ in counts.tolist()]) == pytest.approx(
        0.8, abs=0.03
    )


def test_power_by_hand() -> None:
    # Six documents, all change: only six of a kind are significant at 5 %.
    assert mcnemar_power(6, 0.5, 1.0) == pytest.approx(0.75**6 + 0.25**6)
    # Seven documents of which half change: six or seven changes of a kind (p = 0.031 and 0.016), not six to one.
    expected = 7 * 0.5**7 * 2 * 0.5**6 + 0.5**7 * 2 * 0.5**7
    assert mcnemar_power(7, 0.0, 0.5) == pytest.approx(expected)


def test_power_rises_with_the_effect_and_falls_with_the_number_of_tests() -> None:
    powers = [mcnemar_power(500, effect, 0.2) for effect in (0.0, 0.02, 0.05, 0.1)]
    assert powers == sorted(powers)
    assert powers[0] < 0.05
    assert detectable(500, 0.2, 0.05 / 40).effect > detectable(500, 0.2).effect


def test_five_documents_and_five_clusters_detect_nothing() -> None:
    assert math.isnan(detectable(5, 0.5).effect)
    assert math.isnan(change(changes(20, 15, 200), design(200, clusters=np.arange(200) % 5)).detectable)


def test_clusters_and_stricter_levels_raise_what_is_detectable() -> None:
    sizes, clusters = np.full(27, 40), np.repeat(np.arange(27), 40)
    counts = draw(np.random.default_rng(11), 1, sizes, 0.15, 0.15, 0.2)[0]
    d = by_document(sizes, counts[:, 0], counts[:, 1])
    clustered = change(d, design(len(d), clusters=clusters))
    assert clustered.detectable > 2 * change(d, design(len(d))).detectable
    # Student's t costs more at a stricter level: with the effective size of the 95 % interval it would be less.
    strict = change(d, design(len(d), clusters=clusters), level=0.05 / 40)
    assert strict.detectable > 1.05 * detectable(clustered.effective, clustered.assumed, 0.05 / 40).effect


def test_difference_is_new_less_reference() -> None:
    found = difference([0, 0, 1, 1], [1, 0, 1, 1], design(4))
    assert (found.value, found.gained, found.lost, found.n, found.units) == (0.25, 1, 0, 4, 4)
    with pytest.raises(ValueError, match="no documents"):
        design(0)
