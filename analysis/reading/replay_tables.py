"""The tables of a replay, and what stands above and below them."""

from collections.abc import Callable, Sequence

import numpy as np

from kvdelta.analysis.reading.matching import matching_lines
from kvdelta.analysis.reading.replays import PositionRow
from kvdelta.analysis.reading.tables import Table, signed, table
from kvdelta.harness.records.replay import Replay
from kvdelta.harness.records.run import Run


def whole_table(replay: Replay, rows: Sequence[PositionRow]) -> Table:
    def shown(cell: Callable[[PositionRow], str]) -> Callable[[PositionRow], str]:
        return lambda row: "–" if row.refused else cell(row)

    columns: dict[str, Callable[[PositionRow], str]] = {
        "scheme": lambda row: row.scheme,
        "bits": lambda row: "–" if row.bits is None else f"{row.bits:.2f}",
        "KL [95 %]": lambda row: row.refused or _with_interval(row.kl, row.kl_low, row.kl_high),
        "99.9 %": shown(lambda row: "–" if row.kl_999 is None else _short(row.kl_999)),
        "one forward": shown(lambda row: _short(row.one_forward_kl)),
        "× [95 %]": shown(_times),
        "same %": shown(lambda row: f"{row.same:.1f}"),
        "top-1 %": shown(lambda row: f"{row.top1:.1f}"),
        "slope ± 95 %": shown(_slope),
        "half departed": shown(lambda row: _departure(replay, row)),
    }
    if any(row.free_length is not None for row in rows):
        columns["own text: length"] = shown(lambda row: "–" if row.free_length is None else f"{row.free_length:.0f}")
        columns["4-grams %"] = shown(lambda row: "–" if row.free_distinct is None else f"{row.free_distinct:.1f}")
        columns["departs"] = shown(lambda row: _own_departure(replay, row))
    return table(rows, columns)


def bin_table(replay: Replay, rows: Sequence[PositionRow]) -> Table:
    """KL of each scheme by bin, and half of its interval in per cent of it, which is symmetric: two ends would not fit into a line."""
    by_scheme: dict[str, list[PositionRow]] = {}
    for row in rows:
        by_scheme.setdefault(row.scheme, []).append(row)
    ends = [0, *replay.edges]
    header = ["scheme", *(span(first + 1, last) for first, last in zip(ends, replay.edges, strict=False))]
    shown = {name: ["–" if row.refused else _with_half(row) for row in own] for name, own in by_scheme.items()}
    return header, [[name, *cells] for name, cells in shown.items()]


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _short(figure: float) -> str:
    return "–" if np.isnan(figure) else f"{figure:.2g}"


def _with_interval(figure: float, low: float, high: float) -> str:
    return _short(figure) if np.isnan(low) or figure == 0 else f"{_short(figure)} [{_short(low)}, {_short(high)}]"


def _with_half(row: PositionRow) -> str:
    return (
        _short(row.kl)
        if np.isnan(row.kl_low) or row.kl == 0
        else f"{_short(row.kl)} ±{100 * (row.kl_high / row.kl - 1):.0f}%"
    )


def _times(row: PositionRow) -> str:
    if np.isnan(row.times):
        return "–"
    ends = "" if np.isnan(row.times_low) else f" [{row.times_low:.1f}, {row.times_high:.1f}]"
    return f"{row.times:.1f}{ends}"


def _slope(row: PositionRow) -> str:
    if row.slope is None or row.slope_high is None or np.isnan(row.slope) or row.kl == 0:
        return "–"
    half = "" if np.isnan(row.slope_high) else f" ± {row.slope_high - row.slope:.4f}"
    return signed(row.slope, 4) + half


def _departure(replay: Replay, row: PositionRow) -> str:
    """With the interval, where it is not beyond the last position altogether."""

    def shown(at: int | None) -> str:
        return f">{replay.tokens}" if at is None or at > replay.tokens else str(at)

    if row.departs_low is None or row.departs_low > replay.tokens:
        return shown(row.departs)
    return f"{shown(row.departs)} [{shown(row.departs_low)}, {shown(row.departs_high)}]"


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
    if replay.skipped:
        lines.append(f"shorter prompts left out before them: {replay.skipped}")
    if replay.cut:
        lines.append(
            f"chats among them that were longer, of which the first token and the last {replay.prompt_length - 1} are kept: {replay.cut}"
        )
    lines += matching_lines(steps)
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
99.9 %: its quantile over tokens. one forward: KL of the same tokens fed at once, which see each other exactly; ×: how many times that KL is,
paired by prompt. same: 1 − TVD, the share of next tokens that agree where both draw as alike as they can (at temperature 1). slope: of KL
over position, nats per 100 tokens. half departed: the token by which half of such draws have left exact's text, Π(1 − TVD) = ½; its interval:
where that of Π(1 − TVD) over prompts holds ½. ±: half of a 95 % interval, in %: of the figure. bits: after the prompt."""
FREE_LEGEND = """own text: each scheme writes by itself with the randomness that exact had; tokens before one that ends a text, 4-grams that are
no repetition, and the median token at which it leaves exact's text."""
