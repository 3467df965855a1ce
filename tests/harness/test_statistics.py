"""Intervals cover what they promise, pairs agree with an oracle, and bad input is named."""

from math import exp, inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from kvdelta.harness.statistics import (
    clustered_mean,
    holm,
    iid_log_ratio,
    iid_mean,
    paired_delta,
    perplexity,
    ratio_interval,
)

COUNT = 511
LARGEST = 2000.0  # a window of 511 tokens at 4 nats each
# float64 rounds numbers up to 2000 to 2000·2⁻⁵³ ≈ 2e-13; the few dozen operations between sums and a
# figure in nats per token cannot make more than 1e-10 of it.
ROUNDING = 1e-10


def sums(windows):
    return arrays(np.float64, windows, elements=st.floats(0, LARGEST))


two_schemes = st.integers(2, 12).flatmap(lambda w: st.tuples(sums(w), sums(w)))


def counts_of(x):
    return np.full(len(x), COUNT)


def draw_windows(rng, windows, mean, correlation):
    """[windows, COUNT] normal tokens of variance 1 with this correlation within a window."""
    shared = sqrt(correlation) * rng.standard_normal((windows, 1))
    return mean + shared + sqrt(1 - correlation) * rng.standard_normal((windows, COUNT))


def covered(correlation, simulations=2000, windows=16):
    """How many (window-clustered, i.i.d.) 95 % intervals hold the true mean difference."""
    rng = np.random.default_rng(7)
    exact = rng.exponential(3.0, (windows, COUNT))
    true = 0.02
    clustered = iid = 0
    for _ in range(simulations):
        nll = exact + draw_windows(rng, windows, true, correlation)
        paired = paired_delta(nll.sum(1), exact.sum(1), counts_of(nll))
        clustered += paired.low <= true <= paired.high
        ratio, se = iid_log_ratio(nll.ravel(), exact.ravel())
        iid += abs(ratio - true) <= 1.96 * se
    return clustered, iid


def binomial(share, simulations=2000):
    """The range that a count of successes leaves once in a million."""
    return stats.binom.interval(1 - 1e-6, simulations, share)


# --- what an interval promises ---


def test_the_window_interval_covers_and_the_iid_interval_does_not():
    correlation = 0.02
    clustered, iid = covered(correlation)
    low, high = binomial(0.95)
    assert low <= clustered <= high
    assert iid < low
    # The variance of a mean grows by the design effect 1 + (n − 1)·ρ (Kish 1965), so the i.i.d. error is
    # its root too small: 3.35 times here, and the interval holds the truth in 44 % of all cases.
    too_small = sqrt(1 + (COUNT - 1) * correlation)
    low, high = binomial(2 * stats.norm.cdf(1.96 / too_small) - 1)
    assert low <= iid <= high


def test_both_intervals_cover_where_tokens_are_independent():
    low, high = binomial(0.95)
    for count in covered(0.0):
        assert low <= count <= high


@pytest.mark.parametrize("windows", [2, 3, 5, 9])
def test_the_sign_flip_test_is_exact(windows):
    """Against scipy's, which tries all signs of so few too."""
    d = np.random.default_rng(windows).normal(0.4, 1, windows)
    paired = paired_delta(d * COUNT, 0 * d, counts_of(d))
    oracle = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired.p_sign_flip == pytest.approx(oracle.pvalue, rel=1e-12)


def test_the_sign_flip_test_keeps_its_level():
    rng = np.random.default_rng(1)
    d = rng.standard_t(2, (4000, 8))  # far from normal, and symmetric
    rejected = sum(paired_delta(x, 0 * x, counts_of(x)).p_sign_flip <= 0.05 for x in d)
    assert rejected <= binomial(0.05, len(d))[1]


@pytest.mark.parametrize("windows", [17, 64])
def test_the_sign_flip_test_draws_where_there_are_too_many_ways(windows):
    """As scipy's, within what 9,999 draws leave open; the same every time, and of any 0.05 seldom less."""
    rng = np.random.default_rng(windows)
    for shift in (0.0, 0.3, 0.6):
        d = rng.lognormal(0, 1, windows) - np.exp(0.5) + shift
        paired = paired_delta(d * COUNT, 0 * d, counts_of(d))
        oracle = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=99_999, rng=rng).pvalue
        assert abs(paired.p_sign_flip - oracle) <= 5 * np.sqrt(oracle * (1 - oracle) / 9_999) + 2e-4
        assert paired_delta(d * COUNT, 0 * d, counts_of(d)) == paired
    assert paired_delta(np.ones(windows), np.zeros(windows), np.ones(windows)).p_sign_flip == pytest.approx(
        1e-4, abs=2e-4
    )
    symmetric = rng.standard_t(2, (1000, windows))
    rejected = sum(paired_delta(x, 0 * x, counts_of(x)).p_sign_flip <= 0.05 for x in symmetric)
    assert rejected <= binomial(0.05, len(symmetric))[1]


