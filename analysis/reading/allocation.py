"""`allocate`: bits for each layer and side under a budget, by integer programming over measured costs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from scipy import optimize, sparse

from analysis.reading.summary import SummaryRow
from schemes.errors import UserError

SIDES = ("key", "value")
LAYOUT = "asymmetric:key_axis=channel,value_axis=token,group_size=32"
CANDIDATES = tuple(f"{LAYOUT},bits={bits}" for bits in (2, 3, 4, 8))
NEAR = 0.01  # bits a number within which uniform schemes count as equally large


@dataclass(frozen=True, eq=False)
class Costs:
    """What each candidate costs at each place: cost [layers, 2, candidates] in `measure`, bits [2, candidates]."""

    candidates: list[str]  # specs
    layers: list[int]
    cost: Float64[np.ndarray, "layers 2 candidates"]
    bits: Float64[np.ndarray, "2 candidates"]
    measure: str
    windows: list[int]  # that the costs were measured on


def choose(costs: Costs, budget: float) -> Int[np.ndarray, "layers 2"]:
    """The candidate of each layer and side with the least total cost whose mean bits are at most `budget`.

    All layers and sides weigh the same in the mean: their caches hold equally many numbers. ValueError where the
    budget is under the smallest candidates, or nothing but the largest is needed.
    """
    layers, _, candidates = costs.cost.shape
    least = float(costs.bits.min(axis=1).mean())
    if not budget >= least - 1e-9:  # NaN too
        raise UserError(
            f"a budget of {budget:g} bits is under the smallest candidates, {least:.2f}; raise it to that or more"
        )
    places = layers * len(SIDES)
    one_each = sparse.kron(sparse.eye_array(places), np.ones((1, candidates)), format="csr")
    size = np.tile(costs.bits.ravel(), layers)[None] / places
    scale = costs.cost.max() or 1.0  # the solver's tolerances are absolute
    solved = optimize.milp(
        costs.cost.ravel() / scale,
        integrality=np.ones(places * candidates),
        bounds=optimize.Bounds(0, 1),
        constraints=[optimize.LinearConstraint(one_each, 1, 1), optimize.LinearConstraint(size, ub=budget + 1e-9)],
    )
    assert solved.x is not None, solved.message
    return solved.x.reshape(layers, len(SIDES), candidates).argmax(axis=-1)


def mean_bits(costs: Costs, choice: np.ndarray) -> float:
    return float(np.mean([costs.bits[s, choice[:, s]] for s in range(len(SIDES))]))


def uniform(costs: Costs, budget: float) -> list[tuple[int, int]]:
    """Candidates (keys, values) for all layers alike, of the most bits within the budget, all pairs as large as that;
    the same candidate on both sides comes first."""
    size = {
        (k, v): (costs.bits[0, k] + costs.bits[1, v]) / 2 for k, v in product(range(len(costs.candidates)), repeat=2)
    }
    within = {pair: bits for pair, bits in size.items() if bits <= budget + 1e-9}
    most = max(within.values())
    return sorted(
        (pair for pair, bits in within.items() if bits >= most - NEAR), key=lambda pair: (pair[0] != pair[1], pair)
    )


def map_file(costs: Costs, choice: np.ndarray, fitted_on: Mapping[str, str]) -> str:
    """The choice as a file that `--scheme @FILE` reads; layers that nobody measured are exact. fitted_on: the text that
    the costs were measured on, as harness.leaks.seen_text says it."""
    layers: dict[str, dict[str, str]] = {}
    for at, layer in enumerate(costs.layers):
        layers[str(layer)] = {side: costs.candidates[choice[at, s]] for s, side in enumerate(SIDES)}
    content: dict[str, Any] = {"default": "exact", "layers": layers, "fitted_on": [dict(fitted_on)]}
    return json.dumps(content, indent=1) + "\n"


def predicted(costs: Costs, choice: np.ndarray) -> float:
    """Total cost of a choice, in the costs' own measure."""
    return float(sum(costs.cost[at, s, choice[at, s]] for at in range(len(costs.layers)) for s in range(len(SIDES))))


def uniform_file(costs: Costs, pair: tuple[int, int]) -> str:
    """A pair of candidates for all layers, as a file that `--scheme @FILE` reads."""
    content = {"default": {side: costs.candidates[c] for side, c in zip(SIDES, pair, strict=True)}}
    return json.dumps(content, indent=1) + "\n"


def verdict(rows: dict[str, SummaryRow], won: str, against: str) -> str:
    """In words, from rows whose deltas are against the uniform scheme."""
    row = rows[won]
    if not row.delta_nll_high < 0:
        if row.delta_nll_low > 0:
            return f"The map does not win: it loses more than {against}, and the interval excludes 0."
        return f"The map does not win: these windows do not tell it from {against} (the interval of the difference holds 0)."
    return f"The map wins against {against}: the interval of the difference excludes 0."
