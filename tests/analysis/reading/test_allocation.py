"""The chosen bits are the best there are, and the map that says so is a scheme."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kvdelta.analysis.reading import allocation
from kvdelta.analysis.reading.allocation import Costs
from kvdelta.schemes import parse_scheme

from ..rows import summary_row

SPECS = [f"asym{bits}:key_axis=channel,group_size=16" for bits in (2, 4, 8)]


def costs(layers=3, seed=0):
    rng = np.random.default_rng(seed)
    cost = (
        np.exp(rng.normal(size=(layers, 2, 1))) * np.array([1.0, 0.1, 0.001]) * np.exp(rng.normal(size=(layers, 2, 3)))
    )
    bits = np.tile(np.array([3.0, 5.0, 9.0]), (layers, 2, 1))
    return Costs(SPECS, list(range(layers)), cost, bits, np.full((layers, 2), 100.0), "planted")


@pytest.mark.parametrize("budget", [3.0, 3.4, 4.0, 5.0, 6.7, 9.0, 20.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_choice_within_the_budget_costs_less(budget, seed):
    planted = costs(seed=seed)
    best = min(
        allocation.predicted(planted, np.array(choice).reshape(3, 2))
        for choice in product(range(3), repeat=6)
        if allocation.mean_bits(planted, np.array(choice).reshape(3, 2)) <= budget + 1e-9
    )
    choice = allocation.choose(planted, budget)
    assert allocation.mean_bits(planted, choice) <= budget + 1e-9
    assert allocation.predicted(planted, choice) == pytest.approx(best, rel=1e-6)


def test_costs_of_very_different_size():
    """The solver's tolerances are absolute: tiny costs must not vanish in them."""
    planted = costs()
    small = replace(planted, cost=planted.cost * 1e-12)
    assert (allocation.choose(small, 5.0) == allocation.choose(planted, 5.0)).all()


def test_a_budget_that_cannot_be_met(refused):
    with refused("a budget of 2.9 bits is under the smallest candidates, 3.00"):
        allocation.choose(costs(), 2.9)


def test_uniform_schemes_of_the_same_bytes():
    assert allocation.uniform(costs(), 5.0) == [(1, 1)]
    assert allocation.uniform(costs(), 6.5) == [(0, 2), (2, 0)]  # 3 and 9 bits; 5 and 5 are 1 bit less
    assert allocation.uniform(costs(), 4.2) == [(0, 1), (1, 0)]


def test_a_choice_is_a_scheme_by_its_file(tmp_path):
    planted = costs()
    choice = allocation.choose(planted, 5.0)
    path = tmp_path / "map.json"
    text = {"name": "a text", "sha256": "1", "token_sha256": "2", "spans": [[0, 9]]}
    path.write_text(allocation.map_file(planted, choice, [text]))
    scheme = parse_scheme(f"@{path}")
    for layer, (key, value) in enumerate(choice):
        assert scheme.for_layer(layer).key == parse_scheme(SPECS[key]).key
        assert scheme.for_layer(layer).value == parse_scheme(SPECS[value]).value
    assert scheme.for_layer(7).lossless
    assert scheme.calibrated_on == [text]
    path.write_text(allocation.uniform_file(planted, (2, 0)))
    scheme = parse_scheme(f"@{path}")
    assert (scheme.key, scheme.value) == (parse_scheme(SPECS[2]).key, parse_scheme(SPECS[0]).value)
    assert scheme.for_layer(3) == scheme


def test_a_layer_weighs_what_it_keeps():
    """Twice as many numbers in layer 0: the budget is that of the whole cache."""
    planted = costs(layers=2)
    heavy = replace(planted, numbers=np.array([[200.0, 200.0], [100.0, 100.0]]))
    choice = np.array([[2, 2], [0, 0]])
    assert allocation.mean_bits(planted, choice) == pytest.approx((9 + 3) / 2)
    assert allocation.mean_bits(heavy, choice) == pytest.approx((2 * 9 + 3) / 3)
    assert allocation.mean_bits(heavy, allocation.choose(heavy, 6.0)) <= 6.0


def test_a_candidate_that_is_exact_in_a_layer_costs_16_bits_there():
    planted = costs(layers=4)
    planted.bits[0] = 16.0
    assert allocation.uniform(planted, 7.0) == [(0, 1), (1, 0)]  # 25/4 bits with 3 everywhere else, 28/4 with 3 and 5
    with pytest.raises(ValueError, match=r"under the smallest candidates, 6\.25"):
        allocation.choose(planted, 6.0)


def test_a_budget_that_only_a_mixture_meets(refused):
    planted = costs(layers=2)
    planted.bits[0, :, 0] = planted.bits[1, :, 1] = 16.0  # one candidate is exact in layer 0, another in layer 1
    planted.bits[:, :, 2] = 16.0
    assert allocation.mean_bits(planted, allocation.choose(planted, 5.0)) == pytest.approx(4.0)
    with refused("no pair of candidates for all layers alike is within 5 bits; the smallest has 9.50"):
        allocation.uniform(planted, 5.0)


def test_labels_of_pairs_tell_them_apart():
    planted = costs()
    pairs = [(1, 1), (0, 2), (2, 0)]
    assert allocation.pair_labels(planted, pairs) == [SPECS[1], "K 3.00 b, V 9.00 b", "K 9.00 b, V 3.00 b"]
    planted.bits[:] = 5.0
    assert allocation.pair_labels(planted, pairs)[1:] == [f"K {SPECS[0]}, V {SPECS[2]}", f"K {SPECS[2]}, V {SPECS[0]}"]


def test_the_best_uniform_pair_is_the_one_that_loses_least():
    rows = [summary_row(delta_nll=delta) for delta in (0.3, 0.1, 0.2)]
    unread = summary_row(delta_nll=0.0, audit="cache not read (key coverage 0)")
    assert allocation.best_of([*rows, unread]) is rows[1]
    assert allocation.best_of([unread]) is None


def test_the_verdict_says_when_the_map_does_not_win():
    def verdict(low, high, pairs=1, **more):
        return allocation.verdict(summary_row(delta_nll_low=low, delta_nll_high=high, **more), "asym4", pairs)

    assert "wins against asym4:" in verdict(-0.2, -0.1)
    assert "wins against asym4, the best of 3 uniform pairs of these bits:" in verdict(-0.2, -0.1, 3)
    assert "does not win: these windows do not tell it from asym4" in verdict(-0.2, 0.1)
    assert "does not win: it loses more" in verdict(0.1, 0.2)
    assert "does not win" in verdict(float("nan"), float("nan"))
    assert verdict(-0.2, -0.1, audit="a twin") == "There is no verdict, since the map has no score: audit failed."
