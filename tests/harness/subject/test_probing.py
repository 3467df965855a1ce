"""What a model does with its cache is seen by running it, not read in its config."""

import pytest
import torch

from kvdelta.harness.subject import probing
from kvdelta.harness.subject.probing import KVShape, check_continues, kv_shapes, places_are_in_keys, why_unusable

from ...architectures import FIELDS, tiny

ENCODER = "is an encoder: its tokens see what follows"
STATE = "keeps a recurrent state or nothing at all, not the keys and values of its tokens"
UNUSABLE = {"Bert": ENCODER, "XLM": ENCODER, "Mamba": STATE, "Mamba2": STATE, "Rwkv": STATE}


@pytest.mark.parametrize("name", FIELDS)
def test_every_causal_model_that_caches_keys_is_usable(name):
    assert why_unusable(tiny(name)) == UNUSABLE.get(name)


def test_a_cache_class_of_its_own(monkeypatch):
    model = tiny("Llama")

    def refuse(*args, **kwargs):
        raise TypeError("this model wants its own cache\nor none")

    monkeypatch.setattr(model, "forward", lambda input_ids, cache=None, past_key_values=None, **kwargs: refuse())
    assert why_unusable(model) == "does not run over transformers' own cache (this model wants its own cache)"


def test_infinite_logits_are_no_sign_of_an_encoder():
    model = tiny("Llama")
    with torch.inference_mode():
        model.lm_head.weight[:] = torch.inf
    assert why_unusable(model) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "Llama": {0: KVShape(1, 16, 16), 1: KVShape(1, 16, 16)},
        "GPT2": {0: KVShape(2, 16, 16), 1: KVShape(2, 16, 16)},  # no num_key_value_heads in its config
        "Falcon": {0: KVShape(1, 16, 16), 1: KVShape(1, 16, 16)},  # multi-query
        "DeepseekV3": {0: KVShape(1, 16, 8), 1: KVShape(1, 16, 8)},  # latents, and the part of keys that is rotated
        "Gemma3nText": {1: KVShape(1, 16, 16)},  # layers 2 and 3 read those of 0 and 1
        "Jamba": {1: KVShape(1, 16, 16)},
    }.items(),
)
def test_shapes_are_what_the_cache_holds(name, expected):
    assert kv_shapes(tiny(name)) == expected


@pytest.mark.parametrize("name", ["RecurrentGemma", "FalconH1"])
def test_no_layer_that_keeps_all_keys_and_values_and_nothing_else(name, refused):
    with refused("has no layer that keeps.*its cache layers: .*Layer"):
        kv_shapes(tiny(name))


def test_shapes_are_probed_once(monkeypatch):
    model = tiny("Llama")
    kv_shapes(model)
    monkeypatch.setattr(probing, "probe", None)
    assert len(kv_shapes(model)) == 2


@pytest.mark.parametrize("name", ["Llama", "Mixtral", "GPT2", "Bloom", "DeepseekV2", "Qwen3Next", "Lfm2", "FalconH1"])
def test_these_go_on_where_their_cache_ends(name):
    check_continues(tiny(name))


@pytest.mark.parametrize("name", ["Jamba", "RecurrentGemma"])
def test_a_recurrent_state_that_is_taken_up_for_one_token_only(name, refused):
    """Their layers start afresh when more than one token comes; one at a time they go on."""
    model = tiny(name)
    with refused("does not go on from its recurrent state.*--protocol stepwise --step 1"):
        check_continues(model)
    tokens = probing.tokens_for(model)
    whole, cache = probing.probe(model, tokens)[0], probing.probe(model, tokens[:, :5])[1]
    with torch.inference_mode():
        steps = [probing.forward(model, token, cache).logits[0] for token in tokens[:, 5:].split(1, dim=1)]
    torch.testing.assert_close(torch.cat(steps), whole[5:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "DeepseekV3", "Gemma3Text", "Jamba", "Cohere2"])
def test_keys_carry_their_position(name):
    assert places_are_in_keys(tiny(name))


@pytest.mark.parametrize("name", ["Falcon with ALiBi", "Bloom", "Mpt"])
def test_attention_that_counts_keys(name):
    assert not places_are_in_keys(tiny(name))
