"""Foreign caches as contenders: whatever a factory makes, and transformers' own QuantizedCache by short name.

A foreign cache fills itself in a live pass 1, is audited by value, and its bytes are counted in what it really holds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import DynamicCache, QuantizedCache

from kvdelta.harness.caches.factory import load_factory
from kvdelta.harness.caches.heads import Gather, own
from kvdelta.harness.caches.holdings import measured
from kvdelta.harness.caches.specs import CacheSpec
from kvdelta.harness.protocols import fill_live
from kvdelta.harness.records.run import ContenderRecord
from kvdelta.harness.subject.probing import kv_shapes
from kvdelta.harness.subject.windows import Batch


@dataclass(frozen=True)
class ForeignContender:
    """Any cache, made by factory(model.config). Whatever it raises fails its own row, not the run.

    note: what it really does, for people; spec: how it was asked for, for the record. canonical: its name, where the
    label is not. lossless: it says that every row comes back bit for bit, which the audit tests.
    """

    label: str
    factory: Callable[[Any], Any]
    note: str = ""
    lossless: bool = False
    foreign: bool = True
    mixes_rows: bool = True  # it may; it is not ours to know
    mixes_heads: str | None = "it may take heads together, which is not ours to know"
    canonical: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.canonical or self.label

    @property
    def calibrated_for(self) -> tuple[()]:
        return ()

    @property
    def calibrated_on(self) -> tuple[()]:
        return ()

    def empty(self, model: Any) -> Any:
        return self.factory(model.config)

    def fill(self, cache: Any, model: Any, batch: Batch, prefilled: DynamicCache) -> None:
        fill_live(model, batch.prefix, cache)

    def check(self, model: Any, prefix_length: int) -> None:
        """Nothing: what a foreign cache refuses it says when it runs, and fails its row."""

    def zero_codes(self, cache: Any) -> bool:
        return False

    def record(self, model: Any, cache: Any, prefilled: DynamicCache | None, gather: Gather = own) -> ContenderRecord:
        stored = list(kv_shapes(model))
        return ContenderRecord(
            label=self.label,
            name=self.name,
            lossless=self.lossless,
            quantized_sides=["key", "value"],
            spec=dict(self.spec) or {"factory": self.label},
            quantized_layers=stored,
            lossy_layers=dict.fromkeys(("key", "value"), [] if self.lossless else stored),
            bytes=measured(cache, prefilled, model.dtype) if prefilled else None,
            note=self.note,
        )


def user_cache(path: str, time_limit: float | None = None) -> ForeignContender:
    """A cache from "module:factory" or "module:factory(window=64)"; ValueError where there is none. time_limit: seconds, of importing it."""
    factory = load_factory(path, time_limit)
    spec = {"factory": factory.call, "sha256": factory.sha256}
    return ForeignContender(path.strip(), factory, canonical=factory.name, spec=spec)


GROUPING = {
    ("hqq", 0): "groups of strided tokens across heads (axis 0)",
    ("hqq", 1): "groups of neighbouring channels of one token (axis 1)",
    ("quanto", 0): "groups of neighbouring channels of one token (axis 0)",
    ("quanto", -1): (
        "groups per channel over flattened tokens, straddling heads unless the group size divides the tokens (axis -1)"
    ),
}
REQUANTIZES = "re-quantizes everything at each flush"
FP8_NOTE = "one per-tensor scale, frozen at the first update; new tokens come back in fp8 too"


def note_of(backend: str, key_axis: int, value_axis: int) -> str:
    """What a backend of transformers' QuantizedCache does, read and probed in 5.17 and 5.23."""
    keys, values = GROUPING[backend, key_axis], GROUPING[backend, value_axis]
    return f"{keys if keys == values else f'K: {keys}; V: {values}'}; {REQUANTIZES}"


def stock_cache(label: str, spec: CacheSpec) -> ForeignContender:
    """transformers' QuantizedCache from a spec such as "hf-hqq:bits=4,axis=0"."""
    backend, values = spec.kind.removeprefix("hf-"), spec.values
    if backend == "fp8":
        return ForeignContender(
            label, lambda config: QuantizedCache("fp8", config), FP8_NOTE, canonical=spec.name, spec={"backend": "fp8"}
        )
    settings = {
        "nbits": values["bits"],
        "axis_key": values["key_axis"],
        "axis_value": values["value_axis"],
        "q_group_size": values["group_size"],
        "residual_length": values["residual_length"],
    }
    return ForeignContender(
        label,
        lambda config: QuantizedCache(backend, config, **settings),
        note_of(backend, values["key_axis"], values["value_axis"]),
        canonical=spec.name,
        spec={"backend": backend, **settings},
    )
