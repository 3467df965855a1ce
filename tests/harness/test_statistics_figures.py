"""Perplexity, means, llama.cpp's figures and Holm's correction, each against its textbook formula."""

from math import exp, inf, isnan, log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvdelta.harness.statistics import clustered_mean, delta_ppl, holm, iid_log_ratio, iid_mean, perplexity

# --- perplexity and means ---


def test_perplexity_of_a_uniform_guess_is_the_vocabulary():
    assert perplexity(100 * log(49152), 100) == pytest.approx(49152, rel=1e-14)  # log's ulp, times log V = 11


def test_perplexity_sums_first_and_takes_exp_last():
    # e to the mean over all tokens; the mean of the two windows' perplexities would be (e¹ + e³)/2 = 11.4
    assert perplexity([10.0, 30.0], [10, 10]) == pytest.approx(exp(2), rel=1e-15)
    # and unequal windows count by their tokens
    assert perplexity([10.0, 90.0], [10, 30]) == pytest.approx(exp(2.5), rel=1e-15)
    assert perplexity([10.0, 90.0], [10, 30]) == perplexity(100.0, 40)


def test_perplexity_beyond_float64_is_infinite():
    assert perplexity(1000.0, 1) == inf


def test_delta_ppl():
    assert delta_ppl([8.0, 4.0], [4.0, 2.0], [2, 2]) == pytest.approx(exp(3) - exp(1.5), rel=1e-14)


def test_clustered_mean_by_hand():
    # per token 1, 2, 6: mean 3, squared deviations 4 + 1 + 9 = 14, sd √7, over √3
    mean, se = clustered_mean([2.0, 4.0, 12.0], [2, 2, 2])
    assert mean == 3
    assert se == pytest.approx(sqrt(7 / 3), rel=1e-15)


def test_clustered_mean_of_one_window_has_no_error():
    mean, se = clustered_mean([3.0], [2])
    assert mean == 1.5
    assert isnan(se)


# --- llama.cpp's figures ---


def test_iid_figures_are_the_textbook_formulas():
    rng = np.random.default_rng(5)
    a = rng.exponential(3.0, 1000)
    b = a + rng.normal(0, 0.5, 1000)
    n = len(a)
    mean_a, mean_b = a.sum() / n, b.sum() / n
    var_a = ((a * a).sum() / n - mean_a**2) / (n - 1)
    var_b = ((b * b).sum() / n - mean_b**2) / (n - 1)
    cov = ((a * b).sum() / n - mean_a * mean_b) / (n - 1)
    # The direct formulas subtract numbers about 100 times their difference: 100 ulps, and again as much.
    assert iid_mean(a) == pytest.approx((mean_a, sqrt(var_a)), rel=1e-12)
    assert iid_mean(a) == pytest.approx((a.mean(), stats.sem(a)), rel=1e-12)
    assert iid_log_ratio(a, b) == pytest.approx((mean_a - mean_b, sqrt(var_a + var_b - 2 * cov)), rel=1e-11)


def test_iid_error_survives_cancellation():
    # Σa²/n − m² of these is 0 or negative in float64; the spread is ±1 about 1e9
    assert iid_mean([1e9 - 1, 1e9 + 1] * 50)[1] == pytest.approx(sqrt(1 / 99), rel=1e-15)


def test_iid_mean_of_one_token_has_no_error():
    mean, se = iid_mean([2.5])
    assert mean == 2.5
    assert isnan(se)


# --- Holm ---


def test_holm_by_hand():
    # sorted .005·4 = .02, .01·3 = .03, .03·2 = .06, .04·1 = .04 raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-15)


def test_holm_leaves_nan_out():
    adjusted = holm([0.01, nan, 0.04, 0.03, nan, 0.005])
    assert [i for i, p in enumerate(adjusted) if isnan(p)] == [1, 4]
    assert [p for p in adjusted if not isnan(p)] == holm([0.01, 0.04, 0.03, 0.005])


def test_holm_of_nothing():
    assert holm([]) == []
    assert isnan(holm([nan])[0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_the_raw_p_and_bonferroni(p):
    adjusted = holm(p)
    bonferroni = [min(1.0, len(p) * raw) for raw in p]
    assert all(raw <= new <= most for raw, new, most in zip(p, adjusted, bonferroni, strict=True))
    assert min(adjusted) == min(bonferroni)  # the first step is Bonferroni's
    assert all(np.diff(np.array(adjusted)[np.argsort(p)]) >= 0)
