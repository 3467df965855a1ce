"""The same schemes on the same windows by several protocols: what decoding costs where two passes understate it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8
from scipy import special

from kvdelta.analysis.reading.matching import exact_tokens
from kvdelta.analysis.reading.rows import Row
from kvdelta.analysis.reading.summary import SummaryRow, summarize
from kvdelta.harness import statistics, stopping
from kvdelta.harness.records.run import Run, named
from kvdelta.schemes.errors import UserError


@dataclass(frozen=True)
class ProtocolRow(Row):
    """One scheme by one protocol. times: its ΔNLL, kl_times: its KL, over those of the first protocol, with 95 % intervals;
    None of the first, and where the first costs nothing to speak of, or has a KL within its noise floor. reversed: the schemes of the same
    exact tokens before which it is by the first protocol and behind by this one, or the other way round. kl_999, same: as in
    `SummaryRow`; None in older records."""

    scheme: str
    name: str
    protocol: str
    bits: float | None
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    kl: float
    refused: str
    reversed: tuple[str, ...] = ()
    times: float | None = None
    times_low: float | None = None
    times_high: float | None = None
    kl_times: float | None = None
    kl_times_low: float | None = None
    kl_times_high: float | None = None
    kl_999: float | None = None
    same: float | None = None


def alike(runs: Sequence[Run]) -> bool:
    """Whether they are of the same schemes, windows and model by different protocols that read the cache."""
    mine = {"protocol", "step", "until_se", "commit"}
    settings = [run.settings.model_dump(exclude=mine) | {"windows": run.scored} for run in runs]
    ways = [named(run.settings) for run in runs]
    return (
        len(runs) > 1
        and len(set(ways)) == len(ways)
        and all(one == settings[0] for one in settings)
        and "single-pass" not in ways
    )


def protocol_rows(runs: Sequence[Run]) -> list[list[ProtocolRow]]:
    """By scheme, one row a protocol, in the order of the runs; the exact baseline is left out.

    UserError where the runs are not alike, or one has no finished window.
    """
    if not alike(runs):
        raise UserError(
            "these runs are not of the same schemes and windows by different protocols; show them one by one"
        )
    summaries = [summarize(run) for run in runs]
    turned = [_reversed(runs[0], run, summaries[0]) for run in runs]
    found = []
    for i, contender in enumerate(runs[0].contenders):
        if i == 0 or contender.lossless:
            continue
        kl = summaries[0][i].kl
        found.append([_row(runs, way, i, summaries[way][i], kl, turned[way].get(i, ())) for way in range(len(runs))])
    return found


def _row(
    runs: Sequence[Run], way: int, i: int, row: SummaryRow, first_kl: float, turned: tuple[str, ...]
) -> ProtocolRow:
    times = kl_times = (None, None, None)
    floor = runs[0].noise_floor
    within_floor = floor is not None and first_kl <= floor.kl
    if way and not row.refused:
        times = ratio_of_means(runs[0], _deltas(runs[0], i), _deltas(runs[way], i))
        if not within_floor:
            kl_times = ratio_of_means(
                runs[0], *([w.kl[i] for w in run.windows] for run in (runs[0], runs[way])), sure=True
            )
    return ProtocolRow(
        scheme=row.scheme,
        name=row.name,
        protocol=named(runs[way].settings),
        bits=row.bits,
        delta_nll=row.delta_nll,
        delta_nll_low=row.delta_nll_low,
        delta_nll_high=row.delta_nll_high,
        kl=row.kl,
        refused=row.refused,
        reversed=turned,
        times=times[0],
        times_low=times[1],
        times_high=times[2],
        kl_times=kl_times[0],
        kl_times_low=kl_times[1],
        kl_times_high=kl_times[2],
        kl_999=row.kl_999,
        same=row.same,
    )


def _deltas(run: Run, i: int, against: int = 0) -> list[float]:
    """By window, in nats."""
    return [window.nll[i] - window.nll[against] for window in run.windows]


def ratio_of_means(
    run: Run, few: Sequence[float], many: Sequence[float], sure: bool = False
) -> tuple[float | None, float | None, float | None]:
    """Σ many / Σ few, with the interval of the ratio of two means of pairs, NaN of one window; none where Σ few may be 0 or
    less. sure: it is known to be more, as a KL is."""
    below = _mean(run, few)
    if not (below.low > 0 or (sure and below.delta > 0)):
        return None, None, None
    ratio = sum(many) / sum(few)
    rest = _mean(run, [more - ratio * x for more, x in zip(many, few, strict=True)])
    half = (rest.high - rest.low) / 2 / below.delta
    if ratio > 0:  # on the scale of its logarithm, where it has no end
        return ratio, ratio * math.exp(-half / ratio), ratio * math.exp(half / ratio)
    return ratio, ratio - half, ratio + half


def _reversed(first: Run, other: Run, rows: Sequence[SummaryRow]) -> dict[int, tuple[str, ...]]:
    """By row, those whose order to it differs by the two protocols. Rows with a `matched(…)` around them are compared among those of the
    same exact tokens, and the others, as published, among themselves: a tail that differs changes the order by itself."""
    compared = [i for i, row in enumerate(rows) if i and not row.refused and not other.contenders[i].error]
    turned: dict[int, list[str]] = {}
    orders = _orders(first, compared) * _orders(other, compared)
    for a, b in np.argwhere(np.triu(orders < 0)):
        i, j = compared[a], compared[b]
        mine, theirs = (exact_tokens(rows[k].name) for k in (i, j))
        if mine != theirs or ("tail" in mine and "block" not in mine):  # without one each row has its own groups' tail
            continue
        turned.setdefault(i, []).append(rows[j].scheme)
        turned.setdefault(j, []).append(rows[i].scheme)
    return {i: tuple(names) for i, names in turned.items()}


def _orders(run: Run, rows: Sequence[int]) -> Int8[np.ndarray, "rows rows"]:
    """1 where a row loses more than another, −1 where less, 0 where the windows do not tell: the t interval of the pair holds 0. All
    pairs at once, since a run of 150 schemes has ten thousand."""
    windows = len(run.windows)
    if windows < 2 or not run.settings.independent:
        return np.zeros((len(rows), len(rows)), dtype=np.int8)
    losses = np.array([[window.nll[i] for window in run.windows] for i in rows]).reshape(len(rows), windows)
    more = losses[:, None] - losses
    mean, error = more.mean(axis=-1), more.std(axis=-1, ddof=1) / math.sqrt(windows)
    error[np.ptp(more, axis=-1) == 0] = 0.0  # a rounded mean would leave a spread where there is none
    half = special.stdtrit(windows - 1, 1 - 0.025 / len(stopping.looks(run.settings))) * error
    return (mean - half > 0).astype(np.int8) - (mean + half < 0).astype(np.int8)


def _mean(run: Run, values: Sequence[float]) -> statistics.PairedDelta:
    """Of one value a window, with the interval that the run's windows and looks allow."""
    return statistics.paired_delta(
        values,
        [0.0] * len(values),
        [1] * len(values),
        independent=run.settings.independent,
        looks=len(stopping.looks(run.settings)),
    )
