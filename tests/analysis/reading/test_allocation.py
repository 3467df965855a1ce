"""The chosen bits are the best there are, and the map that says so is a scheme."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from analysis.measuring.costs import costs_of
from analysis.measuring.errors import measure_errors
from analysis.measuring.sensitivity import measure_sensitivity
from analysis.reading import allocation
from analysis.reading.allocation import Costs
from harness.records.measurement import measured_arrays
from schemes import parse_scheme

from ..rows import summary_row

SPECS = [f"asym{bits}:key_axis=channel,group_size=16" for bits in (2, 4, 8)]


def costs(layers=3, seed=0):
    rng = np.random.default_rng(seed)
    cost = (
        np.exp(rng.normal(size=(layers, 2, 1))) * np.array([1.0, 0.1, 0.001]) * np.exp(rng.normal(size=(layers, 2, 3)))
    )
    return Costs(SPECS, list(range(layers)), cost, np.array([[3.0, 5.0, 9.0]] * 2), "planted", [0])


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
    path.write_text(allocation.map_file(planted, choice, {"name": "a text", "sha256": "1", "token_sha256": "2"}))
    scheme = parse_scheme(f"@{path}")
    for layer, (key, value) in enumerate(choice):
        assert scheme.for_layer(layer).key == parse_scheme(SPECS[key]).key
        assert scheme.for_layer(layer).value == parse_scheme(SPECS[value]).value
    assert scheme.for_layer(7).lossless
    path.write_text(allocation.uniform_file(planted, (2, 0)))
    scheme = parse_scheme(f"@{path}")
    assert (scheme.key, scheme.value) == (parse_scheme(SPECS[2]).key, parse_scheme(SPECS[0]).value)
    assert scheme.for_layer(3) == scheme


def test_costs_from_records(subject, options, tmp_path, refused):
    record, folder = measure_errors(SPECS, replace(options, out=str(tmp_path / "e")), subject)
    arrays = measured_arrays(folder, record)
    found = costs_of(record, arrays, None, 16)
    assert found.cost.shape == (2, 2, 3)
    assert found.cost[1, 0, 2] == pytest.approx(arrays["key_square"][:, 2, 1].sum())
    assert found.cost[0, 1, 0] == pytest.approx(arrays["value_square"][:, 0, 0].sum())
    assert found.bits[0] == pytest.approx([4, 6, 10])  # 32 bits of scale and offset for 16 numbers
    with refused("int8 is not in the errors record; it has asym2"):
        costs_of(record, arrays, ["int8"], 16)
    out = replace(options, out=str(tmp_path / "no"))
    record, folder = measure_errors(SPECS, out, subject, gradients=False)
    with refused("no predicted loss; measure it again without --no-gradients"):
        costs_of(record, measured_arrays(folder, record), None, 16)

    out = replace(options, out=str(tmp_path / "s"))
    record, folder = measure_sensitivity(SPECS[:2], out, subject, sides=["value", "key"])
    arrays = measured_arrays(folder, record)
    found = costs_of(record, arrays, SPECS[1:2], 16)
    assert found.cost[:, 0, 0] == pytest.approx(arrays["kl"][:, 1, 1].sum(axis=0) / arrays["count"].sum())
    record, folder = measure_sensitivity(SPECS[:1], replace(options, out=str(tmp_path / "k")), subject, sides=["key"])
    with refused("no value side; measure it with --side key --side value"):
        costs_of(record, measured_arrays(folder, record), None, 16)


def test_the_verdict_says_when_the_map_does_not_win():
    def said(low, high):
        rows = {"the map": summary_row(delta_nll_low=low, delta_nll_high=high)}
        return allocation.verdict(rows, "the map", "asym4")

    assert "wins against asym4" in said(-0.2, -0.1)
    assert "does not win: these windows do not tell it from asym4" in said(-0.2, 0.1)
    assert "does not win: it loses more" in said(0.1, 0.2)
    assert "does not win" in said(float("nan"), float("nan"))
