"""How engines call what they store: engine → name → spec, how they are told to, and where the spec departs from their own code.

A plain table. `--scheme vllm/int4_per_token_head` is the spec beside the name; a name that one engine alone has, and no
scheme, goes without the engine too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvdelta.schemes.errors import UserError
from kvdelta.schemes.fields import unknown


@dataclass(frozen=True)
class Preset:
    """flags: how the engine is told to; empty where it is told by the name itself. departs: where the spec is not what it does."""

    spec: str
    departs: str = ""
    flags: str = ""


_SCALE_OF_ONE = "calibrated scales of a checkpoint are not taken; without them the engine has 1"
_ENDS = "exact_first_layers=2,exact_last_layers=2"
_TURBO = "hybrid models keep no layers exact there: exact_first_layers=0,exact_last_layers=0"
_LATE = "a cache is exact until it has 5000 tokens there (--quantized-kv-start), and is then quantized as a whole"

ENGINES: Mapping[str, Mapping[str, Preset]] = {
    "exllamav3": {
        f"cq{bits}": Preset(f"exllamav3:bits={bits}", flags=f"-cq {bits}; -cq 4,3 is key_bits=4,value_bits=3")
        for bits in range(2, 9)
    },
    "ik_llama.cpp": {
        type: Preset(type, flags=f"-ctk {type} -ctv {type}; with -khad -vhad it is hadamard({type})")
        for type in ("q8_0", "q6_0")
    },
    "llama.cpp": {
        type: Preset(f"llama.cpp:type={type}", flags=f"-ctk {type} -ctv {type}")
        for type in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    },
    "modelopt": {
        "fp8": Preset("fp8:scale=none", "one calibrated scale a tensor there, none here"),
        "nvfp4": Preset("nvfp4:scales=2", "one calibrated scale a tensor there, one of each head and 128 tokens here"),
    },
    "mlx-lm": {
        f"kv-bits-{bits}": Preset(f"mlx:bits={bits}", _LATE, f"--kv-bits {bits}") for bits in (2, 3, 4, 5, 6, 8)
    },
    "sglang": {
        "fp8_e4m3": Preset("fp8:scale=none", _SCALE_OF_ONE),
        "fp8_e5m2": Preset("fp8:format=e5m2,scale=none"),
        "fp4_e2m1": Preset("mxfp4:rule=rceil,group_size=16"),
    },
    "tensorrt-llm": {
        "fp8": Preset("fp8:scale=none", _SCALE_OF_ONE),
        "nvfp4": Preset("nvfp4:scales=2", "one calibrated scale a tensor there, one of each head and 128 tokens here"),
    },
    "vllm": {
        "fp8": Preset("fp8:scale=none", _SCALE_OF_ONE),
        "fp8_e4m3": Preset("fp8:scale=none", _SCALE_OF_ONE),
        "fp8_e5m2": Preset("fp8:format=e5m2,scale=none"),
        "fp8_per_token_head": Preset("fp8:scale=token", "float32 scales there, float16 here"),
        "int8_per_token_head": Preset(
            "symmetric:bits=8,group_size=all",
            "codes are cut to whole numbers there, rounded here; float32 scales there",
        ),
        "int4_per_token_head": Preset(
            "hadamard(asymmetric:bits=4,group_size=all,zero=integer):signs=random",
            "other signs are drawn; the zero has 4 bits there, in the last bits of a float32 scale",
        ),
        "nvfp4": Preset("nvfp4", _SCALE_OF_ONE),
        "turboquant_4bit_nc": Preset(f"turboquant-vllm:key_bits=4,value_bits=4,{_ENDS}", _TURBO),
        "turboquant_3bit_nc": Preset(f"turboquant-vllm:key_bits=3,value_bits=3,{_ENDS}", _TURBO),
        "turboquant_k3v4_nc": Preset(f"turboquant-vllm:key_bits=3,value_bits=4,{_ENDS}", _TURBO),
        "turboquant_k8v4": Preset(f"turboquant-vllm:key_bits=8,value_bits=4,{_ENDS}", _TURBO),
    },
    # apart from vllm, for which nothing is then exported or recommended by these names
    "vllm-kvarn": {
        f"kvarn_k4v{bits}_g{tile}": Preset(
            f"kvarn:key_bits=4,value_bits={bits},tile={tile},sink_tokens={tile}",
            "no release of vLLM has it: the authors' fork (huawei-csl/KVarN), pull request 46812; computed in float32 there",
            f"--kv-cache-dtype kvarn_k4v{bits}_g{tile} --block-size {tile}",
        )
        for tile in (128, 64)
        for bits in (2, 4)
    },
}

LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "tensorrt-llm": {
        "int8": "one calibrated scale for the queries, keys and values of a layer, which no family has; a finer one would flatter it"
    },
}
"""Names of these engines that stand for no spec, and why."""


def presets(engine: str) -> Mapping[str, Preset]:
    """The names of an engine; UserError for one that is not known."""
    if engine not in ENGINES:
        raise UserError(unknown("engine", engine, [*ENGINES]))
    return ENGINES[engine]


def find(name: str) -> Preset | None:
    """What "engine/name" stands for, or a name that one engine alone has. UserError for an engine, or a name of an engine,
    that is not known; None for a name without an engine that is not here, or is ambiguous."""
    engine, slash, own = name.partition("/")
    if not slash:
        having = [one[name] for one in ENGINES.values() if name in one]
        return having[0] if len(having) == 1 else None
    known = presets(engine)
    if why := LEFT_OUT.get(engine, {}).get(own):
        raise UserError(f"{name} is left out: {why}")
    if own not in known:
        raise UserError(unknown(f"name of {engine}", own, [*known]))
    return known[own]