@pytest.mark.parametrize("windows", [8, 16, 64])
def test_the_test_of_skewness_is_scipys(windows):
    draws = np.random.default_rng(windows).gamma(2.0, size=(200, windows))
    found = [paired_delta(x * COUNT, 0 * x, counts_of(x)) for x in draws]
    assert [one.skewness for one in found] == pytest.approx(stats.skew(draws, axis=1))
    shown = (stats.skewtest(draws, axis=1).pvalue < 0.01) & (windows < 25 * stats.skew(draws, axis=1) ** 2)
    assert [one.skewed for one in found] == shown.tolist()
    assert 0 < shown.sum() < 200


def test_what_is_skewed_is_said_and_what_is_normal_is_not():
    """And what it is said for: how seldom a t interval of such differences holds their mean."""
    rng = np.random.default_rng(2)
    said, held = {}, {}
    for name, draws, mean in (
        ("normal", rng.standard_normal((1500, 16)), 0.0),
        ("lognormal", rng.lognormal(0, 1, (1500, 16)), np.exp(0.5)),
    ):
        found = [paired_delta(x * COUNT, 0 * x, counts_of(x)) for x in draws]
        said[name] = np.mean([one.skewed for one in found])
        held[name] = np.mean([one.low <= mean <= one.high for one in found])
    assert said["normal"] < 0.02
    assert said["lognormal"] > 0.5
    assert held["lognormal"] < 0.9 < 0.93 < held["normal"]
    assert not paired_delta([1, 2, 40], [0, 0, 0], [1, 1, 1]).skewed  # too few to tell


# --- paired differences ---


@pytest.mark.parametrize("windows", [2, 3, 8, 64])
def test_agrees_with_scipy(windows):
    rng = np.random.default_rng(windows)
    b = rng.uniform(1000, 2000, windows)
    a = b + rng.normal(3, 5, windows)
    paired = paired_delta(a, b, counts_of(a))
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.95)
    # Same differences, same float64; sums are taken in another order: a few ulps, times at most W in p.
    assert paired.p == pytest.approx(oracle.pvalue, rel=1e-11)
    assert (paired.low, paired.high) == pytest.approx((interval.low / COUNT, interval.high / COUNT), rel=1e-11)
    assert paired.se == pytest.approx(stats.sem(a - b) / COUNT, rel=1e-11)
    assert paired.windows == windows


@settings(deadline=None)
@given(two_schemes)
def test_exchanging_the_schemes_changes_the_sign(ab):
    a, b = ab
    one = paired_delta(a, b, counts_of(a))
    two = paired_delta(b, a, counts_of(a))
    # Negation is exact in floating point, and so is every step up to these.
    assert (one.delta, one.se, one.low, one.high, one.p) == (-two.delta, two.se, -two.high, -two.low, two.p)
    assert one.p_sign_flip == two.p_sign_flip


@settings(deadline=None)
@given(two_schemes, st.floats(-3, 3))
def test_a_constant_shift_moves_the_interval_and_not_its_width(ab, shift):
    a, b = ab
    before = paired_delta(a, b, counts_of(a))
    after = paired_delta(a + shift * COUNT, b, counts_of(a))
    assert after.se == pytest.approx(before.se, abs=ROUNDING)
    assert after.delta == pytest.approx(before.delta + shift, abs=ROUNDING)
    # t of 2 windows is 12.7, which multiplies the rounding of se
    assert (after.low, after.high) == pytest.approx((before.low + shift, before.high + shift), abs=13 * ROUNDING)


@settings(deadline=None)
@given(two_schemes, sums(1))
def test_a_shift_of_both_schemes_changes_nothing(ab, shift):
    a, b = ab
    before = paired_delta(a, b, counts_of(a))
    after = paired_delta(a + shift, b + shift, counts_of(a))
    assert (after.delta, after.se) == pytest.approx((before.delta, before.se), abs=ROUNDING)


