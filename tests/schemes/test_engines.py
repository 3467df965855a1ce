"""Names of engines stand for specs, with fields or without, inside of wrappers too."""

import pytest

from kvdelta.schemes import SCHEMES, parse_scheme
from kvdelta.schemes.engines import ENGINES, find
from kvdelta.schemes.registry import SHORT_NAMES, lookup

NAMES = [(f"{engine}/{name}", preset.spec) for engine, names in ENGINES.items() for name, preset in names.items()]


@pytest.mark.parametrize(("name", "spec"), NAMES)
def test_every_name_is_a_scheme(name, spec):
    assert parse_scheme(name) == parse_scheme(spec)
    assert parse_scheme(parse_scheme(name).name) == parse_scheme(name)
    assert lookup(name)[0] is lookup(spec.split("(")[0].split(":")[0])[0]


def test_without_the_engine():
    """Where one engine alone has the name, and no scheme."""
    assert parse_scheme("int4_per_token_head") == parse_scheme("vllm/int4_per_token_head")
    assert find("fp8_e4m3") is None
    for name in ("q8_0", "nvfp4", "fp8"):
        assert parse_scheme(name).key.quantizer == parse_scheme(SCHEMES[name].name).key.quantizer
    with pytest.raises(ValueError, match="no scheme 'fp8_e4m3'"):
        parse_scheme("fp8_e4m3")


def test_every_width_that_engines_have():
    for bits in (5, 6):
        assert parse_scheme(f"mlx-lm/kv-bits-{bits}") == parse_scheme(f"mlx:bits={bits}")
    for bits in (5, 6, 7):
        assert parse_scheme(f"exllamav3/cq{bits}") == parse_scheme(f"exllamav3:bits={bits}")
    assert parse_scheme("kvarn_k4v2_g128") == parse_scheme("kvarn-vllm")
    assert parse_scheme("vllm-kvarn/kvarn_k4v4_g64").key.sink_tokens == 64
    with pytest.raises(ValueError, match="not one of 2, 3, 4, 5, 6, 8"):
        parse_scheme("mlx:bits=7")


def test_its_fields_give_way_to_what_is_spelled_out():
    assert parse_scheme("vllm/turboquant_3bit_nc:exact_first_layers=0,exact_last_layers=0,key_bits=4") == parse_scheme(
        "turboquant-vllm:key_bits=4,value_bits=3"
    )
    assert parse_scheme("mlx-lm/kv-bits-4:bits=8,sink_tokens=4") == parse_scheme("mlx:bits=8,sink_tokens=4")
    ends = parse_scheme("vllm/turboquant_4bit_nc")
    assert [ends.for_layer(i, 6).lossless for i in range(6)] == [True, True, False, False, True, True]
    assert parse_scheme("centred(llama.cpp/q4_0)") == parse_scheme("centred(llama.cpp:type=q4_0)")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("vlm/fp8", ["no engine 'vlm'", "did you mean 'vllm'", *ENGINES]),
        ("vllm/int4_per_head", ["no name of vllm 'int4_per_head'", "did you mean 'int4_per_token_head'", "nvfp4"]),
        ("vllm/int4_per_token_head(asym4)", ["is a whole scheme, hadamard(", "wraps no other"]),
        ("mlx-lm/kv-bits-4:axis=channel", ["no field 'axis'"]),
    ],
)
def test_what_is_not_known(spec, parts):
    with pytest.raises(ValueError, match="scheme ") as caught:
        parse_scheme(spec)
    for part in parts:
        assert part in str(caught.value)


def test_no_name_is_a_schemes():
    assert not {name for name, _ in NAMES} & {*SCHEMES, *SHORT_NAMES}
