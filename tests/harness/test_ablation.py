"""Layers computed once give what computing them again gives, bit for bit."""

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.ablation import SharedSuffix
from harness.caches.scheme import SchemeCache
from harness.capture import exact_view
from harness.protocols import prefill, suffix_logits
from harness.subject.windows import cut_windows
from schemes import Scheme, parse_scheme

from ..conftest import tiny_config

SCHEME = parse_scheme("asym2:group_size=16")


@pytest.fixture
def window(tokens):
    return cut_windows(tokens, window_length=96, score_length=32, windows=1)[0]


@pytest.fixture
def deep():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(num_hidden_layers=6)).eval().requires_grad_(False)


def test_shared_layers_change_no_bit(deep, window):
    prefilled = prefill(deep, window.prefix)
    shared = SharedSuffix(deep, window, prefilled)
    assert torch.equal(shared.exact, suffix_logits(deep, exact_view(prefilled, deep.config), window.suffix))
    for layer in range(6):
        alone = Scheme("one layer", *parse_scheme("exact").sides.values(), layers=((layer, SCHEME),))
        whole = suffix_logits(deep, SchemeCache(alone, deep.config).fill(prefilled), window.suffix)
        assert torch.equal(shared.ablated(layer, SCHEME), whole)
        assert torch.equal(shared.ablated(layer, SCHEME, share=False), whole)
        assert not torch.equal(whole, shared.exact)
        assert shared.shares_exactly(layer, SCHEME)
    again = suffix_logits(deep, exact_view(prefilled, deep.config), window.suffix)
    assert torch.equal(again, shared.exact)  # the model is as it was


def test_layers_below_are_not_computed(deep, window):
    calls = []
    for index, layer in enumerate(deep.model.layers):
        layer.mlp.register_forward_hook(lambda module, given, out, index=index: calls.append(index))
    shared = SharedSuffix(deep, window, prefill(deep, window.prefix))
    for share, computed in ((True, [4, 5]), (False, [0, 1, 2, 3, 4, 5])):
        calls.clear()
        shared.ablated(4, SCHEME, share)
        assert calls == computed
