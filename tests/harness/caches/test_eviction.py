"""Caches that evict: masks and positions as direct attention has them, and the bytes that were asked for."""

import copy

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

from kvdelta.analysis.reading import run_tables, summary
from kvdelta.harness.caches import specs
from kvdelta.harness.caches.contenders import contender_of, contenders_of
from kvdelta.harness.caches.eviction import EvictingCache, Eviction
from kvdelta.harness.comparison import compare
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.harness.subject.forward import cache_keyword

from ...conftest import TINY

RULES = [Eviction(tokens=24), Eviction(sinks=4, tokens=24), Eviction(sinks=4, bits=4)]  # of 96: 24 too


@pytest.mark.parametrize("step", [None, 5])
def test_a_window_over_everything_is_exact(model, subject, step):
    window = subject.windows[0]
    prefilled = prefill(model, window.prefix)
    cache = EvictingCache(Eviction(tokens=1000), model.config).fill(prefilled)
    exact = suffix_logits(model, copy.deepcopy(prefilled), window.suffix, step)
    assert torch.equal(suffix_logits(model, cache, window.suffix, step), exact)


def allowed(prefix, suffix, rule, step):
    """Which tokens each query of the whole window sees: bool [query, token]."""
    mask = torch.ones(prefix + suffix, prefix + suffix).tril().bool()
    kept = rule.kept(prefix)
    for first in range(prefix, prefix + suffix, step or suffix):
        rows = slice(first, first + (step or suffix))
        mask[rows, rule.sinks : first - (kept - rule.sinks)] = False  # what was evicted before this forward
    return mask


@pytest.mark.parametrize("step", [None, 1, 5])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_suffix_attends_to_what_was_kept_at_its_own_positions(model, subject, rule, step):
    """Against one forward of the exact model over the whole window, the evicted tokens masked by hand; float32."""
    window = subject.windows[0]
    cache = EvictingCache(rule, model.config).fill(prefill(model, window.prefix))
    found = suffix_logits(model, cache, window.suffix, step)
    mask = allowed(96, 32, rule, step)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        expected = model(input_ids=window.tokens[None], attention_mask=additive).logits[0, 96:-1]
    assert torch.allclose(found, expected, atol=2e-4)
    exact = suffix_logits(model, prefill(model, window.prefix), window.suffix, step)
    assert not torch.allclose(found, exact, atol=0.1)  # so the mask is what made them agree


def test_filled_is_as_live(model, subject):
    window = subject.windows[0]
    filled = EvictingCache(RULES[1], model.config).fill(prefill(model, window.prefix))
    live = EvictingCache(RULES[1], model.config)
    fill_live(model, window.prefix, live)
    assert torch.equal(*(suffix_logits(model, cache, window.suffix) for cache in (filled, live)))


def test_layer_counts_what_it_saw_and_keeps_what_it_should(model):
    layer = EvictingCache(Eviction(sinks=2, tokens=6), model.config).layers[0]
    tokens = torch.arange(20.0)[None, None, :, None].expand(1, 2, 20, 16)
    full, _ = layer.update(tokens[:, :, :12], tokens[:, :, :12])
    assert full.shape[2] == 12
    assert layer.keys[0, 0, :, 0].tolist() == [0, 1, 8, 9, 10, 11]
    assert (layer.get_seq_length(), layer.get_mask_sizes(8), layer.get_max_length()) == (12, (14, 6), -1)
    full, _ = layer.update(tokens[:, :, 12:], tokens[:, :, 12:])
    assert full[0, 0, :, 0].tolist() == [0, 1, 8, 9, 10, 11, *range(12, 20)]
    assert layer.values[0, 0, :, 0].tolist() == [0, 1, 16, 17, 18, 19]
    assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4  # no view of what was dropped
    assert not layer.is_croppable
    with pytest.raises(ValueError, match="cannot be cropped"):
        layer.crop(-1)
    layer.reset()
    assert layer.get_seq_length() == 0


def test_generation_goes_on_beyond_the_window(model):
    cache = EvictingCache(Eviction(sinks=2, tokens=12), model.config)
    prompt = torch.randint(1, 128, (2, 20))
    out = model.generate(
        prompt, attention_mask=prompt.new_ones(2, 20), **{cache_keyword(model): cache}, max_new_tokens=10
    )
    assert out.shape == (2, 30)
    assert (cache.layers[0].held, cache.get_seq_length()) == (12, 29)


