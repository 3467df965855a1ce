"""What a race and its verification say: the front, the recommended scheme, what it costs, and what it cannot be told from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy import special

from analysis.reading.carrying import SAME_BITS
from analysis.reading.cells import By, Cell
from analysis.reading.racing import ALPHA, Standing
from analysis.reading.rows import Row
from analysis.reading.tables import Table, interval, number, signed

NAMED = 6  # schemes in a sentence
NUMBERED = 4  # rows that one lost to

Losses = Float64[np.ndarray, "models windows"]


@dataclass(frozen=True)
class RaceRow(Row):
    """One that raced. bits: measured, the most over models; predicted: KL of two passes that the screen expected, nats a token; loss: the
    worst mean over models, with the interval that holds at any time; lost_to: those shown to lose less, the best first; front: none of
    them has no more bits; refused: why it has no loss."""

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


@dataclass(frozen=True)
class VerifiedRow(Row):
    """One on fresh windows of one model by one protocol, with its t interval. more: its loss less the recommended scheme's, with an
    interval that holds for all rows of a protocol together."""

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


@dataclass(frozen=True, eq=False)
class Verified:
    """One scheme on fresh windows. losses, nll: nats a token by model and window, of the protocol that decides, in the measure that
    was asked for, and as ΔNLL."""

    scheme: str
    bits: float
    losses: Losses
    nll: Losses

    @property
    def worst(self) -> float:
        return float(self.losses.mean(axis=1).max())


def race_rows(
    labels: Sequence[str],
    bits: Sequence[float],
    predicted: Sequence[float] | None,
    standings: Sequence[Standing],
    refused: Sequence[str],
    models: Sequence[str],
) -> list[RaceRow]:
    """Those that are left first, then who ran longest; each group by its loss."""
    rows = []
    for s, one in enumerate(standings):
        low, high = (np.nan, np.nan) if one.failed else one.interval()
        rows.append(
            RaceRow(
                scheme=labels[s],
                bits=bits[s],
                predicted=None if predicted is None else float(predicted[s]),
                windows=one.losses.shape[1],
                loss=np.nan if one.failed else one.worst,
                loss_low=low,
                loss_high=high,
                model=models[0 if one.failed else int(one.means.argmax())],
                lost_to=tuple(labels[other] for other in one.lost_to),
                front=not one.failed and all(bits[other] > bits[s] + SAME_BITS for other in one.lost_to),
                refused=refused[s] if one.failed else "",
            )
        )
    return sorted(rows, key=lambda row: (bool(row.refused), -row.windows, bool(row.lost_to), row.loss))


def t_interval(values: Float64[np.ndarray, "windows"], parts: int = 1) -> tuple[float, float, float]:
    """Mean, low and high at 95 %, together with parts − 1 others (Bonferroni); infinite ends of one value."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, -np.inf, np.inf
    half = float(special.stdtrit(count - 1, 1 - ALPHA / 2 / parts)) * float(values.std(ddof=1)) / np.sqrt(count)
    return mean, mean - half, mean + half


def shown_to_lose_more(mine: Losses, theirs: Losses, parts: int) -> bool:
    """Whether in some model mine are more than theirs in every model, beyond an interval that holds for so many comparisons."""
    return any(all(t_interval(one - other, parts)[1] > 0 for other in theirs) for one in mine)


def decide(verified: Sequence[Verified], budget: float) -> int:
    """Whom to recommend: the winner of the race, which comes first, unless fresh windows show that another within the budget loses
    less: then of these the one that loses least."""
    parts = max(1, (len(verified) - 1) * len(verified[0].losses))
    better = [
        i
        for i, other in enumerate(verified)
        if i and other.bits <= budget + SAME_BITS
        and shown_to_lose_more(verified[0].losses, other.losses, parts)
    ]  # fmt: skip
    return min(better, key=lambda i: verified[i].worst, default=0)


def told_apart(verified: Sequence[Verified], chosen: int) -> list[bool]:
    """Of each, whether fresh windows show that it loses more than the chosen one."""
    parts = max(1, (len(verified) - 1) * len(verified[0].losses))
    mine = verified[chosen]
    return [i != chosen and shown_to_lose_more(one.losses, mine.losses, parts) for i, one in enumerate(verified)]


def verified_row(spec: str, bits: float, what: str, model: str, cell: Cell, name: str, by: By) -> VerifiedRow:
    """Of one scheme in one cell; `more` is not known yet."""
    loss, nll = (t_interval(cell.losses([name], one)[0]) for one in (by, "nll"))
    nothing = (np.nan, np.nan, np.nan)
    return VerifiedRow(
        spec, bits, what, model, cell.name, len(cell.run.windows), *loss, *nll, *nothing,
    )  # fmt: skip


