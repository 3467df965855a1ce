"""Rows and tables of a race, and of its verification on fresh windows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvdelta.analysis.reading.carrying import SAME_BITS
from kvdelta.analysis.reading.cells import By, Cell
from kvdelta.analysis.reading.protocol_tables import short
from kvdelta.analysis.reading.racing import Standing
from kvdelta.analysis.reading.rows import Row
from kvdelta.analysis.reading.tables import Table, interval, number
from kvdelta.analysis.reading.verifying import Verified, loss_of, t_interval

NUMBERED = 4  # rows that one lost to


@dataclass(frozen=True)
class RaceRow(Row):
    """One that raced. bits: measured, the most over models; predicted: KL of two passes that the screen expected, nats a token; loss: the
    worst mean over models, with the interval that holds at any time; lost_to: those shown to lose less, the best first; front: none of
    them has no more bits; same: 1 − TVD in %, and kl_999: the 99.9 % quantile of KL over tokens, nats, both of all windows that it ran on, of
    that model, NaN in older records; refused: why it has no loss."""

    scheme: str
    bits: float
    predicted: float | None
    windows: int
    loss: float
    loss_low: float
    loss_high: float
    model: str
    lost_to: tuple[str, ...] = ()
    front: bool = False
    refused: str = ""
    same: float = np.nan
    kl_999: float = np.nan


@dataclass(frozen=True)
class VerifiedRow(Row):
    """One on fresh windows of one model by one protocol, with its t interval. more: its loss less the recommended scheme's, with an
    interval that holds for all rows of a protocol together. same, kl_999: as in `RaceRow`."""

    scheme: str
    bits: float
    what: str
    model: str
    protocol: str
    windows: int
    loss: float
    loss_low: float
    loss_high: float
    delta_nll: float
    delta_nll_low: float
    delta_nll_high: float
    more: float
    more_low: float
    more_high: float
    same: float = np.nan
    kl_999: float = np.nan


def race_rows(
    labels: Sequence[str],
    bits: Sequence[float],
    predicted: Sequence[float] | None,
    standings: Sequence[Standing],
    refused: Sequence[str],
    models: Sequence[str],
    agreement: Sequence[Sequence[tuple[float, float]]],
) -> list[RaceRow]:
    """Those that are left first, then who ran longest; each group by its loss. agreement: by scheme and model, same and kl_999."""
    rows = []
    for s, one in enumerate(standings):
        low, high = (np.nan, np.nan) if one.failed else one.interval()
        model = 0 if one.failed else int(one.means.argmax())
        same, tail = (np.nan, np.nan) if one.failed else agreement[s][model]
        rows.append(
            RaceRow(
                scheme=labels[s],
                bits=bits[s],
                predicted=None if predicted is None else float(predicted[s]),
                windows=one.losses.shape[1],
                loss=np.nan if one.failed else one.worst,
                loss_low=low,
                loss_high=high,
                model=models[model],
                lost_to=tuple(labels[other] for other in one.lost_to),
                front=not one.failed and all(bits[other] > bits[s] + SAME_BITS for other in one.lost_to),
                refused=refused[s] if one.failed else "",
                same=same,
                kl_999=tail,
            )
        )
    return sorted(rows, key=lambda row: (bool(row.refused), -row.windows, bool(row.lost_to), row.loss))


def verified_row(spec: str, bits: float, what: str, model: str, cell: Cell, name: str, by: By) -> VerifiedRow:
    """Of one scheme in one cell; `more` is not known yet."""
    loss, nll = (t_interval(cell.losses([name], one)[0]) for one in (by, "nll"))
    nothing = (np.nan, np.nan, np.nan)
    found = cell.rows[name][1]
    agreement = [np.nan if figure is None else figure for figure in (found.same, found.kl_999)]
    return VerifiedRow(
        spec, bits, what, model, cell.name, len(cell.run.windows), *loss, *nll, *nothing, *agreement,
    )  # fmt: skip


def against(rows: Sequence[VerifiedRow], verified: Sequence[Verified], chosen: int) -> list[VerifiedRow]:
    """The rows with what each loses more than the chosen one, in the protocol that decides; the chosen one's first."""
    best = verified[chosen]
    parts = max(1, (len(verified) - 1) * len(best.losses))
    models = list(dict.fromkeys(row.model for row in rows))
    deciding = rows[-1].protocol
    by_scheme = {one.scheme: one for one in verified}
    found = []
    for row in rows:
        if row.scheme != best.scheme and row.protocol == deciding:
            model = models.index(row.model)
            more, low, high = t_interval(by_scheme[row.scheme].losses[model] - best.losses[model], parts)
            row = replace(row, more=more, more_low=low, more_high=high)
        found.append(row)
    return sorted(found, key=lambda row: row.scheme != best.scheme)