def test_sliding_layers_of_a_hybrid_are_kept():
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**TINY, head_dim=16, layer_types=kinds, sliding_window=16)
    model = Gemma3ForCausalLM(config).eval()
    tokens = torch.randint(1, 128, (1, 40))
    prefilled = prefill(model, tokens[:, :32])
    cache = EvictingCache(Eviction(tokens=8), config).fill(prefilled)
    assert (cache.evicting, cache.layers[0].keys.shape[2], cache.layers[1].held) == ([1], 15, 8)
    assert torch.isfinite(suffix_logits(model, cache, tokens[:, 32:])).all()
    everything = EvictingCache(Eviction(tokens=99), config).fill(prefilled)
    stock = DynamicCache(config=config)
    fill_live(model, tokens[:, :32], stock)
    assert torch.equal(*(suffix_logits(model, one, tokens[:, 32:]) for one in (everything, stock)))


def test_rows_at_the_bytes_that_were_asked_for(subject, options):
    asked = ["sliding-window:bits=4", "sink-window:sinks=4,bits=4", "sink-window:sinks=4,tokens=48"]
    run, _ = compare(["asym2:group_size=16", *asked], options, subject=subject)
    rows = {row.scheme: row for row in summary.summarize(run)}
    assert [rows[label].bits for label in ("asym2:group_size=16", *asked)] == [4, 4, 4, 8]
    assert run.contenders[2].bytes["key"].held == {
        "exact": 2 * 2 * 24 * 16 * 4
    }  # layers, heads, tokens, channels, bytes
    assert run.audit.failures == {}
    pairs = 31 * 96 + 31 * 32 / 2
    assert rows[asked[0]].key_coverage == pytest.approx(31 * 72 / pairs)  # what is missing counts as not exact
    assert rows[asked[0]].kl > rows[asked[2]].kl > 0
    assert [row.evicts for row in rows.values()] == [False, False, True, True, True]
    _, body = run_tables.cells(list(rows.values()))
    assert [line[0].endswith(" †") for line in body] == [False, False, True, True, True]
    assert run_tables.notes(list(rows.values()))[1] == (
        "sink-window:sinks=4,bits=4 † (changes what is attended): attends to the first 4 and the newest 20 tokens of the "
        "prefix, exact and at their own positions; the others are evicted"
    )


@pytest.mark.parametrize("bits", [2.3, 4, 4.25, 15.9])
def test_bits_buy_whole_tokens(bits):
    """2.3 · 160 / 16 is exactly 23, whatever floats make of it."""
    kept = Eviction(bits=bits).kept(160)
    assert kept <= 10 * bits + 1e-9 < kept + 1


def test_names():
    assert specs.canonical("sink-window:bits=4,sinks=4") == "sink-window:bits=4"
    assert specs.canonical("sink-window:sinks=8,tokens=64") == "sink-window:sinks=8,tokens=64"
    assert [c.name for c in contenders_of(["sliding-window:bits=4", "sliding-window:bits=4.0"])] == [
        "exact",
        "sliding-window:bits=4",
    ]


BAD = {
    "sliding-windw:bits=4": "no scheme 'sliding-windw'; did you mean 'sliding-window'",
    "sliding-window": "exactly one of tokens and bits",
    "sliding-window:bits=4,tokens=9": "exactly one of tokens and bits",
    "sliding-window:bits=16": "bits=16: exact tokens count 16 bits each",
    "sliding-window:bits=nan": "more than 0 and less than 16",
    "sliding-window:tokens=many": "tokens='many' is not one of a whole number",
    "sliding-window:sinks=4,bits=4": "no field 'sinks'",
    "sink-window:sink=4,bits=4": "no field 'sink'; did you mean 'sinks'",
    "sink-window:tokens=4": "tokens=4 with 4 sinks keeps no newest token",
    "sink-window:sinks=-1,bits=4": "sinks=-1",
    "sink-window(int4):bits=4": "wraps no scheme",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_specs(spec, refused):
    with refused(BAD[spec]) as _:
        contender_of(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sliding-window:tokens=96", "96 tokens are kept and the prefix has 96, so nothing would be evicted"),
        ("sink-window:sinks=30,bits=4", "24 of 96 tokens are kept, and 30 of them are sinks"),
        ("sliding-window:bits=0.1", "0 of 96 tokens are kept"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(subject, options, refused, spec, message):
    with refused(message):
        compare([spec], options, subject=subject)


def test_names_of_engines_are_left_to_the_schemes_parser():
    assert specs.parse_cache_spec("vllm/int4_per_token_head") is None
    assert specs.parse_cache_spec("int4_per_token_head:sink_tokens=4") is None
    with pytest.raises(ValueError, match="scheme 'vlm/fp8': no engine 'vlm'; did you mean 'vllm'"):
        specs.parse_cache_spec("vlm/fp8")
