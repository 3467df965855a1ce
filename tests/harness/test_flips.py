"""The exact test of changed answers is scipy's binomial test; the interval is Tango's."""

from math import comb

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from kvdelta.harness.flips import mcnemar, score_interval


@pytest.mark.parametrize("lost", range(0, 13, 3))
@pytest.mark.parametrize("gained", range(0, 13, 4))
def test_mcnemar_is_a_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_the_interval_of_a_published_example():
    """Of 21 children 7 changed one way and 1 the other: Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33."""
    assert score_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert score_interval(1, 7, 21) == pytest.approx((0.026, 0.517), abs=5e-4)


@pytest.mark.parametrize("samples", [1, 4, 24, 1000])
def test_where_nothing_changed_the_interval_has_a_width(samples):
    half = 1.959964**2 / (samples + 1.959964**2)
    assert score_interval(0, 0, samples) == pytest.approx((-half, half), rel=1e-6)


@pytest.mark.parametrize("given", [(7, 1, 21), (3, 0, 24), (1, 1, 24), (0, 2, 9), (5, 5, 10)])
def test_its_ends_are_rejected_at_five_percent(given):
    """By the likeliest shares, found by search."""
    lost, gained, samples = given
    for end in score_interval(*given):

        def unlikely(share, end=end):
            shares = np.maximum([share, share + end, 1 - 2 * share - end], 1e-300)
            return -np.dot([lost, gained, samples - lost - gained], np.log(shares))

        found = minimize_scalar(
            unlikely, bounds=(max(0, -end), (1 - end) / 2), method="bounded", options={"xatol": 1e-12}
        )
        z = (gained - lost - samples * end) / np.sqrt(samples * (2 * found.x + end - end**2))
        assert abs(z) == pytest.approx(1.959964, abs=1e-4)


def test_at_its_ends_every_sample_changed():
    assert score_interval(24, 0, 24)[0] == pytest.approx(-1)
    assert score_interval(0, 24, 24)[1] == pytest.approx(1)


@pytest.mark.parametrize(("lose", "gain"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1), (0.2, 0.2)])
def test_of_few_samples_it_covers_what_it_says(lose, gain):
    """All outcomes of 12 samples, each with its chance: 93 % or more, where a t interval may cover 40 %."""
    samples, covered = 12, 0.0
    for lost in range(samples + 1):
        for gained in range(samples + 1 - lost):
            low, high = score_interval(lost, gained, samples)
            ways = comb(samples, lost) * comb(samples - lost, gained)
            same = (1 - lose - gain) ** (samples - lost - gained)
            covered += ways * lose**lost * gain**gained * same * (low <= gain - lose <= high)
    assert covered > 0.93
