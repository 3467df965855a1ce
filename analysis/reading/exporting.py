"""A map of layers in the form that an engine reads for its KV cache, or why it has none.

What each can say, as of November 2026: vLLM has one format and a list of layers that stay exact (`--kv-cache-dtype-skip-layers`, its
pull request 33695); layers of two formats are a proposal there (57445). SGLang has one format for all layers (pull requests 15420 and
17530 for more were closed). llama.cpp has one type for keys and one for values; ik_llama.cpp has others for the first and the last
layers (its pull request 1599). NVIDIA's Model Optimizer takes a format by layer and side in a recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import yaml

from kvdelta.schemes.errors import UserError

Pair = tuple[str, str]
"""What an engine calls the keys and the values of a layer; EXACT where they are kept as they are."""

EXACT = "exact"
MODELOPT = {
    "fp8": {"num_bits": "e4m3", "axis": None},
    "nvfp4": {"num_bits": "e2m1", "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": "e4m3"}},
}


@dataclass(frozen=True)
class Export:
    """A file's name and content, and in one line what to do with it."""

    name: str
    content: str
    use: str


def export(engine: str, layers: Sequence[Pair]) -> Export:
    """layers: of the model, all of them, in an engine's own names. UserError where the engine cannot store them so."""
    return ENGINES[engine](layers)


def _vllm(layers: Sequence[Pair]) -> Export:
    quantized = _alike(layers, "vLLM", "has one format for all layers but those that it skips")
    skipped = [str(index) for index, pair in enumerate(layers) if pair == (EXACT, EXACT)]
    said: dict[str, Any] = {"kv-cache-dtype": quantized}
    if skipped:
        said["kv-cache-dtype-skip-layers"] = skipped
    return Export("vllm.yaml", yaml.safe_dump(said, sort_keys=False), "vllm serve MODEL --config vllm.yaml")


def _sglang(layers: Sequence[Pair]) -> Export:
    quantized = _alike(layers, "SGLang", "has one format for all layers")
    if (EXACT, EXACT) in layers:
        raise UserError(
            f"SGLang has one format for all layers, and this map keeps {_said(layers, EXACT)} exact; it has no such export"
        )
    return Export(
        "sglang.yaml",
        yaml.safe_dump({"kv-cache-dtype": quantized}),
        "python -m sglang.launch_server --model-path MODEL --config sglang.yaml",
    )


def _llama_cpp(layers: Sequence[Pair]) -> Export:
    words = []
    for flag, side in (("k", [key for key, _ in layers]), ("v", [value for _, value in layers])):
        if len(set(side)) > 1:
            raise UserError(
                f"llama.cpp has one type for the {'keys' if flag == 'k' else 'values'} of all layers, and this map has "
                f"{', '.join(sorted(set(side)))}; ik_llama.cpp has others for the first and the last layers: --export ik_llama.cpp"
            )
        words += [f"--cache-type-{flag}", _ggml(side[0])]
    return Export("llama.cpp.args", " ".join(words) + "\n", "llama-server -m MODEL $(cat llama.cpp.args)")


def _ik_llama_cpp(layers: Sequence[Pair]) -> Export:
    words = []
    for flag, side in (("k", [key for key, _ in layers]), ("v", [value for _, value in layers])):
        first, most, last = _ends(side, "keys" if flag == "k" else "values")
        words += [f"--cache-type-{flag}", _ggml(most)]
        for end, (kind, count) in (("first", first), ("last", last)):
            words += [f"--cache-type-{flag}-{end}", f"{_ggml(kind)},{count}"] if count else []
    return Export("ik_llama.cpp.args", " ".join(words) + "\n", "llama-server -m MODEL $(cat ik_llama.cpp.args)")


def _modelopt(layers: Sequence[Pair]) -> Export:
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for index, pair in enumerate(layers):
        for side, name in zip("kv", pair, strict=True):
            if name != EXACT:
                entries.append({"quantizer_name": f"*layers.{index}.*{side}_bmm_quantizer", "cfg": MODELOPT[name]})
    said = {
        "metadata": {"recipe_type": "ptq", "description": "KV-cache formats by layer, chosen by kvdelta allocate"},
        "quantize": {"algorithm": "max", "quant_cfg": entries},
    }
    return Export(
        "modelopt.yaml",
        yaml.dump(said, sort_keys=False, Dumper=_WithoutAliases),
        "hf_ptq.py --recipe modelopt.yaml; or its quantize part to modelopt.torch.quantization.quantize",
    )


class _WithoutAliases(yaml.SafeDumper):
    """What is said twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


ENGINES: Mapping[str, Callable[[Sequence[Pair]], Export]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "modelopt": _modelopt,
    "llama.cpp": _llama_cpp,
    "ik_llama.cpp": _ik_llama_cpp,
}
JOINT = ("vllm", "sglang")
"""Engines whose names are of keys and values together."""


def _alike(layers: Sequence[Pair], engine: str, has: str) -> str:
    """The one name of all layers that are quantized."""
    names = sorted({name for pair in layers for name in pair} - {EXACT})
    mixed = [index for index, pair in enumerate(layers) if len(set(pair)) > 1]
    if mixed:
        raise UserError(
            f"{engine} stores the keys and values of a layer alike, and this map does not in layer {mixed[0]} "
            f"({' and '.join(layers[mixed[0]])}); it has no such export"
        )
    if len(names) != 1:
        shown = ", ".join(f"{name} in {_said(layers, name)}" for name in names) or "nothing to quantize"
        raise UserError(f"{engine} {has}, and this map has {shown}; it has no such export")
    return names[0]


def _said(layers: Sequence[Pair], name: str) -> str:
    found = [str(index) for index, pair in enumerate(layers) if name in pair]
    return f"layer{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _ggml(name: str) -> str:
    return "f16" if name == EXACT else name


def _ends(side: Sequence[str], what: str) -> tuple[tuple[str, int], str, tuple[str, int]]:
    """How many first layers have which type, what those between have, and how many last ones have which."""
    first = len([*takewhile(lambda name: name == side[0], side)])
    last = len([*takewhile(lambda name: name == side[-1], reversed(side))])
    if first == len(side):
        return (side[0], 0), side[0], (side[0], 0)
    between = side[first : len(side) - last]
    if not between:  # two runs
        return (side[0], first), side[-1], (side[-1], 0)
    if len(set(between)) > 1:
        raise UserError(
            f"ik_llama.cpp has one type for the {what} of the first layers, one for the last and one between, and this map has "
            f"{', '.join(sorted(set(between)))} between; it has no such export"
        )
    return (side[0], first), between[0], (side[-1], last)
