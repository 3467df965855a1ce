"""Which measure ranks the damage? On questions whose answer is planted."""

import numpy as np
import pytest

from kvdelta.analysis.reading import agreement
from kvdelta.analysis.reading.questions import Question

MEASURES = ["key_error", "attention_kl", "output_key"]


def planted(points=30, windows=8, noise=0.1):
    """key_error has nothing to do with the KL, attention_kl is its cube root, output_key ranks the wrong way round."""
    rng = np.random.default_rng(0)
    true = np.exp(rng.normal(size=points))
    unrelated = np.exp(rng.normal(size=points))
    each = true * np.exp(noise * rng.normal(size=(windows, points)))

    def draw(at):
        kl = each[at].mean(axis=0)
        return np.stack([unrelated, true ** (1 / 3), 1 / true]), kl, kl - 0.5

    labels = [str(i) for i in range(points)]
    return Question("planted", labels, ["a"] * points, MEASURES, windows, draw, [4.0] * points)


def test_planted_ranking():
    rows = {row.measure: row for row in agreement.ranking(planted())}
    assert list(rows) == ["attention_kl", "key_error", "output_key"]
    good, unrelated, reversed_ = rows["attention_kl"], rows["key_error"], rows["output_key"]
    assert good.spearman_kl > 0.98
    assert good.pearson_kl == pytest.approx(1, abs=0.02)  # a power law is a line in log–log
    assert good.spearman_kl == good.spearman_delta
    assert not good.wrong
    assert not good.worse
    assert unrelated.spearman_kl_low < 0 < unrelated.spearman_kl_high
    assert not unrelated.wrong  # its interval does not exclude agreement
    assert unrelated.worse
    assert reversed_.spearman_kl_high < -0.9
    assert reversed_.wrong
    assert reversed_.worse
    assert good.pairs == 30 * 29 // 2
    assert good.right > 0.95 * good.pairs > good.pairs / 2 > reversed_.right


def test_the_interval_is_wider_with_fewer_points():
    few, many = ({row.measure: row for row in agreement.ranking(planted(points))}["key_error"] for points in (8, 60))
    width = [row.spearman_kl_high - row.spearman_kl_low for row in (few, many)]
    assert width[0] > 1.5 * width[1]


def test_windows_agree_with_each_other():
    assert agreement.agreement_of_windows(planted(noise=0.01)) > 0.99
    assert agreement.agreement_of_windows(planted(noise=5.0)) < 0.8
    assert np.isnan(agreement.agreement_of_windows(planted(windows=1)))


def test_correlation_against_scipy():
    from scipy import stats

    x, y = np.random.default_rng(1).normal(size=(2, 3, 12))
    found = agreement._correlation(agreement._ranks(x), agreement._ranks(y[0]))
    assert found == pytest.approx([stats.spearmanr(row, y[0]).statistic for row in x])
    tied = np.array([[3.0, 1.0, 3.0, np.inf, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, np.nan, 1.0]])
    np.testing.assert_array_equal(agreement._ranks(tied), stats.rankdata(tied, axis=-1))
    x[0, 3] = np.nan
    kept = np.arange(12) != 3
    assert agreement._correlation(x, y[0])[0] == pytest.approx(stats.pearsonr(x[0, kept], y[0, kept]).statistic)
