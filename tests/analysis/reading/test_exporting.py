"""Maps in the forms of engines."""

from fnmatch import fnmatch

import pytest
import yaml

from kvdelta.analysis.reading.exporting import ENGINES, export
from kvdelta.schemes import engines

EXACT = ("exact", "exact")
FP8, Q8, Q4 = ("fp8", "fp8"), ("q8_0", "q8_0"), ("q4_0", "q4_0")


def test_every_engine_has_names():
    """Its names are those that kvdelta knows as schemes."""
    assert set(ENGINES) <= set(engines.ENGINES)


def test_vllm_skips_what_stays_exact():
    made = export("vllm", [EXACT, FP8, FP8, EXACT])
    assert yaml.safe_load(made.content) == {"kv-cache-dtype": "fp8", "kv-cache-dtype-skip-layers": ["0", "3"]}
    assert yaml.safe_load(export("vllm", [FP8, FP8]).content) == {"kv-cache-dtype": "fp8"}


def test_modelopt_has_one_entry_a_layer_and_side_that_matches_nothing_else():
    layers = [FP8] * 12
    layers[1], layers[11] = EXACT, ("fp8", "nvfp4")
    content = export("modelopt", layers).content
    assert "&id" not in content  # an alias of YAML, which a reader of recipes need not know
    entries = yaml.safe_load(content)["quantize"]["quant_cfg"]
    assert entries[0] == {"quantizer_name": "*", "enable": False}

    def bits(layer, side):
        module = f"model.layers.{layer}.self_attn.{side}_bmm_quantizer"
        found = [entry["cfg"] for entry in entries[1:] if fnmatch(module, entry["quantizer_name"])]
        assert len(found) <= 1
        return found[0]["num_bits"] if found else None

    read = [(bits(layer, "k"), bits(layer, "v")) for layer in range(12)]
    assert read == [("e4m3", "e4m3"), (None, None), *[("e4m3", "e4m3")] * 9, ("e4m3", "e2m1")]


def test_llama_cpp_has_types_by_side():
    assert export("llama.cpp", [("q8_0", "q4_0")] * 3).content == "--cache-type-k q8_0 --cache-type-v q4_0\n"
    assert export("llama.cpp", [("exact", "q4_0")] * 3).content == "--cache-type-k f16 --cache-type-v q4_0\n"


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([Q4, Q4], "--cache-type-k q4_0 --cache-type-v q4_0"),
        (
            [Q8, Q4, Q4],
            "--cache-type-k q4_0 --cache-type-k-first q8_0,1 --cache-type-v q4_0 --cache-type-v-first q8_0,1",
        ),
        (
            [("q8_0", "q4_0"), Q4, ("exact", "q4_0"), ("exact", "q4_0")],
            "--cache-type-k q4_0 --cache-type-k-first q8_0,1 --cache-type-k-last f16,2 --cache-type-v q4_0",
        ),
    ],
)
def test_ik_llama_cpp_has_others_at_the_ends(layers, words):
    assert export("ik_llama.cpp", layers).content == words + "\n"


@pytest.mark.parametrize(
    ("engine", "layers", "message"),
    [
        ("vllm", [FP8, ("nvfp4", "nvfp4")], "fp8 in layer 0, nvfp4 in layer 1; it has no such export"),
        ("vllm", [FP8, ("fp8", "exact")], r"does not in layer 1 \(fp8 and exact\)"),
        ("vllm", [EXACT, EXACT], "this map has nothing to quantize"),
        ("sglang", [("fp8_e4m3", "fp8_e4m3"), EXACT], "this map keeps layer 1 exact"),
        ("llama.cpp", [Q8, Q4], "one type for the keys of all layers, and this map has q4_0, q8_0; ik_llama.cpp"),
        ("ik_llama.cpp", [Q8, Q4, ("exact", "exact"), Q4, Q8], "has exact, q4_0 between"),
    ],
)
def test_what_an_engine_cannot_say_is_refused(engine, layers, message, refused):
    with refused(message):
        export(engine, layers)
