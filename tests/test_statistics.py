"""The exact McNemar test and Holm's correction against statsmodels and numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pipeline.analysis.holm import holm
from pipeline.analysis.signflip import mcnemar_exact


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
