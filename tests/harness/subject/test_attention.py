"""The attention that knows where the queries are gives what a mask gives."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.integrations import sdpa_attention

from kvdelta.harness.caches.contenders import contender_of
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.harness.subject import attention
from kvdelta.harness.subject.windows import Batch

from ...conftest import tiny_config


@pytest.fixture(scope="module")
def models():
    """The same weights, with torch's attention over masks and with ours."""
    torch.manual_seed(0)
    masked = LlamaForCausalLM(tiny_config()).eval().requires_grad_(False)
    ours = LlamaForCausalLM(tiny_config()).eval().requires_grad_(False)
    ours.load_state_dict(masked.state_dict())
    ours.set_attn_implementation(attention.NAME)
    return masked, ours


@pytest.mark.parametrize("spec", ["exact", "kivi:bits=2,group_size=8,residual_length=16", "sink-window:bits=4"])
@pytest.mark.parametrize("step", [None, 1, 5])
def test_logits_are_those_of_a_mask(models, subject, spec, step):
    """Over all tokens, and over a cache that dropped some."""
    batch = Batch(tuple(subject.windows))
    logits = []
    for model in models:
        contender = contender_of(spec)
        cache = contender.empty(model)
        contender.fill(cache, model, batch, prefill(model, batch.prefix))
        logits.append(suffix_logits(model, cache, batch.suffix, step))
    assert torch.allclose(*logits, atol=1e-4)


def test_no_mask_is_made_for_a_suffix_and_one_for_padding(models, subject, monkeypatch):
    _, model = models
    made = []
    sdpa = attention.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(
        attention.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "sdpa", lambda **words: made.append(1) or sdpa(**words)
    )
    window = subject.windows[0]
    cache = contender_of("exact").empty(model)
    cache.fill(prefill(model, window.prefix))
    suffix_logits(model, cache, window.suffix)
    assert not made
    padded = torch.ones(1, 128, dtype=torch.long)
    padded[:, :7] = 0
    with torch.inference_mode():
        got = model(window.tokens[None], attention_mask=padded).logits
        expected = models[0](window.tokens[None], attention_mask=padded).logits
    assert made
    assert torch.allclose(got[:, 7:], expected[:, 7:], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", [None, 5])
def test_shared_heads_are_not_copied_on_a_cpu_and_change_no_bit(subject, monkeypatch, dtype, step):
    torch.manual_seed(0)
    copied, shared = (LlamaForCausalLM(tiny_config()).eval().requires_grad_(False).to(dtype) for _ in range(2))
    shared.load_state_dict(copied.state_dict())
    attention.use_where_it_pays(shared)
    assert shared.config._attn_implementation == attention.SHARED
    batch = Batch(tuple(subject.windows))
    prefilled = [prefill(model, batch.prefix) for model in (copied, shared)]
    copies = []
    repeat = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda x, n: copies.append(n) or repeat(x, n))
    with_copies = suffix_logits(copied, prefilled[0], batch.suffix, step)
    assert copies
    copies.clear()
    assert torch.equal(suffix_logits(shared, prefilled[1], batch.suffix, step), with_copies)
    assert not copies


def test_which_models_take_it_on_a_cpu():
    """Half precision on a GPU takes the other; heads of their own need neither."""
    model = LlamaForCausalLM(tiny_config(num_key_value_heads=4))
    assert model.config.num_attention_heads == 4
    attention.use_where_it_pays(model)
    assert model.config._attn_implementation == "sdpa"
    eager = LlamaForCausalLM(tiny_config(attn_implementation="eager"))
    attention.use_where_it_pays(eager)
    assert eager.config._attn_implementation == "eager"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_token_has_the_same_logits_every_time(subject):
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(tiny_config(**sizes)).eval().to("cuda", torch.float16)
    attention.use_where_it_pays(model)
    batch = Batch(tuple(subject.windows) * 21)
    prefilled = prefill(model, batch.prefix)
    logits = [suffix_logits(model, copy.deepcopy(prefilled), batch.suffix[:, :9], 1).clone() for _ in range(5)]
    assert logits[0].isfinite().all()
    assert all(torch.equal(one, logits[0]) for one in logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_on_a_gpu(subject, dtype):
    torch.manual_seed(0)
    masked, ours = (LlamaForCausalLM(tiny_config(head_dim=64)).eval().to("cuda", dtype) for _ in range(2))
    ours.load_state_dict(masked.state_dict())
    attention.use_where_it_pays(ours)
    assert ours.config._attn_implementation == attention.NAME
    batch = Batch(tuple(subject.windows))
    logits = [suffix_logits(m, prefill(m, batch.prefix), batch.suffix).float() for m in (masked, ours)]
    assert (logits[0] - logits[1]).abs().mean() < 0.02 * logits[0].abs().mean()
