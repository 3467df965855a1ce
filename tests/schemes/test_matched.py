"""Matched tails and sinks change nothing but which tokens are exact."""

import pytest
import torch

from kvdelta.schemes import TokenStore, parse_scheme
from kvdelta.schemes.errors import UserError

X = torch.randn(1, 2, 200, 64, generator=torch.Generator().manual_seed(0))


def stored(side):
    store = TokenStore(side)
    store.append(X)
    return store


@pytest.mark.parametrize(
    "spec", ["int4", "kivi2", "asym2:key_axis=channel,group_size=32", "turbo4", "hadamard(asym4)", "nf4"]
)
@pytest.mark.parametrize(("tail", "sinks"), [(64, 0), (0, 4), (50, 5)])
def test_tokens_between_are_those_of_the_quantizer(spec, tail, sinks):
    plain, same = parse_scheme(spec), parse_scheme(f"matched({spec}):tail={tail},sinks={sinks}")
    for side, rule in same.sides.items():
        assert rule.quantizer == plain.sides[side].quantizer
        store = stored(rule)
        group = rule.quantizer.tokens_per_group
        packed = (200 - tail - sinks) // group * group
        assert (store.sink_tokens, store.packed_tokens) == (sinks, packed)
        read, end = store.read(), sinks + packed
        assert torch.equal(read[:, :, :sinks], X[:, :, :sinks])
        assert torch.equal(read[:, :, end:], X[:, :, end:])
        assert torch.equal(read[:, :, sinks:end], rule.quantizer.quantize(X[:, :, sinks:end]).dequantize())


@pytest.mark.parametrize("length", [100, 160, 199])
def test_with_one_block_all_have_the_same_exact_tokens(length):
    specs = ["int4", "kivi2", "turbo4", "asym2:key_axis=channel,group_size=16", "kvarn:tile=32", "k4v3"]
    exact = set()
    for spec in specs:
        for side in parse_scheme(f"matched({spec}):tail=20,sinks=4,block=64").sides.values():
            store = TokenStore(side)
            store.append(X[:, :, :length])
            exact.add((store.sink_tokens, store.tail_tokens))
    assert exact == {(4, 20 + (length - 24) % 64)}


def test_what_is_not_given_stays_as_it_is():
    kivi = parse_scheme("kivi2")
    assert parse_scheme("matched(kivi2)").sides == kivi.sides
    sinks = parse_scheme("matched(kivi2):sinks=4")
    assert (sinks.key.flush_every, sinks.value.keep_recent, sinks.key.sink_tokens) == (128, 128, 4)
    assert parse_scheme("matched(int4:only=key):tail=64").value == parse_scheme("int4:only=key").value


def test_a_whole_scheme_keeps_its_rules():
    scheme = parse_scheme("matched(int4:keep_recent=100,exact_first_layers=1):tail=8")
    assert scheme.key.keep_recent == 8
    assert scheme.for_layer(0).lossless
    assert parse_scheme(scheme.name) == scheme


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("matched(int4):block=-1,tail=8", "block=-1"),
        ("matched(int4):block=8", "give tail too"),
        ("matched(gear(kcvt4):prompt=192):tail=8,block=128", "a prompt that is a multiple of the block"),
        ("matched(kivi2):tail=8,block=48", "does not divide the block of 48 tokens"),
    ],
)
def test_a_block_that_cannot_be_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        parse_scheme(spec)


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(UserError, match="tail=-2"):
        parse_scheme("matched(int4):tail=-2")
