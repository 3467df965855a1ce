"""What a scheme gives back of exact keys or values, without a model around it."""

import torch

from kvdelta.schemes import KV, TensorScheme, TokenStore


def rebuilt(rule: TensorScheme, exact: KV) -> KV:
    """Stored once, and decoded; of windows that an encoder would mix, one after another."""
    windows = exact.split(1) if rule.quantizer.rows_independent is not True else (exact,)
    return torch.cat([_rebuilt(rule, some) for some in windows]) if len(windows) > 1 else _rebuilt(rule, exact)


def _rebuilt(rule: TensorScheme, exact: KV) -> KV:
    store = TokenStore(rule)
    store.append(exact)
    decoded = store.read()
    assert decoded is not None
    return decoded
