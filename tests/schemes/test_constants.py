"""Model-independent constants: the relative error on N(0, 1), and on data with planted structure."""

from functools import cache

import pytest
import torch

from kvdelta.schemes import parse_scheme
from kvdelta.schemes.integer_zero import IntegerZeroQuantizer
from kvdelta.schemes.packing import unpack

TABLE = {  # rel of large samples, tolerance 2 %: bits, then G = 32, 64, 128
    "asymmetric": {
        1: (1.401, 1.654, 1.890),
        2: (0.3932, 0.4501, 0.5006),
        3: (0.1678, 0.1923, 0.2140),
        4: (0.0782, 0.0897, 0.0998),
        8: (0.0046, 0.0053, 0.0059),
    },
    "asymmetric:zero=integer": {2: (0.4063, 0.4569, 0.5031), 3: (0.1731, 0.1951, 0.2155), 4: (0.0808, 0.0911, 0.1006)},
    "symmetric": {
        2: (0.6578, 0.7177, 0.7667),
        3: (0.2266, 0.2513, 0.2738),
        4: (0.0970, 0.1076, 0.1173),
        8: (0.0053, 0.0059, 0.0065),
    },
    "hqq": {2: (0.3700, 0.4330, 0.4901), 3: (0.1564, 0.1824, 0.2066), 4: (0.0739, 0.0859, 0.0968)},
}
OTHERS = {  # the same for other formats, whatever the group that is not named
    "nf4:group_size=32": 0.0873,
    "nf4:group_size=64": 0.0920,
    "nf4:group_size=128": 0.0956,
    "q8_0": 0.00535,
    "q4_0": 0.0859,
    "q4_1": 0.0782,
    "q5_0": 0.0427,
    "q5_1": 0.0379,
    "nvfp4": 0.0951,
    "nvfp4:scales=2": 0.0951,
    "mxfp4": 0.1150,
    "mxfp4:rule=even": 0.1118,  # these and mlx as torchao and MLX give them
    "mxfp4:rule=rceil": 0.1153,
    "mlx:bits=2,group_size=32": 0.3620,
    "mlx:bits=4": 0.0910,
    **{f"fp8:scale={scale}": 0.0265 for scale in ("none", "tensor", "head")},
    **{f"fp8:format=e5m2,scale={scale}": 0.0528 for scale in ("none", "tensor", "head")},
    **{
        f"clip(asym2:group_size={group}):c={c}": constant
        for c, row in {
            0.8: (0.3273, 0.3658, 0.4027),
            0.92: (0.3613, 0.4132, 0.4596),
            0.96: (0.3766, 0.4313, 0.4799),
        }.items()
        for group, constant in zip((32, 64, 128), row, strict=True)
    },
}
LLOYD_MAX = {1: 0.3609, 2: 0.1161, 3: 0.0340, 4: 0.0093}  # mean squared error of unit vectors, 128 channels
ROWS = [
    pytest.param(
        f"{spec}{',' if ':' in spec else ':'}bits={bits},group_size={group}", constant, id=f"{spec}-{bits}-{group}"
    )
    for spec, by_bits in TABLE.items()
    for bits, constants in by_bits.items()
    for group, constant in zip((32, 64, 128), constants, strict=True)
]


@cache
def planted(name):
    """64 tiles [128, 128]; `ch`: 4 outlier channels, `tok`: loud and quiet tokens. The loudest decide so much that the
    figures of drawn scales vary by 4 %: they are the quantiles of the normal distribution, in any order."""
    rng = torch.Generator().manual_seed(11)
    x = torch.randn(64, 1, 128, 128, generator=rng)
    if "ch" in name:
        x[..., :4] = 3 * x[..., :4] + torch.tensor([20.0, -15.0, 12.0, -10.0])
    if "tok" in name:
        ranks = (torch.randperm(64 * 128, generator=rng).double() + 0.5) / (64 * 128)
        x = x * (0.7 * torch.special.ndtri(ranks).float()).exp().view(64, 1, 128, 1)
    return x


def rel(quantizer, x):
    return ((quantizer.quantize(x).dequantize() - x).norm() / x.norm()).item()


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize(("spec", "constant"), ROWS)
def test_relative_error_on_gaussians(spec, constant, axis):
    quantizer = parse_scheme(f"{spec},axis={axis}").key.quantizer
    # 2 %, and the rounding of a constant that has two digits only
    assert rel(quantizer, planted("gauss")) == pytest.approx(constant, rel=0.02, abs=5e-5)


@pytest.mark.parametrize("spec", OTHERS)
def test_relative_error_of_other_formats(spec):
    assert rel(parse_scheme(spec).key.quantizer, planted("gauss")) == pytest.approx(OTHERS[spec], rel=0.02, abs=5e-5)


def test_a_scale_a_token_uses_the_top_of_the_last_binade():
    """absmax becomes 448 itself, where a scale of many tokens leaves most of them anywhere in a binade."""
    assert rel(parse_scheme("fp8:scale=token").key.quantizer, planted("gauss")) == pytest.approx(0.0257, rel=0.02)


