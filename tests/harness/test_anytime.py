"""Always-valid intervals: the evidence against an independent integral, and its error rates by simulation."""

from itertools import pairwise
from math import exp, inf, log, sqrt

import numpy as np
import pytest
from scipy import integrate, stats

from kvdelta.harness.anytime import EFFECTS, anytime_interval, critical_t, log_evidence


@pytest.mark.parametrize("count", [3, 8, 40])
@pytest.mark.parametrize("t", [0.0, 1.5, 6.0])
def test_the_evidence_is_the_ratio_of_the_densities_of_t(t, count):
    """Noncentral Student's t, its effect normal, against the central one: another way to the same ratio."""

    def likelier(g):
        def density(z):
            return stats.nct.pdf(t, count - 1, sqrt(count * g) * z) * stats.norm.pdf(z)

        return integrate.quad(density, -8, 8, limit=500)[0] / stats.t.pdf(t, count - 1)

    assert exp(log_evidence(t, count)) == pytest.approx(np.mean([likelier(g) for g in EFFECTS]), rel=2e-3)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_under_mean_0_its_expectation_is_1(count):
    def weighed(t):
        return exp(log_evidence(t, count)) * stats.t.pdf(t, count - 1)

    pieces = [0, 1, 10, 100, 1e3, 1e4, 1e6, 1e8]
    total = 2 * sum(integrate.quad(weighed, a, b, limit=200)[0] for a, b in pairwise(pieces))
    assert total == pytest.approx(1, abs=5e-3)


def test_the_critical_value_is_where_the_evidence_suffices():
    for count, alpha in ((3, 0.05), (16, 0.05), (16, 0.001), (200, 0.01)):
        assert log_evidence(critical_t(count, alpha), count) == pytest.approx(-log(alpha))
    assert critical_t(1, 0.05) == critical_t(2, 1e-3) == inf
    assert critical_t(16, 0.05) / stats.t.ppf(0.975, 15) == pytest.approx(1.8, abs=0.05)  # what its docstring says


def crossings(draws, alpha=0.05):
    """The share of samples [samples, windows] of true mean 0 whose interval misses it at some count."""
    counts = np.arange(1, draws.shape[1] + 1)
    mean = draws.cumsum(axis=1) / counts
    spread = np.maximum((draws**2).cumsum(axis=1) / counts - mean**2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) / np.sqrt(spread / (counts - 1))
    critical = np.array([critical_t(int(count), alpha) for count in counts])
    return float((t[:, 1:] > critical[1:]).any(axis=1).mean())


@pytest.mark.parametrize(
    ("draw", "at_most"),
    [
        (lambda rng, size: rng.normal(0, 3, size), 0.05),
        (lambda rng, size: rng.standard_t(2.5, size), 0.05),
        (
            lambda rng, size: rng.lognormal(0, 0.5, size) - exp(0.125),
            0.10,
        ),  # skewed: a t-test that looks once misses 8 % at 16
    ],
    ids=["normal", "heavy tails", "skewed"],
)
def test_looking_at_any_time_misses_no_more_often(draw, at_most):
    assert crossings(draw(np.random.default_rng(0), (4000, 64))) <= at_most


def test_a_test_that_looks_once_is_misled_by_looking_often():
    """What the always-valid one is for: the same samples, the fixed t-test at every count."""
    draws = np.random.default_rng(0).normal(0, 1, (2000, 64))
    counts = np.arange(1, 65)
    mean = draws.cumsum(axis=1) / counts
    t = np.abs(mean[:, 3:]) / np.sqrt(((draws**2).cumsum(axis=1) / counts - mean**2)[:, 3:] / (counts[3:] - 1))
    assert (t > stats.t.ppf(0.975, counts[3:] - 1)).any(axis=1).mean() > 0.2


def test_intervals():
    x = np.random.default_rng(1).normal(2, 1, 30)
    mean, low, high = anytime_interval(x)
    assert mean == pytest.approx(x.mean())
    assert low < stats.t.interval(0.95, 29, mean, stats.sem(x))[0] < mean < high
    assert anytime_interval(1000 * x) == pytest.approx((1000 * mean, 1000 * low, 1000 * high))
    assert anytime_interval([0.5]) == (0.5, -inf, inf)
    assert anytime_interval([0.0, 0.0]) == (0.0, 0.0, 0.0)
    assert anytime_interval([1.0, 2.0], 1e-6)[1:] == (-inf, inf)
