"""What a run says of each contender: one row of derived figures, from its record alone."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvdelta.analysis.reading.rows import Row
from kvdelta.harness import statistics, stopping
from kvdelta.harness.records.run import ContenderRecord, Run
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.references import identity_of


@dataclass(frozen=True)
class SummaryRow(Row):
    """One contender over all windows. Deltas are against the baseline, KL and top-1 against exact whatever that is.

    scheme: its label; name: its canonical spec. ppl: perplexity, delta_ppl its difference, delta_pct the same in per
    cent, ratio the quotient. delta_nll in nats a token, with standard error and 95 % t interval over
    windows (all looks together, where the run had several), p of a t-test, p_sign_flip, skewness and skewed as in
    `statistics.PairedDelta`; p_holm: adjusted for the rows of the table, None of the baseline. kl: nats a token, kl_999 its
    99.9 % quantile over tokens. same: 1 − TVD in %, the share of next tokens that agree where both draw as alike as they can.
    top1: %. The two are None in older records.
    delta_p: of the target's probability. bits: measured bits a number, and compression against 16; None where bytes were
    not measurable. coverage: share of attended pairs read from packed storage. iid_*: as llama.cpp reports them, tokens
    taken for independent; None without the NLL of every token. Figures of a contender that failed are NaN.
    """

    scheme: str
    name: str
    note: str
    evicts: bool
    error: str | None
    ppl: float
    delta_ppl: float
    delta_pct: float
    ratio: float
    ratio_low: float
    ratio_high: float
    delta_nll: float
    delta_nll_se: float
    delta_nll_low: float
    delta_nll_high: float
    p: float
    p_sign_flip: float
    skewness: float
    kl: float
    kl_se: float
    top1: float
    delta_p: float
    delta_p_se: float
    bits: float | None
    compression: float | None
    key_coverage: float
    value_coverage: float
    coverage: float
    within_noise: bool
    audit: str
    kl_999: float | None = None
    same: float | None = None
    skewed: bool = False
    iid_nll: float | None = None
    iid_nll_se: float | None = None
    iid_log_ratio: float | None = None
    iid_log_ratio_se: float | None = None
    p_holm: float | None = None

    @property
    def refused(self) -> str:
        """Why the row shows no score; empty where it shows one."""
        if self.error:
            return "failed"
        if self.audit == "ok":
            return ""
        return "cache not read" if "cache not read" in self.audit else "audit failed"


def summarize(run: Run, baseline: str | None = None, nll: np.ndarray | None = None) -> list[SummaryRow]:
    """One row a contender, from sums per window; deltas against `baseline` (a label or name; without it, exact).

    A contender that failed has a row of NaN, and no part in Holm's correction.

    KL and top-1 are against exact whatever the baseline. nll: NLL of every token [contenders, tokens]; with it the
    rows also have llama.cpp's figures, whose errors take tokens for independent. ValueError: a baseline that is unknown or failed.
    """
    if not run.windows:
        raise UserError(f"the run has no finished window yet; give its command again to go on: {run.command}")
    base = find(run, baseline) if baseline else 0
    if run.contenders[base].error:
        raise UserError(
            f"{run.contenders[base].label} failed, so there are no deltas against it; choose another baseline"
        )
    counts = [w.count for w in run.windows]
    looks = len(stopping.looks(run.settings))
    rows: list[SummaryRow] = []
    for i, contender in enumerate(run.contenders):
        if contender.error:
            rows.append(_failed_row(run, i))
            continue
        losses, base_losses = [w.nll[i] for w in run.windows], [w.nll[base] for w in run.windows]
        paired = statistics.paired_delta(losses, base_losses, counts, independent=run.settings.independent, looks=looks)
        ratio, ratio_low, ratio_high = statistics.ratio_interval(paired)
        kl, kl_se = statistics.clustered_mean(
            [w.kl[i] for w in run.windows], counts, independent=run.settings.independent
        )
        shift = [w.probability[i] - w.probability[base] for w in run.windows]
        delta_p, delta_p_se = statistics.clustered_mean(shift, counts, independent=run.settings.independent)
        bits = measured_bits(contender)
        floor, covered = run.noise_floor, _coverage(run, i)
        row = SummaryRow(
            **_names(contender),
            ppl=statistics.perplexity(losses, counts),
            delta_ppl=statistics.delta_ppl(losses, base_losses, counts),
            delta_pct=100 * math.expm1(paired.delta),
            ratio=ratio,
            ratio_low=ratio_low,
            ratio_high=ratio_high,
            delta_nll=paired.delta,
            delta_nll_se=paired.se,
            delta_nll_low=paired.low,
            delta_nll_high=paired.high,
            p=paired.p,
            p_sign_flip=paired.p_sign_flip,
            skewness=paired.skewness,
            skewed=paired.skewed,
            kl=kl,
            kl_se=kl_se,
            top1=100 * sum(w.top1[i] for w in run.windows) / sum(counts),
            delta_p=delta_p,
            delta_p_se=delta_p_se,
            bits=bits,
            compression=16 / bits if bits else None,
            key_coverage=covered["key"],
            value_coverage=covered["value"],
            coverage=_mean_coverage(contender, covered),
            within_noise=bool(
                base == 0 and i != base and floor and kl <= floor.kl and abs(paired.delta) <= floor.delta_nll
            ),
            audit="; ".join(run.audit.failures.get(contender.label, [])) or "ok",
            kl_999=contender.kl_999,
            same=100 * (1 - sum(w.tvd[i] for w in run.windows) / sum(counts))
            if all(w.tvd for w in run.windows)
            else None,
        )
        if nll is not None:
            mean, mean_se = statistics.iid_mean(nll[i])
            ratio, ratio_se = statistics.iid_log_ratio(nll[i], nll[base])
            row = replace(row, iid_nll=mean, iid_nll_se=mean_se, iid_log_ratio=ratio, iid_log_ratio_se=ratio_se)
        rows.append(row)
    others = [i for i in range(len(rows)) if i != base]
    for i, adjusted in zip(others, statistics.holm([rows[i].p for i in others]), strict=True):
        rows[i] = replace(rows[i], p_holm=adjusted)
    return rows


def _names(contender: ContenderRecord) -> dict[str, Any]:
    return {
        "scheme": contender.label,
        "name": contender.name,
        "note": contender.note,
        "evicts": contender.evicts,
        "error": contender.error,
    }


_FIGURES = (
    "ppl", "delta_ppl", "delta_pct", "ratio", "ratio_low", "ratio_high", "delta_nll", "delta_nll_se", "delta_nll_low",
    "delta_nll_high", "p", "p_sign_flip", "skewness", "kl", "kl_se", "top1", "delta_p", "delta_p_se",
)  # fmt: skip


def _failed_row(run: Run, i: int) -> SummaryRow:
    return SummaryRow(
        **_names(run.contenders[i]),
        **dict.fromkeys(_FIGURES, math.nan),
        bits=None,
        compression=None,
        **dict.fromkeys(("key_coverage", "value_coverage", "coverage"), math.nan),
        within_noise=False,
        audit="; ".join(run.audit.failures.get(run.contenders[i].label, ["it failed"])),
    )


def measured_bits(contender: ContenderRecord) -> float | None:
    """8 · bytes / elements at the prefix length, exact tokens at 16 bits; None where bytes were not measurable."""
    if not contender.bytes:
        return None
    sides = contender.bytes.values()
    return 8 * sum(side.counted for side in sides) / sum(side.elements for side in sides)


def _coverage(run: Run, i: int) -> dict[str, float]:
    """Of each side."""
    pairs = sum(w.pairs[i] for w in run.windows)
    read = {"key": sum(w.key_pairs[i] for w in run.windows), "value": sum(w.value_pairs[i] for w in run.windows)}
    return {side: count / pairs if pairs else 0.0 for side, count in read.items()}


def _mean_coverage(contender: ContenderRecord, covered: dict[str, float]) -> float:
    """Over the sides that the contender quantizes."""
    counted = contender.quantized_sides or list(covered)
    return sum(covered[side] for side in counted) / len(counted)


def find(run: Run, name: str) -> int:
    """The position of a contender by its label, or by a spec of the same scheme however spelled."""
    if at := [i for i, contender in enumerate(run.contenders) if name in (contender.label, contender.name)]:
        return at[0]
    from kvdelta.harness.caches.specs import canonical  # loads the families, and with them torch

    try:
        wanted = canonical(name)
    except ValueError:
        wanted = name  # a foreign cache, or nothing that there is
    for i, contender in enumerate(run.contenders):
        if identity_of(wanted) == identity_of(contender.name):
            return i
    known = ", ".join(contender.label for contender in run.contenders)
    raise UserError(f"no scheme {name!r} in this run; it has {known}")


def perplexities(run: Run) -> list[float]:
    """One a contender; NaN of one that failed."""
    counts = [w.count for w in run.windows]
    return [
        math.nan if contender.error else statistics.perplexity([w.nll[i] for w in run.windows], counts)
        for i, contender in enumerate(run.contenders)
    ]
