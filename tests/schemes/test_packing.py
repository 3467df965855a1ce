"""Packing against Python's integers, and as a round trip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvdelta.schemes.packing import WIDTHS, check_packable, codes_per_word, pack, unpack


@st.composite
def codes_and_bits(draw):
    bits = draw(st.sampled_from(WIDTHS))
    lead = draw(st.lists(st.integers(1, 3), max_size=3))
    shape = [*lead, draw(st.integers(1, 5)) * codes_per_word(bits)]
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(0, 2**bits, shape, generator=seed, dtype=torch.uint8), bits


@given(codes_and_bits())
def test_round_trip_in_exactly_as_many_bits(case):
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() * 8 == codes.numel() * bits
    assert torch.equal(unpack(packed, bits), codes)


@given(codes_and_bits())
def test_little_endian_words(case):
    """Python's own integers are the oracle: the codes of a row are the digits, lowest first, of one number."""
    codes, bits = case
    row = codes.flatten(0, -2)[0] if codes.ndim > 1 else codes
    number = sum(code << (bits * i) for i, code in enumerate(row.tolist()))
    assert bytes(pack(row, bits).tolist()) == number.to_bytes(len(row) * bits // 8, "little")


@given(codes_and_bits())
def test_any_strides(case):
    codes, bits = case
    strided = codes.repeat_interleave(2, dim=-1)[..., ::2]
    assert torch.equal(pack(strided, bits), pack(codes, bits))


@pytest.mark.parametrize(("bits", "group"), [(1, 4), (2, 6), (3, 4), (3, 12), (4, 5), (5, 12), (6, 2), (7, 4)])
def test_codes_that_do_not_fill_bytes(bits, group):
    with pytest.raises(
        ValueError, match=f"{group} codes of {bits} bits is {group * bits} bits.*{codes_per_word(bits)} d"
    ):
        check_packable(bits, group)
    with pytest.raises(ValueError, match="not whole bytes"):
        pack(torch.zeros(group, dtype=torch.uint8), bits)


@pytest.mark.parametrize("bits", [0, 9, 16])
def test_other_widths(bits):
    with pytest.raises(ValueError, match=f"bits={bits}: packed codes have 1, 2, 3, 4, 5, 6, 7, 8 bits"):
        check_packable(bits, 64)
