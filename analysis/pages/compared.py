"""Sections on what runs say of schemes: the table, quality against bytes, and two passes beside decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvdelta.analysis.pages import charts
from kvdelta.analysis.pages.keys import Keys
from kvdelta.analysis.pages.parts import Chart, Datum, Section
from kvdelta.analysis.reading import protocol_tables, run_tables
from kvdelta.analysis.reading.cells import Cell, names_by_axes
from kvdelta.analysis.reading.protocols import ProtocolRow, alike, protocol_rows
from kvdelta.analysis.reading.tables import number
from kvdelta.harness.records.run import named

NAMED = 4  # pairs of rows, in a note
MOST = 24  # schemes of a chart that has a line for each

KL_COLUMNS = [
    ("scheme", "", "text"),
    ("bits", "bits", "bits"),
    ("kl", "KL", "nats"),
    ("kl_low", "KL from", "nats"),
    ("kl_high", "to", "nats"),
    ("delta_nll", "ΔNLL", "signed"),
    ("delta_nll_low", "ΔNLL from", "signed"),
    ("delta_nll_high", "to", "signed"),
    ("verdict", "ΔNLL shows", "text"),
]


def table_section(cells: Sequence[Cell]) -> Section:
    said: dict[str, list[str]] = {}
    for cell in cells:
        for line in run_tables.notes([row for _, row in cell.rows.values()]):
            said.setdefault(line, []).append(cell.name)
    notes = [line if len(names) == len(cells) else f"{'; '.join(names)}: {line}" for line, names in said.items()]
    return Section(
        "table",
        "Every scheme",
        [
            "KL and ΔNLL: nats a token from exact on the same windows, with their 95 % interval over windows. ΔNLL shows: loses or gains where "
            "p, corrected for the rows of a run (Holm), is under 0.05; within noise where KL and ΔNLL are at most the noise floor (exact by "
            "another route; see the audit); not told apart else. bits: a number, measured at the prefix length, codes and metadata as "
            "held, exact tokens at 16. read: share of attended pairs from packed storage. front: nothing of no more bits "
            "loses less KL in that run, beyond the interval of the pair.",
        ],
        notes=notes,
    )


def front_section(rows: Sequence[dict[str, Any]], main: Sequence[int]) -> Section | None:
    points = [
        row
        for row in rows
        if row["run"] in main and not row["refused"] and not row["lossless"] and row["bits"] and row["kl"] > 0
    ]
    if not points:
        return None
    ends = [row[name] for row in points for name in ("kl", "kl_high") if row[name] == row[name]]
    on = [row for row in points if row["front"]]
    least = min(points, key=lambda row: row["kl"])
    summary = (
        f"Scatter of KL against measured bits for {len(points)} rows, of which {len(on)} are on the front of their run. The least KL "
        f"is {number(least['kl'], 2)} of {least['scheme']} at {least['bits']:.2f} bits; the table below the chart has all."
    )
    chart = Chart(charts.front_chart([row["bits"] for row in points], ends), KL_COLUMNS, summary, labels=True)
    return Section(
        "front",
        "Quality against bytes",
        [
            "Large and with its interval: nothing of no more bits loses less, beyond the 95 % interval of the pair. Small: something "
            "does. Lower left is better; both axes are logarithmic. Point at a mark to see it everywhere, click to keep it."
        ],
        [chart],
    )


def protocol_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that differ by their protocol alone."""
    groups: list[list[Cell]] = []
    for cell in cells:
        for group in groups:
            if alike([one.run for one in [*group, cell]]):
                group.append(cell)
                break
        else:
            groups.append([cell])
    return [group for group in groups if len(group) > 1]


def protocol_section(cells: Sequence[Cell], fronts: Mapping[int, int], keys: Keys) -> Section | None:
    groups = protocol_groups(cells)
    if not groups:
        return None
    axes = names_by_axes([cell.run for group in groups for cell in group[:1]])
    data: list[Datum] = []
    said, turned = [], []
    for group, title in zip(groups, axes, strict=True):
        found = protocol_rows([cell.run for cell in group])
        found.sort(key=lambda line: line[-1].kl if not line[-1].refused else float("inf"))
        where = title.rpartition(", ")[0] or title
        facet = where if len(groups) > 1 else ""
        data += [datum for i, line in enumerate(found) for datum in _ends(line, group, i, facet, fronts, keys)]
        _, sentences = protocol_tables.verdict(found)
        said.append((f"{facet}: " if facet else "") + sentences[0])
        order = protocol_tables.order_notes(found)
        more = [f"and {len(order) - NAMED} more pairs"] if len(order) > NAMED else []
        turned += [f"{facet + ': ' if facet else ''}{note}" for note in [*order[:NAMED], *more]]
    protocols = list(dict.fromkeys(named(cell.run.settings) for group in groups for cell in group))
    columns = [
        ("scheme", "", "text"), ("protocol", "protocol", "text"), ("bits", "bits", "bits"), ("kl", "KL", "nats"),
        ("kl_times", "× the first", "number"), ("kl_times_low", "× from", "number"), ("kl_times_high", "to", "number"),
        ("delta_nll", "ΔNLL", "signed"), ("delta_nll_low", "ΔNLL from", "signed"), ("delta_nll_high", "to", "signed"),
        ("reversed", "another order than", "text"),
    ]  # fmt: skip
    summary = "For each scheme its KL by each protocol on a line. " + " ".join(said)
    chart = Chart(
        charts.dumbbell_chart([d["kl"] for d in data], protocols), columns, summary, data, MOST, line=charts.LINE
    )
    text = [
        "In pass 2 of two passes the suffix's own tokens are exact, and attention looks mostly at near ones; stepwise, as in "
        "decoding, each is stored before the next. A long line is a scheme that two passes flatter.",
        "; ".join(f"{mark} {name}" for mark, name in zip(charts.PROTOCOL_SHAPES.values(), protocols, strict=False))
        + ".",
        *said,
    ]
    return Section("protocols", "Two passes beside decoding", text, [chart], notes=turned)


def _ends(
    line: Sequence[ProtocolRow], group: Sequence[Cell], place: int, facet: str, fronts: Mapping[int, int], keys: Keys
) -> list[Datum]:
    """A mark a protocol; the first has the ends of the line between them."""
    kept = [(row, cell) for row, cell in zip(line, group, strict=True) if not row.refused and row.kl > 0]
    losses = [row.kl for row, _ in kept]
    marks: list[Datum] = []
    for i, (row, cell) in enumerate(kept):
        s = keys.scheme(row.name, row.scheme)
        first = i == 0 and len(kept) > 1
        marks.append(
            {
                "s": s,
                "c": keys.source(cell.run),
                "facet": facet,
                "order": place,
                "front": fronts.get(s, 0),
                "protocol": row.protocol,
                "bits": row.bits,
                "kl": row.kl,
                "kl_times": row.kl_times,
                "kl_times_low": row.kl_times_low,
                "kl_times_high": row.kl_times_high,
                "delta_nll": row.delta_nll,
                "delta_nll_low": row.delta_nll_low,
                "delta_nll_high": row.delta_nll_high,
                "reversed": ", ".join(row.reversed[:4])
                + (f" and {len(row.reversed) - 4} more" if len(row.reversed) > 4 else "")
                or None,
                "span_low": min(losses) if first else None,
                "span_high": max(losses) if first else None,
            }
        )
    return marks
