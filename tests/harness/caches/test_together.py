"""Layers of a mirrored cache that step together give what a stored one gives, bit for bit, after any sequence of operations."""

import copy
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

from kvdelta.harness.batching import rows_of
from kvdelta.harness.caches.holdings import storages
from kvdelta.harness.caches.layers import SchemeLayer
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.schemes import affine, parse_scheme

from ...conftest import TINY, tiny_config

LAYERS = 5
KIVI = "kivi:bits=4,group_size=8,residual_length=8,sink_tokens=3"
SPECS = [
    "exact",
    KIVI,
    "kivi:bits=2,group_size=8,residual_length=8,only=value",
    "int4:group_size=8,exact_first_layers=1",
    "asym2:axis=channel,group_size=8,flush_every=24,keep_recent=5,sink_tokens=1",
    "gear(asym2:axis=channel,group_size=8):block=8,rank=1,prompt=24,prompt_rank=2",
    "fp8:scale=none",
    "hqq4:group_size=8,solver=library",
    "@map.json",
]


@pytest.fixture(autouse=True)
def layer_map(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = {"1": KIVI, "3": "exact"}
    (tmp_path / "map.json").write_text(json.dumps({"default": "int8:group_size=8", "layers": layers}))


CONFIG = tiny_config(hidden_size=64, num_hidden_layers=LAYERS)
SHAPES = [(2, 16), (2, 16), (1, 16), (2, 16), (2, 8)]  # heads and channels of each layer


def new(rows: int, tokens: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer; values have 8 channels, and some numbers are beyond the largest of fp8."""
    rng = torch.Generator().manual_seed(seed)
    states = [[torch.randn(rows, heads, tokens, width, generator=rng) for width in (w, 8)] for heads, w in SHAPES]
    for keys, values in states:
        keys[..., 3] *= 400
        values[..., 3] *= 400
    return [(keys, values) for keys, values in states]


class Pair:
    """A stored cache and a mirrored one, which are done the same to."""

    def __init__(self, spec: str, config=CONFIG):
        scheme = parse_scheme(spec)
        self.caches = [SchemeCache(scheme, config, mirrored=mirrored) for mirrored in (False, True)]
        self.rows = 2

    @property
    def layers(self):
        return [cache.layers for cache in self.caches]

    @property
    def tokens(self) -> int:
        return self.caches[0].get_seq_length()

    def update(self, index: int, keys, values):
        stored, mirrored = (cache.update(keys, values, index) for cache in self.caches)
        assert all(torch.equal(a, b) for a, b in zip(stored, mirrored, strict=True))
        return mirrored

    def forward(self, tokens: int, seed: int, between=lambda layer: None):
        returned, kept = [], []
        for index, (keys, values) in enumerate(new(self.rows, tokens, seed)):
            stored, mirrored = (layers[index] for layers in self.layers)
            assert stored.get_seq_length() == mirrored.get_seq_length()
            assert stored.past_read() == mirrored.past_read()
            returned += self.update(index, keys, values)
            kept += [x.clone() for x in returned[-2:]]
            between(index)
        assert all(
            torch.equal(*pair) for pair in zip(kept, returned, strict=True)
        )  # nothing was changed while it was read

    def of_both(self, change):
        for cache in self.caches:
            change(cache)

    def alike(self):
        """What they hold, looked at in copies: so a copy shares nothing, and the layers go on together."""
        stored, mirrored = (copy.deepcopy(cache) for cache in self.caches)
        for (*where, one), (*there, other) in zip(stored.stores(), mirrored.stores(), strict=True):
            assert where == there
            counts = [(x.length, x.packed_until, x.tail_tokens, x.waiting) for x in (one, other)]
            assert counts[0] == counts[1]
            a, b = one.read(), other.read()
            assert a is b if a is None else torch.equal(a, b)
        sums = [sum(int(store.saturated) for _, _, store in cache.stores()) for cache in (stored, mirrored)]
        assert sums[0] == sums[1]


def out_of_turn(pair, n, seed):
    """One layer by itself, then the others: they hold the same again."""
    first = seed % (LAYERS - 1)  # what a stored cache has to quantize waits for the last
    states = new(pair.rows, 1 + n % 3, seed)
    for index in (first, *(i for i in range(LAYERS) if i != first)):
        pair.update(index, *states[index])


def only_some(pair, n, seed):
    """A forward that ends early, as it does for drafts of the first layers; then it is taken back by those alone."""
    for index, (keys, values) in enumerate(new(pair.rows, 1, seed)[: 1 + n % 3]):
        pair.update(index, keys, values)
    for layers in pair.layers:
        for layer in layers[: 1 + n % 3]:
            layer.crop(-1)


def crop(pair, n, seed):
    gone = min(pair.tokens, n)
    pair.of_both(lambda cache: cache.crop(-gone))


def select(pair, n, seed):
    rows = torch.tensor([pair.rows - 1, 0][: 1 + n % 2])
    pair.of_both(lambda cache: (cache.reorder_cache if n % 3 else cache.batch_select_indices)(rows))
    pair.rows = len(rows)


def repeat(pair, n, seed):
    if pair.rows < 4:
        pair.of_both(lambda cache: cache.batch_repeat_interleave(2))
        pair.rows *= 2


def some_rows(pair, n, seed):
    pair.caches = [rows_of(cache, slice(0, 1)) for cache in pair.caches]
    pair.rows = 1


def move_one(pair, n, seed):
    for layers in pair.layers:
        layers[n % LAYERS].offload()
        layers[n % LAYERS].prefetch()


def swap(pair, n, seed):
    pair.caches = copy.deepcopy(pair.caches)


def look(pair, n, seed):
    pair.forward(1, seed, between=lambda index: index == n % LAYERS and list(pair.caches[1].stores()))


OPERATIONS = {
    "step": lambda pair, n, seed: pair.forward(1 + n % 4, seed),
    "long": lambda pair, n, seed: pair.forward(n, seed),
    "crop": crop,
    "select": select,
    "repeat": repeat,
    "some rows": some_rows,
    "move one": move_one,
    "out of turn": out_of_turn,
    "only some": only_some,
    "look": look,
    "copy": swap,
    "zero": lambda pair, n, seed: pair.of_both(lambda cache: cache.zero_codes()),
    "reset": lambda pair, n, seed: pair.of_both(lambda cache: cache.reset()),
}
STEPS = st.tuples(
    st.sampled_from(["step"] * 10 + list(OPERATIONS)), st.integers(1, 40), st.integers(0, 99), st.booleans()
)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=15)
@given(prompt=st.integers(1, 60), steps=st.lists(STEPS, min_size=1, max_size=14))
def test_any_sequence_of_operations(spec, prompt, steps):
    pair = Pair(spec)
    pair.forward(prompt, 7)
    for name, n, seed, inference in steps:
        if "library" in spec and pair.rows > 1:
            some_rows(pair, 0, 0)  # its rows depend on each other
        with torch.inference_mode(inference):
            OPERATIONS[name](pair, n, seed)
        pair.alike()
        if pair.tokens:
            pair.forward(1, seed)
            assert pair.layers[1][0].together is not None


def steps(cache, layers: int, count: int, width: int = 16, first: int = 1):
    """Forwards of one token."""
    for seed in range(first, first + count):
        x = torch.randn(1, 2, 1, width, generator=torch.Generator().manual_seed(seed))
        for index in range(layers):
            cache.update(x, x, index)


def prompted(spec: str, layers: int, tokens: int, mirrored: bool = True):
    """A cache of so many tokens; without a spec DynamicCache."""
    config = tiny_config(hidden_size=64, num_hidden_layers=layers)
    cache = SchemeCache(parse_scheme(spec), config, mirrored=mirrored) if spec else DynamicCache(config=config)
    x = torch.randn(1, 2, tokens, 16, generator=torch.Generator().manual_seed(0))
    for index in range(layers):
        cache.update(x, x, index)
    return cache


class Kernels(TorchDispatchMode):
    """Counts operators that compute or copy; not those that make a view, which launch nothing."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aliases = [one.alias_info for one in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def kernels(spec: str, layers: int, count: int) -> Counter:
    """Of so many steps, the first left out, in which layers begin to go together."""
    cache = prompted(spec, layers, 40)
    steps(cache, layers, 1)
    with Kernels() as counted:
        steps(cache, layers, count, first=2)
    return counted.seen


@pytest.mark.parametrize(
    "spec", ["exact", "int4:group_size=8", "kivi:bits=4,group_size=8,residual_length=8", "hqq4:group_size=8"]
)
def test_a_layer_more_costs_a_step_what_it_costs_with_dynamic_cache(spec):
    """Two kernels, which write one token's keys and values; all else is done for all layers in one call. 20 steps: each side packs."""
    few, many = (kernels(spec, layers, 20) for layers in (2, 8))
    assert many - few == Counter({"aten.copy_.default": 6 * 2 * 20})
    few, many = (kernels("", layers, 20) for layers in (2, 8))
    assert many - few == Counter({"aten.cat.default": 6 * 2 * 20})


def test_a_block_is_decoded_once_for_all_layers(monkeypatch):
    """Without a mirror every step decodes all, layer by layer."""
    decoded, dequantize = [], affine.AffineTensor.dequantize
    monkeypatch.setattr(
        affine.AffineTensor, "dequantize", lambda self: (decoded.append(self.tokens), dequantize(self))[1]
    )
    for mirrored, expected in ((False, [[40, 40] * 3, [41, 41] * 3]), (True, [[40, 40], [1, 1]])):
        cache = prompted("asym2:group_size=16", 3, 40, mirrored)
        for wanted in expected:
            decoded.clear()
            steps(cache, 3, 1)
            assert decoded == wanted


def held(cache) -> int:
    return sum(size for _, size in storages(cache, skipped=()).values())


@pytest.mark.parametrize("count", [1, 200])
def test_codes_are_held_once_and_decoded_tokens_once(count):
    """200 steps: beyond the room that there was at first."""
    stored, mirrored = (prompted("int4:group_size=8", 4, 300, mirrored) for mirrored in (False, True))
    alone = held(mirrored)
    assert alone == held(stored)
    for cache in (stored, mirrored):
        steps(cache, 4, count)
    token = 4 * 2 * 2 * 16 * 4  # bytes of all layers, decoded
    decoded = held(mirrored) - 1.3 * held(stored)  # with spare of its own
    assert (300 + count - 1) * token - 0.3 * held(stored) <= held(mirrored) - held(stored)
    assert decoded <= 1.25 * (300 + count + 64) * token
    list(mirrored.stores())
    assert held(mirrored) <= 1.3 * held(stored)


def test_a_forward_that_is_differentiated_reads_what_is_written_once():
    cache = prompted(KIVI, 2, 40)
    steps(cache, 2, 2)
    x = torch.randn(1, 2, 1, 16, requires_grad=True)
    read = [one for index in range(2) for one in cache.update(x, x, index)]
    sum(one.square().sum() for one in read).backward()
    assert torch.allclose(x.grad, 2 * 4 * x)
    assert cache.layers[0].together is None


def test_what_inference_mode_made_is_not_written_to_outside_it():
    """Nor where what was written there is stored by then."""
    caches = [prompted(KIVI, 2, 40, mirrored) for mirrored in (False, True)]
    for cache in caches:
        with torch.inference_mode():
            steps(cache, 2, 2)
            assert cache.layers[0].past_read()["key"] == range(3, 35)
        steps(cache, 2, 1)
    stored, mirrored = ([store.read() for _, _, store in cache.stores()] for cache in caches)
    assert all(map(torch.equal, stored, mirrored))


def test_more_rows_than_there_are_is_an_error_as_with_a_stored_cache():
    for mirrored in (False, True):
        cache = prompted(KIVI, 2, 40, mirrored)
        cache.batch_repeat_interleave(2)
        steps_of_two = torch.randn(2, 2, 1, 16)
        for index in range(2):
            cache.update(steps_of_two, steps_of_two, index)
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            steps(cache, 2, 1)


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", [KIVI, "int4:group_size=8,exact_last_layers=1"])
def test_generate(model, spec, way):
    prompt = torch.randint(1, 128, (1, 50), generator=torch.Generator().manual_seed(2)).repeat(1, 2)
    written = []
    for mirrored in (False, True):
        torch.manual_seed(3)
        cache = SchemeCache.for_model(parse_scheme(spec), model, mirrored=mirrored)
        ways = {cache_keyword(model): cache, **WAYS[way]}
        written.append(model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, **ways))
    assert torch.equal(*written)


@pytest.mark.parametrize("kinds", ["full", "all"])
def test_layers_with_a_sliding_window_go_on_beside(kinds):
    kind = ["sliding_attention", "full_attention"]
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(**{**TINY, "num_hidden_layers": 4}, head_dim=16, sliding_window=24, layer_types=kind * 2)
    ).eval()
    prompt, logits = torch.randint(1, 128, (2, 60)), []
    for mirrored in (False, True):
        cache = SchemeCache.for_model(parse_scheme(f"{KIVI},layers={kinds}"), model, mirrored=mirrored)
        fill_live(model, prompt[:, :40], cache)
        with torch.inference_mode():
            logits.append([forward(model, one, cache).logits for one in prompt[:, 40:].split(1, dim=1)])
        assert [layer.together is not None for layer in cache.layers if isinstance(layer, SchemeLayer)] == (
            [mirrored] * 2 if kinds == "full" else [False, mirrored] * 2
        )
    assert all(map(torch.equal, *logits))


def test_a_cache_that_was_filled_goes_on_in_steps(model, subject):
    """From a shared prefill, in a batch, as a loop of forwards over a live cache."""
    tokens = torch.stack([window.tokens for window in subject.windows[:2]])
    prefilled = prefill(model, tokens[:, :80])
    filled = SchemeCache.for_model(parse_scheme(KIVI), model, mirrored=True).fill(prefilled)
    live = SchemeCache.for_model(parse_scheme(KIVI), model)
    fill_live(model, tokens[:, :80], live)
    with torch.inference_mode():
        for one in tokens[:, 80:].split(1, dim=1):
            assert torch.equal(forward(model, one, filled).logits, forward(model, one, live).logits)
