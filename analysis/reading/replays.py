"""What a replay says of each scheme: over all positions and by bins of them, from its record alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
from scipy import special

from analysis.reading.rows import Row
from analysis.reading.summary import SummaryRow, summarize
from analysis.reading.tables import Table, interval, table
from harness import statistics
from harness.records.replay import Replay, ReplayRow
from harness.records.run import Run


@dataclass(frozen=True)
class PositionRow(Row):
    """One scheme over the positions first to last, and over prompts, which are the unit of all intervals (95 %, t). kl, with
    its interval: nats a token; one_forward_kl: of the same tokens in one forward, times: how many times that kl is. same:
    1 − TVD in %; top1: %. error: why it failed; audit: why it cannot be believed, or ok.

    Of all positions only: bits; slope: of KL, nats a token for every 100 tokens more; departs: after how many tokens half of
    coupled samples have departed, None where fewer do; agree_last: in %, how many have not at the end. free_length,
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
    same: float
    top1: float
    audit: str
    error: str | None
    bits: float | None = None
    slope: float | None = None
    slope_low: float | None = None
    slope_high: float | None = None
    departs: int | None = None
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
        row = _row(replay, kept, said, slice(None))
        row = replace(row, bits=said.bits, slope=slope, slope_low=low, slope_high=high)
        row = replace(row, departs=kept.departs, agree_last=100 * kept.agree[-1], note=kept.note or None)
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
        _row(replay, kept, said, slice(i, i + 1))
        for kept, said in zip(replay.rows, summarize(steps), strict=True)
        for i in range(len(replay.edges))
    ]


def _row(replay: Replay, kept: ReplayRow, said: SummaryRow, bins: slice) -> PositionRow:
    ends = [0, *replay.edges]
    first, last = ends[:-1][bins][0] + 1, replay.edges[bins][-1]
    count = last - first + 1

    def means(sums: list[list[float]] | list[list[int]] | None) -> np.ndarray:
        return np.full(1, nan) if sums is None else np.array(sums, dtype=float)[:, bins].sum(axis=1) / count

    kl, low, high = mean_interval(means(kept.kl))
    once = float(means(kept.one_forward_kl).mean())
    return PositionRow(
        scheme=kept.label,
        name=kept.name,
        first=first,
        last=last,
        kl=kl,
        kl_low=low,
        kl_high=high,
        one_forward_kl=once,
        times=kl / once if once > 0 else nan,
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


def whole_table(replay: Replay, rows: Sequence[PositionRow]) -> Table:
    def shown(cell: Callable[[PositionRow], str]) -> Callable[[PositionRow], str]:
        return lambda row: "–" if row.refused else cell(row)

    columns: dict[str, Callable[[PositionRow], str]] = {
        "scheme": lambda row: row.scheme,
        "bits": lambda row: "–" if row.bits is None else f"{row.bits:.2f}",
        "KL [95 %]": lambda row: row.refused or _with_interval(row.kl, row.kl_low, row.kl_high),
        "one forward": shown(lambda row: _short(row.one_forward_kl)),
        "×": shown(lambda row: _short(row.times)),
        "same %": shown(lambda row: f"{row.same:.1f}"),
        "top-1 %": shown(lambda row: f"{row.top1:.1f}"),
        "slope per 100 tokens [95 %]": shown(_slope),
        "half departed": shown(lambda row: f">{replay.tokens}" if row.departs is None else str(row.departs)),
    }
    if any(row.free_length is not None for row in rows):
        columns["own text: length"] = shown(lambda row: "–" if row.free_length is None else f"{row.free_length:.0f}")
        columns["4-grams %"] = shown(lambda row: "–" if row.free_distinct is None else f"{row.free_distinct:.1f}")
        columns["departs"] = shown(lambda row: _own_departure(replay, row))
    return table(rows, columns)


def bin_table(replay: Replay, rows: Sequence[PositionRow]) -> Table:
    """KL of each scheme by bin."""
    by_scheme: dict[str, list[PositionRow]] = {}
    for row in rows:
        by_scheme.setdefault(row.scheme, []).append(row)
    ends = [0, *replay.edges]
    header = ["scheme", *(span(first + 1, last) for first, last in zip(ends, replay.edges, strict=False))]
    shown = {name: ["–" if row.refused else _short(row.kl) for row in own] for name, own in by_scheme.items()}
    return header, [[name, *cells] for name, cells in shown.items()]


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _short(figure: float) -> str:
    return "–" if np.isnan(figure) else f"{figure:.2g}"


def _with_interval(figure: float, low: float, high: float) -> str:
    return _short(figure) if np.isnan(low) or figure == 0 else f"{_short(figure)} [{_short(low)}, {_short(high)}]"


def _slope(row: PositionRow) -> str:
    if row.slope is None or np.isnan(row.slope) or row.kl == 0:
        return "–"
    return interval(row.slope, row.slope_low or 0.0, row.slope_high or 0.0, 4)


def _own_departure(replay: Replay, row: PositionRow) -> str:
    if row.free_departs is None:
        return "–"
    return f">{replay.tokens + 1}" if row.free_departs > replay.tokens + 1 else f"{row.free_departs:g}"


def heading(replay: Replay, steps: Run) -> list[str]:
    settings, prompts = replay.settings, len(replay.settings.windows)
    step = f"{settings.step} token{'s' * (settings.step != 1)} a forward"
    many = "s" * (prompts > 1)
    lines = [
        replay.model_name,
        f"{replay.text_name}, {_sampling(replay)}",
        f"{prompts} prompt{many} of {replay.prompt_length} tokens, {replay.tokens} tokens scored after each, {step}, "
        f"{settings.dtype} on {settings.device}",
    ]
    if steps.noise_floor:
        lines.append(f"noise floor (exact by another route): KL {steps.noise_floor.kl:.1e} nats")
    return lines


def notes(rows: Sequence[PositionRow]) -> list[str]:
    """A line for what rows with the same note say, and one for each that failed."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for note in filter(None, [row.note, row.error and f"failed: {row.error}"]):
            said.setdefault(note, []).append(row.scheme)
    return [f"{', '.join(schemes)}: {note}" for note, schemes in said.items()]


def _sampling(replay: Replay) -> str:
    how = replay.sampling
    if how.temperature is None:
        return "greedy"
    cuts = [f", top-p {how.top_p:g}" if how.top_p < 1 else "", f", top-k {how.top_k}" if how.top_k else ""]
    return f"sampled at temperature {how.temperature:g}{''.join(cuts)}"


LEGEND = """All schemes are fed the text that the exact cache wrote, and store it. KL from exact: nats a token, intervals over prompts.
one forward: KL of the same tokens fed at once, which see each other exactly; ×: how many times that KL is. same: 1 − TVD,
the share of next tokens that agree where both draw as alike as they can (at temperature 1). slope: of KL over position.
half departed: the token by which half of such draws have left exact's text, Π(1 − TVD) = ½. bits: after the prompt."""
FREE_LEGEND = """own text: each scheme writes by itself with the randomness that exact had; tokens before one that ends a text, 4-grams that are
no repetition, and the median token at which it leaves exact's text."""
