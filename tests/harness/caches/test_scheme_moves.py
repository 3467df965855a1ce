"""Lossy caches where exact ones are tried elsewhere: moved between devices, padded on the left, in bfloat16."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from kvdelta.harness.caches.holdings import tensors
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.schemes import TokenStore, parse_scheme

from ...conftest import tiny_config

KIVI = "kivi:bits=2,group_size=8,residual_length=16,sink_tokens=3"
LOSSY = ["int4:group_size=16", KIVI, "hadamard(asym3:group_size=8)", "sparse(int4:group_size=16)"]


def prompts(rows: int = 1, length: int = 60) -> torch.Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(2))


def devices(cache: SchemeCache) -> set[str]:
    return {x.device.type for _, _, store in cache.stores() for x in tensors(store, skipped=set()) if x.numel()}


@pytest.mark.parametrize("spec", LOSSY)
def test_prefetch_moves_all_that_is_stored(model, spec):
    """Codes, scales, sinks and tail, to the device of the first update; pretended, since there may be one device here."""
    cache = SchemeCache(parse_scheme(spec), model.config)
    fill_live(model, prompts(), cache)
    assert devices(cache) == {"cpu"}
    for layer in cache.layers:
        layer.device = torch.device("meta")
        layer.prefetch()
    assert devices(cache) == {"meta"}


def test_offload_moves_both_stores(model, monkeypatch):
    cache = SchemeCache(parse_scheme(KIVI), model.config)
    fill_live(model, prompts(), cache)
    moved = []
    monkeypatch.setattr(TokenStore, "to", lambda store, device: moved.append((store, device)))
    for layer in cache.layers:
        layer.offload()
    assert moved == [(store, "cpu") for _, _, store in cache.stores()]


@pytest.mark.parametrize("spec", LOSSY)
def test_offloaded_caches_go_on(model, spec):
    """As transformers' own offloading does it: each layer is fetched before its turn and put away after."""
    prompt = prompts()
    stays, moves = (SchemeCache(parse_scheme(spec), model.config) for _ in range(2))
    SchemeCache(parse_scheme(spec), model.config).layers[0].prefetch()  # nothing is stored yet
    for cache in (stays, moves):
        fill_live(model, prompt[:, :40], cache)
    for layer in moves.layers:
        layer.offload()
        layer.prefetch()
    assert torch.equal(*(suffix_logits(model, cache, prompt[:, 40:], 5) for cache in (stays, moves)))


@pytest.mark.parametrize("spec", ["int4:group_size=16", "hadamard(asym3:group_size=8)", "sparse(int4:group_size=16)"])
def test_left_padding_changes_no_row_that_is_stored_token_by_token(model, spec):
    """Where no group spans tokens, pads are stored beside the others and attended to by none: the padded row gives what
    it gives alone, to the round-off of float32 under another mask."""
    long, short = prompts(2, 60)[:1], prompts(2, 60)[1:, 20:]
    padded = torch.cat([torch.zeros(1, 20, dtype=torch.long), short], dim=1)
    batch = torch.cat([long, padded])
    mask = torch.ones_like(batch)
    mask[1, :20] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)

    def suffix_of(tokens, mask, places):
        cache = SchemeCache(parse_scheme(spec), model.config)
        with torch.inference_mode():
            forward(model, tokens[:, :-8], cache, attention_mask=mask[:, :-8], position_ids=places[:, :-8])
            return forward(model, tokens[:, -8:], cache, attention_mask=mask, position_ids=places[:, -8:]).logits

    together = suffix_of(batch, mask, places)
    for row, first in ((0, 0), (1, 20)):
        alone = suffix_of(batch[row : row + 1, first:], mask[row : row + 1, first:], places[row : row + 1, first:])
        assert torch.allclose(together[row], alone[0], atol=1e-3)
    exact = SchemeCache(parse_scheme("exact"), model.config)
    fill_live(model, short[:, :-8], exact)
    assert not torch.allclose(together[1, :-1], suffix_logits(model, exact, short[:, -8:]), atol=1e-2)


@pytest.mark.parametrize("spec", LOSSY)
def test_generation_with_left_padding(model, spec):
    prompt = prompts(2)
    prompt[1, :20] = 0
    mask = (prompt != 0).long()
    cache = SchemeCache(parse_scheme(spec), model.config)
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=6, **{cache_keyword(model): cache})
    assert out.shape == (2, 66)
    assert cache.get_seq_length() == 65


@pytest.fixture(scope="module")
def half_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval().requires_grad_(False).to(torch.bfloat16)


@pytest.mark.parametrize("spec", ["exact", *LOSSY])
def test_bfloat16(half_model, spec):
    """What is read is bfloat16 and finite, filled and live caches agree bit for bit, and the scheme shows."""
    prompt = prompts()
    prefilled = prefill(half_model, prompt[:, :40])
    filled = SchemeCache(parse_scheme(spec), half_model.config).fill(prefilled)
    live = SchemeCache(parse_scheme(spec), half_model.config)
    fill_live(half_model, prompt[:, :40], live)
    assert {store.read().dtype for _, _, store in filled.stores()} == {torch.bfloat16}
    logits = suffix_logits(half_model, filled, prompt[:, 40:])
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, suffix_logits(half_model, live, prompt[:, 40:]))
    stock = suffix_logits(half_model, copy.deepcopy(prefilled), prompt[:, 40:])
    assert torch.equal(logits, stock) == (spec == "exact")
