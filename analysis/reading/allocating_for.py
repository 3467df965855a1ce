"""Maps of layers within what an engine can store: the least cost among those that it has a form for (analysis.reading.exporting)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
from jaxtyping import Int

from kvdelta.analysis.reading.allocation import Costs, choose
from kvdelta.analysis.reading.exporting import EXACT
from kvdelta.schemes.errors import UserError

Choice = Int[np.ndarray, "layers 2"]


def choose_for(engine: str | None, costs: Costs, budget: float) -> Choice:
    """The candidate of each layer and side, as `allocation.choose`, among the maps that the engine can store; None: among all.
    UserError where the budget is under the smallest of them."""
    return FORMS.get(engine or "", choose)(costs, budget)


def _one_format(costs: Costs, budget: float) -> Choice:
    """Layers alike in keys and values, of one candidate, or exact."""
    exact = [at for at, name in enumerate(costs.candidates) if name == EXACT]
    found: list[Choice] = []
    for at in range(len(costs.candidates)):
        allowed = sorted({*exact, at})
        few = replace(
            costs,
            candidates=[costs.candidates[one] for one in allowed],
            cost=costs.cost[..., allowed],
            bits=costs.bits[..., allowed],
        )
        if few.share.min(axis=2).sum() <= budget + 1e-9 and at not in exact:
            found.append(np.asarray(allowed)[choose(few, budget, together=True)])
    return _least(costs, budget, found)


def _uniform(costs: Costs, budget: float) -> Choice:
    """All layers and both sides alike."""
    shape = costs.cost.shape[:2]
    return _least(costs, budget, [np.full(shape, at) for at in range(len(costs.candidates))])


def _by_side(costs: Costs, budget: float) -> Choice:
    """All layers alike."""
    return _sides(costs, budget, lambda layers, candidates: (np.full(layers, at) for at in range(candidates)))


def _ends(costs: Costs, budget: float) -> Choice:
    """By side: some first layers, some last ones, and those between, each of one candidate."""

    def runs(layers: int, candidates: int) -> Iterator[np.ndarray]:
        for first, between, last in product(range(candidates), repeat=3):
            for start in range(layers if first != between else 1):
                for end in range(layers - start if last != between else 1):
                    side = np.full(layers, between)
                    side[:start], side[layers - end :] = first, last
                    yield side

    return _sides(costs, budget, runs)


def _sides(costs: Costs, budget: float, made: Callable[[int, int], Iterator[np.ndarray]]) -> Choice:
    """The best pair of a form of the keys and one of the values: of each side only forms that no smaller one beats."""
    layers, _, candidates = costs.cost.shape
    forms = np.stack([*made(layers, candidates)])
    fronts = []
    for side in range(2):
        bits = np.take_along_axis(costs.share[None, :, side], forms[..., None], axis=2)[..., 0].sum(axis=1)
        cost = np.take_along_axis(costs.cost[None, :, side], forms[..., None], axis=2)[..., 0].sum(axis=1)
        order = np.lexsort((cost, bits))
        best = np.minimum.accumulate(cost[order])
        kept = order[np.concatenate([[True], cost[order][1:] < best[:-1]])]
        fronts.append((forms[kept], bits[kept], cost[kept]))
    (keys, key_bits, key_cost), (values, value_bits, value_cost) = fronts
    # a front has more cost for fewer bits: the largest form of the values that has room is the best one
    room = np.searchsorted(value_bits, budget + 1e-9 - key_bits, side="right") - 1
    pairs = [
        (key_cost[at] + value_cost[beside], np.stack([keys[at], values[beside]], axis=1))
        for at, beside in enumerate(room)
        if beside >= 0
    ]
    return min(pairs, key=lambda pair: pair[0])[1] if pairs else _least(costs, budget, [])


def _least(costs: Costs, budget: float, maps: list[Choice]) -> Choice:
    def total(values: np.ndarray, one: Choice) -> float:
        return float(np.take_along_axis(values, one[..., None], axis=2).sum())

    within = [one for one in maps if total(costs.share, one) <= budget + 1e-9]
    if not within:
        least = float(costs.share.sum(axis=(0, 1)).min())
        raise UserError(
            f"no map that this engine can store is within {budget:g} bits; the smallest candidate on all layers has {least:.2f}: "
            "raise the budget, or add a smaller candidate"
        )
    return min(within, key=lambda one: total(costs.cost, one))


FORMS: Mapping[str, Callable[[Costs, float], Choice]] = {
    "vllm": _one_format,
    "sglang": _uniform,
    "llama.cpp": _by_side,
    "ik_llama.cpp": _ends,
}
