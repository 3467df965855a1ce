"""What competes in a run: a scheme in our cache, one that evicts (harness.eviction), or any other (harness.foreign)."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from transformers import DynamicCache

from harness.cache import SchemeCache
from harness.eviction import EvictingContender
from harness.foreign import stock_cache
from harness.records import Bytes, ContenderRecord
from harness.specs import outside
from harness.windows import Window
from schemes import Scheme, parse_scheme


class Contender(Protocol):
    """One row of a comparison."""

    @property
    def label(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def foreign(self) -> bool:
        """Code that is not ours: whatever it raises fails its own row, and the run goes on."""
        ...

    def empty(self, model: Any) -> Any:
        """A fresh cache."""
        ...

    def fill(self, cache: Any, model: Any, window: Window, prefilled: DynamicCache) -> None:
        """Pass 1 into `cache`."""
        ...

    def check(self, model: Any, prefix_length: int) -> None:
        """ValueError, before any forward, where this model or window cannot be used."""
        ...

    def zero_codes(self, cache: Any) -> bool:
        """The destructive control: set every stored code to 0; False where there is none that we know of."""
        ...

    def record(self, model: Any, cache: Any, prefilled: DynamicCache | None) -> ContenderRecord:
        """What it is, and what `cache`, filled with one prefix, holds.

        prefilled: the same tokens' exact keys and values, None where the cache was filled with others. cache: None of a
        foreign one that failed.
        """
        ...


@dataclass(frozen=True)
class SchemeContender:
    """A scheme; the shared exact prefill fills its cache."""

    label: str
    scheme: Scheme
    foreign: bool = False

    @classmethod
    def of(cls, spec: str) -> "SchemeContender":
        return cls(spec.strip(), parse_scheme(spec))

    @property
    def name(self) -> str:
        return self.scheme.name

    @property
    def lossless(self) -> bool:
        return self.scheme.lossless

    def empty(self, model: Any) -> SchemeCache:
        return SchemeCache.for_model(self.scheme, model)

    def fill(self, cache: SchemeCache, model: Any, window: Window, prefilled: DynamicCache) -> None:
        cache.fill(prefilled)

    def check(self, model: Any, prefix_length: int) -> None:
        self.empty(model)
        for side, rule in [pair for variant in self.scheme.variants for pair in variant.sides.items()]:
            if not rule.packed_tokens(prefix_length):
                kept = rule.keep_recent + rule.sink_tokens + rule.flush_every
                raise ValueError(
                    f"scheme {self.label}: a prefix of {prefix_length} tokens would leave every {side} exact, since its "
                    f"residual rule packs nothing under {kept} tokens; use a longer window or a shorter residual"
                )

    def zero_codes(self, cache: SchemeCache) -> bool:
        cache.zero_codes()
        return not self.lossless

    def record(self, model: Any, cache: SchemeCache, prefilled: DynamicCache | None) -> ContenderRecord:
        sides: dict[str, Bytes] = {side: Bytes(held={}, counted=0.0, elements=0) for side in self.scheme.sides}
        for _, side, store in cache.stores():
            total = sides[side]
            for part, size in store.nbytes().items():
                total.held[part] = total.held.get(part, 0) + size
            total.counted += store.counted_bytes()
            total.elements += store.elements
        return ContenderRecord(
            label=self.label,
            name=self.name,
            lossless=self.lossless,
            quantized_sides=self.scheme.quantized_sides,
            spec={
                **{side: _spec(rule) for side, rule in self.scheme.sides.items()},
                **(
                    {"layers": {index: other.name for index, other in self.scheme.layers}} if self.scheme.layers else {}
                ),
            },
            quantized_layers=cache.quantized_layers,
            bytes=sides,
        )


def _spec(rule: Any) -> dict[str, Any]:
    full = asdict(rule)
    return {**full, "quantizer": {"kind": type(rule.quantizer).__name__, **full["quantizer"]}}


def contender_of(spec: str) -> Contender:
    """A contender from a spec: of a scheme, of a cache that evicts ("sink-window:bits=4"), or of one of transformers'
    own ("hf-hqq:bits=4"). ValueError for what is none of these."""
    label, told = spec.strip(), outside(spec)
    if told is None:
        return SchemeContender.of(spec)
    return stock_cache(label, told) if told.kind.startswith("hf-") else EvictingContender.of(label, told)
