"""What all integer schemes share: each code is the nearest to its number under the parameters that are stored."""

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.affine import FLOAT16_MAX, FLOAT16_TINY, AffineQuantizer, QParams, stored_offset, stored_scale
from kvdelta.schemes.packing import pack, unpack

from .cases import NESTED_CASES, PLAIN_CASES, sample

AFFINE = [case for case in PLAIN_CASES + NESTED_CASES if isinstance(case.values[0].quantizer, AffineQuantizer)]


@pytest.mark.parametrize("scheme", AFFINE)
def test_every_code_is_the_nearest(scheme):
    """No other code would decode nearer to x: so codes are rounded, and rounded with what is stored."""
    quantizer = scheme.quantizer
    x = sample(scheme, torch.float32, channels=24 if quantizer.grouping.axis == "channel" else 80)
    held = quantizer.quantize(x)
    error = (held.dequantize() - x).abs()
    used = unpack(held.codes, quantizer.bits)
    assert used.max() <= quantizer.max_code
    for step in (-1, 1):  # the error is convex in the code: who beats both neighbours beats all
        neighbour = (used.int() + step).clamp(0, quantizer.max_code).to(torch.uint8)
        other = (held.with_parts({"codes": pack(neighbour, quantizer.bits)}, held.tokens).dequantize() - x).abs()
        # float32: a few roundings of numbers as large as the largest of the group and the zero in code units
        assert (error <= other + 1e-5 * x.abs().max()).all()


@pytest.mark.parametrize("scheme", AFFINE)
def test_parameters_are_stored_in_at_most_16_bits_and_one_a_group(scheme):
    quantizer = scheme.quantizer
    x = sample(scheme, torch.float32, channels=80)
    parts = quantizer.quantize(x).parts()
    groups = sum(piece[..., 0].numel() for piece in quantizer.grouping.split(x))
    for name in parts.keys() - {"codes"}:
        assert parts[name].element_size() <= 2
        assert parts[name].numel() == groups
    assert parts["codes"].numel() * 8 == x.numel() * quantizer.bits


def test_stored_parameters_are_finite_and_a_scale_is_not_0():
    extremes = torch.tensor([0.0, 1e-30, 1.0, 1e6, float("inf")])
    assert stored_scale(extremes).tolist() == [FLOAT16_TINY, FLOAT16_TINY, 1.0, FLOAT16_MAX, FLOAT16_MAX]
    assert stored_offset(-extremes).tolist() == [0.0, 0.0, -1.0, -FLOAT16_MAX, -FLOAT16_MAX]


@pytest.mark.parametrize(
    ("qparams", "expected"),
    [
        (QParams(torch.tensor([0.5]), offset=torch.tensor([-1.0])), [-1.0, -0.5, 0.0, 0.5]),
        (QParams(torch.tensor([0.5]), zero=1), [-0.5, 0.0, 0.5, 1.0]),
        (QParams(torch.tensor([0.5]), zero=torch.tensor([3], dtype=torch.int16)), [-1.5, -1.0, -0.5, 0.0]),
        (QParams(torch.tensor([0.5]), zero=torch.tensor([0.5])), [-0.25, 0.25, 0.75, 1.25]),
    ],
)
def test_encode_and_decode(qparams, expected):
    codes = torch.arange(4, dtype=torch.uint8)[None]
    assert qparams.decode(codes)[0].tolist() == expected
    assert torch.equal(qparams.encode(torch.tensor([expected]), max_code=3), codes)
    beyond = torch.tensor([[expected[0] - 9, expected[-1] + 9]])
    assert qparams.encode(beyond, max_code=3).tolist() == [[0, 3]]


def test_decoded_numbers_stay_in_the_range_of_the_output():
    """min and scale are both rounded: code 3 may decode beyond float16's largest number."""
    x = torch.full((1, 1, 1, 64), FLOAT16_MAX).half()
    x[..., 0] = 3
    assert parse_scheme("asym2").key.quantizer.quantize(x).dequantize().max() == FLOAT16_MAX


@pytest.mark.parametrize("group_size", [4, 12, 36])
def test_bits_and_group_that_cannot_pack(group_size):
    with pytest.raises(ValueError, match=f"group of {group_size} codes of 3 bits .* use a group that 8 divides"):
        parse_scheme(f"asym3:group_size={group_size}")
    scheme = parse_scheme("asym3:group_size=all")
    with pytest.raises(ValueError, match=rf"{scheme.name}, keys with {group_size} channels a head: a group of"):
        scheme.check(group_size)