def test_equal_losses_are_no_difference():
    paired = paired_delta([5.0, 7.0, 6.0], [5.0, 7.0, 6.0], [4, 4, 4])
    assert (paired.delta, paired.se, paired.low, paired.high, paired.p) == (0, 0, 0, 0, 1)
    assert (paired.p_sign_flip, paired.skewness, paired.skewed) == (1, 0, False)
    assert ratio_interval(paired) == (1, 1, 1)


def test_a_difference_without_spread_is_certain():
    # 0.1 three times: its rounded mean is not 0.1, so a careless standard deviation would be 1e-17
    paired = paired_delta([0.1, 0.1, 0.1], [0.0, 0.0, 0.0], [1, 1, 1])
    assert (paired.delta, paired.se, paired.low, paired.high, paired.p) == (0.1, 0, 0.1, 0.1, 0)


def test_one_window_has_a_difference_and_no_error():
    paired = paired_delta([6.0], [4.0], [4])
    assert (paired.delta, paired.windows) == (0.5, 1)
    spread = (paired.se, paired.low, paired.high, paired.p, paired.p_sign_flip, paired.skewness)
    assert all(isnan(x) for x in spread)
    ratio, low, high = ratio_interval(paired)
    assert ratio == pytest.approx(exp(0.5), rel=1e-15)  # two exps may differ in the last bit
    assert isnan(low)
    assert isnan(high)


def test_ratio_interval_is_exp_of_the_interval():
    paired = paired_delta([6.0, 5.0, 9.0], [4.0, 4.5, 6.0], [4, 4, 4])
    expected = (exp(paired.delta), exp(paired.low), exp(paired.high))
    assert ratio_interval(paired) == pytest.approx(expected, rel=1e-15)
    a, b = 20 / 12, 14.5 / 12
    assert ratio_interval(paired)[0] == pytest.approx(exp(a) / exp(b), rel=1e-14)  # a handful of roundings


def test_an_absurd_interval_is_infinite_and_does_not_fail():
    paired = paired_delta([400.0, 0.0], [0.0, 0.0], [1, 1])  # t = 12.7: high is beyond exp's range
    assert ratio_interval(paired)[2] == inf


# --- bad input ---


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_value_that_is_not_finite_is_named(bad):
    good, with_bad, ones = [1.0, 2.0, 3.0], [1.0, 2.0, bad], [1, 1, 1]
    rule = f"is {bad}; every value must be finite"
    with pytest.raises(ValueError, match=rf"a_sums\[2\] {rule}"):
        paired_delta(with_bad, good, ones)
    with pytest.raises(ValueError, match=rf"b_sums\[2\] {rule}"):
        paired_delta(good, with_bad, ones)
    with pytest.raises(ValueError, match=rf"nll_sum\[2\] {rule}"):
        perplexity(with_bad, ones)
    with pytest.raises(ValueError, match=rf"nll_sum\[0\] {rule}"):
        perplexity(bad, 1)
    with pytest.raises(ValueError, match=rf"sums\[2\] {rule}"):
        clustered_mean(with_bad, ones)
    with pytest.raises(ValueError, match=rf"counts\[2\] {rule}"):
        clustered_mean(good, with_bad)
    with pytest.raises(ValueError, match=rf"nll\[2\] {rule}"):
        iid_mean(with_bad)
    with pytest.raises(ValueError, match=rf"b\[2\] {rule}"):
        iid_log_ratio(good, with_bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_delta([1.0, 2.0], [1.0, 2.0], [4, 5]), "counts go from 4 to 5; .* one score_length"),
        (lambda: clustered_mean([1.0, 2.0], [4, 5]), "counts go from 4 to 5"),
        (lambda: paired_delta([1.0, 2.0], [1.0], [4, 4]), "b_sums has 1 values, counts 2; they must pair"),
        (lambda: paired_delta([1.0], [1.0, 2.0], [4, 4]), "a_sums has 1 values, counts 2; they must pair"),
        (lambda: iid_log_ratio([1.0, 2.0], [1.0]), "a has 2 values, b 1; they must pair"),
        (lambda: perplexity([1.0, 0.0], [4, 0]), r"counts\[1\] is 0; a window has at least 1 scored token"),
        (lambda: iid_mean([]), r"nll has shape \(0,\); it must be one axis of at least one value"),
        (lambda: iid_mean([[1.0, 2.0]]), r"nll has shape \(1, 2\)"),
        (lambda: holm([0.5, 1.5]), r"p\[1\] is 1.5; a p-value lies in 0…1"),
        (lambda: holm([-0.1]), r"p\[0\] is -0.1"),
        (lambda: holm([0.5, inf]), r"p\[1\] is inf"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