def race_table(rows: Sequence[RaceRow], measure: str) -> Table:
    """Numbered, so that a row can say to which others it lost."""
    place = {row.scheme: at for at, row in enumerate(rows, 1)}
    several = len({row.model for row in rows}) > 1
    header = [
        "scheme",
        "bits",
        "predicted",
        "windows",
        f"{measure} [95 % at any time]",
        *AGREEMENT,
        *(["in"] if several else []),
        "lost to",
        "front",
    ]
    body = [
        [
            f"{place[row.scheme]}. {row.scheme}", f"{row.bits:.2f}", "–" if row.predicted is None else number(row.predicted, 2),
            str(row.windows), row.refused or loss_of(measure, row.loss, row.loss_low, row.loss_high),
            *_agreement(row), *([row.model] if several else []), _places([place[name] for name in row.lost_to]), "•" if row.front else "",
        ]
        for row in rows
    ]  # fmt: skip
    return header, body


def _places(numbers: Sequence[int]) -> str:
    more = len(numbers) - NUMBERED
    return ", ".join(map(str, numbers[:NUMBERED])) + (f" and {more} more" if more > 0 else "") or "–"


def verified_table(rows: Sequence[VerifiedRow], measure: str) -> Table:
    """A line a scheme and model: two passes, then decoding, which decides."""
    several = len({row.model for row in rows}) > 1
    decoding = rows[-1].protocol
    way = short(decoding)
    two_pass = {(row.scheme, row.model): row for row in rows if row.protocol != decoding}
    nll = [] if measure == "ΔNLL" else [f"ΔNLL, {way}"]
    header = ["scheme", "bits", "", *(["model"] if several else []), f"{measure}, two-pass", f"{measure}, {way} [95 %]", *nll,
              "more than the first", *AGREEMENT]  # fmt: skip
    body = []
    for row in rows:
        if row.protocol == decoding:
            before = two_pass[row.scheme, row.model]
            body.append([
                row.scheme, f"{row.bits:.2f}", row.what, *([row.model] if several else []),
                loss_of(measure, before.loss, -np.inf, np.inf), loss_of(measure, row.loss, row.loss_low, row.loss_high),
                *([interval(row.delta_nll, row.delta_nll_low, row.delta_nll_high)] if nll else []),
                "–" if np.isnan(row.more) else interval(row.more, row.more_low, row.more_high),
                *_agreement(row),
            ])  # fmt: skip
    return header, body


AGREEMENT = ("99.9 %", "same %")


def _agreement(row: RaceRow | VerifiedRow) -> list[str]:
    return [number(row.kl_999, 2), "–" if np.isnan(row.same) else f"{row.same:.1f}"]


LEGEND = """bits: a number, measured, on average while the suffix is decoded (compare measures them where it begins). predicted: KL of two passes, by
one backward pass. The race's intervals hold whenever one looks, its comparisons all together: who loses least is thrown out in at most
5 % of races, where losses are not very skewed. front: nothing of no more bits was shown to lose less. Fresh windows: t intervals over windows; differences hold together.
KL and ΔNLL: nats a token, from exact; 99.9 %: quantile of KL over tokens; same: 1 − TVD, the share of next tokens that agree where both draw as
alike as they can; both in decoding."""
