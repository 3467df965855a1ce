"""The passes against an ordinary forward, and the scores against direct computation in float64."""

import pytest
import torch

from harness.caches.scheme import SchemeCache
from harness.protocols import (
    fill_live,
    log_probabilities,
    prefill,
    score,
    single_pass_logits,
    suffix_logits,
)
from harness.subject.forward import forward
from schemes import parse_scheme


def losses(logits, targets):
    return -log_probabilities(logits.clone()).gather(1, targets[:, None])[:, 0]


def test_exact_two_pass_equals_one_ordinary_forward(model, subject):
    for window in subject.windows:
        cache = SchemeCache(parse_scheme("exact"), model.config).fill(prefill(model, window.prefix))
        two = losses(suffix_logits(model, cache, window.suffix), window.targets)
        with torch.inference_mode():
            plain = model(window.tokens[None]).logits[0, window.prefix_length : -1].float()
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
    assert torch.equal(stepped, torch.stack(rows[:-1]))


def test_single_pass_does_not_read_what_it_writes(model, subject):
    window = subject.windows[0]
    found = [
        single_pass_logits(model, SchemeCache(parse_scheme(spec), model.config), window)
        for spec in ("exact", "int8:group_size=16", "asym1:group_size=16")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_scores_against_float64():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(300, 64, generator=generator)
    q = p + 0.01 * torch.randn(300, 64, generator=generator)
    targets = torch.randint(64, (300,), generator=generator)
    found = score(log_probabilities(q.clone()), log_probabilities(p.clone()), targets)
    exact_q, exact_p = q.double().log_softmax(-1), p.double().log_softmax(-1)
    kl = (exact_p.exp() * (exact_p - exact_q)).sum(-1)
    # a loss near 5 carries float32 round-off of 5 · 2^-23, a few times
    assert torch.allclose(found.nll.double(), -exact_q.gather(1, targets[:, None])[:, 0], atol=2e-6)
    # KL is about 5e-5: 1e-4 of it is far above round-off and far under a cancelled log-ratio's error
    assert torch.allclose(found.kl.double(), kl, rtol=1e-3, atol=1e-10)
    assert (found.kl >= 0).all()
    assert torch.equal(found.top1, q.argmax(-1) == p.argmax(-1))


def test_kl_of_equal_distributions_is_0():
    p = log_probabilities(torch.randn(10, 50))
    assert score(p, p.clone(), torch.zeros(10, dtype=torch.long)).kl.abs().max() == 0


@pytest.mark.parametrize("gap", [30.0, 60.0, 84.0, 100.0, 120.0, 60000.0])
def test_kl_of_distributions_that_share_nothing(gap):
    """Each sure of another token: gap nats, to float32; exp(gap) overflows from 88 on, and p is 0 from 104 on."""
    p, q = torch.tensor([[gap, 0.0, 0.0]]), torch.tensor([[0.0, gap, 0.0]])
    exact_p, exact_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    expected = (exact_p.exp() * (exact_p - exact_q)).sum().item()
    kl = score(log_probabilities(q), log_probabilities(p), torch.zeros(1, dtype=torch.long)).kl.item()
    assert kl == pytest.approx(expected, rel=1e-6)
    assert kl == pytest.approx(gap, rel=1e-6)


def test_pass_1_computes_one_row_of_logits(model, subject):
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, given, logits: rows.append(logits.shape[1]))
    try:
        prefill(model, subject.windows[0].prefix)
    finally:
        hook.remove()
    assert rows == [1]
