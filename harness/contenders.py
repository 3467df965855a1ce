"""What competes in a run: a scheme in our cache, or any other cache by its factory."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from transformers import DynamicCache

from harness.cache import SchemeCache
from harness.protocols import fill_live
from harness.records import Bytes, ContenderRecord
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

    def empty(self, config: Any) -> Any:
        """A fresh cache."""
        ...

    def fill(self, cache: Any, model: Any, window: Window, prefilled: DynamicCache) -> None:
        """Pass 1 into `cache`."""
        ...

    def check(self, config: Any, prefix_length: int) -> None:
        """ValueError, before any forward, where this model or window cannot be used."""
        ...

    def zero_codes(self, cache: Any) -> bool:
        """The destructive control: set every stored code to 0; False where there is none that we know of."""
        ...

    def record(self, config: Any, cache: Any) -> ContenderRecord: ...


@dataclass(frozen=True)
class SchemeContender:
    """A scheme; the shared exact prefill fills its cache."""

    label: str
    scheme: Scheme

    @classmethod
    def of(cls, spec: str) -> "SchemeContender":
        return cls(spec.strip(), parse_scheme(spec))

    @property
    def name(self) -> str:
        return self.scheme.name

    @property
    def lossless(self) -> bool:
        return self.scheme.lossless

    def empty(self, config: Any) -> SchemeCache:
        return SchemeCache(self.scheme, config)

    def fill(self, cache: SchemeCache, model: Any, window: Window, prefilled: DynamicCache) -> None:
        cache.fill(prefilled)

    def check(self, config: Any, prefix_length: int) -> None:
        self.empty(config)
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

    def record(self, config: Any, cache: SchemeCache) -> ContenderRecord:
        """With the bytes held by `cache`, filled with one prefix."""
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


@dataclass(frozen=True)
class ForeignContender:
    """Any cache; it fills itself in a live pass 1, and is audited by value. Its bytes are not measured."""

    label: str
    factory: Callable[[Any], Any]
    note: str = ""
    lossless: bool = False

    @property
    def name(self) -> str:
        return self.label

    def empty(self, config: Any) -> Any:
        return self.factory(config)

    def fill(self, cache: Any, model: Any, window: Window, prefilled: DynamicCache) -> None:
        fill_live(model, window.prefix, cache)

    def check(self, config: Any, prefix_length: int) -> None:
        try:
            self.empty(config)
        except Exception as error:  # a foreign cache may raise anything
            raise ValueError(f"cache {self.label} cannot be made for this model: {error}") from error

    def zero_codes(self, cache: Any) -> bool:
        return False

    def record(self, config: Any, cache: Any) -> ContenderRecord:
        return ContenderRecord(
            label=self.label,
            name=self.name,
            lossless=self.lossless,
            quantized_sides=["key", "value"],
            spec={"factory": self.label},
            quantized_layers=list(range(len(cache.layers))),
            bytes=None,
            note=self.note,
        )
