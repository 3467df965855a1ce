"""Layers computed once give what computing them again gives, bit for bit."""

import pytest
import torch
from transformers import LlamaForCausalLM

from kvdelta.harness.ablation import SharedSuffix, decoder_layers
from kvdelta.harness.caches.rebuilt import rebuilt
from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.capture import exact_view
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.harness.subject.windows import Batch, cut_windows
from kvdelta.schemes import Scheme, parse_scheme

from ..architectures import tiny
from ..conftest import tiny_config

SCHEME = parse_scheme("asym2:group_size=16")
EVERY_TOKEN = parse_scheme("asym2:group_size=8")  # of latents of 8 channels too


@pytest.fixture
def batch(tokens):
    return Batch(tuple(cut_windows(tokens, window_length=96, score_length=32, windows=2)))


@pytest.fixture
def deep():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(num_hidden_layers=6)).eval().requires_grad_(False)


def stored(shared, layer, scheme):
    """Keys and values of a layer as they come back from a scheme."""
    held = shared.prefilled.layers[layer]
    return rebuilt(scheme.key, held.keys), rebuilt(scheme.value, held.values)


def test_shared_layers_change_no_bit(deep, batch):
    prefilled = prefill(deep, batch.prefix)
    shared = SharedSuffix(deep, batch, prefilled)
    assert torch.equal(shared.exact, suffix_logits(deep, exact_view(prefilled, deep.config), batch.suffix))
    for layer in range(6):
        alone = Scheme("one layer", *parse_scheme("exact").sides.values(), layers=((layer, SCHEME),))
        whole = suffix_logits(deep, SchemeCache(alone, deep.config).fill(prefilled), batch.suffix)
        assert torch.equal(shared.ablated(layer, stored(shared, layer, SCHEME)), whole)
        assert torch.equal(shared.ablated(layer, stored(shared, layer, SCHEME), share=False), whole)
        assert not torch.equal(whole, shared.exact)
        assert shared.shares_exactly(layer, stored(shared, layer, SCHEME))
    again = suffix_logits(deep, exact_view(prefilled, deep.config), batch.suffix)
    assert torch.equal(again, shared.exact)  # the model is as it was


def test_layers_below_are_not_computed(deep, batch):
    calls = []
    for index, layer in enumerate(deep.model.layers):
        layer.mlp.register_forward_hook(lambda module, given, out, index=index: calls.append(index))
    shared = SharedSuffix(deep, batch, prefill(deep, batch.prefix))
    for share, computed in ((True, [4, 5]), (False, [0, 1, 2, 3, 4, 5])):
        calls.clear()
        shared.ablated(4, stored(shared, 4, SCHEME), share)
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
def test_layers_of_other_models_are_shared_too(name, batch):
    model, calls = tiny(name), []
    layers = decoder_layers(model)
    assert len(layers) == 2
    prefilled = prefill(model, batch.prefix)
    shared = SharedSuffix(model, batch, prefilled)
    inside = next(module for name, module in layers[0].named_children() if "norm" in name or "ln" in name)
    inside.register_forward_hook(lambda module, given, out: calls.append(0))
    assert shared.shares_exactly(1, stored(shared, 1, EVERY_TOKEN))
    assert not torch.equal(shared.ablated(1, stored(shared, 1, EVERY_TOKEN)), shared.exact)
    assert calls == [0]  # in the comparison alone


def test_layers_that_read_what_others_left_are_not_shared(batch):
    """Layers 2 and 3 of this Gemma 3n read the keys and values of layers 0 and 1."""
    model = tiny("Gemma3nText")
    shared = SharedSuffix(model, batch, prefill(model, batch.prefix))
    assert not shared.shares_exactly(1, stored(shared, 1, EVERY_TOKEN))
    assert not torch.equal(shared.ablated(1, stored(shared, 1, EVERY_TOKEN), share=False), shared.exact)


def test_without_a_list_of_layers_every_pass_is_whole(deep, batch, monkeypatch):
    monkeypatch.setattr("kvdelta.harness.ablation.decoder_layers", lambda model: [])
    shared = SharedSuffix(deep, batch, prefill(deep, batch.prefix))
    assert torch.equal(
        shared.ablated(4, stored(shared, 4, SCHEME)), shared.ablated(4, stored(shared, 4, SCHEME), share=False)
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_for_want_of_memory_nothing_is_concluded(deep, batch, monkeypatch, error):
    """A batch that is too large says nothing about the model: it is begun again in halves."""
    shared = SharedSuffix(deep, batch, prefill(deep, batch.prefix))

    def full(*args):
        raise error

    monkeypatch.setattr("kvdelta.harness.ablation.suffix_logits", full)
    with pytest.raises(type(error)):
        shared.shares_exactly(1, stored(shared, 1, SCHEME))
