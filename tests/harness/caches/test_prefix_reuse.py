"""A cache that was filled once and is used again: by generate, as a copy, and under another autograd mode."""

import copy
from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

from kvdelta.harness.caches.eviction import EvictingCache, Eviction
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill
from kvdelta.harness.subject.forward import cache_keyword, forward
from kvdelta.schemes import parse_scheme

from ...conftest import TINY

MODES = {"inference": torch.inference_mode, "no grad": torch.no_grad, "grad": nullcontext}
SPECS = [
    "exact",
    "int4:group_size=16",
    "kivi:bits=2,group_size=8,residual_length=16,sink_tokens=3",
    "hadamard(centred(asym4:group_size=16):block=8)",
    "gear(kivi:bits=2,group_size=8,residual_length=16):block=8,rank=2",
    "gear(int4:group_size=16):block=8,rank=2,prompt=24",
]


def prompts(rows: int = 1, length: int = 60) -> torch.Tensor:
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(2))


def generated(model, prompt, cache):
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, **{cache_keyword(model): cache}
    )


def reused(model, empty, first, second, copied=False):
    """Two forwards in mode `first`, one and a generate in `second`."""
    prompt, cache = prompts(), empty()
    with MODES[first]():
        forward(model, prompt[:, :40], cache)
        forward(model, prompt[:, 40:43], cache)
    cache = copy.deepcopy(cache) if copied else cache
    with MODES[second]():
        forward(model, prompt[:, 43:45], cache)
        return generated(model, prompt, cache)


ORDERS = [("inference", "no grad"), ("inference", "grad"), ("no grad", "inference"), ("grad", "inference")]


@pytest.mark.parametrize("spec", SPECS)
def test_a_filled_cache_goes_on_in_any_mode(model, spec):
    """What a mode leaves in the cache another can append to, and no mode changes a token."""

    def empty():
        return SchemeCache(parse_scheme(spec), model.config)

    plain = reused(model, empty, "no grad", "no grad")
    for first, second in ORDERS:
        assert torch.equal(reused(model, empty, first, second), plain)
    assert torch.equal(reused(model, empty, *ORDERS[0], copied=True), plain)
    if spec == "exact":
        assert torch.equal(reused(model, lambda: DynamicCache(config=model.config), *ORDERS[0]), plain)


def test_a_cache_that_evicts_goes_on_in_any_mode(model):
    def empty():
        return EvictingCache(Eviction(sinks=2, tokens=20), model.config)

    plain = reused(model, empty, "no grad", "no grad")
    for first, second in ORDERS:
        assert torch.equal(reused(model, empty, first, second), plain)


@pytest.mark.parametrize("spec", SPECS)
def test_one_prefill_serves_many_caches_in_generate(model, spec):
    """Filled from a prefill under inference mode; the prefill and the other copies stay as they were."""
    prompt = prompts()
    prefilled = prefill(model, prompt[:, :40])
    live = SchemeCache(parse_scheme(spec), model.config)
    fill_live(model, prompt[:, :40], live)
    expected = generated(model, prompt, live)
    filled = SchemeCache(parse_scheme(spec), model.config).fill(prefilled)
    for cache in (copy.deepcopy(filled), filled):
        assert torch.equal(generated(model, prompt, cache), expected)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_hybrids_go_on_as_with_dynamic_cache(order):
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**TINY, head_dim=16, sliding_window=24, layer_types=kinds)
    model = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    ours, stock = (
        reused(model, empty, *order, copied=True)
        for empty in (lambda: SchemeCache(parse_scheme("exact"), config), lambda: DynamicCache(config=config))
    )
    assert torch.equal(ours, stock)
