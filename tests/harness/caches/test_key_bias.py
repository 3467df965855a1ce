"""The bias of key projections, found by running a few tokens, and what is quantized without it."""

import copy

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from kvdelta.harness.caches.key_bias import key_bias_of
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.harness.subject.forward import forward
from kvdelta.schemes import parse_scheme
from kvdelta.schemes.errors import UserError

from ...conftest import SHARP, TINY, tiny_config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY, **SHARP)).eval().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.normal_(0, 10)
    return model


def tokens(length=60):
    return torch.randint(1, 128, (2, length), generator=torch.Generator().manual_seed(2))


def test_it_is_that_of_the_projection(model):
    for index, layer in enumerate(model.model.layers):
        assert torch.equal(key_bias_of(model, index).flatten(), layer.self_attn.k_proj.bias)


def test_keys_less_the_bias_are_those_of_a_model_without_one(model):
    """Of the first layer, whose input does not depend on it."""
    plain = copy.deepcopy(model)
    plain.model.layers[0].self_attn.k_proj.bias.zero_()
    keys, without = (prefill(one, tokens()).layers[0].keys for one in (model, plain))
    scheme = SchemeCache.for_model(parse_scheme("unbiased(asym4:group_size=16)"), model).layers[0].scheme
    contributed = scheme.key.quantizer.constant(keys, 0)
    assert torch.allclose(keys - contributed, without, atol=1e-4)


@pytest.mark.parametrize("spec", ["asym4:group_size=16", "kivi:bits=2,group_size=8,residual_length=16", "turbo4"])
def test_live_and_filled_caches_agree(model, spec):
    scheme = parse_scheme(f"unbiased({spec})")
    prefix, suffix = tokens()[:, :40], tokens()[:, 40:]
    filled = SchemeCache.for_model(scheme, model).fill(prefill(model, prefix))
    live = SchemeCache.for_model(scheme, model)
    fill_live(model, prefix, live)
    expected = torch.cat([forward(model, one, live).logits for one in suffix.split(1, dim=1)], dim=1)[:, :-1]
    assert torch.allclose(suffix_logits(model, filled, suffix, 1), expected, atol=1e-4)


def test_around_exact_it_changes_nothing_but_round_off(model):
    prefix, suffix = tokens()[:, :40], tokens()[:, 40:]
    logits = [
        suffix_logits(model, SchemeCache.for_model(parse_scheme(spec), model).fill(prefill(model, prefix)), suffix)
        for spec in ("exact", "unbiased(exact)", "unbiased(asym8:group_size=16)", "asym8:group_size=16")
    ]
    off = [(one - logits[0]).abs().mean() for one in logits]
    assert off[1] < 1e-4 < off[2] < off[3]


def test_a_model_without_a_bias_has_the_inner_scheme_bit_for_bit():
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).eval()
    prefix, suffix = tokens()[:, :40], tokens()[:, 40:]
    plain, unbiased = (
        suffix_logits(model, SchemeCache.for_model(parse_scheme(spec), model).fill(prefill(model, prefix)), suffix, 4)
        for spec in ("asym3:group_size=16", "unbiased(asym3:group_size=16)")
    )
    assert key_bias_of(model, 1) is None
    assert torch.equal(plain, unbiased)


def test_a_bias_that_does_not_reach_the_cache_as_it_is_is_refused():
    model = Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=16, attention_bias=True)).eval()  # a norm comes between
    with pytest.raises(UserError, match=r"no key projection whose bias reaches the cache .* leave unbiased\(…\) out"):
        SchemeCache.for_model(parse_scheme("unbiased(int4)"), model)


def test_keys_that_are_rotated_in_part():
    torch.manual_seed(0)
    model = StableLmForCausalLM(StableLmConfig(**TINY, use_qkv_bias=True, partial_rotary_factor=0.5)).eval()
    model.model.layers[1].self_attn.k_proj.bias.data.normal_()
    assert torch.equal(key_bias_of(model, 1).flatten(), model.model.layers[1].self_attn.k_proj.bias)


def test_a_config_alone_does_not_say_it(model):
    with pytest.raises(UserError, match=r"SchemeCache\.for_model"):
        SchemeCache(parse_scheme("unbiased(int4)"), model.config)
