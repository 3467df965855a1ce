"""SchemeCache against a plain model, in any order of what transformers does to a cache.

The model is what was fed, row by row, and what may be cropped inside of a block. Laws: lengths and mask sizes are those of the model;
a forward reads the past as it was read before, with nothing changed in blocks that are stored, and its own tokens exactly; where no
crop cut a block, what is held is what a fresh cache holds that is fed the same tokens in one go, and `exact` reads what DynamicCache
reads; a copy shares nothing.
"""

import copy
import json

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from transformers import DynamicCache

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.schemes import parse_scheme

from ...conftest import tiny_config

HEADS, CHANNELS = 2, 16
LAYERS = 2
MOST_ROWS = 4
SPECS = [
    "exact",
    "exact:sink_tokens=2,keep_recent=5",
    "int4:group_size=8",
    "kivi:bits=2,group_size=8,residual_length=8,sink_tokens=3",
    "asym4:key_axis=channel,group_size=8",
    "hqq4:group_size=8,iters=2,keep_recent=4",
    "hadamard(asym3:group_size=8):sink_tokens=2",
    "kvarn:bits=4,tile=8",
    "gear(asym4:group_size=8):block=8,prompt=16",
    "fp8:scale=tensor,block=4",
    "@map",
]
MAP = {
    "default": "int8:group_size=8",
    "layers": {"1": {"key": "kivi:bits=4,group_size=8,residual_length=8", "value": "exact"}},
}

CONFIG = tiny_config(hidden_size=64, num_hidden_layers=LAYERS)


