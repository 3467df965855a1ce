"""Controls that make a comparison believable: identity, zeroed codes, noise floor, what each layer read."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from harness.audit import Reads
from harness.caches.contenders import Contender
from harness.protocols import (
    Scores,
    check_finite,
    fill_live,
    log_probabilities,
    score,
    single_pass_logits,
    suffix_logits,
)
from harness.records.run import Audit, LayerReads, NoiseFloor, Settings
from harness.subject.windows import Window

FLOOR_TOKENS = 32  # suffix tokens of the token-by-token route


def check_identity(audit: Audit, model: Any, window: Window, logits: Tensor, settings: Settings) -> None:
    """The exact scheme through our storage must give what transformers' own cache gives, bit for bit."""
    stock = DynamicCache(config=model.config)
    if settings.protocol == "single-pass":
        expected = single_pass_logits(model, stock, window)
    else:
        fill_live(model, window.prefix, stock)
        expected = suffix_logits(model, stock, window.suffix, settings.step)
    audit.identity_is_exact = bool(torch.equal(expected, logits))


def check_zeroed_codes(
    audit: Audit, contender: Contender, model: Any, window: Window, prefilled: DynamicCache, step: int | None
) -> None:
    """The destructive control: with every stored code 0 the logits of the same forward must move; and in each layer
    what its codes decode to must.

    The second is asked layer by layer within one intact forward: each layer's zeroed twin is given the same new keys and
    values, and what the two return, which is what attention reads, is compared bit for bit. So a layer that does not
    read its codes is found at the price of one more decoding, not of one more forward a layer; that attention reads what
    is returned the logits show.
    """
    intact = contender.empty(model)
    contender.fill(intact, model, window, prefilled)
    zeroed = copy.deepcopy(intact)
    if not contender.zero_codes(zeroed):
        return
    few = window.suffix[:, : FLOOR_TOKENS + 1]  # a few tokens tell
    moved = {side: set[int]() for side in intact.lossy_layers}
    twin, update = copy.deepcopy(zeroed), intact.update

    def compared(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        without_codes = twin.update(keys, values, layer, *args, **kwargs)
        returned = update(keys, values, layer, *args, **kwargs)
        for layers, one, other in zip(moved.values(), returned, without_codes, strict=True):
            if layer not in layers and not torch.equal(one, other):
                layers.add(layer)
        return returned

    intact.update = compared
    logits = [suffix_logits(model, cache, few, step) for cache in (intact, zeroed)]
    audit.zeroed_codes_move_logits[contender.label] = not torch.equal(*logits)
    audit.unmoved_by_zeroed_codes[contender.label] = {
        side: [layer for layer in layers if layer not in moved[side]] for side, layers in intact.lossy_layers.items()
    }


def noise_floor(
    model: Any, window: Window, prefilled: DynamicCache, log_p: Tensor, exact: Scores, settings: Settings
) -> NoiseFloor:
    """Exact by other routes, against the run's own exact pass (log_p): one forward over the window; the suffix in one
    forward or, over its first tokens, token by token."""
    routes: dict[str, Tensor] = {}
    if settings.protocol != "single-pass":
        routes["single pass"] = single_pass_logits(model, DynamicCache(config=model.config), window)
    if settings.protocol != "two-pass":
        routes["two passes"] = suffix_logits(model, copy.deepcopy(prefilled), window.suffix)
    if settings.step != 1:
        few = window.suffix[:, : FLOOR_TOKENS + 1]
        routes[f"token by token, {few.shape[1] - 1} tokens"] = suffix_logits(model, copy.deepcopy(prefilled), few, 1)
    found = {}
    for name, logits in routes.items():
        check_finite(logits, f"logits ({name})", window, settings.dtype)
        n = len(logits)
        other = score(log_probabilities(logits), log_p[:n], window.targets[:n])
        found[name] = {
            "delta_nll": abs((other.nll.double() - exact.nll[:n].double()).mean().item()),
            "kl": other.kl.double().mean().item(),
        }
    return NoiseFloor(
        delta_nll=max(route["delta_nll"] for route in found.values()),
        kl=max(route["kl"] for route in found.values()),
        routes=found,
    )


def add_reads(audit: Audit, label: str, layers: dict[int, Reads]) -> None:
    """What a contender's layers read in one more window."""
    sums = audit.reads.setdefault(label, {})
    for layer, reads in layers.items():
        before = sums.get(layer, LayerReads(pairs=0, key=0, value=0))
        sums[layer] = LayerReads(
            pairs=before.pairs + reads.pairs, key=before.key + reads.key, value=before.value + reads.value
        )
