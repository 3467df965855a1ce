"""OTT against the rule of the paper, transcribed in plain loops: which tokens stay exact, and what is read of the others."""

import numpy as np
import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.packing import unpack

from .comparing import HALF, INPUTS, assert_equal_but_for_ties, side_of

GROUP, COUNT, EXTRA = 128, 3, 32
CHANNELS = 64


def held(name, spec="ott"):
    return parse_scheme(spec).sides[side_of(name)].quantizer.quantize(INPUTS[name])


def smallest(tokens, count):
    """Indices of the tokens [tokens, channels] whose numbers are smallest, ascending."""
    return sorted(sorted(range(len(tokens)), key=lambda i: np.abs(tokens[i].astype(np.float64)).sum())[:count])


def one_pool(tokens):
    """The tokens that the published rule takes out of [tokens, channels], by block: those of a block compete with those in the
    pool, and what the pool loses fills another, until that is full."""
    sums = np.abs(tokens.astype(np.float64)).sum(-1)
    pool, lost, taken = [], 0, []
    for start in range(0, len(tokens), GROUP):
        block = [*range(start, start + GROUP)]
        kept = sorted(pool + block, key=sums.__getitem__)[:COUNT] if lost < EXTRA else pool
        lost += len(set(pool) - set(kept))
        taken.append({i - start for i in kept if i in block and i not in pool})
        pool = kept
    return taken


def rows(name):
    """(head, block, its tokens) of an input."""
    for head, tokens in enumerate(INPUTS[name][0].numpy()):
        for block in range(len(tokens) // GROUP):
            yield head, block, tokens[block * GROUP : (block + 1) * GROUP]


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_smallest_tokens_of_each_block_are_exact(name, count):
    stored = held(name, f"ott:outliers={count}")
    for head, block, tokens in rows(name):
        places = stored.place[0, head, block].tolist()
        assert places == smallest(tokens, count)
        read = stored.dequantize()[0, head, block * GROUP :][places]
        assert torch.equal(read, torch.from_numpy(tokens[places]))


@pytest.mark.parametrize("name", INPUTS)
def test_codes_of_the_others(name):
    """KIVI's arithmetic with the mean of the block in place of the exact tokens; scale and offset are rounded to float16, and the
    mean, which is taken in float64 there and here, to float32: 2⁻¹² of the position for the scale, and codes at most one apart."""
    stored = held(name)
    key = side_of(name) == "key"
    codes = unpack(stored.inner.codes, 2)
    for head, block, tokens in rows(name):
        x = tokens.astype(np.float64)
        x[smallest(tokens, COUNT)] = x.mean(0)
        groups = torch.from_numpy(x.T if key else x)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        at = (groups - low) / ((high - low) / 3)
        inner = stored.inner.crop((block + 1) * GROUP)
        part = slice(block, block + 1) if key else slice(block * GROUP, (block + 1) * GROUP)
        ours = codes[0, head, part].reshape(groups.shape)
        offset, scale = (x[0, head, part].reshape(low.shape).double() for x in (inner.offset, inner.scale))
        assert torch.allclose(offset, low, rtol=1.1 * HALF, atol=1e-7)
        slack = HALF * (low.abs() / scale + at + 1)
        assert assert_equal_but_for_ties(ours, at.round(), at, slack) < 0.2


@pytest.mark.parametrize("name", [name for name in INPUTS if name.endswith("key")])
def test_what_the_published_pool_takes_is_exact_here_too(name):
    """A token among the smallest of its block and of the pool is among the smallest of its block. The pool takes fewer."""
    stored = held(name)
    taken = 0
    for head, tokens in enumerate(INPUTS[name][0].numpy()):
        for block, places in enumerate(one_pool(tokens)):
            assert places <= set(stored.place[0, head, block].tolist())
            taken += len(places)
    assert COUNT * len(INPUTS[name][0]) <= taken < stored.place.numel()


def test_a_quiet_token_stretches_no_range_of_loud_channels():
    x = torch.randn(1, 1, GROUP, CHANNELS)
    x[..., :4] += torch.tensor([20.0, -15.0, 12.0, -10.0])
    quiet = x.clone()
    quiet[:, :, 77] *= 0.02

    def error(spec, data):
        rebuilt = parse_scheme(spec).key.quantizer.quantize(data).dequantize()
        return (rebuilt - data)[..., :4].norm()

    same = error("ott:outliers=0", x)
    assert error("ott:outliers=0", quiet) > 2 * same
    assert error("ott:outliers=1", quiet) < 1.05 * same


def test_a_value_waits_with_its_key():
    """For whole blocks behind the newest 32: the published code quantizes both sides together."""
    for side in parse_scheme("ott").sides.values():
        assert [side.packed_tokens(length) for length in (159, 160, 287, 288)] == [0, 128, 128, 256]
