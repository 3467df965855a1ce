"""`allocate`: bits for each layer and side under a budget, by integer programming over measured costs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from scipy import optimize, sparse

from kvdelta.analysis.reading.summary import SummaryRow
from kvdelta.schemes.errors import UserError

SIDES = ("key", "value")
LAYOUT = "asymmetric:key_axis=channel,value_axis=token,group_size=32"
CANDIDATES = tuple(f"{LAYOUT},bits={bits}" for bits in (2, 3, 4, 8))
NEAR = 0.01  # bits a number within which uniform schemes count as equally large


@dataclass(frozen=True, eq=False)
class Costs:
    """What each candidate costs at each place, in `measure`: cost, and measured bits a number, [layers, 2, candidates].

    numbers [layers, 2]: how many numbers of keys and values a layer keeps, which is what it weighs in a mean of bits.
    """

    candidates: list[str]  # specs
    layers: list[int]
    cost: Float64[np.ndarray, "layers 2 candidates"]
    bits: Float64[np.ndarray, "layers 2 candidates"]
    numbers: Float64[np.ndarray, "layers 2"]
    measure: str

    @property
    def share(self) -> Float64[np.ndarray, "layers 2 candidates"]:
        """What each candidate at each place adds to the mean bits of the whole cache."""
        return self.bits * self.numbers[..., None] / self.numbers.sum()


def choose(costs: Costs, budget: float, together: bool = False) -> Int[np.ndarray, "layers 2"]:
    """The candidate of each layer and side with the least total cost whose mean bits are at most `budget`.

    together: keys and values of a layer have the same one. ValueError where the budget is under the smallest candidates.
    """
    cost, share = costs.cost, costs.share
    if together:
        cost, share = cost.sum(axis=1, keepdims=True), share.sum(axis=1, keepdims=True)
    layers, sides, candidates = cost.shape
    least = float(share.min(axis=2).sum())
    if not budget >= least - 1e-9:  # NaN too
        raise UserError(
            f"a budget of {budget:g} bits is under the smallest candidates, {least:.2f}; raise it to that or more"
        )
    places = layers * sides
    one_each = sparse.kron(sparse.eye_array(places), np.ones((1, candidates)), format="csr")
    scale = cost.max() or 1.0  # the solver's tolerances are absolute
    solved = optimize.milp(
        cost.ravel() / scale,
        integrality=np.ones(places * candidates),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(share.ravel()[None], ub=budget + 1e-9),
        ],
    )
    assert solved.x is not None, solved.message
    found = solved.x.reshape(layers, sides, candidates).argmax(axis=-1)
    return np.repeat(found, len(SIDES) // sides, axis=1)


def chosen(values: Float64[np.ndarray, "layers 2 candidates"], choice: np.ndarray) -> Float64[np.ndarray, "layers 2"]:
    """The values of a choice, place by place."""
    return np.take_along_axis(values, choice[..., None], axis=2)[..., 0]


def mean_bits(costs: Costs, choice: np.ndarray) -> float:
    return float(chosen(costs.share, choice).sum())


def predicted(costs: Costs, choice: np.ndarray) -> float:
    """Total cost of a choice, in the costs' own measure."""
    return float(chosen(costs.cost, choice).sum())


def uniform(costs: Costs, budget: float) -> list[tuple[int, int]]:
    """Candidates (keys, values) for all layers alike, of the most bits within the budget, all pairs as large as that;
    the same candidate on both sides comes first. ValueError where no pair is within it."""
    by_side = costs.share.sum(axis=0)
    size = {(k, v): by_side[0, k] + by_side[1, v] for k, v in product(range(len(costs.candidates)), repeat=2)}
    within = {pair: bits for pair, bits in size.items() if bits <= budget + 1e-9}
    if not within:
        raise UserError(
            f"no pair of candidates for all layers alike is within {budget:g} bits; the smallest has "
            f"{min(size.values()):.2f}; raise the budget to that, or add a smaller candidate"
        )
    most = max(within.values())
    return sorted(
        (pair for pair, bits in within.items() if bits >= most - NEAR), key=lambda pair: (pair[0] != pair[1], pair)
    )


def pair_labels(costs: Costs, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """A label for each uniform pair: a candidate's own spec where both sides are it, else its bits where these tell the
    pairs apart, else both specs."""
    numbers = costs.numbers.sum(axis=0) / costs.numbers.sum()
    bits = costs.share.sum(axis=0) / numbers[:, None]  # of a side, over the layers
    by_bits = {(k, v): f"K {bits[0, k]:.2f} b, V {bits[1, v]:.2f} b" for k, v in pairs if k != v}
    told_apart = len(set(by_bits.values())) == len(by_bits)
    by_spec = {(k, v): f"K {costs.candidates[k]}, V {costs.candidates[v]}" for k, v in by_bits}
    mixed = by_bits if told_apart else by_spec
    return [costs.candidates[k] if k == v else mixed[k, v] for k, v in pairs]


def map_file(costs: Costs, choice: np.ndarray, fitted_on: Sequence[Mapping[str, Any]]) -> str:
    """The choice as a file that `--scheme @FILE` reads, with the texts that it was fitted to; layers that nobody
    measured are exact."""
    layers: dict[str, dict[str, str]] = {}
    for at, layer in enumerate(costs.layers):
        layers[str(layer)] = {side: costs.candidates[choice[at, s]] for s, side in enumerate(SIDES)}
    content = {"default": "exact", "layers": layers, "fitted_on": list(fitted_on)}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def uniform_file(costs: Costs, pair: tuple[int, int]) -> str:
    """A pair of candidates for all layers, as a file that `--scheme @FILE` reads."""
    content = {"default": {side: costs.candidates[c] for side, c in zip(SIDES, pair, strict=True)}}
    return json.dumps(content, indent=1) + "\n"


def best_of(rows: Sequence[SummaryRow]) -> SummaryRow | None:
    """The row with the least ΔNLL; None where none can be believed. Deltas are against exact."""
    return min((row for row in rows if not row.refused), key=lambda row: row.delta_nll, default=None)


def verdict(map_row: SummaryRow, against: str, pairs: int) -> str:
    """In words, from the map's row, whose deltas are against the best of so many uniform pairs."""
    if map_row.refused:
        return f"There is no verdict, since the map has no score: {map_row.refused}."
    best = f"{against}, the best of {pairs} uniform pairs of these bits" if pairs > 1 else against
    if map_row.delta_nll_high < 0:
        return f"The map wins against {best}: the interval of the difference excludes 0."
    if map_row.delta_nll_low > 0:
        return f"The map does not win: it loses more than {best}, and the interval excludes 0."
    return f"The map does not win: these windows do not tell it from {best} (the interval of the difference holds 0)."
