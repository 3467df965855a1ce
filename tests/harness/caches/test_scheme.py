"""SchemeCache against transformers' own DynamicCache: in forwards, in generate, and when it is moved about."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kvdelta.harness.caches.contenders import SchemeContender
from kvdelta.harness.caches.layers import SchemeLayer
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.harness.subject.forward import cache_keyword
from kvdelta.schemes import parse_scheme

from ...conftest import TINY

KIVI = "kivi:bits=2,group_size=8,residual_length=16"
SCHEMES = ["exact", "int4:group_size=16", KIVI, "asymmetric:bits=3,key_axis=channel,group_size=8,sink_tokens=3"]

WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def prompts(rows: int, length: int = 60) -> torch.Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(2))


def generate(model, prompt, cache, **ways):
    torch.manual_seed(3)
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=12, **{cache_keyword(model): cache}, **ways)


@pytest.mark.parametrize("way", WAYS)
def test_generate_with_exact_equals_dynamic_cache(model, way):
    prompt = prompts(1 if way == "prompt lookup" else 2)
    ours = generate(model, prompt, SchemeCache(parse_scheme("exact"), model.config), **WAYS[way])
    stock = generate(model, prompt, DynamicCache(config=model.config), **WAYS[way])
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", SCHEMES[1:])
def test_generate_runs_with_every_way_of_decoding(model, spec, way):
    prompt = prompts(1 if way == "prompt lookup" else 2)
    out = generate(model, prompt, SchemeCache(parse_scheme(spec), model.config), **WAYS[way])
    assert out.shape[1] == prompt.shape[1] + 12


def test_left_padding_gives_what_dynamic_cache_gives(model):
    prompt = prompts(2)
    prompt[1, :20] = 0
    mask = (prompt != 0).long()
    ours, stock = (
        model.generate(prompt, attention_mask=mask, max_new_tokens=12, **{cache_keyword(model): cache})
        for cache in (SchemeCache(parse_scheme("exact"), model.config), DynamicCache(config=model.config))
    )
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("spec", SCHEMES)
def test_captured_fill_equals_live_prefill(model, spec):
    prefix, suffix = prompts(1, 100)[:, :70], prompts(1, 100)[:, 70:]
    live = SchemeCache(parse_scheme(spec), model.config)
    fill_live(model, prefix, live)
    filled = SchemeCache(parse_scheme(spec), model.config).fill(prefill(model, prefix))
    assert torch.equal(suffix_logits(model, live, suffix), suffix_logits(model, filled, suffix))


@pytest.mark.parametrize("spec", SCHEMES)
@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0]])
def test_batch_operations_move_packed_state(model, spec, rows):
    """Reading after the move equals moving what was read: bit for bit, packed state included."""
    cache = SchemeCache(parse_scheme(spec), model.config)
    fill_live(model, prompts(2), cache)
    before = {(layer, side): store.read() for layer, side, store in cache.stores()}
    for move in ("reorder_cache", "batch_select_indices"):
        moved = copy.deepcopy(cache)
        getattr(moved, move)(torch.tensor(rows))
        for layer, side, store in moved.stores():
            assert torch.equal(store.read(), before[layer, side][rows])
    moved = copy.deepcopy(cache)
    moved.batch_repeat_interleave(2)
    for layer, side, store in moved.stores():
        assert torch.equal(store.read(), before[layer, side].repeat_interleave(2, 0))


@pytest.mark.parametrize("spec", SCHEMES)
def test_crop_forgets_the_newest_and_keeps_the_codes_of_the_rest(model, spec):
    cache = SchemeCache(parse_scheme(spec), model.config)
    fill_live(model, prompts(1), cache)
    before = {(layer, side): store.read() for layer, side, store in cache.stores()}
    cache.crop(-7)
    assert cache.get_seq_length() == 53
    for layer, side, store in cache.stores():
        assert torch.equal(store.read(), before[layer, side][:, :, :53])
    with pytest.raises(ValueError, match="negative"):
        cache.crop(10)


def test_deepcopy_shares_nothing(model):
    cache = SchemeCache(parse_scheme(KIVI), model.config)
    fill_live(model, prompts(1), cache)
    kept = copy.deepcopy(cache)
    read = [store.read() for _, _, store in kept.stores()]
    fill_live(model, prompts(1, 40), cache)
    cache.zero_codes()
    assert kept.get_seq_length() == 60
    assert all(torch.equal(a, store.read()) for a, (_, _, store) in zip(read, kept.stores(), strict=True))


def test_reset_forgets_everything(model):
    cache = SchemeCache(parse_scheme(KIVI), model.config)
    fresh = generate(model, prompts(1), SchemeCache(parse_scheme(KIVI), model.config))
    fill_live(model, prompts(1, 40), cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(generate(model, prompts(1), cache), fresh)


ARCHITECTURES = {
    "qwen2": (Qwen2Config(**TINY), [0, 1]),
    "qwen3": (Qwen3Config(**TINY, head_dim=16), [0, 1]),
    "mistral": (MistralConfig(**TINY, sliding_window=None), [0, 1]),
    "phi3": (Phi3Config(**TINY), [0, 1]),
    "gemma2": (Gemma2Config(**TINY, head_dim=16, sliding_window=24), [1]),
    "gemma3": (
        Gemma3TextConfig(**TINY, head_dim=16, sliding_window=24, layer_types=["sliding_attention", "full_attention"]),
        [1],
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    """Full-attention layers are quantized, sliding ones kept as they are; exact changes nothing."""
    config, quantized = ARCHITECTURES[name]
    model = AutoModelForCausalLM.from_config(config).eval()
    prefix, suffix = prompts(1)[:, :40], prompts(1)[:, 40:]
    stock = prefill(model, prefix)
    exact = SchemeCache(parse_scheme("exact"), model.config).fill(stock)
    assert exact.quantized_layers == quantized
    lossy = SchemeCache(parse_scheme("asym2:group_size=16"), model.config).fill(stock)
    reference = suffix_logits(model, stock, suffix)
    assert torch.equal(suffix_logits(model, exact, suffix), reference)
    assert not torch.equal(suffix_logits(model, lossy, suffix), reference)
    assert [type(layer) is SchemeLayer for layer in lossy.layers] == [i in quantized for i in range(2)]


def test_a_model_without_kv_cache_is_refused():
    with pytest.raises(ValueError, match="no full-attention layer"):
        SchemeCache(parse_scheme("int4"), MambaConfig(hidden_size=32, num_hidden_layers=2))


def test_heads_that_cannot_be_grouped_are_refused_by_what_the_model_caches(refused):
    """Before any window, whatever the config says of heads; a cache of its own refuses them when they come."""
    model = Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=20)).eval()
    scheme = parse_scheme("asym3:group_size=8")
    with refused("not whole bytes"):
        SchemeContender("asym3", scheme).check(model, prefix_length=32)
    heads = torch.randn(1, 2, 3, 20)
    with refused("not whole bytes"):
        SchemeCache(scheme, model.config).update(heads, heads, 0)
