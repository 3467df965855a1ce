"""Derived figures against what a hand can compute."""

import math

import numpy as np
import pytest
from scipy import stats

from kvdelta.analysis.reading import summary
from kvdelta.harness import statistics


def test_deltas_against_exact(run):
    row = summary.summarize(run)[2]
    assert row.delta_nll == pytest.approx(0.2)
    assert row.delta_nll_se == pytest.approx(0.1 / math.sqrt(3))
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert (row.delta_nll_low, row.delta_nll_high) == pytest.approx((0.2 - half, 0.2 + half))
    assert row.p == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.3], 0).pvalue)
    assert row.ppl == pytest.approx(math.exp(2.2))
    assert row.delta_ppl == pytest.approx(math.exp(2.2) - math.exp(2))
    assert row.delta_pct == pytest.approx(100 * (math.exp(0.2) - 1))
    assert (row.ratio, row.ratio_low) == pytest.approx((math.exp(0.2), math.exp(0.2 - half)))
    assert (row.kl, row.top1, row.delta_p) == pytest.approx((0.05, 90, -0.1))


def test_deltas_against_another_scheme(run):
    rows = {row.scheme: row for row in summary.summarize(run, "int4")}
    assert rows["int4"].delta_nll == 0
    assert rows["exact"].delta_nll == pytest.approx(-0.2)
    assert rows["kivi2"].delta_nll == pytest.approx(0.8)
    assert rows["kivi2"].delta_p == pytest.approx(-0.3)
    assert rows["kivi2"].kl == pytest.approx(0.5)  # against exact whatever the baseline
    assert "p_holm" not in rows["int4"].plain()


def test_bits_and_coverage(run):
    rows = summary.summarize(run)
    assert [row.bits for row in rows] == [16, 8.25, 4.25, 4]
    assert rows[3].compression == 4
    assert (rows[3].key_coverage, rows[3].value_coverage, rows[3].coverage) == pytest.approx((0.6, 0.3, 0.45))


def test_one_sided_schemes_are_covered_on_their_side(run):
    run.contenders[3].quantized_sides = ["value"]
    assert summary.summarize(run)[3].coverage == pytest.approx(0.3)


def test_within_the_noise_floor(run):
    rows = summary.summarize(run)
    assert [row.within_noise for row in rows] == [False, True, False, False]
    for window in run.windows:
        window.kl[1] = 0.01  # a mean KL of 0.001: above the floor though ΔNLL is 0
    assert not summary.summarize(run)[1].within_noise


def test_the_noise_floor_of_exact_hides_nothing_against_another_scheme(run):
    for window in run.windows:
        window.nll[1] = window.nll[2] + 1e-4  # int8 and int4 differ by less than the floor, always in one direction
    assert not any(row.within_noise for row in summary.summarize(run, "int4"))


def test_windows_that_score_tokens_twice_have_no_interval(run):
    run.settings.stride = run.settings.score_length - 1
    assert not math.isnan(summary.summarize(run)[2].delta_nll_low)
    run.settings.stride -= 1
    row = summary.summarize(run)[2]
    assert row.delta_nll == pytest.approx(0.2)
    figures = (row.delta_nll_se, row.delta_nll_low, row.p, row.p_sign_flip, row.kl_se, row.delta_p_se, row.p_holm)
    assert all(math.isnan(figure) for figure in figures)
    run.settings.windows = [0, 2, 4]  # the same stride, windows farther apart
    assert not math.isnan(summary.summarize(run)[2].p)


def test_one_window_has_no_interval(run):
    run.windows = run.windows[:1]
    row = summary.summarize(run)[2]
    assert row.delta_nll == pytest.approx(0.1)
    assert math.isnan(row.p)


def test_iid_figures_are_llama_cpps(run):
    rng = np.random.default_rng(0)
    nll = rng.gamma(2, size=(4, 30))
    row = summary.summarize(run, nll=nll)[2]
    a, b, n = nll[2], nll[0], 30
    se = [math.sqrt(((x**2).sum() / n - x.mean() ** 2) / (n - 1)) for x in (a, b)]
    covariance = ((a * b).sum() / n - a.mean() * b.mean()) / (n - 1)
    assert row.iid_nll_se == pytest.approx(se[0])
    assert row.iid_log_ratio_se == pytest.approx(math.sqrt(se[0] ** 2 + se[1] ** 2 - 2 * covariance))


def test_a_row_that_failed_takes_no_part(run):
    """Holm's correction is that of the table without it; the exact row has no p."""
    rng = np.random.default_rng(0)
    for window in run.windows:
        window.nll[1:] = [20.0 + x for x in rng.random(3)]
    ps = [row.p for row in summary.summarize(run)]
    run.contenders[2].error = "RuntimeError: no more"
    for window in run.windows:
        window.nll[2] = window.kl[2] = window.probability[2] = math.nan
    rows = summary.summarize(run, nll=rng.gamma(2, size=(4, 30)))
    assert [row.p_holm for row in rows[1:]][::2] == statistics.holm([ps[1], ps[3]])
    assert math.isnan(rows[2].p_holm)
    assert (rows[2].bits, rows[2].error) == (None, "RuntimeError: no more")
    assert math.isnan(summary.perplexities(run)[2])
    with pytest.raises(ValueError, match="int4 failed, so there are no deltas against it"):
        summary.summarize(run, "int4")


def test_find(run):
    assert summary.find(run, "int4") == 2
    assert summary.find(run, "symmetric:bits=4,group_size=64") == 2  # the same scheme, spelled out
    with pytest.raises(ValueError, match="no scheme 'hqq4' in this run; it has exact, int8, int4, kivi2"):
        summary.find(run, "hqq4")


def test_bytes_that_were_not_measurable(run):
    run.contenders[3].bytes = None
    row = summary.summarize(run)[3]
    assert (row.bits, row.compression) == (None, None)


def test_why_a_row_shows_no_score(run):
    run.contenders[1].error = "RuntimeError: no more"
    run.audit.failures = {"int8": ["it failed"], "int4": ["cache not read (key coverage 0)"], "kivi2": ["a twin"]}
    assert [row.refused for row in summary.summarize(run)] == ["", "failed", "cache not read", "audit failed"]
