"""Not quantizers: exact caches that drop tokens, to compare with at equal bytes.

A sliding window keeps the newest tokens; StreamingLLM (Xiao et al. 2023, arXiv 2309.17453) also keeps the first few,
"attention sinks". Departure: StreamingLLM caches keys before rotation and numbers the kept tokens by their place in the
cache; here keys stay as they were rotated and every token keeps its position in the text.
"""

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvdelta.harness.caches.heads import Gather, bytes_of_all, own
from kvdelta.harness.caches.specs import CacheSpec
from kvdelta.harness.records.run import Bytes, ContenderRecord
from kvdelta.harness.subject.kinds import full_layers
from kvdelta.harness.subject.probing import places_are_in_keys
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes.errors import UserError

Whole = Float[Tensor, "batch heads past_and_new _"]  # past and new tokens; values may be narrower than keys
New = Float[Tensor, "batch heads tokens _"]
EXACT_BITS = 16  # of a number of an exact token, whatever the run's dtype


@dataclass(frozen=True)
class Eviction:
    """How many tokens are kept: the first `sinks`, then the newest, `tokens` in all; or as many as `bits` buy.

    bits: measured bits a number of the first forward, the prefix, so floor(prefix · bits / 16) tokens are kept from then
    on. Exactly one of tokens and bits is given.
    """

    sinks: int = 0
    tokens: int | None = None
    bits: float | None = None

    def kept(self, prefix_length: int) -> int:
        if self.tokens is not None:
            return self.tokens
        return int(prefix_length * Fraction(str(self.bits)) / EXACT_BITS)  # in floats 2.3 · 160 / 16 could be 22.99…

    def check(self, prefix_length: int) -> None:
        """ValueError where nothing would be evicted, or no newest token kept."""
        kept = self.kept(prefix_length)
        if kept <= self.sinks:
            raise UserError(
                f"{kept} of {prefix_length} tokens are kept, and {self.sinks} of them are sinks, so no newest token "
                "would be; give more bits, fewer sinks, or a longer window"
            )
        if kept >= prefix_length:
            raise UserError(
                f"{kept} tokens are kept and the prefix has {prefix_length}, so nothing would be evicted; keep fewer tokens "
                "or use a longer window"
            )


class EvictingLayer(DynamicLayer):
    """One full-attention layer that keeps only some tokens, exact.

    `update` returns the kept past followed by the new tokens; then it evicts. So a forward attends to its own tokens,
    and to what was kept before it. Positions go on counting every token seen. What was evicted cannot come back, so the
    layer is not croppable; left padding is not supported: the mask takes the kept tokens for the newest.
    """

    is_croppable = False

    def __init__(self, rule: Eviction):
        super().__init__()
        self.rule = rule
        self.seen = 0
        self.capacity = 0

    def update(self, key_states: New, value_states: New, *args: Any, **kwargs: Any) -> tuple[Whole, Whole]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.capacity = max(self.rule.sinks + 1, self.rule.kept(key_states.shape[2]))
        self.seen += key_states.shape[2]
        full = super().update(key_states, value_states)
        self.keys, self.values = map(self._evict, full)
        return full

    def _evict(self, full: Tensor) -> Tensor:
        """[batch heads tokens channels] → at most `capacity` tokens, in storage of their own."""
        if full.shape[2] <= self.capacity:
            return full
        sinks = self.rule.sinks
        return torch.cat([full[:, :, :sinks], full[:, :, full.shape[2] - self.capacity + sinks :]], dim=2)

    @property
    def held(self) -> int:
        """Tokens kept."""
        return super().get_seq_length()

    def past_read(self) -> dict[str, range]:
        """By side, the positions that the next forward does not find."""
        sinks = self.rule.sinks
        return dict.fromkeys(("key", "value"), range(sinks, sinks + self.seen - self.held))

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.held + query_length, self.seen - self.held

    def crop(self, tokens_to_remove: Any) -> None:
        raise UserError(f"crop({tokens_to_remove}): a cache that evicts cannot be cropped; what it dropped is gone")

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.seen = 0


