"""Of docs/findings.md, its second part: what does not hold, and what equal tails change."""

from tests.docs.claiming import Claim, Unchecked
from tests.docs.claims.findings import FAMILIES, LAYOUT3, ROTATED
from tests.docs.records import carried_grid, deltas, difference, front, kls, order_agreement, places, plain, rows

MATCHED = "matched-h200"


def between_models():
    of = carried_grid(FAMILIES)
    two_pass, steps = order_agreement(of, 0, 2), order_agreement(of, 1, 3)
    return [
        two_pass.tau, two_pass.tau_low, two_pass.tau_high, steps.tau, steps.tau_low, steps.tau_high, two_pass.told, two_pass.reversed,
        order_agreement(of, 0, 1).tau, order_agreement(of, 2, 3).tau,
    ]  # fmt: skip


def worst(*schemes):
    return [max(deltas(FAMILIES, scheme)[2:]) for scheme in schemes]


def rotations():
    """Two passes and steps of 16, of Qwen2.5."""
    found = [delta for scheme in ROTATED for delta in deltas(FAMILIES, scheme)[2:]]
    return min(found), max(found), *worst("vllm/turboquant_4bit_nc", "nvfp4")


def hqq_zero():
    found = [difference(place, "kivi2", "kivi-hqq2") for place in places(FAMILIES)[::2]]
    return [figure for row in found for figure in (row.delta_nll, row.delta_nll_low, row.delta_nll_high)]


def offset():
    smollm2, _, qwen, _ = (
        asym4 / int4 for asym4, int4 in zip(deltas(FAMILIES, "asym4"), deltas(FAMILIES, "int4"), strict=True)
    )
    return smollm2, qwen


def value_axis():
    cells, spec = rows("kivi-vs-int4-h100"), "asymmetric:bits=4,key_axis={},value_axis={},group_size=32"
    token = cells["asym4:group_size=32"], cells["asym4:group_size=32,key_axis=channel"]
    channel = [cells[spec.format(axis, "channel")] for axis in ("token", "channel")]
    return sorted(mine.delta_nll / theirs.delta_nll for mine, theirs in zip(channel, token, strict=True))


def matched():
    bare, equal = kls(FAMILIES, "int4"), kls(MATCHED, "int4")
    names = [plain(label) for label in carried_grid(MATCHED).grid.labels]
    falls = all(kls(MATCHED, s)[c] < kls(FAMILIES, s)[c] for s in names for c in (0, 1))
    return len(names), falls, bare[1], bare[3], equal[1], equal[3]


def matched_orders():
    of = carried_grid(MATCHED)
    taus = [order_agreement(of, a, b).tau for a in (0, 1) for b in (2, 3)]
    return min(taus), max(taus), order_agreement(of, 0, 1).tau, order_agreement(of, 2, 3).tau


def matched_front():
    named = {"kivi4", "kcvt4", "kcvt:key_bits=4,value_bits=3", LAYOUT3, "unbiased(turbo2)"}
    return [named <= front(MATCHED)]


CLAIMS = (
    Claim(
        "Between the models Kendall's τ is {} [{}, {}] by two passes and {} [{}, {}] by steps of 16; of {} pairs of schemes that both tell apart by two passes {} are the other way round. Between the protocols of a model it is {} and {}",
        between_models,
    ),
    Claim(
        "lose {} to {} nats on Qwen2.5; vLLM's `turboquant_4bit_nc`, whose first and last two layers are exact, {}. NVFP4 loses {} there",
        rotations,
    ),
    Claim(
        "OScaR and KVarN, the best of SmolLM2 at 4 and 3 bits, lose {} and {} at 4 bits there, {} and {} at 3, {} and {} at 2",
        lambda: worst("oscar:bits=4", "kvarn:bits=4", "oscar:bits=3", "kvarn:bits=3", "oscar", "kvarn:bits=2"),
    ),
    Claim("from `int4` to `asym4` the loss falls to {} of it on SmolLM2 and grows {} on Qwen2.5 in two passes", offset),
    Claim("two passes: {} [{}, {}] nats better on SmolLM2, on Qwen2.5 {} [{}, {}]", hqq_zero),
    Claim("Values per channel lose {} to {} times what values per token do at 4 bits", value_axis),
    Claim(
        "(`--match-tail 128 --match-sinks 4`, {} schemes, [records]) KL falls on SmolLM2 in all of them, and on Qwen2.5 in those that do not lose much already (up to 0.1): `int4` in steps of 16 from {} and {} to {} and {}",
        matched,
    ),
    Claim(
        "The order of the models stays as far apart (τ {} to {}), that of the protocols becomes one ({} and {})",
        matched_orders,
    ),
    Claim(
        "`kivi4`, KCVT with K 4 and V 4 or 3 bits, KIVI's layout of 3 bits and `unbiased(turbo2)` are undominated in all four cells",
        matched_front,
    ),
)

UNCHECKED: tuple[Unchecked, ...] = ()
