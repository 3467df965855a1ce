"""What is taken from inside the model is what the model uses."""

import copy
import gc
import weakref

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kvdelta.harness import capture
from kvdelta.harness.protocols import prefill, suffix_logits
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.kinds import full_layers
from kvdelta.harness.subject.windows import Batch, cut_windows

from ..conftest import SHARP, TINY, tiny_config


@pytest.fixture
def window(tokens):
    return cut_windows(tokens, window_length=96, score_length=32, windows=1)[0]


def gemma(kind, config, **changes):
    sliding = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2}
    fields = {**TINY, **SHARP, **sliding, "num_hidden_layers": 4, "head_dim": 16}
    return kind(config(**{**fields, **changes})).eval().requires_grad_(False)


def models():
    yield "llama sdpa", LlamaForCausalLM(tiny_config()).eval()
    eager = LlamaForCausalLM(tiny_config()).eval()
    eager.set_attn_implementation("eager")
    yield "llama eager", eager
    softcap = gemma(Gemma2ForCausalLM, Gemma2Config, attn_logit_softcapping=5.0, query_pre_attn_scalar=7)
    softcap.set_attn_implementation("eager")
    yield "gemma 2: soft-cap, own scaling, sliding layers", softcap
    yield "gemma 3: sliding layers, two rotary bases", gemma(Gemma3ForCausalLM, Gemma3TextConfig)


MODELS = dict(models())


def seen_by(model, window, layers=None):
    prefilled = prefill(model, window.prefix)
    seen = {}
    full = full_layers(prefilled)
    logits = capture.suffix_attention(
        model,
        capture.exact_view(prefilled, model.config),
        Batch((window,)),
        layers or full,
        lambda a: seen.update({a.layer: a}),
    )
    return prefilled, seen, logits


@pytest.mark.parametrize("name", MODELS)
def test_capture_changes_nothing_and_gives_the_attention_again(name, window):
    model = MODELS[name]
    before = model.config._attn_implementation
    prefilled, seen, logits = seen_by(model, window)
    assert model.config._attn_implementation == before
    plain = suffix_logits(model, capture.exact_view(prefilled, model.config), window.suffix)
    assert torch.equal(logits, plain)
    assert list(seen) == full_layers(prefilled)
    for attention in seen.values():
        group = attention.queries.shape[1] // attention.keys.shape[1]
        keys, values = (x.repeat_interleave(group, dim=1) for x in (attention.keys, attention.values))
        raw = attention.queries @ keys.transpose(2, 3) * attention.scaling
        if attention.softcap:
            raw = attention.softcap * torch.tanh(raw / attention.softcap)
        scores = raw.masked_fill(~attention.allowed, -torch.inf).softmax(-1)
        torch.testing.assert_close((scores @ values).transpose(1, 2), attention.output, rtol=1e-4, atol=1e-5)
        prefix = prefilled.layers[attention.layer].keys
        assert torch.equal(attention.keys[:, :, : window.prefix_length], prefix)
    if "gemma 2" in name:
        assert {(a.softcap, round(a.scaling, 4)) for a in seen.values()} == {(5.0, round(7**-0.5, 4))}


def test_a_view_leaves_the_prefilled_cache_alone(window):
    model = MODELS["gemma 3: sliding layers, two rotary bases"]
    prefilled, _, first = seen_by(model, window)
    again = suffix_logits(model, capture.exact_view(prefilled, model.config), window.suffix)
    assert torch.equal(first, again)
    assert prefilled.get_seq_length() == window.prefix_length


def test_what_a_visit_holds_is_let_go(window):
    class Held:
        pass

    held, model = Held(), MODELS["llama sdpa"]
    gone, cache = weakref.ref(held), capture.exact_view(prefill(model, window.prefix), model.config)
    capture.suffix_attention(model, cache, Batch((window,)), [0], lambda attention, held=held: None)
    del held
    gc.collect()
    assert gone() is None


def test_what_cannot_be_captured_is_refused(window, refused):
    model = LlamaForCausalLM(tiny_config()).eval()
    prefilled = prefill(model, window.prefix)
    with refused("attention of layers .7.*cannot be captured"):
        capture.suffix_attention(
            model, capture.exact_view(prefilled, model.config), Batch((window,)), [0, 7], lambda a: None
        )
    model.config._attn_implementation_internal = "flash_attention_2"
    with refused("'flash_attention_2' cannot be captured; load the model with one of sdpa, eager"):
        capture.suffix_attention(model, prefilled, Batch((window,)), [0], lambda a: None)


def test_masks(refused):
    device = torch.device("cpu")
    causal = capture.allowed_pairs(None, 2, 4, device)
    assert causal.tolist() == [[True, True, True, False], [True] * 4]
    assert torch.equal(capture.allowed_pairs(causal[None, None], 2, 4, device), causal)
    added = torch.zeros(1, 1, 2, 4).masked_fill(~causal, torch.finfo(torch.float32).min)
    assert torch.equal(capture.allowed_pairs(added, 2, 4, device), causal)
    with refused("adds other numbers"):
        capture.allowed_pairs(added + 0.5, 2, 4, device)
    with refused("differs by head"):
        capture.allowed_pairs(added.expand(1, 3, 2, 4), 2, 4, device)
    assert torch.equal(capture.allowed_pairs(causal.expand(3, 1, 2, 4), 2, 4, device), causal)
    assert torch.equal(capture.allowed_pairs(added.repeat(3, 1, 1, 1), 2, 4, device), causal)
    with refused("differs by window"):
        capture.allowed_pairs(torch.stack([causal, ~causal])[:, None], 2, 4, device)


