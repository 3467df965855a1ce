"""The tables of a replay, and what stands above and below them."""

from collections.abc import Callable, Sequence

import numpy as np

from kvdelta.analysis.reading.replays import PositionRow
from kvdelta.analysis.reading.tables import Table, interval, table
from kvdelta.harness.records.replay import Replay
from kvdelta.harness.records.run import Run


def whole_table(replay: Replay, rows: Sequence[PositionRow]) -> Table:
    def shown(cell: Callable[[PositionRow], str]) -> Callable[[PositionRow], str]:
        return lambda row: "–" if row.refused else cell(row)

    columns: dict[str, Callable[[PositionRow], str]] = {
        "scheme": lambda row: row.scheme,
        "bits": lambda row: "–" if row.bits is None else f"{row.bits:.2f}",
        "KL [95 %]": lambda row: row.refused or _with_interval(row.kl, row.kl_low, row.kl_high),
        "one forward": shown(lambda row: _short(row.one_forward_kl)),
        "×": shown(lambda row: "–" if np.isnan(row.times) else f"{row.times:.1f}"),
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
