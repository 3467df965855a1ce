"""The attention that knows where the queries are gives what a mask gives."""

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.caches.contenders import contender_of
from harness.protocols import prefill, suffix_logits
from harness.subject import attention
from harness.subject.windows import Batch

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


def test_it_is_for_half_precision_on_a_gpu(models):
    attention.use_where_it_pays(models[0])
    assert models[0].config._attn_implementation == "sdpa"


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
