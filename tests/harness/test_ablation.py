"""Layers computed once give what computing them again gives, bit for bit."""

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.ablation import SharedSuffix, decoder_layers
from harness.caches.scheme import SchemeCache
from harness.capture import exact_view
from harness.protocols import prefill, suffix_logits
from harness.subject.windows import cut_windows
from schemes import Scheme, parse_scheme

from ..architectures import tiny
from ..conftest import tiny_config

SCHEME = parse_scheme("asym2:group_size=16")
EVERY_TOKEN = parse_scheme("asym2:group_size=8")  # of latents of 8 channels too


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


@pytest.mark.parametrize(
    "name",
    [
        "GPT2",  # its layers are called h
        "Mpt",  # blocks
        "Falcon",
        "DeepseekV3",
        "Qwen3Next",  # a recurrent layer below
    ],
)
def test_layers_of_other_models_are_shared_too(name, window):
    model, calls = tiny(name), []
    layers = decoder_layers(model)
    assert len(layers) == 2
    prefilled = prefill(model, window.prefix)
    shared = SharedSuffix(model, window, prefilled)
    inside = next(module for name, module in layers[0].named_children() if "norm" in name or "ln" in name)
    inside.register_forward_hook(lambda module, given, out: calls.append(0))
    assert shared.shares_exactly(1, EVERY_TOKEN)
    assert not torch.equal(shared.ablated(1, EVERY_TOKEN), shared.exact)
    assert calls == [0]  # in the comparison alone


def test_layers_that_read_what_others_left_are_not_shared(window):
    """Layers 2 and 3 of this Gemma 3n read the keys and values of layers 0 and 1."""
    model = tiny("Gemma3nText")
    shared = SharedSuffix(model, window, prefill(model, window.prefix))
    assert not shared.shares_exactly(1, EVERY_TOKEN)
    assert not torch.equal(shared.ablated(1, EVERY_TOKEN, share=False), shared.exact)


def test_without_a_list_of_layers_every_pass_is_whole(deep, window, monkeypatch):
    monkeypatch.setattr("harness.ablation.decoder_layers", lambda model: [])
    shared = SharedSuffix(deep, window, prefill(deep, window.prefix))
    assert torch.equal(shared.ablated(4, SCHEME), shared.ablated(4, SCHEME, share=False))
