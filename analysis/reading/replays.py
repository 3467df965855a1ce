"""What a replay says of each scheme: over all positions and by bins of them, from its record alone."""

from dataclasses import dataclass, replace
from math import nan

import numpy as np
from scipy import special

from kvdelta.analysis.reading.protocols import ratio_of_means
from kvdelta.analysis.reading.rows import Row
from kvdelta.analysis.reading.summary import SummaryRow, summarize
from kvdelta.harness import statistics
from kvdelta.harness.records.replay import Replay, ReplayRow
from kvdelta.harness.records.run import Run


@dataclass(frozen=True)
class PositionRow(Row):
    """One scheme over the positions first to last, and over prompts, which are the unit of all intervals (95 %, t). kl, with
    its interval: nats a token; one_forward_kl: of the same tokens in one forward, times: how many times that kl is, with the interval of a ratio of
    means of pairs (`ratio_of_means`). same: 1 − TVD in %; top1: %. error: why it failed; audit: why it cannot be believed, or ok.

    Of all positions only: bits; kl_999: the 99.9 % quantile of KL over tokens, nats, None in older records; slope: of KL, nats a token for
    every 100 tokens more; departs: after how many tokens half of coupled samples have departed, None where fewer do; departs_low,
    departs_high: the tokens at which the interval of that half ends, one more than there are for an end beyond the last, None of one
    prompt and in older records; agree_last: in %, how many have not at the end. free_length,
    free_distinct, free_departs: of its own texts the mean length, share of 4-grams that are no repetition, in %, and the
    median of where they leave exact's text.
    """

    scheme: str
    name: str
    first: int
    last: int
    kl: float
    kl_low: float
    kl_high: float
    one_forward_kl: float
    times: float
    times_low: float
    times_high: float
    same: float
    top1: float
    audit: str
    error: str | None
    bits: float | None = None
    kl_999: float | None = None
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None
    departs: int | None = None
    departs_low: int | None = None
    departs_high: int | None = None
    agree_last: float | None = None
    free_length: float | None = None
    free_distinct: float | None = None
    free_departs: float | None = None
    note: str | None = None

    @property
    def refused(self) -> str:
        """Why the row shows no score; empty where it shows one."""
        return "failed" if self.error else "" if self.audit == "ok" else "audit failed"


def whole_rows(replay: Replay, steps: Run) -> list[PositionRow]:
    """One row a scheme, over all positions. steps: the run token by token, which has bits and audit."""
    rows = []
    for kept, said in zip(replay.rows, summarize(steps), strict=True):
        slope, low, high = mean_interval(100 * np.array(kept.slope))
        row = _row(replay, steps, kept, said, slice(None))
        row = replace(row, bits=said.bits, kl_999=said.kl_999, slope=slope, slope_low=low, slope_high=high)
        row = replace(row, departs=kept.departs, agree_last=100 * kept.agree[-1], note=kept.note or None)
        if kept.departs_interval:
            ends = [replay.tokens + 1 if at is None else at for at in kept.departs_interval]
            row = replace(row, departs_low=ends[0], departs_high=ends[1])
        if kept.free_run:
            departs = [replay.tokens + 2 if at is None else at for at in kept.free_run.departs]
            row = replace(
                row,
                free_length=float(np.mean(kept.free_run.length)),
                free_distinct=100 * float(np.mean(kept.free_run.distinct)),
                free_departs=float(np.median(departs)),
            )
        rows.append(row)
    return rows


def bin_rows(replay: Replay, steps: Run) -> list[PositionRow]:
    """One row a scheme and bin of positions."""
    return [
        _row(replay, steps, kept, said, slice(i, i + 1))
        for kept, said in zip(replay.rows, summarize(steps), strict=True)
        for i in range(len(replay.edges))
    ]


def _row(replay: Replay, steps: Run, kept: ReplayRow, said: SummaryRow, bins: slice) -> PositionRow:
    ends = [0, *replay.edges]
    first, last = ends[:-1][bins][0] + 1, replay.edges[bins][-1]
    count = last - first + 1

    def means(sums: list[list[float]] | list[list[int]] | None) -> np.ndarray:
        return np.full(1, nan) if sums is None else np.array(sums, dtype=float)[:, bins].sum(axis=1) / count

    by_steps, at_once = means(kept.kl), means(kept.one_forward_kl)
    kl, low, high = mean_interval(by_steps)
    once = float(at_once.mean())
    times: tuple[float | None, ...] = (nan, nan, nan)
    if once > 0 and np.isfinite(kl):
        times = ratio_of_means(steps, at_once.tolist(), by_steps.tolist(), sure=True)
    return PositionRow(
        scheme=kept.label,
        name=kept.name,
        first=first,
        last=last,
        kl=kl,
        kl_low=low,
        kl_high=high,
        one_forward_kl=once,
        times=nan if times[0] is None else times[0],
        times_low=nan if times[1] is None else times[1],
        times_high=nan if times[2] is None else times[2],
        same=100 * (1 - float(means(kept.tvd).mean())),
        top1=100 * float(means(kept.top1).mean()),
        audit=said.audit,
        error=said.error,
    )


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over prompts with its 95 % t interval; NaN ends of one prompt, all NaN of a scheme that failed."""
    if not np.isfinite(values).all():
        return nan, nan, nan
    mean, error = statistics.clustered_mean(values, np.ones(len(values)))
    half = float(special.stdtrit(len(values) - 1, 0.975)) * error if len(values) > 1 else nan
    return mean, mean - half, mean + half