class EvictingCache(DynamicCache):
    """A transformers cache whose full-attention layers evict as `rule` says; other layers are as they are.

    Raises ValueError where the model has no full-attention layer.
    """

    def __init__(self, rule: Eviction, config: Any):
        super().__init__(config=config)
        for index in full_layers(self):
            self.layers[index] = EvictingLayer(rule)
        if not self.evicting:
            raise UserError(
                f"the model ({config.model_type}) has no full-attention layer whose tokens could be evicted"
            )

    @property
    def evicting(self) -> list[int]:
        """Indices of the layers that evict."""
        return [index for index, layer in enumerate(self.layers) if isinstance(layer, EvictingLayer)]

    def held(self) -> Iterator[tuple[str, EvictingLayer, Tensor]]:
        """("key" or "value", layer, what it holds) of every layer that evicts."""
        for index in self.evicting:
            layer = self.layers[index]
            assert isinstance(layer, EvictingLayer)
            for side, kept in (("key", layer.keys), ("value", layer.values)):
                if kept is not None:
                    yield side, layer, kept

    def fill(self, prefilled: DynamicCache) -> "EvictingCache":
        """Take what an exact prefill captured, as a live prefill would. Returns itself."""
        for index, layer in enumerate(prefilled.layers):
            if isinstance(self.layers[index], EvictingLayer):
                assert isinstance(layer, DynamicLayer)
                assert layer.keys is not None
                assert layer.values is not None
                self.update(layer.keys, layer.values, index)
            else:
                self.layers[index] = copy.deepcopy(layer)  # forwards change their state in place
        return self


@dataclass(frozen=True)
class EvictingContender:
    """A cache that evicts; the shared exact prefill fills it."""

    label: str
    name: str
    rule: Eviction
    lossless: bool = False
    foreign: bool = False
    mixes_rows: bool = False
    mixes_heads: str | None = None

    @classmethod
    def of(cls, label: str, spec: CacheSpec) -> "EvictingContender":
        return cls(label, spec.name, Eviction(**spec.values))

    @property
    def calibrated_for(self) -> tuple[()]:
        return ()

    @property
    def calibrated_on(self) -> tuple[()]:
        return ()

    def empty(self, model: Any) -> EvictingCache:
        return EvictingCache(self.rule, model.config)

    def fill(self, cache: EvictingCache, model: Any, batch: Batch, prefilled: DynamicCache) -> None:
        cache.fill(prefilled)

    def check(self, model: Any, prefix_length: int) -> None:
        try:
            self.empty(model)
            self.rule.check(prefix_length)
            if not places_are_in_keys(model):
                raise UserError(
                    f"this {model.config.model_type} model biases attention by the distance of keys (ALiBi), which it counts "
                    "over what the cache holds, so that evicting tokens would move the others"
                )
        except ValueError as error:
            raise UserError(f"scheme {self.label!r}: {error}") from None

    def zero_codes(self, cache: EvictingCache) -> bool:
        return False

    def record(
        self, model: Any, cache: EvictingCache, prefilled: DynamicCache | None, gather: Gather = own
    ) -> ContenderRecord:
        sides = {side: Bytes(held={"exact": 0}, counted=0.0, elements=0) for side in ("key", "value")}
        kept = 0
        for side, layer, tensor in cache.held():
            batch, heads, kept, channels = tensor.shape
            sides[side].held["exact"] += tensor.untyped_storage().nbytes()
            sides[side].counted += tensor.numel() * EXACT_BITS / 8
            sides[side].elements += batch * heads * layer.seen * channels
        sinks = self.rule.sinks
        which = f"first {sinks} and the newest {kept - sinks}" if sinks else f"newest {kept}"
        return ContenderRecord(
            label=self.label,
            name=self.name,
            lossless=False,
            quantized_sides=["key", "value"],
            spec=asdict(self.rule),
            quantized_layers=cache.evicting,
            lossy_layers=dict.fromkeys(("key", "value"), cache.evicting),
            bytes=bytes_of_all(sides, gather),
            note=f"attends to the {which} tokens of the prefix, exact and at their own positions; the others are evicted",
            evicts=True,
        )
