"""The passes against an ordinary forward."""

import pytest
import torch

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.protocols import fill_live, prefill, single_pass_logits, suffix_logits
from kvdelta.harness.subject.forward import forward
from kvdelta.schemes import parse_scheme


def losses(logits, targets):
    return torch.nn.functional.cross_entropy(logits[0], targets, reduction="none")


def test_exact_two_pass_equals_one_ordinary_forward(model, subject):
    for window in subject.windows:
        cache = SchemeCache(parse_scheme("exact"), model.config).fill(prefill(model, window.prefix))
        two = losses(suffix_logits(model, cache, window.suffix), window.targets)
        with torch.inference_mode():
            plain = model(window.tokens[None]).logits[:, window.prefix_length : -1]
        one = losses(plain, window.targets)
        # float32 sums in another order: 2e-6 nats in the mean of a window, 5e-5 in a token
        assert abs((two - one).double().mean()) < 2e-6
        assert (two - one).abs().max() < 5e-5


@pytest.mark.parametrize("spec", ["exact", "kivi:bits=2,group_size=8,residual_length=16"])
def test_stepwise_with_step_1_equals_a_token_by_token_loop(model, subject, spec):
    window = subject.windows[0]
    cache = SchemeCache(parse_scheme(spec), model.config).fill(prefill(model, window.prefix))
    stepped = suffix_logits(model, cache, window.suffix, 1)
    cache = SchemeCache(parse_scheme(spec), model.config)
    fill_live(model, window.prefix, cache)
    rows = []
    with torch.inference_mode():
        for token in window.suffix[0]:
            rows.append(forward(model, token.view(1, 1), cache).logits[0, 0])
    assert torch.equal(stepped[0], torch.stack(rows[:-1]))


def test_single_pass_does_not_read_what_it_writes(model, subject):
    window = subject.windows[0]
    found = [
        single_pass_logits(model, SchemeCache(parse_scheme(spec), model.config), window.tokens[None], 32)
        for spec in ("exact", "int8:group_size=16", "asym1:group_size=16")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_pass_1_computes_one_row_of_logits(model, subject):
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, given, logits: rows.append(logits.shape[1]))
    try:
        prefill(model, subject.windows[0].prefix)
    finally:
        hook.remove()
    assert rows == [1]