def sentences(
    verified: Sequence[Verified],
    chosen: int,
    baseline: str,
    budget: float,
    measure: str,
    step: int,
    models: Sequence[str],
    unverified: Sequence[str],
) -> list[str]:
    """The recommendation in words. baseline: the label of uniform KIVI; unverified: others that the race did not tell apart."""
    best, apart = verified[chosen], told_apart(verified, chosen)
    parts = max(1, (len(verified) - 1) * len(models))
    lines = [f"Within {budget:g} bits: {best.scheme} ({best.bits:.2f} bits)."]
    if chosen:
        lines.append(f"{verified[0].scheme} won the race, and lost to it on fresh windows.")
    for model, loss, nll in zip(models, best.losses, best.nll, strict=True):
        delta = t_interval(nll)
        cost = f"ΔNLL {interval(*delta)}"
        if measure == "KL":
            cost = f"KL {loss_of(measure, *t_interval(loss))}, {cost}"
        where = f" on {model}" if len(models) > 1 else ""
        lines.append(
            f"It costs{where}: {cost} nats a token, perplexity × {np.exp(delta[0]):.4f}, on {len(loss)} fresh windows decoded in "
            f"steps of {step}."
        )
    others = [one.scheme for i, one in enumerate(verified) if i != chosen and not apart[i] and one.scheme != baseline]
    kivi = next((i for i, one in enumerate(verified) if one.scheme == baseline), None)
    if kivi == chosen:
        lines.append("That is uniform KIVI itself: nothing that ran was better.")
    elif kivi is not None:
        lines.append(_against_kivi(verified[kivi], best, apart[kivi], budget, measure, parts, models))
    if others:
        lines.append(f"No difference on fresh windows from {some(_sized(verified, others))}.")
    if unverified:
        lines.append(f"Nor did the race tell it from {some(unverified)}, which were not verified.")
    lines += [
        f"Smaller: {one.scheme} ({one.bits:.2f} bits) loses more: {_differences(one, best, measure, parts, models)}."
        for one, worse in zip(verified, apart, strict=True)
        if worse and one.bits < best.bits - SAME_BITS and one.scheme != baseline
    ]
    if not others and not unverified:
        lines.append("Every other candidate that ran was shown to lose more.")
    return lines


def _against_kivi(
    kivi: Verified, best: Verified, apart: bool, budget: float, measure: str, parts: int, models: Sequence[str]
) -> str:
    size = f"{kivi.bits:.2f} bits" + (", the smallest that there is" if kivi.bits > budget + SAME_BITS else "")
    said = _differences(kivi, best, measure, parts, models)
    if apart:
        return f"Uniform KIVI ({kivi.scheme}, {size}) loses more: {said}."
    return f"No difference from uniform KIVI ({kivi.scheme}, {size}): {said}."


def _differences(one: Verified, best: Verified, measure: str, parts: int, models: Sequence[str]) -> str:
    """What one loses more than the best, by model."""
    more = [t_interval(mine - other, parts) for mine, other in zip(one.losses, best.losses, strict=True)]
    where = [f" on {model}" if len(models) > 1 else "" for model in models]
    return f"{measure} " + "; ".join(f"{interval(*d)}{place}" for d, place in zip(more, where, strict=True))


def _sized(verified: Sequence[Verified], names: Sequence[str]) -> list[str]:
    return [f"{one.scheme} ({one.bits:.2f} bits)" for one in verified if one.scheme in names]


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
    place = {row.scheme: number for number, row in enumerate(rows, 1)}
    several = len({row.model for row in rows}) > 1
    header = [
        "",
        "scheme",
        "bits",
        "predicted",
        "windows",
        f"{measure} [95 % at any time]",
        *(["in"] if several else []),
        "lost to",
        "front",
    ]
    body = [
        [
            str(place[row.scheme]), row.scheme, f"{row.bits:.2f}", "–" if row.predicted is None else number(row.predicted, 2),
            str(row.windows), row.refused or loss_of(measure, row.loss, row.loss_low, row.loss_high),
            *([row.model] if several else []), _places([place[name] for name in row.lost_to]), "•" if row.front else "",
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
    two_pass = {(row.scheme, row.model): row for row in rows if row.protocol != decoding}
    nll = [] if measure == "ΔNLL" else [f"ΔNLL, {decoding}"]
    header = ["scheme", "bits", "", *(["model"] if several else []), f"{measure}, two-pass", f"{measure}, {decoding} [95 %]", *nll,
              "more than the first"]  # fmt: skip
    body = []
    for row in rows:
        if row.protocol == decoding:
            before = two_pass[row.scheme, row.model]
            body.append([
                row.scheme, f"{row.bits:.2f}", row.what, *([row.model] if several else []),
                loss_of(measure, before.loss, -np.inf, np.inf), loss_of(measure, row.loss, row.loss_low, row.loss_high),
                *([interval(row.delta_nll, row.delta_nll_low, row.delta_nll_high)] if nll else []),
                "–" if np.isnan(row.more) else interval(row.more, row.more_low, row.more_high),
            ])  # fmt: skip
    return header, body


def loss_of(measure: str, mean: float, low: float, high: float) -> str:
    """A loss with its interval; a KL, which cannot be negative, without a sign."""
    if measure != "KL":
        return interval(mean, low, high) if np.isfinite(low) else signed(mean, 4)
    return number(mean, 2) + (f" [{number(max(0.0, low), 2)}, {number(high, 2)}]" if np.isfinite(low) else "")


def some(names: Sequence[str]) -> str:
    """As many as a sentence holds."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


LEGEND = """bits: a number, measured, on average while the suffix is decoded (compare measures them where it begins). predicted: KL of two passes, by
one backward pass. The race's intervals hold whenever one looks, its comparisons all together: who loses least is thrown out in at most
5 % of races. front: nothing of no more bits was shown to lose less. Fresh windows: t intervals over windows; differences hold together.
KL and ΔNLL: nats a token, from exact."""