def states(seed: int, rows: int, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(LAYERS, 2, rows, HEADS, tokens, CHANNELS, generator=rng)
    x[..., 3] = 6 * x[..., 3] + 9
    return [(one[0], one[1]) for one in x]


class Beside:
    """A cache, and what is known of it. fed: keys and values of each layer; shown: what the cache decoded at its last reading."""

    def __init__(self, cache: SchemeCache, stock: DynamicCache):
        self.cache, self.stock = cache, stock
        self.fed: list[list[torch.Tensor]] = []
        self.shown: list[list[torch.Tensor | None]] = []
        self.cut = False  # inside a block: what follows is stored in blocks that begin elsewhere
        self.cropped = False  # what is packed stays so, though a shorter cache would keep it exact as yet

    @property
    def tokens(self) -> int:
        return self.fed[0][0].shape[2] if self.fed else 0

    @property
    def rows(self) -> int:
        return self.fed[0][0].shape[0]

    def stores(self) -> list:
        """Of a copy: layers that step together go on so."""
        return [list(layer.stores.values()) for layer in copy.deepcopy(self.cache).layers]

    def held(self) -> list[list[torch.Tensor | None]]:
        return [[store.read() for store in sides] for sides in self.stores()]

    def packed(self) -> list[list[tuple[int, int]]]:
        return [[(store.packed_from, store.packed_until) for store in sides] for sides in self.stores()]


class CacheMachine(RuleBasedStateMachine):
    spec: str

    @initialize(mirrored=st.booleans(), rows=st.integers(1, 2))
    def begin(self, mirrored, rows):
        self.scheme, self.mirrored, self.begun_with = parse_scheme(self.spec), mirrored, rows
        self.now = Beside(SchemeCache(self.scheme, CONFIG, mirrored=mirrored), DynamicCache(config=CONFIG))
        self.copies: list[Beside] = []
        self.seed = 0

    @rule(tokens=st.one_of(st.integers(1, 3), st.integers(4, 40)))
    def update(self, tokens):
        now = self.now
        rows = now.rows if now.fed else self.begun_with
        self.seed += 1
        new, before, packed = states(self.seed, rows, tokens), now.held(), now.packed()
        for layer, (keys, values) in enumerate(new):
            read = now.cache.update(keys, values, layer)
            stock = now.stock.update(keys, values, layer)
            for side, (x, past, ours, theirs) in enumerate(
                zip((keys, values), before[layer], read, stock, strict=True)
            ):
                assert torch.equal(ours[:, :, -tokens:], x)
                assert ours.shape == theirs.shape
                if past is not None:
                    assert torch.equal(ours[:, :, :-tokens], past)
                if self.scheme.lossless:
                    assert torch.equal(ours, theirs)
                if now.fed:
                    now.fed[layer][side] = torch.cat([now.fed[layer][side], x], dim=2)
        now.fed = now.fed or [list(pair) for pair in new]
        self.blocks_stay(before, packed)

    def blocks_stay(self, before, packed):
        """What was stored in blocks reads as it did."""
        for past, now, spans in zip(before, self.now.held(), packed, strict=True):
            for old, new, (begin, end) in zip(past, now, spans, strict=True):
                if old is not None and new is not None:
                    end = min(end, new.shape[2])
                    assert torch.equal(old[:, :, begin:end], new[:, :, begin:end])

    @precondition(lambda self: self.now.fed)
    @rule(share=st.floats(0, 1.2))
    def crop(self, share):
        now, gone = self.now, round(share * self.now.tokens)
        keep, before = max(0, now.tokens - gone), now.held()
        now.cut = now.cut or any(begin < keep < end for sides in now.packed() for begin, end in sides)
        now.cropped = now.cropped or gone > 0
        now.cache.crop(-gone)
        for past, here in zip(before, now.held(), strict=True):
            for old, new in zip(past, here, strict=True):
                assert new is None if keep == 0 else torch.equal(new, old[:, :, :keep])
        now.fed = [[x[:, :, :keep] for x in pair] for pair in now.fed] if keep else []
        if keep:
            now.stock.crop(-gone)
        else:
            now.stock, now.cut, now.cropped = DynamicCache(config=CONFIG), False, False
            self.begun_with = 1

    @precondition(lambda self: self.now.fed)
    @rule(tokens=st.integers(1, 50))
    def a_length_is_no_crop(self, tokens):
        """As transformers since 5.18."""
        with pytest.raises(ValueError, match="negative"):
            self.now.cache.crop(tokens)

    def move(self, change, rows: torch.Tensor):
        now, before = self.now, self.now.held()
        for cache in (now.cache, now.stock):
            change(cache)
        now.fed = [[x[rows] for x in pair] for pair in now.fed]
        for past, here in zip(before, now.held(), strict=True):
            assert all(torch.equal(new, old[rows]) for old, new in zip(past, here, strict=True))

    @precondition(lambda self: self.now.fed)
    @rule(data=st.data(), way=st.sampled_from(["reorder_cache", "batch_select_indices"]))
    def choose_rows(self, data, way):
        most = self.now.rows if way == "reorder_cache" else MOST_ROWS
        chosen = data.draw(st.lists(st.integers(0, self.now.rows - 1), min_size=1, max_size=most))
        rows = torch.tensor(chosen)
        self.move(lambda cache: getattr(cache, way)(rows), rows)

    @precondition(lambda self: self.now.fed and self.now.rows * 2 <= MOST_ROWS)
    @rule()
    def repeat_rows(self):
        self.move(lambda cache: cache.batch_repeat_interleave(2), torch.arange(self.now.rows).repeat_interleave(2))

    @rule()
    def reset(self):
        self.now.cache.reset()
        self.now.stock = DynamicCache(config=CONFIG)
        self.now.fed, self.now.cut, self.now.cropped = [], False, False

    @precondition(lambda self: len(self.copies) < 2)
    @rule()
    def copy_and_go_on_with_the_copy(self):
        kept = self.now
        kept.shown = kept.held()
        other = Beside(copy.deepcopy(kept.cache), copy.deepcopy(kept.stock))
        other.fed, other.cut, other.cropped = [list(pair) for pair in kept.fed], kept.cut, kept.cropped
        self.copies.append(kept)
        self.now = other

    @precondition(lambda self: self.copies)
    @rule()
    def go_back_to_what_was_copied(self):
        kept = self.copies.pop()
        assert same(kept.held(), kept.shown)
        self.now.cache.zero_codes()
        assert same(kept.held(), kept.shown)
        self.now = kept
        self.begun_with = 1

    @invariant()
    def lengths_are_those_of_what_was_fed(self):
        if not hasattr(self, "now"):
            return
        now = self.now
        assert now.cache.get_seq_length() == now.tokens
        for index, sides in enumerate(now.stores()):
            assert [store.length for store in sides] == [now.tokens] * 2
            for query in (1, 7):
                assert now.cache.get_mask_sizes(query, index) == (now.tokens + query, 0)
                assert now.cache.get_mask_sizes(query, index) == now.stock.get_mask_sizes(query, index)

    @invariant()
    def a_fresh_cache_fed_at_once_holds_the_same(self):
        if not hasattr(self, "now") or self.now.cut or not self.now.fed:
            return
        fresh = SchemeCache(self.scheme, CONFIG)
        for layer, (keys, values) in enumerate(self.now.fed):
            fresh.update(keys, values, layer)
        held, beside = self.now.held(), Beside(fresh, self.now.stock)
        alike = self.now.packed() == beside.packed()
        assert alike or self.now.cropped
        assert not alike or same(held, beside.held())
        if self.scheme.lossless:
            stock = [[layer.keys, layer.values] for layer in self.now.stock.layers]
            assert same(held, stock)


def same(one, other) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for pairs in zip(one, other, strict=True)
        for a, b in zip(*pairs, strict=True)
    )


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("spec", SPECS)
def test_any_order_of_what_happens_to_a_cache(spec, tmp_path):
    if spec == "@map":
        (tmp_path / "map.json").write_text(json.dumps(MAP))
        spec = f"@{tmp_path / 'map.json'}"
    machine = type("Machine", (CacheMachine,), {"spec": spec})
    run_state_machine_as_test(machine, settings=settings(max_examples=20, stateful_step_count=20))