@pytest.fixture
def norms_in_float64(monkeypatch):
    """transformers computes norms in float32 whatever the model's dtype, too coarsely for finite differences."""

    def normed(x, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, x: self.weight * normed(x, self.variance_epsilon))
    monkeypatch.setattr(Gemma3RMSNorm, "forward", lambda self, x: (1 + self.weight) * normed(x, self.eps))


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("name", ["llama sdpa", "gemma 3: sliding layers, two rotary bases"])
def test_gradients_against_finite_differences(name, window):
    """In float64, along the gradient and along a random direction, for every layer and side."""
    model = copy.deepcopy(MODELS[name]).double()
    prefilled = prefill(model, window.prefix)
    gradients = capture.suffix_gradients(model, Batch((window,)), prefilled)
    assert sorted(gradients) == full_layers(prefilled)

    def loss(layer, side, step):
        cache = capture.exact_view(prefilled, model.config)
        moved = copy.copy(cache.layers[layer])
        attribute = side + "s"
        setattr(moved, attribute, getattr(moved, attribute) + step)
        cache.layers[layer] = moved
        with torch.inference_mode():
            logits = forward(model, window.suffix, cache).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, window.targets, reduction="sum").item()

    for layer, sides in gradients.items():
        for side, gradient in sides.items():
            for direction in (gradient, torch.randn_like(gradient)):
                step = 1e-3 * direction / direction.norm()
                found = (loss(layer, side, step) - loss(layer, side, -step)) / 2
                # the loss is taken in float32 for the gradient, and central differences leave a third-order term
                allowed = 1e-5 * float(gradient.norm()) * 1e-3
                assert found == pytest.approx(float((gradient * step).sum()), rel=1e-4, abs=allowed), (layer, side)


def test_gradients_are_the_same_through_either_attention(window):
    a, b = (copy.deepcopy(MODELS["llama sdpa"]) for _ in range(2))
    b.set_attn_implementation("eager")
    prefilled = prefill(a, window.prefix)
    first, second = (capture.suffix_gradients(model, Batch((window,)), prefilled) for model in (a, b))
    for layer, sides in first.items():
        for side, gradient in sides.items():
            torch.testing.assert_close(
                second[layer][side], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())
            )


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_windows_together_are_those_of_each(name, tokens):
    model, windows = MODELS[name], cut_windows(tokens, window_length=96, score_length=32, windows=3)
    together = capture.suffix_gradients(model, Batch(tuple(windows)), prefill(model, Batch(tuple(windows)).prefix))
    for i, window in enumerate(windows):
        alone = capture.suffix_gradients(model, Batch((window,)), prefill(model, window.prefix))
        for layer, sides in alone.items():
            for side, gradient in sides.items():
                torch.testing.assert_close(
                    together[layer][side][i : i + 1], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max())
                )


def test_gradients_leave_the_parameters_as_they_were(window):
    model = LlamaForCausalLM(tiny_config()).eval()
    prefilled = prefill(model, window.prefix)
    capture.suffix_gradients(model, Batch((window,)), prefilled)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama sdpa", "gemma 3: sliding layers, two rotary bases"])
def test_keys_before_rotation_are_the_models_own(name, window):
    model = MODELS[name]
    prefilled = prefill(model, window.prefix)
    for layer in full_layers(prefilled):
        attention = model.get_decoder().layers[layer].self_attn
        last = getattr(attention, "k_norm", None) or attention.k_proj  # Gemma 3 normalises keys before it rotates them
        made = []
        hook = last.register_forward_hook(lambda module, given, returned, made=made: made.append(returned))
        prefill(model, window.prefix)
        hook.remove()
        own = made[0]  # the norm sees heads before tokens, the projection tokens before channels
        if own.ndim == 3:
            own = own.view(1, window.prefix_length, -1, attention.head_dim).transpose(1, 2)
        back = capture.pre_rope_keys(model, layer, prefilled.layers[layer].keys)
        torch.testing.assert_close(back, own, rtol=1e-4, atol=1e-4)


def test_scaled_rotary_embeddings_are_undone(window):
    """YaRN multiplies cos and sin by a factor of its own."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128}
    model = LlamaForCausalLM(tiny_config(rope_parameters=scaling)).eval()
    prefilled = prefill(model, window.prefix)
    made = []
    hook = model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda m, given, out: made.append(out))
    prefill(model, window.prefix)
    hook.remove()
    own = made[0].view(1, window.prefix_length, 2, 16).transpose(1, 2)
    back = capture.pre_rope_keys(model, 0, prefilled.layers[0].keys)
    torch.testing.assert_close(back, own, rtol=1e-4, atol=1e-4)


def test_a_model_without_rotary_module_is_refused(window, refused, monkeypatch):
    model = LlamaForCausalLM(tiny_config()).eval()
    keys = prefill(model, window.prefix).layers[0].keys
    del model.model.rotary_emb
    with refused("no rotary module"):
        capture.pre_rope_keys(model, 0, keys)
