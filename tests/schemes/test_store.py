"""TokenStore: the state depends on the length alone, nothing is quantized twice, bytes are what is held."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvdelta.schemes import QuantizedTensor, Quantizer, TokenStore, parse_scheme

from .cases import filled, rebuild

CHANNELS = 16
SPECS = [
    "exact",
    "exact:keep_recent=5,flush_every=3,sink_tokens=2",
    "int4:group_size=16",
    "asym2:axis=channel,group_size=8",
    "asym3:group_size=8,keep_recent=7,sink_tokens=3",
    "asym2:axis=channel,group_size=8,flush_every=24,keep_recent=5,sink_tokens=1",
    "hqq2:group_size=8,axis=channel,iters=3",
    "kivi:bits=2,group_size=8,residual_length=16",
    "kivi:bits=4,group_size=8,residual_length=24,sink_tokens=5",
    "gear(asym2:axis=channel,group_size=8):block=8,rank=1,prompt=24,prompt_rank=2",
    "gear(kivi:bits=2,group_size=8,residual_length=16):block=16,rank=1,prompt=32,prompt_rank=2,sink_tokens=3",
]
SIDES = [
    pytest.param(scheme, id=f"{spec}-{side}") for spec in SPECS for side, scheme in parse_scheme(spec).sides.items()
]
every_scheme = pytest.mark.parametrize("scheme", SIDES)


def tokens(count, seed=3, batch=2):
    return torch.randn(batch, 2, count, CHANNELS, generator=torch.Generator().manual_seed(seed))


def sizes(store):
    return {name: size for name, size in store.nbytes().items() if name != "spare"}


def assert_alike(store, other):
    assert torch.equal(store.read(), other.read())
    assert sizes(store) == sizes(other)
    for count in ("length", "packed_tokens", "tail_tokens", "sink_tokens"):
        assert getattr(store, count) == getattr(other, count)


@every_scheme
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_chunking_of_appends_is_the_same(scheme, lengths):
    x = tokens(sum(lengths))
    chunked, whole = filled(scheme, *x.split(lengths, dim=2)), filled(scheme, x)
    assert_alike(chunked, whole)
    assert chunked.packed_tokens == scheme.packed_tokens(x.shape[2])
    assert chunked.length == x.shape[2]
    sinks, packed = min(scheme.sink_tokens, x.shape[2]), chunked.packed_tokens
    assert torch.equal(chunked.read()[:, :, :sinks], x[:, :, :sinks])
    assert torch.equal(chunked.read()[:, :, sinks + packed :], x[:, :, sinks + packed :])


def test_trace_of_kivi():
    """L = 200, R = 128, G = 32: K 128 packed + 72 exact, V 72 + 128; 56 tokens later K 256 + 0, V 128 + 128."""
    scheme = parse_scheme("kivi:bits=2,group_size=32,residual_length=128")
    stores = {side: filled(rule, tokens(200)) for side, rule in scheme.sides.items()}
    held = {side: (store.packed_tokens, store.tail_tokens) for side, store in stores.items()}
    assert held == {"key": (128, 72), "value": (72, 128)}
    for step in range(1, 57):
        for store in stores.values():
            store.append(tokens(1, seed=step))
        packed_keys, length = 256 if step == 56 else 128, 200 + step
        assert stores["key"].packed_tokens == packed_keys == length // 128 * 128
        assert stores["value"].packed_tokens == length - 128
        assert [store.length for store in stores.values()] == [length, length]
    assert stores["key"].tail_tokens == 0
    assert stores["value"].tail_tokens == 128


@dataclass(frozen=True)
class Counting(Quantizer):
    """Counts the tokens that its inner quantizer sees."""

    inner: Quantizer
    seen: list[int] = field(default_factory=list, compare=False)

    @property
    def tokens_per_group(self):
        return self.inner.tokens_per_group

    def quantize(self, x) -> QuantizedTensor:
        self.seen.append(x.shape[2])
        return self.inner.quantize(x)


@every_scheme
@settings(max_examples=20)
@given(steps=st.lists(st.tuples(st.sampled_from(["append", "append", "crop"]), st.integers(0, 40)), max_size=8))
def test_appends_and_crops_never_quantize_again(scheme, steps):
    """Packed tokens stay, bit for bit, until they are cropped; what is newly packed is what the quantizer gives, of the first
    tokens the one for those."""
    first = None if scheme.first is None else Counting(scheme.first)
    counted = replace(scheme, quantizer=Counting(scheme.quantizer), first=first)
    store, removed, seed = TokenStore(counted), 0, 0
    truth = shown = tokens(0)
    for what, count in steps:
        packed_end = store.sink_tokens + store.packed_tokens
        if what == "append" and count:
            seed += 1
            new = tokens(count, seed)
            store.append(new)
            truth = torch.cat([truth, new], dim=2)
        elif what == "crop":
            keep = max(0, store.length - count)
            removed += max(0, packed_end - max(keep, store.sink_tokens))
            packed_end = min(packed_end, keep)
            store.crop(keep)
            truth = truth[:, :, :keep]
        read = store.read()
        read = truth if read is None else read
        assert store.length == read.shape[2] == truth.shape[2]
        assert torch.equal(read[:, :, :packed_end], shown[:, :, :packed_end])
        sinks, tail = store.sink_tokens, store.length - store.tail_tokens
        if (fresh := slice(max(sinks, packed_end), tail)).start < tail:
            new = truth[:, :, fresh].split(
                [head := scheme.first_tokens if packed_end <= sinks else 0, tail - fresh.start - head], 2
            )
            rebuilt = [
                rebuild(one, x) for one, x in zip((scheme.first, scheme.quantizer), new, strict=True) if x.numel()
            ]
            assert torch.equal(read[:, :, fresh], torch.cat(rebuilt, dim=2))
        assert torch.equal(read[:, :, :sinks], truth[:, :, :sinks])
        assert torch.equal(read[:, :, tail:], truth[:, :, tail:])
        assert store.tail_tokens < scheme.keep_recent + max(scheme.flush_every, scheme.first_tokens)
        assert sum(sum(one.seen) for one in counted.quantizers) == store.packed_tokens + removed
        shown = read


@every_scheme
def test_a_crop_between_blocks_leaves_the_state_of_fewer_tokens(scheme):
    """Where the crop takes exact tokens or whole blocks only, what follows is as if they had never come."""
    x = tokens(200)
    whole = filled(scheme, x)
    block_end = scheme.sink_tokens + (scheme.first_tokens or scheme.flush_every)
    whole.crop(block_end)
    assert torch.equal(whole.read(), filled(scheme, x).read()[:, :, :block_end])
    whole.append(x[:, :, block_end:])
    assert torch.equal(whole.read(), filled(scheme, x).read())
    assert whole.packed_tokens == scheme.packed_tokens(200)


def test_crop_to_nothing_and_reset():
    store = filled(parse_scheme("kivi2:sink_tokens=4").key, tokens(300))
    store.crop(0)
    assert (store.length, store.read(), sum(store.nbytes().values())) == (0, None, 0)
    store.append(tokens(300))
    fresh = filled(store.scheme, tokens(300))
    assert_alike(store, fresh)
    store.reset()
    assert (store.length, store.read(), store.elements) == (0, None, 0)


def test_an_append_holds_nothing_of_what_it_was_given():
    x = tokens(40)
    store = filled(parse_scheme("asym4:group_size=16,keep_recent=8,sink_tokens=3").key, x)
    before = store.read().clone()
    x.zero_()
    assert torch.equal(store.read(), before)


@pytest.mark.parametrize("spec", ["exact", "exact:keep_recent=50", "exact:sink_tokens=50", "int4:group_size=16"])
def test_what_was_read_does_not_change_later(spec):
    store = filled(parse_scheme(spec).key, tokens(20))
    read = store.read()
    before = read.clone()
    store.crop(5)
    store.append(tokens(15, seed=9))
    assert torch.equal(read, before)
    read.zero_()
    assert store.read().count_nonzero() > 0


@every_scheme
@settings(max_examples=20)
@given(steps=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=8))
def test_what_is_let_go_changes_nothing_behind_it(scheme, steps):
    """(tokens that come, tokens that a window of so many still sees): as of a store that lets none go."""
    sliding, whole = filled(scheme), filled(scheme)
    for i, (count, window) in enumerate(steps):
        for store in (sliding, whole):
            store.append(tokens(count, seed=i))
        left = max(0, whole.length - window)
        before = sliding.dropped
        sliding.forget(left)
        assert before <= sliding.dropped <= max(before, left)
        assert min(left, whole.packed_until) - sliding.dropped < max(q.tokens_per_group for q in scheme.quantizers)
        assert (sliding.length, sliding.packed_until) == (whole.length, whole.packed_until)
        if sliding.length > sliding.dropped:
            assert torch.equal(sliding.read(), whole.read()[:, :, sliding.dropped :])
    held = sum(part.numel() for part in (sliding.sinks, sliding.tail) if part is not None)
    packed = [part for run in sliding.runs for part in run.view().parts().values()]
    assert sum(sizes(sliding).values()) == 4 * held + sum(part.numel() * part.element_size() for part in packed)


@every_scheme
def test_what_is_let_go_frees_its_memory(scheme):
    store = filled(scheme, tokens(400))
    before = sum(store.nbytes().values())
    store.forget(380)
    parts = [part for run in store.runs for part in run.held.parts().values()]
    exact = [x for x in (store.sinks, store.tail) if x is not None]
    assert sum(x.untyped_storage().nbytes() for x in (*parts, *exact)) < before / 2


@every_scheme
def test_rows_and_crop_behind_what_is_let_go(scheme):
    x = tokens(100)
    store, whole = filled(scheme, x), filled(scheme, x)
    store.forget(41)
    for one in (store, whole):
        one.crop(87)
        one.index_select(torch.tensor([1, 0, 1]))
    assert torch.equal(store.read(), whole.read()[:, :, store.dropped :])
    joined = TokenStore.joined([store, store])
    assert joined.dropped == store.dropped
    assert torch.equal(joined.read(), store.read().repeat(2, 1, 1, 1))


@every_scheme
@pytest.mark.parametrize("length", [2, 30, 100])
def test_stores_that_were_joined_part_again(scheme, length):
    """And share no memory."""
    x, more = tokens(length, batch=6), tokens(9, seed=8, batch=6)
    joined = TokenStore.joined([filled(scheme, rows) for rows in x.split(2)])
    joined.append(more)
    parted = joined.parted(3)
    held = [part for store in (joined, *parted) for run in store.runs for part in run.held.parts().values()]
    held += [exact for store in (joined, *parted) for exact in (store.sinks, store.tail) if exact is not None]
    assert len({x.untyped_storage().data_ptr() for x in held}) == len(held)
    for store, rows, new in zip(parted, x.split(2), more.split(2), strict=True):
        assert_alike(store, filled(scheme, rows, new))
        store.append(new)
        assert_alike(store, filled(scheme, rows, new, new))
