"""The solver against the `hqq` package, and the laws of the batched form."""

import pytest
import torch
from hqq.core.quantize import Quantizer as Library

from kvdelta.schemes import half_quadratic, parse_scheme
from kvdelta.schemes.half_quadratic import TILE, HalfQuadratic, HalfQuadraticQuantizer, start

STEPS = {"iters": 20, "p": 0.7, "beta": 10.0}


def groups_like(kind, count=256, group=64):
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(count, group, generator=rng)
    return {
        "gauss": x,
        "loud": 30 * x,
        "tails": x**3,
        "offset": x + 12,
        "quiet": 2e-5 * x,  # ranges on both sides of 1e-4, where the scale is taken as 1
        "constants": torch.where(torch.arange(count)[:, None] % 3 == 0, 0.7, x),
    }[kind]


def mean_error(x, inverse, zero, max_code):
    codes = (x * inverse[:, None] + zero[:, None]).round().clamp(0, max_code)
    return (x - (codes - zero[:, None]) / inverse[:, None]).abs().mean(-1)


@pytest.mark.parametrize("kind", ["gauss", "loud", "tails", "offset", "quiet", "constants"])
@pytest.mark.parametrize(("bits", "group"), [(1, 64), (2, 32), (3, 64), (4, 64), (4, 128), (8, 64)])
def test_codes_of_the_package_bit_for_bit(kind, bits, group):
    """The package at axis 1 on the grouped tensor, on a CPU in float32, before scale and zero are rounded."""
    x, max_code = groups_like(kind, group=group), 2**bits - 1
    codes, meta = Library.quantize(x.clone(), nbits=bits, group_size=group, axis=1, bitpack=False, device="cpu")
    inverse, zero = start(x, max_code)
    zero = HalfQuadratic(max_code, **STEPS).solve_as_reference(x, inverse, zero)
    own = (x * inverse[:, None] + zero[:, None]).round().clamp(0, max_code)
    assert torch.equal(own, codes.float())
    assert torch.equal(1 / inverse, meta["scale"].flatten())
    assert torch.equal(zero, meta["zero"].flatten())


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_the_package_through_the_same_path(axis):
    """`solver=library` and `stop=reference` store the same codes, scale and zero."""
    x = torch.randn(2, 2, 64, 80)
    library, reference = (
        parse_scheme(f"hqq3:axis={axis},group_size=32,{how}").key.quantizer.quantize(x).parts()
        for how in ("solver=library", "stop=reference")
    )
    if axis == "token":  # the short last groups are another call of the package: still equal
        assert library["scale"].shape[-1] == 3
    assert all(torch.equal(library[name], reference[name]) for name in ("codes", "scale", "zero"))


def test_groups_are_independent_over_tiles():
    x = groups_like("tails", count=2 * TILE + 100)
    inverse, zero = start(x, 3)
    whole = HalfQuadratic(3, **STEPS).solve(x, inverse, zero)
    for part in (slice(0, 7), slice(TILE - 3, TILE + 3), slice(2 * TILE, None)):
        assert torch.equal(HalfQuadratic(3, **STEPS).solve(x[part], inverse[part], zero[part]), whole[part])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_leaving_settled_groups_out_changes_nothing(bits, monkeypatch):
    x, max_code = groups_like("gauss"), 2**bits - 1
    inverse, zero = start(x, max_code)
    left_out = HalfQuadratic(max_code, **STEPS).solve(x, inverse, zero)
    monkeypatch.setattr(half_quadratic, "WORTH_LEAVING_OUT", 0.0)
    assert torch.equal(HalfQuadratic(max_code, **STEPS).solve(x, inverse, zero), left_out)


