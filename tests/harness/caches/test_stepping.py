"""A suffix in steps, over one store and one buffer for all layers, against a loop of forwards over the live cache."""

import pytest
import torch

from kvdelta.harness.caches.scheme import SchemeCache
from kvdelta.harness.caches.stepping import Buffers
from kvdelta.harness.protocols import fill_live, prefill, suffix_logits
from kvdelta.harness.subject.forward import forward
from kvdelta.harness.subject.windows import Batch
from kvdelta.schemes import parse_scheme

SPECS = [
    "exact",
    "int4:group_size=16",
    "kivi:bits=2,group_size=8,residual_length=16,sink_tokens=3",
    "kivi:bits=2,group_size=8,residual_length=16,only=key",
    "hqq4:group_size=16",
    "hqq4:group_size=16,solver=library",
    "hadamard(asym3:group_size=8)",
    "oscar:group_size=8,block=16",
    "kvarn:tile=16",
    "ott:group_size=16,residual_length=8",
    "gear(int4:group_size=16):block=16",
    "gear(int4:group_size=16):block=16,prompt=32",
    "fp8:block=8",
    "int4:group_size=16,exact_first_layers=1",
]


def looped(model, batch, spec, step, mirrored):
    cache = SchemeCache.for_model(parse_scheme(spec), model, mirrored=mirrored)
    fill_live(model, batch.prefix, cache)
    with torch.inference_mode():
        return torch.cat([forward(model, some, cache).logits for some in batch.suffix.split(step, dim=1)], 1)[:, :-1]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("step", [1, 5, 16])
def test_steps_are_a_loop_of_forwards_bit_for_bit(model, subject, spec, step):
    batch = Batch(tuple(subject.windows[: 1 if "library" in spec else 2]))
    cache = SchemeCache.for_model(parse_scheme(spec), model).fill(prefill(model, batch.prefix))
    stepped = suffix_logits(model, cache, batch.suffix, step)
    assert torch.equal(stepped, looped(model, batch, spec, step, mirrored=False))
    assert torch.equal(stepped, looped(model, batch, spec, step, mirrored=True))


def test_buffers_are_taken_again_and_hold_nothing_of_the_scheme_before(model, subject):
    batch = Batch(tuple(subject.windows[:2]))
    prefilled, buffers = prefill(model, batch.prefix), Buffers()
    addresses = set()
    for spec in ("asym2:group_size=16", "exact", "int4:group_size=16,exact_first_layers=1", "exact"):
        cache = SchemeCache.for_model(parse_scheme(spec), model).fill(prefilled)
        for chunk in cache.feed(batch.suffix.split(8, dim=1), buffers):
            with torch.inference_mode():
                last = forward(model, chunk, cache).logits
            addresses.add(tuple(layer.keys.data_ptr() for layer in cache.layers))
        assert torch.equal(last[:, :-1], looped(model, batch, spec, 8, mirrored=False)[:, -7:])
    assert len(addresses) == 1


@pytest.mark.parametrize("spec", SPECS)
def test_the_last_forward_reads_and_stores_nothing(model, subject, spec):
    """A suffix in one forward: what it reads is what a live forward reads, and the cache stays as it was filled."""
    window = subject.windows[0]
    prefilled = prefill(model, window.prefix)
    cache = SchemeCache.for_model(parse_scheme(spec), model).fill(prefilled)
    before = {key: store.nbytes() for *key, store in cache.stores() for key in [tuple(key)]}
    first = suffix_logits(model, cache, window.suffix)
    assert {key: store.nbytes() for *key, store in cache.stores() for key in [tuple(key)]} == before
    assert torch.equal(first, suffix_logits(model, cache, window.suffix))
    live = SchemeCache.for_model(parse_scheme(spec), model).fill(prefilled)
    with torch.inference_mode():
        assert torch.equal(first, forward(model, window.suffix, live).logits[:, :-1])
    assert live.get_seq_length() == len(window.tokens)
