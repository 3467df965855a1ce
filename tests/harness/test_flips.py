"""The exact test of changed answers is scipy's binomial test."""

import pytest
from scipy import stats

from kvdelta.harness.flips import mcnemar


@pytest.mark.parametrize("lost", range(0, 13, 3))
@pytest.mark.parametrize("gained", range(0, 13, 4))
def test_mcnemar_is_a_binomial_test(lost, gained):
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)
