"""What a whole cache keeps alive, found by walking it: the packed numbers, and nothing of the forwards that wrote them."""

import pytest
import torch
from transformers import LlamaConfig

from kvdelta.harness.caches.holdings import storages
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.schemes import TokenStore, parse_scheme

from ...schemes.test_kvquant import bound, written

HEADS, CHANNELS, TOKENS = 4, 64, 4096

OUTLIERS = (
    24 * 2 / 64 + 24 * 4 / 256
) / 2  # one and one of a channel's 64 tokens, two and two of a token over all heads: 24 bits each
LOW_RANK = 2 * 16 / 64 + 2 * 16 / 64  # rank 2: a row of 2 numbers a token, and one a channel and block
BITS = {  # a number of what is packed: its code, and 16 for each parameter of a group
    "exact": 32,  # as the run has them: float32
    "int8": 8 + 16 / 64,
    "int4": 4 + 16 / 64,
    "int4:sink_tokens=4,keep_recent=100": 4 + 16 / 64,
    "kivi2": 2 + 32 / 32,
    "kivi4:sink_tokens=4": 4 + 32 / 32,
    "hqq2": 2 + 32 / 64,
    "turbo3": 3 + 16 / 64,
    "hadamard(int4)": 4 + 16 / 64,
    "clip(kivi2)": 2 + 32 / 32,
    "sparse(int4)": 4 + 16 / 64 + 24 / 64,  # one outlier a token and head: 16 bits, and 8 that say where
    "gear(kivi2)": 2 + 32 / 32 + OUTLIERS + LOW_RANK,
}


def grown(spec: str, chunks: list[int]) -> SchemeCache:
    """A cache of one layer that was fed views of what a fused projection gives, as some models do."""
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=HEADS, hidden_size=HEADS * CHANNELS)
    cache = SchemeCache(parse_scheme(spec), config)
    for count in chunks:
        fused = torch.randn(1, count, 3 * HEADS, CHANNELS).transpose(1, 2)
        _, keys, values = fused.split(HEADS, dim=1)
        cache.update(keys, values, 0)
    return cache


def held(cache: SchemeCache) -> int:
    return sum(size for _, size in storages(cache, skipped=()).values())


@pytest.mark.parametrize("spec", BITS)
@pytest.mark.parametrize("chunks", [[TOKENS], [4000, 90, 1, 1, 1, 1, 1, 1]], ids=["at once", "in chunks"])
def test_a_cache_holds_the_formula_and_nothing_else(spec, chunks):
    """At most 1.02 × the formula, beside tail and sinks as they came (float32) and spare capacity, which is a quarter of
    both, a token group and a token at most."""
    cache = grown(spec, chunks)
    parts: dict[str, int] = {}
    packed = group = token = 0.0
    for _, _, store in cache.stores():
        packed += store.packed_tokens * HEADS * CHANNELS * BITS[spec] / 8
        group += store.scheme.quantizer.tokens_per_group * HEADS * CHANNELS * BITS[spec] / 8
        token += HEADS * CHANNELS * 4
        for name, size in store.nbytes().items():
            parts[name] = parts.get(name, 0) + size
    exact = parts["tail"] + parts["sinks"]
    assert held(cache) <= 1.02 * packed + exact + parts["spare"]
    assert parts["spare"] <= 0.25 * (packed + exact) + group + token
    assert held(cache) == sum(parts.values())  # so `nbytes` sees all of it


def test_ragged_outliers_are_held_once_too(tmp_path):
    """kvquant's: what a store is beside its calibration, which all caches share."""
    file = written(tmp_path / "three.safetensors")
    for side in ("key", "value"):
        store = TokenStore(bound(f"kvquant:bits=3,calibration={file}", side))
        x = torch.randn(1, 2, 600, 3 * 64)[..., :64]
        for chunk in x.split([590, 9, 1], dim=2):
            store.append(chunk)
        parts = storages(store, skipped=[store.scheme, store.scheme.quantizer])
        assert sum(size for _, size in parts.values()) == sum(store.nbytes().values())


def test_what_waits_for_the_last_layer_is_a_step_and_no_prefill():
    """A layer of a prefill is packed at once; what a step has to pack waits, and goes with that of the last layer."""
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=HEADS, hidden_size=HEADS * CHANNELS)
    cache = SchemeCache(parse_scheme("int4"), config)

    def forward(count: int) -> list[bool]:
        """By layer, whether its keys wait after its own update."""
        waits = []
        for layer in range(3):
            x = torch.randn(1, HEADS, count, CHANNELS)
            cache.update(x, x, layer)
            waits.append(cache.layers[layer].stores["key"].waiting is not None)
        return waits

    assert forward(100) == [False, False, False]
    assert forward(1) == [True, True, False]
    assert all(store.waiting is None and store.packed_tokens == 101 for _, _, store in cache.stores())
