"""The bytes that a foreign cache really holds, found by walking the object."""

import inspect
import types
from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kvdelta.harness.records.run import Bytes

LEAVES = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, Enum, np.generic, torch.dtype, torch.device,
    torch.layout, torch.Stream, torch.Generator, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.ModuleType, nn.Module,
)  # fmt: skip
"""What is not looked into. nn.Module: a model that a cache knows is not what it holds; nor is an observer behind a
method."""


class Opaque(Exception):
    """An object that cannot be looked into."""


def measured(cache: Any, prefilled: Any, dtype: torch.dtype) -> dict[str, Bytes] | None:
    """{"both": bytes} of a cache that was filled with the tokens of `prefilled`; None where they cannot be known.

    K and V cannot be told apart in a foreign cache. Each storage counts once, whole. Numbers in the run's own `dtype` are
    taken for exact tokens and scales and count 16 bits each. elements: keys and values of `prefilled`. None: an attending
    layer for which nothing was found, or an object in the cache that cannot be looked into.
    """
    attending = [index for index, layer in enumerate(prefilled.layers) if _keeps_tokens(layer)]
    layers = layers_of(cache)
    others = [layer for index, layer in enumerate(layers) if index not in attending]  # linear attention, dummies
    try:
        by_address = storages(cache, skipped=others)
        beside_layers = storages(cache, skipped=layers)
        if not beside_layers and layers:
            by_layer = [storages(layers[index], skipped=()) for index in attending if index < len(layers)]
            if len(by_layer) < len(attending) or not all(by_layer):
                return None
    except Opaque:
        return None
    if not by_address:
        return None
    held: dict[str, int] = {}
    counted = 0.0
    for dtypes, size in by_address.values():
        name = " ".join(sorted(str(one).removeprefix("torch.") for one in dtypes))
        held[name] = held.get(name, 0) + size
        counted += size // dtype.itemsize * 2 if dtypes == {dtype} else size
    elements = sum(
        tensor.numel()
        for index in attending
        for layer in [prefilled.layers[index]]
        for tensor in (layer.keys, layer.values)
    )
    return {"both": Bytes(held=held, counted=counted, elements=elements)}


def layers_of(cache: Any) -> list[Any]:
    """Its layers, where it has them in the way of transformers."""
    layers = getattr(cache, "layers", None)
    return list(layers) if isinstance(layers, list | tuple | nn.ModuleList) else []


def _keeps_tokens(layer: Any) -> bool:
    keys = getattr(layer, "keys", None)
    return isinstance(keys, Tensor) and keys.numel() > 0


def storages(root: Any, skipped: Any) -> dict[tuple[str, int], tuple[set[torch.dtype], int]]:
    """By device and address: the dtypes that a storage is seen in, and its bytes."""
    by_address: dict[tuple[str, int], tuple[set[torch.dtype], int]] = {}
    for tensor in tensors(root, {id(one) for one in skipped}):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            dtypes, _ = by_address.setdefault((str(tensor.device), storage.data_ptr()), (set(), storage.nbytes()))
            dtypes.add(tensor.dtype)
    return by_address


def tensors(root: Any, skipped: set[int]) -> Iterator[Tensor]:
    """Every plain tensor under an object: in attributes, mappings, sequences and sets, and inside tensor subclasses.

    Raises Opaque for an object of another kind, which might hold something.
    """
    seen: dict[int, Any] = dict.fromkeys(skipped)  # keeps what it has seen alive, else an id could come twice
    todo = _inside(root, root=True)
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, nn.Parameter):
            continue
        seen[id(one)] = one
        if isinstance(one, Tensor) and not hasattr(one, "__tensor_flatten__"):
            if one.layout is not torch.strided:
                raise Opaque(str(one.layout))
            yield one
        else:
            todo += _inside(one)


def _inside(one: Any, root: bool = False) -> list[Any]:
    if isinstance(one, Tensor):
        if not hasattr(one, "__tensor_flatten__"):
            return [one]
        names, _ = one.__tensor_flatten__()  # type: ignore[attr-defined]
        return [getattr(one, name) for name in names]
    if isinstance(one, LEAVES) and not root:
        return []
    inside: list[Any] = []
    if isinstance(one, Mapping):
        inside += one.values()
    elif isinstance(one, list | tuple | set | frozenset | deque):
        inside += list(one)
    elif not hasattr(one, "__dict__") and not hasattr(type(one), "__slots__"):
        raise Opaque(type(one).__name__)
    slots = {name for kind in inspect.getmro(type(one)) for name in _slots(kind)}
    inside += [getattr(one, name) for name in sorted(slots) if hasattr(one, name)]
    inside += vars(one).values() if hasattr(one, "__dict__") else []
    return inside


def _slots(kind: type) -> list[str]:
    named: Any = kind.__dict__.get("__slots__", ())
    return [named] if isinstance(named, str) else [name for name in named if not name.startswith("__")]
