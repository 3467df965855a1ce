"""Tables and sentences of what decoding costs beside two passes."""

import math
from collections.abc import Sequence

from kvdelta.analysis.reading.protocols import ProtocolRow
from kvdelta.analysis.reading.tables import Table, interval, signed

NAMED = 6  # rows in a sentence
REVERSED = "⇅"  # marks a row whose place among the others changes from protocol to protocol
LEGEND = f"""ΔNLL: nats a token more than exact by the same protocol, 95 % interval over windows. times: what the protocol costs over what
the first does, ΔNLL or KL, where that is above 0 and above the noise floor; 95 % interval, paired by window. same: 1 − TVD, the share of next tokens
that agree where both draw as alike as they can; 99.9 %: quantile of KL over tokens. {REVERSED}: loses less than another row by one protocol
and more by another, both beyond the 95 % interval of the pair; rows of the same matched(…) among themselves, the others likewise."""


def protocol_tables(found: Sequence[Sequence[ProtocolRow]]) -> list[Table]:
    """ΔNLL by every protocol and how many times the first; then KL in the same way; then 1 − TVD and the tail of KL."""
    ways = [row.protocol for row in found[0]] if found else []
    tables = []
    for what, cells in (("ΔNLL", _delta_cells), ("KL", _kl_cells)):
        header = ["scheme", "bits"]
        for k, way in enumerate(ways):
            header += [f"{what} {short(way)}", "times"] if k else [f"{what} {short(way)}"]
        body = [
            [*_names(line), *(cell for k, row in enumerate(line) for cell in cells(row)[: 1 + bool(k)])]
            for line in found
        ]
        tables.append((header, body))
    return [*tables, _tails(found, ways)]


def _tails(found: Sequence[Sequence[ProtocolRow]], ways: Sequence[str]) -> Table:
    """A table of its own: beside KL it would not fit into a terminal."""
    header = ["scheme", "bits", *(f"{what} {short(way)}" for what in ("same %", "99.9 %") for way in ways)]
    body = []
    for line in found:
        same = ["–" if row.refused or row.same is None else f"{row.same:.1f}" for row in line]
        tails = ["–" if row.refused or row.kl_999 is None else f"{row.kl_999:.2g}" for row in line]
        body.append([*_names(line), *same, *tails])
    return header, body


def _names(line: Sequence[ProtocolRow]) -> list[str]:
    mark = f" {REVERSED}" if any(row.reversed for row in line) else ""
    return [line[0].scheme + mark, "–" if line[0].bits is None else f"{line[0].bits:.2f}"]


def _delta_cells(row: ProtocolRow) -> list[str]:
    shown = interval(row.delta_nll, row.delta_nll_low, row.delta_nll_high)
    return [row.refused or shown, _many(row.times, row.times_low, row.times_high)]


def _kl_cells(row: ProtocolRow) -> list[str]:
    return ["–" if row.refused else f"{row.kl:.2g}", _many(row.kl_times, row.kl_times_low, row.kl_times_high)]


def short(way: str) -> str:
    """A protocol in the head of a column."""
    return way.removeprefix("stepwise (").removesuffix(")")


def _many(times: float | None, low: float | None, high: float | None) -> str:
    if times is None or low is None or high is None:
        return "–"
    return f"{times:.2f}" if math.isnan(low) else f"{times:.2f} [{low:.2f}, {high:.2f}]"


def order_notes(found: Sequence[Sequence[ProtocolRow]]) -> list[str]:
    """A sentence for each row whose place changes, said once for a pair."""
    lines = []
    order = {line[0].scheme: i for i, line in enumerate(found)}
    for line in found:
        first = line[0]
        for row in line[1:]:
            for other in (name for name in row.reversed if order[name] > order[row.scheme]):
                theirs = found[order[other]]
                against = next(one for one in theirs if one.protocol == row.protocol)
                less = "less" if first.delta_nll < theirs[0].delta_nll else "more"
                then = "more" if less == "less" else "less"
                lines.append(
                    f"{REVERSED} {row.scheme} loses {less} than {other} by {first.protocol} ({signed(first.delta_nll, 4)} against "
                    f"{signed(theirs[0].delta_nll, 4)}) and {then} by {row.protocol} ({signed(row.delta_nll, 4)} against "
                    f"{signed(against.delta_nll, 4)})"
                )
    return lines


def verdict(found: Sequence[Sequence[ProtocolRow]]) -> tuple[bool, list[str]]:
    """Do two passes understate what decoding costs, and of whom, in sentences. They do where some KL is more than theirs
    beyond its interval."""
    last = [line[-1] for line in found if line[-1].kl_times is not None]
    more = [row for row in last if row.kl_times_low is not None and row.kl_times_low > 1]
    if not more:
        return False, [
            "Not as expected: no row's KL is above that of two passes beyond its interval; give more windows."
        ]
    if len(last) > NAMED:
        least, *_, most = sorted(last, key=lambda row: row.kl_times or 0.0)
        said = f"from {least.kl_times:.1f} ({least.scheme}) to {most.kl_times:.1f} ({most.scheme})"
    else:
        said = ", ".join(f"{row.scheme} {row.kl_times:.1f}" for row in last)
    return True, [
        f"By {last[0].protocol} KL is so many times that of two passes: {said}.",
        "In pass 2 the suffix's own tokens are exact, and attention looks mostly at near ones: a scheme without exact newest",
        "tokens is flattered most. Rows with different exact tails are compared by their tails as well as by their codes.",
    ]
