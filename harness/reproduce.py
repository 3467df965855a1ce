"""The two published comparisons that people ask for first, as lists of contenders."""

from collections.abc import Sequence
from typing import Any

from transformers import QuantizedCache

from harness.contenders import Contender, ForeignContender, SchemeContender


def stock_hqq(bits: int) -> ForeignContender:
    """transformers' QuantizedCache as the published tables used it: HQQ, groups of 64, residual 64, default axes."""

    def factory(config: Any) -> Any:
        return QuantizedCache("hqq", config, nbits=bits, q_group_size=64, residual_length=64)

    note = "groups run over strided tokens across heads (axis 0); re-quantizes everything at each flush"
    return ForeignContender(f"transformers-hqq{bits}", factory, note)


def trap_contenders() -> list[Contender]:
    return [
        SchemeContender.of("exact"),
        *(stock_hqq(bits) for bits in (8, 4, 2)),
        *(SchemeContender.of(spec) for spec in ("int8", "int4")),
    ]


def trap_sentence(single: Sequence[float], two: Sequence[float]) -> tuple[bool, str]:
    """Did the trap show, and one sentence that says what happened. Losses: sums of NLL, exact first."""
    quantized_same = len(set(single[1:])) == 1
    two_differ = len(set(two)) == len(two)
    if quantized_same and two_differ:
        return True, (
            "In one pass every quantized cache gives the same loss to the last bit, because it was written and never "
            "read; in two passes the suffix reads it, and the schemes differ."
        )
    what = "single-pass losses of the quantized caches differ" if not quantized_same else "two-pass losses coincide"
    return False, f"The trap did not show as expected: {what}."


def grid_specs() -> list[str]:
    """K axis × V axis × bits, all else equal (asymmetric, groups of 32)."""
    return [
        f"asymmetric:bits={bits},key_axis={key},value_axis={value},group_size=32"
        for bits in (8, 4, 3, 2)
        for key in ("token", "channel")
        for value in ("token", "channel")
    ]


PUBLISHED_SPECS = ["kivi4", "kivi2", "int4", "hqq4"]

LADDER_SPECS = {
    "naive INT4, groups of 64": "int4",
    "smaller groups (16)": "int4:group_size=16",
    "asymmetric, groups of 64": "asym4",
    "asymmetric, groups of 32": "asym4:group_size=32",
    "+ keys per channel": "asym4:group_size=32,key_axis=channel",
    "+ residual of 128 (KIVI)": "kivi4",
}


def kivi_specs() -> list[str]:
    return list(dict.fromkeys(["exact", *PUBLISHED_SPECS, *LADDER_SPECS.values(), *grid_specs()]))
