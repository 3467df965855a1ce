"""Maps within what an engine can store: against every map that it can."""

from itertools import product

import numpy as np
import pytest

from kvdelta.analysis.reading.allocating_for import FORMS, choose_for
from kvdelta.analysis.reading.allocation import Costs
from kvdelta.analysis.reading.exporting import export
from kvdelta.schemes.errors import UserError

NAMES = {
    "vllm": ["exact", "fp8", "int4_per_token_head"],
    "sglang": ["fp8_e4m3", "fp4_e2m1"],
    "llama.cpp": ["q8_0", "q5_0", "q4_0"],
    "ik_llama.cpp": ["q8_0", "q6_0"],
}
LAYERS = 4


def costs_of(names, seed):
    rng = np.random.default_rng(seed)
    bits = np.sort(rng.uniform(3, 16, len(names)))[::-1] * np.ones((LAYERS, 2, 1))
    cost = np.sort(rng.exponential(size=(LAYERS, 2, len(names))), axis=2)
    numbers = np.tile(rng.integers(1, 4, (LAYERS, 1)).astype(float), (1, 2))
    return Costs(list(names), list(range(LAYERS)), cost, bits, numbers, "made")


def storable(engine, names):
    """Every map that the engine's form takes: all maps, put to `export`."""
    for flat in product(range(len(names)), repeat=2 * LAYERS):
        one = np.array(flat).reshape(LAYERS, 2)
        try:
            export(engine, [(names[k], names[v]) for k, v in one])
        except UserError:
            continue
        yield one


@pytest.mark.parametrize("engine", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_no_map_that_it_can_store_costs_less(engine, seed):
    costs = costs_of(NAMES[engine], seed)
    maps = [*storable(engine, costs.candidates)]
    assert len(maps) > 1

    def total(values, one):
        return float(np.take_along_axis(values, one[..., None], axis=2).sum())

    for budget in np.quantile([total(costs.share, one) for one in maps], [0.1, 0.5, 0.9]):
        chosen = choose_for(engine, costs, budget)
        export(engine, [(costs.candidates[k], costs.candidates[v]) for k, v in chosen])
        assert total(costs.share, chosen) <= budget + 1e-6
        least = min(total(costs.cost, one) for one in maps if total(costs.share, one) <= budget + 1e-9)
        assert total(costs.cost, chosen) == pytest.approx(least)


@pytest.mark.parametrize("engine", FORMS)
def test_a_budget_under_the_smallest_is_refused(engine, refused):
    with refused("no map that this engine can store is within 1 bits"):
        choose_for(engine, costs_of(NAMES[engine], 0), 1.0)
