"""What every scheme promises: one `check_*` a rule. An exception is declared by the quantizer, never named here:
CLAIMS says which attribute of the quantizer it is that claims a rule, or gives the reason why it does not hold."""

import copy
from dataclasses import fields, is_dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kvdelta.schemes import QuantizedTensor, Quantizer

from .cases import filled, rebuild, sample

FLOAT16_MAX = 65504.0
EPS16 = 2.0**-11  # half the spacing of float16 numbers, relative to the number
TINY16 = 2.0**-25  # half the spacing of float16's subnormal numbers


def assert_same(a: QuantizedTensor, b: QuantizedTensor, why: str) -> None:
    assert a.parts().keys() == b.parts().keys()
    for name, part in a.parts().items():
        same = [x.contiguous().view(torch.uint8) for x in (part, b.parts()[name])]  # float8 has no equality
        assert torch.equal(*same), f"{name}: {why}"


def check_shape_dtype_device(scheme, dtype):
    x = sample(scheme, dtype)
    rebuilt = rebuild(scheme.quantizer, x)
    assert (rebuilt.shape, rebuilt.dtype, rebuilt.device) == (x.shape, dtype, x.device)


def check_input_untouched(scheme, dtype):
    x = sample(scheme, dtype)
    before, held = x.clone(), scheme.quantizer.quantize(x)
    rebuilt = held.dequantize().clone()
    assert torch.equal(x, before)
    x.fill_(100.0)  # nothing held is a view of the input
    assert torch.equal(held.dequantize(), rebuilt)


def check_lossless_where_it_says_so(scheme, dtype):
    x = sample(scheme, dtype)
    assert torch.equal(rebuild(scheme.quantizer, x), x) == scheme.quantizer.lossless


def check_finite(scheme, dtype):
    x = sample(scheme, dtype)
    outlier, largest = x.clone(), torch.full_like(x, FLOAT16_MAX)
    outlier[:, :, 0, 0] = FLOAT16_MAX
    signs = torch.where(torch.arange(x.shape[-1]) % 2 == 0, 1, -1).to(dtype)
    hostile = {"zeros": x * 0, "outlier": outlier, "largest": largest, "± largest": largest * signs, "tiny": x * 1e-6}
    for name, data in hostile.items():
        assert rebuild(scheme.quantizer, data).isfinite().all(), name


def check_zeros(scheme, dtype):
    assert rebuild(scheme.quantizer, sample(scheme, dtype) * 0).count_nonzero() == 0


def check_constants(scheme, dtype):
    """To the rounding of one stored float16 and of the output. A scale that alone carries the constant may be
    subnormal in float16: its rounding times at most 2^7 steps."""
    x = torch.zeros_like(sample(scheme, dtype))
    for constant in (1.0, -3.3, 2.9e-3, -1e-5, 0.7, 1000.7, -60000.0):
        data = (x + constant).to(dtype)
        error = (rebuild(scheme.quantizer, data).double() - data.double()).abs().max().item()
        stored = 1.01 * EPS16 * abs(constant) + 128 * TINY16
        assert error <= stored + torch.finfo(dtype).eps * abs(constant), constant


def check_layout_of_the_input(scheme, dtype):
    x = sample(scheme, dtype)
    expected = scheme.quantizer.quantize(x)
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)  # as a model hands over its keys
    strided = x.repeat_interleave(2, dim=3)[..., ::2]
    for other in (transposed, strided):
        assert not other.is_contiguous()
        assert_same(scheme.quantizer.quantize(other), expected, "depends on the strides of the input")


def check_rows_and_heads_independent(scheme, dtype):
    x = sample(scheme, dtype)
    whole = rebuild(scheme.quantizer, x)
    for row in range(2):
        for head in range(2):
            alone = rebuild(scheme.quantizer, x[row : row + 1, head : head + 1])
            assert torch.equal(alone, whole[row : row + 1, head : head + 1])


def check_rows_independent(scheme, dtype):
    x = sample(scheme, dtype)
    whole = rebuild(scheme.quantizer, x)
    for row in range(2):
        assert torch.equal(rebuild(scheme.quantizer, x[row : row + 1]), whole[row : row + 1])


def check_heads_independent(scheme, dtype):
    """Some of the heads are encoded as among all, and take their part of the bytes."""
    x = sample(scheme, dtype)
    whole, apart = scheme.quantizer.quantize(x), [scheme.quantizer.quantize(x[:, head : head + 1]) for head in range(2)]
    assert torch.equal(torch.cat([one.dequantize() for one in apart], dim=1), whole.dequantize())
    assert {name: sum(one.nbytes()[name] for one in apart) for name in whole.nbytes()} == whole.nbytes()
    assert sum(one.counted_bytes() for one in apart) == whole.counted_bytes()
    assert sum(int(one.saturated) for one in apart) == int(whole.saturated)


def check_blocks_independent(scheme, dtype):
    """k token groups at once equal k times one, and so do whole blocks in a store."""
    step = scheme.quantizer.tokens_per_group
    x = sample(scheme, dtype, tokens=3 * step)
    whole = rebuild(scheme.quantizer, x)
    pieces = [rebuild(scheme.quantizer, piece) for piece in x.split(step, dim=2)]
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    x = sample(scheme, dtype, tokens=scheme.sink_tokens + scheme.keep_recent + 2 * scheme.flush_every + 3)
    assert torch.equal(filled(scheme, *x.split(7, dim=2)).read(), filled(scheme, x).read())