@pytest.mark.parametrize("rotation", ["orthogonal", "hadamard"])
@pytest.mark.parametrize("bits", LLOYD_MAX)
def test_turboquant_of_unit_vectors(bits, rotation):
    x = torch.randn(1, 1, 4096, 128)
    x = x / x.norm(dim=-1, keepdim=True)
    quantizer = parse_scheme(f"turboquant:bits={bits},rotation={rotation}").key.quantizer
    error = (quantizer.quantize(x).dequantize() - x).square().sum(-1).mean().item()
    assert error == pytest.approx(LLOYD_MAX[bits], rel=0.02, abs=5e-5)


@pytest.mark.parametrize("bits", [2, 3])
def test_turboquant_of_two_widths(bits):
    """A quarter of unit vectors at one bit more, which on numbers without loud channels is that much of the difference;
    the louder quarter has a little more of the energy."""
    x = torch.randn(1, 1, 4096, 128)
    x = x / x.norm(dim=-1, keepdim=True)
    quantizer = parse_scheme(f"turboquant:bits={bits}.5").key.quantizer
    error = (quantizer.quantize(x).dequantize() - x).square().sum(-1).mean().item()
    assert error == pytest.approx(0.75 * LLOYD_MAX[bits] + 0.25 * LLOYD_MAX[bits + 1], rel=0.08)


COLUMNS = {  # 2 bits, keys: gauss, ch, tok, ch + tok
    "asym2:group_size=128": (0.501, 1.284, 0.501, 1.301),
    "asym2:group_size=32": (0.393, 0.637, 0.393, 0.645),
    "asym2:axis=channel,group_size=32": (0.393, 0.155, 0.522, 0.313),
    "asym2:axis=channel,group_size=128": (0.501, 0.198, 0.827, 0.469),
    "hadamard(asym2:group_size=128)": (0.499, 0.310, 0.502, 0.311),
    "centred(hadamard(asym2:group_size=128))": (0.497, 0.190, 0.500, 0.250),
    "kvarn:key_bits=2": (0.495, 0.203, 0.487, 0.204),
    "oscar:bits=2": (
        0.404,
        0.158,
        0.404,
        0.158,
    ),  # an integer zero: .406 / .393 of the error of a float one on Gauss, as above
    "oscar:bits=2,zero=float": (0.391, 0.154, 0.392, 0.154),
}


@pytest.mark.parametrize("data", ["gauss", "ch", "tok", "ch+tok"])
@pytest.mark.parametrize("spec", COLUMNS)
def test_what_each_idea_is_for(spec, data):
    constant = COLUMNS[spec][["gauss", "ch", "tok", "ch+tok"].index(data)]
    assert rel(parse_scheme(spec).key.quantizer, planted(data)) == pytest.approx(constant, rel=0.03)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_a_small_range_is_not_a_constant(spread):
    """Values with a range near 1e-3 keep the error of their bits: no large epsilon hides in the scale."""
    x = planted("gauss")[:4] * spread
    assert rel(parse_scheme("asym4").key.quantizer, x) == pytest.approx(0.0897, rel=0.03)


@pytest.mark.parametrize("constant", [3e-6, -1e-5, 2.9e-3, 0.1, -7.3, 65504.0])
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_a_constant_group_is_its_offset(constant, axis):
    """Range 0: scale 1, code 0, and so exactly what float16 makes of the constant."""
    x = torch.full((1, 1, 64, 64), constant)
    held = parse_scheme(f"asym2:axis={axis}").key.quantizer.quantize(x)
    assert torch.equal(held.dequantize(), x.half().float())
    assert (held.scale == 1).all()
    assert held.codes.count_nonzero() == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_is_narrow_and_0_is_exact(bits):
    x = torch.randn(1, 1, 32, 64)
    x[..., ::5] = 0
    held = parse_scheme(f"int{bits}").key.quantizer.quantize(x)
    assert (held.dequantize()[..., ::5] == 0).all()
    assert held.zero == 2 ** (bits - 1) - 1
    assert unpack(held.codes, bits).max() == 2**bits - 2


def test_an_integer_zero_represents_0_exactly():
    x = torch.randn(1, 1, 32, 64)
    x[..., ::5] = 0
    assert (IntegerZeroQuantizer(4).quantize(x).dequantize()[..., ::5] == 0).all()


@pytest.mark.parametrize("bits", [1, 8])
def test_an_integer_zero_always_fits(bits):
    """Constants of 40 binades: the zero is within int16 after the scale was rounded, so half a step is the error."""
    x = torch.logspace(-24, 15.9, 2000, base=2)[None, None, :, None].expand(1, 1, 2000, 64)
    for data in (x, -x):
        held = IntegerZeroQuantizer(bits).quantize(data)
        error = (held.dequantize() - data).abs().amax(-1, keepdim=True)
        assert (error <= held.scale.float() / 2 * 1.01).all()  # x / scale is a float32 near 2^15, whose spacing is 2^-8
