"""The contenders of `reproduce trap`: transformers' own quantized cache, and ours."""

from typing import Any

from transformers import QuantizedCache

from kvdelta.harness.caches.contenders import Contender, SchemeContender
from kvdelta.harness.caches.foreign import ForeignContender, note_of


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