def check_bound(scheme, dtype):
    """|x − x̂| ≤ scale/2 + |Δoffset| + (2^b−1)·|Δscale| + 1 ulp, Δ the rounding of a stored float16. Levels have half
    their largest gap instead of a half."""
    quantizer = scheme.quantizer
    x = sample(scheme, dtype)
    held = quantizer.quantize(x)
    error = (x.float() - held.dequantize().float()).abs()
    ulp = torch.finfo(dtype).eps * x.abs().max().float()

    def worst(values):
        return torch.cat([piece.amax(-1) for piece in quantizer.grouping.split(values)], dim=-1)

    parts = {name: part.float() for name, part in held.parts().items()}
    rounding = {name: part.abs().mul(EPS16).clamp(min=TINY16) for name, part in parts.items()}
    half = max(b - a for a, b in pairwise(held.levels)) / 2 if held.levels else 0.5
    bound = parts["scale"] * half + (2**quantizer.bits - 1) * rounding["scale"] + rounding.get("offset", 0.0) + ulp
    assert (worst(error) <= bound).all()


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Quantizer):
        return []  # its tables belong to all that it made
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [t for field in fields(value) for t in _tensors(getattr(value, field.name))] if is_dataclass(value) else []


def check_nbytes_are_what_is_held(scheme, dtype):
    held = scheme.quantizer.quantize(sample(scheme, dtype))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(held)}
    assert sum(held.nbytes().values()) == sum(storages.values())
    assert held.counted_bytes() == (
        held.dequantize().numel() * 2 if scheme.quantizer.lossless else sum(storages.values())
    )


def check_tokens_that_do_not_divide(scheme, dtype):
    group = scheme.quantizer.tokens_per_group
    if group > 1:
        with pytest.raises(ValueError, match=f"{group + 1} tokens do not divide into groups of {group}"):
            scheme.quantizer.quantize(sample(scheme, dtype, tokens=group + 1))
    exact = scheme.sink_tokens + scheme.keep_recent
    x = sample(scheme, dtype, tokens=exact + scheme.flush_every + scheme.flush_every // 2 + 1)
    store, packed = filled(scheme, x), scheme.packed_tokens(x.shape[2])
    assert 0 < packed == store.packed_tokens
    first, middle, last = store.read().split(
        [scheme.sink_tokens, packed, x.shape[2] - scheme.sink_tokens - packed], dim=2
    )
    assert torch.equal(first, x[:, :, : scheme.sink_tokens])
    assert torch.equal(middle, rebuild(scheme.quantizer, x[:, :, scheme.sink_tokens :][:, :, :packed]))
    assert torch.equal(last, x[:, :, scheme.sink_tokens + packed :])


def check_channels_that_do_not_divide(scheme, dtype):
    """80 channels: refused with the number, or the last per-token group is short and no worse than the others, up to
    chance."""
    refused = ""
    try:
        scheme.quantizer.check(80)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert "80 channels" in refused
        return
    x = sample(scheme, dtype, channels=80)
    x[..., 3] /= 10
    error = (rebuild(scheme.quantizer, x).float() - x.float()).square().mean((0, 1, 2))
    assert error[64:].mean() <= 1.5 * error[:64].mean()


def check_transformations(scheme, dtype):
    """Crop inside and outside a group, rows, repeats and copies act on what is stored as on what is decoded."""
    x = sample(scheme, dtype)
    held, rebuilt = scheme.quantizer.quantize(x), rebuild(scheme.quantizer, x)
    tokens = x.shape[2]
    for keep in {1, tokens - 1, tokens // 2, scheme.quantizer.tokens_per_group}:
        cropped = held.crop(keep)
        assert torch.equal(cropped.dequantize(), rebuilt[:, :, :keep])
        assert all(part.shape[2] == cropped.groups for part in cropped.parts().values())
    rows = torch.tensor([1, 1, 0])
    group = scheme.quantizer.tokens_per_group
    assert torch.equal(held.without_first(1).dequantize(), rebuilt[:, :, group:])
    assert all(part.shape[2] == held.groups - 1 for part in held.without_first(1).parts().values())
    assert torch.equal(held.index_select(rows).dequantize(), rebuilt[rows])
    assert torch.equal(held.repeat(2).dequantize(), rebuilt.repeat_interleave(2, dim=0))
    assert torch.equal(held.to("cpu").dequantize(), rebuilt)
    assert torch.equal(copy.deepcopy(held).dequantize(), rebuilt)


def check_zeroed_codes(scheme, dtype):
    """The destructive control takes the codes away and nothing else."""
    held = scheme.quantizer.quantize(sample(scheme, dtype))
    zeroed = held.with_zeroed_codes()
    assert zeroed.nbytes() == held.nbytes()
    assert set(held.code_parts) <= held.parts().keys()
    for name, part in zeroed.parts().items():
        if name in held.code_parts:
            assert part.count_nonzero() == 0
        else:
            same = [x.contiguous().view(torch.uint8) for x in (part, held.parts()[name])]
            assert torch.equal(*same)
    assert not torch.equal(zeroed.dequantize(), held.dequantize())


CLAIMS = {
    check_constants: "constants",
    check_rows_and_heads_independent: "independent",
    check_rows_independent: "rows_independent",
    check_heads_independent: "heads_independent",
    check_blocks_independent: "appends",
    check_bound: "bounded",
}
DEPEND_ON_DTYPE = (check_shape_dtype_device, check_finite, check_constants, check_bound)
CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]


def claimed(check, scheme) -> bool | str:
    """Whether a rule is to hold: True, False where it does not apply, or the reason for an exception."""
    return getattr(scheme.quantizer, CLAIMS[check]) if check in CLAIMS else True
