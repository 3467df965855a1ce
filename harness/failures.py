"""Why a row of a run has no score, or one that cannot be believed, from its record alone."""

import math

from kvdelta.harness.records.run import Run

SIDES = ("key", "value")


def failures(run: Run) -> dict[str, list[str]]:
    """By contender, why its row cannot be believed."""
    reasons = {contender.label: _reasons(run, i) for i, contender in enumerate(run.contenders)}
    return {label: why for label, why in reasons.items() if why}


def blank_after_failure(run: Run) -> dict[int, int]:
    """A row that failed in a window has no sums from that one on. By row, the window (its position in the grid). Its reads in the audit
    keep what was read before it was known."""
    failed = {}
    for row in range(len(run.contenders)):
        for window in run.windows:
            if row not in failed and math.isfinite(window.nll[row] + window.kl[row] + window.probability[row]):
                continue
            failed.setdefault(row, window.index)
            for sums in (window.nll, window.kl, window.tvd, window.probability):
                sums[row : row + 1] = [math.nan] * len(sums[row : row + 1])  # older records have no TVD
            window.top1[row] = window.key_pairs[row] = window.value_pairs[row] = window.pairs[row] = 0
    return failed


def _reasons(run: Run, i: int) -> list[str]:
    contender, audit = run.contenders[i], run.audit
    if contender.error:
        return [f"it failed: {contender.error}"]
    if contender.lossless:
        return _not_lossless(run, i)
    reasons = _unread(run, i)
    if audit.zeroed_codes_move_logits.get(contender.label) is False:
        reasons.append("zeroing its stored codes does not move the logits")
    elif unmoved := _by_side(audit.unmoved_by_zeroed_codes.get(contender.label, {})):
        reasons.append(f"zeroing stored codes changes nothing that is read in {unmoved}")
    # What reads its own codes in every layer may well store what another stores; nothing lossy stores what exact does.
    twins = [
        other.label
        for j, other in enumerate(run.contenders)
        if j != i and not other.error and (reasons or other.lossless) and _losses(run, j) == _losses(run, i)
    ]
    return reasons + ([f"losses bit-identical to {', '.join(twins)}"] if twins else [])


def _not_lossless(run: Run, i: int) -> list[str]:
    """A contender that says it is lossless: the first is compared with transformers' own cache; of others every row must
    have come back bit for bit."""
    if i == 0:
        wrong = run.audit.identity_is_exact is False
        return ["identity control: not bit-equal to transformers' own cache"] if wrong else []
    reads = run.audit.reads.get(run.contenders[i].label, {})
    if changed := _by_side({side: [layer for layer in reads if getattr(reads[layer], side)] for side in SIDES}):
        return [f"it says that it is lossless, but rows come back changed in {changed}"]
    return []


def _unread(run: Run, i: int) -> list[str]:
    """Each layer for itself: one that is read does not vouch for the others. Older records have the sums alone."""
    contender = run.contenders[i]
    pairs = {"key": [w.key_pairs[i] for w in run.windows], "value": [w.value_pairs[i] for w in run.windows]}
    if unread := [side for side in contender.quantized_sides if not sum(pairs[side])]:
        return [f"cache not read ({' and '.join(unread)} coverage 0)"]
    reads = run.audit.reads.get(contender.label)
    if reads is None or contender.lossy_layers is None:
        return []
    silent = {
        side: [layer for layer in layers if layer not in reads or not getattr(reads[layer], side)]
        for side, layers in contender.lossy_layers.items()
    }
    return [f"cache not read in {unread}"] if (unread := _by_side(silent)) else []


def _by_side(layers: dict[str, list[int]]) -> str:
    """As "layers 1, 2 (key), 2 (value)"; nothing where there is no layer."""
    named = [f"{', '.join(map(str, layers[side]))} ({side})" for side in SIDES if layers.get(side)]
    return f"layers {', '.join(named)}" if named else ""


def _losses(run: Run, i: int) -> list[float]:
    return [w.nll[i] for w in run.windows]
