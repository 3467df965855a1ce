"""Controls that make a comparison believable: identity, zeroed codes, noise floor, and what fails the audit."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

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
from harness.records.run import Audit, NoiseFloor, Run, Settings
from harness.subject.probing import continues
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
    """The destructive control: with every stored code 0 the logits of the same forward must move."""
    intact = contender.empty(model)
    contender.fill(intact, model, window, prefilled)
    zeroed = copy.deepcopy(intact)
    if not contender.zero_codes(zeroed):
        return
    few = window.suffix[:, : FLOOR_TOKENS + 1]  # a few tokens tell
    logits = [suffix_logits(model, cache, few, step) for cache in (intact, zeroed)]
    audit.zeroed_codes_move_logits[contender.label] = not torch.equal(*logits)


def noise_floor(
    model: Any, window: Window, prefilled: DynamicCache, log_p: Tensor, exact: Scores, settings: Settings
) -> NoiseFloor:
    """Exact by other routes, against the run's own exact pass (log_p): one forward over the window; the suffix in one
    forward or, over its first tokens, token by token."""
    routes: dict[str, Tensor] = {}
    if settings.protocol != "single-pass":
        routes["single pass"] = single_pass_logits(model, DynamicCache(config=model.config), window)
    if settings.protocol != "two-pass" and continues(model):
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


def failures(run: Run) -> dict[str, list[str]]:
    """By contender, why its row cannot be believed."""
    found = {contender.label: _reasons(run, i) for i, contender in enumerate(run.contenders)}
    return {label: reasons for label, reasons in found.items() if reasons}


def _reasons(run: Run, i: int) -> list[str]:
    contender, reasons = run.contenders[i], []
    if contender.error:
        return [f"it failed: {contender.error}"]
    if contender.lossless:
        wrong = run.audit.identity_is_exact is False
        return ["identity control: not bit-equal to transformers' own cache"] if wrong else []
    read = {"key": sum(w.key_pairs[i] for w in run.windows), "value": sum(w.value_pairs[i] for w in run.windows)}
    if unread := [side for side in contender.quantized_sides if not read[side]]:
        reasons.append(f"cache not read ({' and '.join(unread)} coverage 0)")
    losses = [[w.nll[j] for w in run.windows] for j in range(len(run.contenders))]
    others = [(j, other) for j, other in enumerate(run.contenders) if j != i and not other.error]
    if twins := [other.label for j, other in others if losses[j] == losses[i]]:
        reasons.append(f"losses bit-identical to {', '.join(twins)}")
    if run.audit.zeroed_codes_move_logits.get(contender.label) is False:
        reasons.append("zeroing its stored codes does not move the logits")
    return reasons
