"""Keys rotated back are those that the model projected, and a rotation that is not understood is refused."""

import copy
import sys

import pytest
import torch

from kvdelta.harness.caches.rotary import ModelRotary, Unrotated, rotary_of
from kvdelta.harness.protocols import prefill
from kvdelta.harness.subject import probing

from ...architectures import tiny

SEPARATE = ["Llama", "Phi", "StableLm", "Glm", "GptOss", "SmolLM3", "Gemma3nText", "Qwen3Next"]
"""Models whose keys have a projection of their own: a quarter of the channels rotated, half of them, pairs of neighbours,
angles of half the width, layers without rotation, a function for one tensor, a layer before it that has no keys."""


def projected(model, tokens, layer):
    """Keys before rotation, from the last module that they pass before it."""
    attention = model.get_decoder().layers[layer].self_attn
    made = []
    module = getattr(attention, "k_norm", None) or attention.k_proj
    hook = module.register_forward_hook(lambda module, given, returned: made.append(returned))
    keys = prefill(model, tokens).layers[layer].keys
    hook.remove()
    own = made[0]
    if own.ndim == 3:
        own = own.view(*own.shape[:2], keys.shape[1], keys.shape[3])
    if own.shape != keys.shape:  # tokens before heads
        own = own.transpose(1, 2)
    return own, keys


@pytest.mark.parametrize("name", SEPARATE)
def test_keys_before_rotation_are_those_projected(name):
    model = tiny(name)
    tokens = torch.randint(3, 128, (1, 20))
    for layer in probing.kv_shapes(model):
        own, keys = projected(model, tokens, layer)
        rotary = rotary_of(model, layer)
        torch.testing.assert_close(rotary.unrotate(keys, 0), own, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rotary.rotate(own, 0), keys, rtol=1e-4, atol=1e-4)
        later = rotary.unrotate(keys[:, :, 7:], 7)
        torch.testing.assert_close(later, own[:, :, 7:], rtol=1e-4, atol=1e-4)


def test_layers_without_rotation_are_told_apart():
    model = tiny("SmolLM3")
    assert isinstance(rotary_of(model, 0), ModelRotary)
    assert isinstance(rotary_of(model, 1), Unrotated)


def test_a_rotation_that_is_not_the_models_is_refused(monkeypatch, refused):
    """Turned the other way round, which undoing and doing again does not show."""
    model = tiny("Llama")
    module = sys.modules[type(model.get_decoder()).__module__]
    apply = module.apply_rotary_pos_emb
    probing.kv_shapes(model)
    real = probing.probe

    def probed(*args, **kwargs):
        with monkeypatch.context() as usual:
            usual.setattr(module, "apply_rotary_pos_emb", apply)
            return real(*args, **kwargs)

    monkeypatch.setattr("kvdelta.harness.caches.rotary.probe", probed)
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda q, k, cos, sin: apply(q, k, cos, -sin))
    with refused("layer 0 of this llama model caches keys whose rotation cannot be undone"):
        rotary_of(model, 0)


def test_a_function_of_another_form_is_no_sign_that_nothing_is_rotated(monkeypatch, refused):
    model = tiny("Llama")
    probing.kv_shapes(model)
    here, later = (
        probing.probe(model, probing.tokens_for(model), position_ids=torch.arange(8)[None] + at) for at in (0, 64)
    )
    answers = iter((here, later))
    monkeypatch.setattr("kvdelta.harness.caches.rotary.probe", lambda *args, **kwargs: next(answers))
    module = sys.modules[type(model.get_decoder()).__module__]
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda k, angles: k)
    with refused("layer 0 of this llama model caches keys whose rotation cannot be undone"):
        rotary_of(model, 0)


def test_a_rotary_is_found_once_and_is_the_models_own(monkeypatch):
    model = tiny("Llama")
    rotary = rotary_of(model, 0)
    monkeypatch.setattr("kvdelta.harness.caches.rotary.probe", None)
    assert rotary_of(model, 0) is rotary
    assert copy.deepcopy(rotary) is rotary