@pytest.mark.parametrize("kind", ["gauss", "loud", "tails", "offset", "quiet", "constants"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_no_group_ends_above_its_start_and_more_steps_never_hurt(kind, bits):
    x, max_code = groups_like(kind), 2**bits - 1
    inverse, zero = start(x, max_code)
    errors = [mean_error(x, inverse, zero, max_code)]
    for iters in (1, 2, 5, 20):
        best = HalfQuadratic(max_code, **{**STEPS, "iters": iters}).solve(x, inverse, zero)
        errors.append(mean_error(x, inverse, best, max_code))
    assert torch.equal(errors[0], errors[1])  # one step looks at the start only
    for more, fewer in zip(errors[1:], errors[:-1], strict=True):
        assert (more <= fewer * (1 + 1e-6)).all()  # the mean is summed in another order
    if kind == "gauss" and bits > 1:
        assert errors[-1].mean() < 0.98 * errors[0].mean()


def test_only_the_zero_moves():
    x = torch.randn(1, 2, 64, 64)
    hqq_scale = HalfQuadraticQuantizer(4).quantize(x).scale
    assert torch.equal(hqq_scale, parse_scheme("asym4").key.quantizer.quantize(x).scale)


def test_beta_is_absolute():
    """2 to 8 % nearer than min–max where |x| is about 1; nearly nothing gained at 10 times that."""
    x = torch.randn(1, 4, 256, 64)
    gains = []
    for size in (1, 10):
        errors = [
            (parse_scheme(s).key.quantizer.quantize(size * x).dequantize() - size * x).norm() for s in ("hqq3", "asym3")
        ]
        gains.append(1 - (errors[0] / errors[1]).item())
    assert 0.02 < gains[0] < 0.08
    assert abs(gains[1]) < 0.02


def test_a_nearly_constant_group_far_from_0_keeps_its_level():
    """Its zero in code units would not fit in float16, or only coarsely: as near as a rounded offset would be."""
    x = 1000 + 0.01 * torch.randn(1, 1, 8, 64)
    assert (HalfQuadraticQuantizer(4).quantize(x).dequantize() - x).abs().max() <= 1000 * 2.0**-10


def test_p_of_1_is_soft_thresholding():
    """The shrinkage |d|^(p−1)/beta is then 1/beta for every d, of residuals that are 0 too (Badri and Shaji's formula)."""
    x, max_code, beta, iters = groups_like("gauss").double(), 3, 4.0, 6
    x[:, :8] = 0.0  # with an integer zero these are rebuilt exactly
    inverse, zero = start(x, max_code)
    zero = zero.round()
    scale, at, kept, least = 1 / inverse[:, None], zero[:, None], zero, torch.full_like(zero, float("inf"))
    for _ in range(iters):
        codes = (x / scale + at).round().clamp(0, max_code)
        residual = x - (codes - at) * scale
        kept = torch.where(residual.abs().mean(-1) < least, at[:, 0], kept)
        least = torch.minimum(least, residual.abs().mean(-1))
        soft = residual.sign() * (residual.abs() - 1 / beta).clamp(min=0)
        at = (codes - (x - soft) / scale).mean(-1, keepdim=True)
    best = HalfQuadratic(max_code, iters, 1.0, beta).solve(x, inverse, zero)
    errors = [mean_error(x, inverse, one, max_code) for one in (best, kept)]
    assert torch.allclose(*errors, rtol=1e-12)
    same = (best - kept).abs() < 1e-9
    assert same.double().mean() > 0.95  # the error is flat around some zeros, and two steps have the same
    assert not torch.equal(best, zero)  # it does something


def test_p_of_1_lowers_the_error():
    x = groups_like("tails")[None, None]
    errors = [
        (parse_scheme(spec).key.quantizer.quantize(x).dequantize() - x).abs().mean() for spec in ("hqq2:p=1", "asym2")
    ]
    assert errors[0] < 0.98 * errors[1]


@pytest.mark.parametrize("setting", ["iters=0", "beta=0", "beta=-1", "beta=nan", "beta=inf", "p=0", "p=nan", "p=1.5"])
def test_settings_without_a_meaning(setting):
    with pytest.raises(ValueError, match=setting.split("=")[0] + "="):
        parse_scheme(f"hqq:{setting}")
