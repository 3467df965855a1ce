"""The two published comparisons that people ask for first, as lists of contenders."""

from typing import Any

from transformers import QuantizedCache

from harness.contenders import Contender, SchemeContender
from harness.foreign import ForeignContender, note_of
from harness.records import Run


def stock_hqq(bits: int) -> ForeignContender:
    """transformers' QuantizedCache as the published tables used it: HQQ, groups of 64, residual 64, default axes."""

    def factory(config: Any) -> Any:
        return QuantizedCache("hqq", config, nbits=bits, q_group_size=64, residual_length=64)

    return ForeignContender(f"transformers-hqq{bits}", factory, note_of("hqq", 0, 0))


def trap_contenders() -> list[Contender]:
    return [
        SchemeContender.of("exact"),
        *(stock_hqq(bits) for bits in (8, 4, 2)),
        *(SchemeContender.of(spec) for spec in ("int8", "int4")),
    ]


def trap_verdict(single: Run, two: Run) -> tuple[bool, list[str]]:
    """Did the trap show, and what happened, in sentences.

    It shows where one pass gives all quantized caches (all contenders but the first) losses equal to the last bit, and
    two passes give all different ones.
    """
    if failed := [contender.label for run in (single, two) for contender in run.contenders if contender.error]:
        return False, [f"Nothing is shown, since {failed[0]} failed; the lines above say why."]
    in_one, in_two = ([sum(w.nll[i] for w in run.windows) for i in range(len(run.contenders))] for run in (single, two))
    if len(set(in_one[1:])) > 1:
        return False, ["Not as expected: in one pass the losses of the quantized caches differ, so something was read."]
    if len(set(in_two)) < len(in_two):
        return False, ["Not as expected: in two passes some losses are bit-identical, so something was not read."]
    tokens = sum(w.count for w in single.windows)
    gap = (in_one[0] - in_one[1]) / tokens
    if gap:
        why = f"differs from theirs by {abs(gap):.1e} nats a token, which is the round-off of another cache class"
    else:
        why = "equals theirs to the last bit too"
    return True, [
        "In one pass all quantized caches give the same loss to the last bit, 8 and 2 bits alike: the cache was written "
        "and never read. In two passes the suffix reads it, and they differ.",
        f"The exact cache's single-pass loss {why}.",
    ]


def grid_spec(bits: int, key_axis: str, value_axis: str) -> str:
    return f"asymmetric:bits={bits},key_axis={key_axis},value_axis={value_axis},group_size=32"


# K axis × V axis × bits, all else equal
GRID = {
    f"K {key}, V {value}": {f"{bits} bit": grid_spec(bits, key, value) for bits in (8, 4, 3, 2)}
    for key in ("token", "channel")
    for value in ("token", "channel")
}

PUBLISHED = ("kivi4", "kivi2", "int4", "hqq4")

LADDER = {
    "int4": "naive INT4: symmetric, groups of 64",
    "int4:group_size=16": "groups of 16",
    "asym4": "asymmetric, groups of 64",
    "asym4:group_size=32": "asymmetric, groups of 32",
    "asym4:group_size=32,key_axis=channel": "+ keys per channel",
    "kivi4": "+ residual of 128: KIVI",
}

EQUAL_BITS = ("int4:group_size=16", "asym4:group_size=32,key_axis=channel")  # both 5.00


def kivi_specs() -> list[str]:
    return list(
        dict.fromkeys(["exact", *PUBLISHED, *LADDER, *(spec for row in GRID.values() for spec in row.values())])
    )
