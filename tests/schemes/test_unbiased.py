"""unbiased: the conformance suite on a bound wrapper, and what is its own: the bias comes and goes with the position."""

from dataclasses import replace

import pytest
import torch

from kvdelta.schemes import Place, TokenStore, parse_scheme
from kvdelta.schemes.errors import UserError

from .cases import DTYPES, sample
from .conformance import CHECKS, check_channels_that_do_not_divide, check_heads_independent, check_zeros, claimed
from .test_kvquant import Turning

INNER = ["asym4", "asym2:axis=channel,group_size=32", "hadamard(asym3)", "hqq3", "kivi2"]


def bound(spec):
    """Its keys, in layer 0, with a loud bias of as many channels as `sample` has."""
    rule = parse_scheme(spec).key
    channels = 64 if rule.quantizer.tokens_per_group == 1 else 32
    bias = 30 * torch.randn(2, channels, generator=torch.Generator().manual_seed(1))
    place = Place(0, "key", Turning(), rule.sink_tokens, lambda layer: bias)
    return replace(rule, quantizer=rule.quantizer.bind(place))


# heads and channels are those of the bias, and 0 is a number like any other
OTHERS = (check_channels_that_do_not_divide, check_heads_independent, check_zeros)
APPLY = [check for check in CHECKS if check not in OTHERS]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [f"unbiased({inner})" for inner in INNER])
@pytest.mark.parametrize("check", APPLY)
def test_conformance(check, spec, dtype, request):
    scheme = bound(spec)
    claim = claimed(check, scheme)
    if claim is False:
        pytest.skip("the rule does not apply")
    if claim is not True:
        request.applymarker(pytest.mark.xfail(strict=True, raises=(AssertionError, UserError), reason=claim))
    check(scheme, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_an_exact_inverse_around_exact(dtype):
    """Up to the rounding of one float32 addition, to numbers as large as the bias."""
    x = sample(rule := bound("unbiased(exact)"), dtype)
    off = (rule.quantizer.quantize_at(x, 5).dequantize().float() - x.float()).abs().max()
    assert off <= 2 * 150 * 2.0**-23


def test_the_bias_is_gone_from_what_is_quantized():
    """Keys that are the rotated bias alone cost nothing, at any position; without the wrapper they do."""
    rule, plain = bound("unbiased(asym2)"), parse_scheme("asym2").key
    quantizer = rule.quantizer
    keys = Turning().rotate(quantizer.bias[None, :, None].expand(2, -1, 40, -1), 17)
    assert torch.equal(quantizer.quantize_at(keys, 17).dequantize(), keys)
    assert (plain.quantizer.quantize(keys).dequantize() - keys).abs().max() > 1
    assert (quantizer.quantize_at(keys, 18).dequantize() - keys).abs().max() > 1  # another position is another constant


def test_positions_go_on_from_chunk_to_chunk_and_behind_what_was_let_go():
    rule = bound("unbiased(asym3)")
    x = sample(rule, torch.float32, tokens=50)
    whole, parts = TokenStore(rule), TokenStore(rule)
    whole.append(x)
    for part in x.split(7, dim=2):
        parts.append(part)
    assert torch.equal(whole.read(), parts.read())
    parts.forget(23)
    assert torch.equal(whole.read()[:, :, 23:], parts.read())


@pytest.mark.parametrize("spec", [f"unbiased({inner})" for inner in INNER])
def test_some_of_the_heads_with_their_part_of_the_bias_are_encoded_as_among_all(spec):
    rule = bound(spec)
    assert rule.quantizer.heads_independent is True
    x = sample(rule, torch.float32)
    whole = rule.quantizer.quantize(x).dequantize()
    for head in (slice(0, 1), slice(1, 2)):
        quantizer = replace(rule.quantizer, bias=rule.quantizer.bias[head])
        assert torch.equal(quantizer.quantize(x[:, head]).dequantize(), whole[:, head])


def test_it_costs_no_bits():
    rule = bound("unbiased(asym4)")
    x = sample(rule, torch.float16)
    plain = parse_scheme("asym4").key.quantizer.quantize(x)
    assert rule.quantizer.quantize(x).counted_bytes() == plain.counted_bytes()


def test_values_stay_as_they_are():
    assert parse_scheme("unbiased(asym4)").value == parse_scheme("asym4").value


def test_what_is_refused():
    with pytest.raises(UserError, match=r"SchemeCache\.for_model"):
        parse_scheme("unbiased(asym4)").key.quantizer.quantize(torch.zeros(1, 1, 4, 64))
    with pytest.raises(UserError, match="cannot be wrapped"):
        parse_scheme("hadamard(unbiased(asym4))")
    with pytest.raises(UserError, match="layer 0 has a key bias of"):
        bound("unbiased(asym4)").quantizer.quantize(torch.zeros(1, 3, 4, 64))
