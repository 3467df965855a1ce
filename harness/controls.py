"""Controls that make a comparison believable: identity, zeroed codes, noise floor, what each layer read."""

import copy
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.batching import rows_of
from kvdelta.harness.caches.contenders import Contender
from kvdelta.harness.caches.heads import Gather, any_head, own
from kvdelta.harness.protocols import prefill, single_pass_logits, suffix_logits
from kvdelta.harness.records.run import Audit, NoiseFloor, Settings
from kvdelta.harness.scoring import Reference, Scores, not_finite
from kvdelta.harness.subject.probing import continues
from kvdelta.harness.subject.windows import Batch

CONTROL_TOKENS = 8  # suffix tokens over zeroed codes
FLOOR_TOKENS = 16  # suffix tokens of the token-by-token route
FLOOR_WINDOWS = 3  # windows that the noise floor is measured on: each costs about two exact passes


def check_identity(
    audit: Audit, model: Any, batch: Batch, prefilled: DynamicCache, logits: Tensor, settings: Settings
) -> None:
    """The exact scheme through our storage must give what transformers' own cache gives, bit for bit."""
    if settings.protocol == "single-pass":
        stock = DynamicCache(config=model.config)
        expected = single_pass_logits(model, stock, batch.tokens, settings.score_length)
    else:
        expected = suffix_logits(model, copy.deepcopy(prefilled), batch.suffix, settings.step)
    audit.identity_is_exact = bool(torch.equal(expected, logits))


def check_zeroed_codes(
    audit: Audit, contender: Contender, model: Any, batch: Batch, intact: Any, step: int | None, gather: Gather = own
) -> None:
    """The destructive control: with every stored code 0 the logits of the same forward must move; and in each layer
    what its codes decode to must, in every window.

    intact: the contender's cache, filled with the prefixes of the batch; used up. The second is asked layer by layer within
    the same two forwards: what a layer returns of the prefix, which is what attention reads, is compared bit for bit. So a
    layer that does not read its codes is found without one more forward a layer; that attention reads what is returned the
    logits show. gather: over the processes that share the model's heads; a layer moves where any of its heads does.
    """
    zeroed = copy.deepcopy(intact)
    if not contender.zero_codes(zeroed):
        return
    few = batch.suffix[:, : CONTROL_TOKENS + 1]  # a few tokens tell
    lossy = intact.lossy_layers
    logits, returned = zip(*(_with_prefixes(model, cache, few, step) for cache in (intact, zeroed)), strict=True)
    audit.zeroed_codes_move_logits[contender.label] = bool((logits[0] != logits[1]).flatten(1).any(dim=1).all())
    sides = [(side, i, at) for at, (side, layers) in enumerate(lossy.items()) for i in layers]
    moved = [(returned[0][i][at] != returned[1][i][at]).flatten(1).any(dim=1).long().cpu() for _, i, at in sides]
    unmoved = [place for place, windows in zip(sides, any_head(moved, gather), strict=True) if not windows.all()]
    audit.unmoved_by_zeroed_codes[contender.label] = {side: [i for of, i, _ in unmoved if of == side] for side in lossy}


def _with_prefixes(
    model: Any, cache: Any, suffix: Tensor, step: int | None
) -> tuple[Tensor, dict[int, tuple[Tensor, ...]]]:
    """The logits of a suffix, and what each layer returned in it of the keys and values before it."""
    before, update = cache.get_seq_length(), cache.update
    returned: dict[int, tuple[Tensor, ...]] = {}

    def kept(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        both = update(keys, values, layer, *args, **kwargs)
        returned.setdefault(layer, tuple(x[:, :, :before] for x in both))
        return both

    cache.update = kept
    return suffix_logits(model, cache, suffix, step), returned


def noise_floor(
    before: NoiseFloor | None,
    model: Any,
    batch: Batch,
    prefilled: DynamicCache,
    reference: Reference,
    exact: Scores,
    settings: Settings,
    windows: int,
) -> NoiseFloor:
    """Exact by other routes, against the run's own exact pass (reference), pooled with the windows `before`: one forward
    over the window; the suffix in one forward or, over its first tokens, token by token; where the run takes windows
    together, each by itself.

    windows: how many of the batch are measured. A mean of few signed differences is a
    draw, so the floor of ΔNLL comes from their root mean square.
    """
    few = batch.first(windows)
    count = len(few)
    rows = rows_of(prefilled, slice(0, count))
    logits_by_route: dict[str, Tensor] = {}
    if settings.protocol != "single-pass":
        stock = DynamicCache(config=model.config)
        logits_by_route["single pass"] = single_pass_logits(model, stock, few.tokens, settings.score_length)
    if settings.protocol != "two-pass" and continues(model):
        logits_by_route["two passes"] = suffix_logits(model, copy.deepcopy(rows), few.suffix)
    if settings.step != 1:
        suffix = few.suffix[:, : FLOOR_TOKENS + 1]
        route = f"token by token, {suffix.shape[1] - 1} tokens a window"
        logits_by_route[route] = suffix_logits(model, copy.deepcopy(rows), suffix, 1)
    if len(batch) > 1:
        tokens = FLOOR_TOKENS + 1 if settings.protocol == "stepwise" else settings.score_length
        logits_by_route["window by window"] = torch.cat(
            [_alone(model, Batch((window,)), settings, tokens) for window in few.windows]
        )
    routes: dict[str, dict[str, float]] = {}
    for name, logits in logits_by_route.items():
        n = logits.shape[1]
        other = reference.of_windows(slice(0, count)).score(logits, few.targets)
        if error := not_finite(other, few, settings.dtype, f"exact cache by another route ({name}): "):
            raise error
        moved = other.nll.double() - exact.nll[:count, :n].double()
        mine = {
            "tokens": float(count * n),
            "rms": moved.square().mean().sqrt().item(),
            "kl": other.kl.double().mean().item(),
        }
        routes[name] = _pooled(before.routes[name], mine) if before and name in before.routes else mine
    return NoiseFloor.of(routes, len(settings.windows) * (settings.score_length - 1))


def _alone(model: Any, window: Batch, settings: Settings, tokens: int) -> Tensor:
    """The logits of its first scored tokens as the run's own protocol has them."""
    if settings.protocol == "single-pass":
        stock = DynamicCache(config=model.config)
        return single_pass_logits(model, stock, window.tokens, settings.score_length)
    return suffix_logits(model, prefill(model, window.prefix), window.suffix[:, :tokens], settings.step)


def _pooled(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Of the tokens of both."""
    tokens = a["tokens"] + b["tokens"]
    square, kl = (a["tokens"] * x + b["tokens"] * y for x, y in ((a["rms"] ** 2, b["rms"] ** 2), (a["kl"], b["kl"])))
    return {"tokens": tokens, "rms": sqrt(square / tokens), "kl": kl / tokens}
