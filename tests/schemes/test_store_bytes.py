"""What a store holds: bytes by the formula, growth in place, and the same numbers after every transformation."""

import copy

import pytest
import torch

from kvdelta.schemes import TokenStore, parse_scheme

from .cases import filled
from .test_store import CHANNELS, assert_alike, every_scheme, sizes, tokens


def storages(store):
    exact = [x for x in (store.sinks, store.tail) if x is not None]
    held = exact + [part for run in store.runs for part in run.held.parts().values()]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}


BITS = [  # effective bits of the packed part: b + 32/G asymmetric and HQQ, b + 16/G symmetric, 16 exact
    ("asym2:group_size=32", 3.0),
    ("asym2:group_size=32,axis=channel", 3.0),
    ("asym4", 4.5),
    ("asym4:zero=integer", 4.5),
    ("asym3:group_size=all", 3.5),
    ("asym1:group_size=32", 2.0),
    ("hqq4", 4.5),
    ("hqq2:group_size=32,axis=channel", 3.0),
    ("int4", 4.25),
    ("int8:group_size=32,axis=channel", 8.5),
    ("kivi:bits=2", 3.0),
    ("kivi:bits=4,sink_tokens=4", 5.0),
    ("exact", 16.0),
]


@pytest.mark.parametrize(("spec", "bits"), BITS)
@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("by", [7, 600])
def test_resident_bytes(spec, bits, side, by):
    """At most 1.02 × the formula, tail and sinks; spare capacity apart, at most a quarter, a token group and a token."""
    scheme = parse_scheme(spec).sides[side]
    x = torch.randn(1, 2, 600, 64).half()
    store = filled(scheme, *x.split(by, dim=2))
    row = 2 * 64
    packed = store.packed_tokens * row * bits / 8
    exact = (store.tail_tokens + store.sink_tokens) * row * 2
    held = store.nbytes()
    resident = sum(size for name, size in held.items() if name != "spare")
    assert packed + exact <= resident <= 1.02 * packed + exact
    assert held["tail"] + held["sinks"] == exact
    group, token = scheme.quantizer.tokens_per_group * row * bits / 8, row * 2
    assert held["spare"] <= 0.25 * (packed + exact) + group + token
    assert sum(held.values()) == sum(storages(store).values())
    assert store.counted_bytes() == resident
    assert store.elements == x.numel()


@pytest.mark.parametrize(
    ("length", "key_bits", "value_bits", "mean"), [(2048, 3.0, 3.81, 3.41), (32768, 3.0, 3.05, 3.03)]
)
def test_bits_of_kivi_with_its_window(length, key_bits, value_bits, mean):
    x = torch.randn(1, 1, length, 64)  # float32: exact tokens count 16 bits all the same
    stores = [filled(rule, x) for rule in parse_scheme("kivi2").sides.values()]
    measured = [8 * store.counted_bytes() / store.elements for store in stores]
    assert measured == pytest.approx([key_bits, value_bits], abs=0.006)  # given to two decimals
    assert sum(measured) / 2 == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize("spec", ["exact", "int4:group_size=16", "kivi:bits=2,group_size=8,residual_length=16"])
@pytest.mark.parametrize("side", ["key", "value"])
def test_growth_in_place(spec, side):
    """400 appends of a token move what is held about log(400)/log(1.25) = 27 times, not 400."""
    store, addresses, moved = TokenStore(parse_scheme(spec).sides[side]), {}, 0
    for step in range(400):
        store.append(tokens(1, seed=step, batch=1))
        now = {name: part.data_ptr() for run in store.runs for name, part in run.held.parts().items()}
        moved += now != addresses
        addresses = now
    assert len(store.runs) == 1
    assert 2 <= moved <= 32
    assert store.nbytes()["spare"] > 0


@every_scheme
@pytest.mark.parametrize("length", [4, 100])
def test_rows_repeats_copies(scheme, length):
    def check(change, expected):
        """Before and after more tokens have come: nothing is shared, and nothing stops growing."""
        store = filled(scheme, x)
        changed = change(store) or store
        assert_alike(changed, filled(scheme, expected(x)))
        changed.append(expected(more))
        assert_alike(changed, filled(scheme, expected(x), expected(more)))
        assert sum(changed.nbytes().values()) == sum(storages(changed).values())

    x, more = tokens(length), tokens(30, seed=8)
    rows = torch.tensor([1, 1, 0])
    check(lambda store: store.index_select(rows), lambda t: t[rows])
    check(lambda store: store.repeat(3), lambda t: t.repeat_interleave(3, dim=0))
    check(lambda store: store.to("cpu"), lambda t: t)
    check(copy.deepcopy, lambda t: t)
    original, twin = filled(scheme, x), filled(scheme, x)
    copied = copy.deepcopy(original)
    copied.append(more)
    copied.zero_codes()
    assert_alike(original, twin)


@every_scheme
def test_zero_codes_takes_the_packed_part_alone(scheme):
    x = tokens(100)
    store = filled(scheme, *x.split(7, dim=2))
    full, before = store.read().clone(), store.nbytes()
    store.zero_codes()
    start, end = store.sink_tokens, store.sink_tokens + store.packed_tokens
    assert torch.equal(store.read()[:, :, :start], full[:, :, :start])
    assert torch.equal(store.read()[:, :, end:], full[:, :, end:])
    assert not torch.equal(store.read()[:, :, start:end], full[:, :, start:end])
    assert store.nbytes() == before
    assert sum(store.nbytes().values()) == sum(storages(store).values())


@every_scheme
def test_transformations_after_a_crop_inside_a_group(scheme):
    store = filled(scheme, *tokens(100).split(9, dim=2))
    store.crop(scheme.sink_tokens + 5)
    read = store.read().clone()
    store.to("cpu")
    store.repeat(2)
    assert torch.equal(store.read(), read.repeat_interleave(2, dim=0))
    assert sum(store.nbytes().values()) == sum(storages(store).values())
    assert store.read().shape == (4, 2, scheme.sink_tokens + 5, CHANNELS)
    assert sizes(store) == sizes(copy.deepcopy(store))
