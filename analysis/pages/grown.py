"""Sections on where along a text the loss is: under prefixes of several lengths, along a generation, along the suffix."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvdelta.analysis.pages import charts, frames
from kvdelta.analysis.pages.compared import MOST
from kvdelta.analysis.pages.found import Found
from kvdelta.analysis.pages.keys import Keys, model_of
from kvdelta.analysis.pages.parts import Chart, Datum, Section
from kvdelta.analysis.reading import replay_tables
from kvdelta.analysis.reading.cells import Cell
from kvdelta.analysis.reading.depths import DepthRow, depth_rows
from kvdelta.analysis.reading.grids import grid_of
from kvdelta.analysis.reading.positions import BINS, suffix_rows
from kvdelta.analysis.reading.replays import bin_rows, whole_rows
from kvdelta.analysis.reading.tables import number
from kvdelta.harness.records.tokens import has_tokens

KL = "KL from exact, nats a token"
ENDS = [("kl_low", "KL from", "nats"), ("kl_high", "to", "nats")]


def depth_section(found: Found, fronts: Mapping[int, int], keys: Keys) -> Section | None:
    """KL against the tokens in the cache, of runs that score the same tokens under several prefixes."""
    lines = [line for group in _same_tokens(found.cells) for line in _depths(group)]
    if not lines:
        return None
    facets = {id(line): _facet(line, found.cells) for line in lines}
    data: list[Datum] = []
    for line in lines:
        for row in line:
            cell = _cell_of(row, line, found.cells)
            data.append(
                {"s": keys.scheme(row.name, row.scheme), "c": keys.source(cell.run), "facet": facets[id(line)], "front": 0}
                | {name: getattr(row, name) for name in ("prefix", "kl", "kl_low", "kl_high", "times", "times_low", "times_high")}
            )  # fmt: skip
    for datum in data:
        datum["front"] = fronts.get(datum["s"], 0)
    columns = [("scheme", "", "text"), ("prefix", "tokens in the cache", "whole"), ("kl", "KL", "nats"), *ENDS,
               ("times", "× the shortest", "number"), ("times_low", "× from", "number"), ("times_high", "to", "number")]  # fmt: skip
    grown = [(line[-1].times, line[-1].scheme, facets[id(line)]) for line in lines if line[-1].times is not None]
    text = ["The same tokens are scored under prefixes of several lengths, so that what grows is the cache alone."]
    if grown:
        (least, a, _), (most, b, where) = min(grown), max(grown)
        text.append(f"From the shortest to the longest KL grows {number(least or 0.0, 2)} times ({a}) to {number(most or 0.0, 2)} times ({b}, {where}).")  # fmt: skip
    spec = charts.line_chart(frames.depth_axis([d["prefix"] for d in data]), [d[k] for d in data for k in ("kl", "kl_high")], KL)  # fmt: skip
    return Section("depth", "By context length", text, [Chart(spec, columns, " ".join(text), data, MOST, key=True)])


def _same_tokens(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Groups of the same model, protocol and scored tokens with two prefixes or more."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        settings = cell.run.settings
        key = (settings.model, cell.scored, settings.protocol, settings.step, settings.dtype, settings.device)
        groups.setdefault(repr(key), []).append(cell)
    return [group for group in groups.values() if len({cell.run.settings.window_length for cell in group}) > 1]


def _depths(group: list[Cell]) -> list[list[DepthRow]]:
    shared = set.intersection(*({*cell.rows} for cell in group))
    return depth_rows(grid_of(group, "kl", True)) if len(shared) > 1 else []


def _cell_of(row: DepthRow, line: Sequence[DepthRow], cells: Sequence[Cell]) -> Cell:
    """The cell that a row is of, by its prefix and its figure."""
    return next(
        cell
        for cell in cells
        if row.name in cell.rows
        and cell.rows[row.name][1].kl == row.kl
        and cell.run.settings.window_length - cell.run.settings.score_length == row.prefix
    )


def _facet(line: Sequence[DepthRow], cells: Sequence[Cell]) -> str:
    run = _cell_of(line[0], line, cells).run
    step = f", step {run.settings.step}" if run.settings.step else ""
    return f"{model_of(run)}{step}"


def position_section(found: Found, fronts: Mapping[int, int], keys: Keys) -> Section | None:
    """KL along a generation, from replays, and along the suffix, from runs that kept their tokens."""
    made = [chart for chart in (_replayed(found, keys), _suffixes(found, fronts, keys)) if chart is not None]
    if not made:
        return None
    said = [
        f"{model_of(replay)}: {'; '.join(replay_tables.heading(replay, steps)[1:3])}."
        for _, replay, steps in found.replays
    ]
    text = [
        "Every scheme reads the text that the exact cache wrote, or the text itself; each mark is the mean of a bin of positions."
    ]
    notes = [line for _, replay, steps in found.replays for line in replay_tables.notes(whole_rows(replay, steps))]
    return Section("position", "By position", [*text, *said], made, notes=list(dict.fromkeys(notes)))


def _replayed(found: Found, keys: Keys) -> Chart | None:
    data: list[Datum] = []
    for _, replay, steps in found.replays:
        for row in bin_rows(replay, steps):
            if not row.refused and row.kl > 0:
                data.append({
                    "s": keys.scheme(row.name, row.scheme), "c": keys.source(replay, protocol=False), "facet": f"{model_of(replay)}, its own text",
                    "at": (row.first + row.last) / 2, "span": replay_tables.span(row.first, row.last), "kl": row.kl, "kl_low": row.kl_low,
                    "kl_high": row.kl_high, "one_forward_kl": row.one_forward_kl, "times": row.times,
                })  # fmt: skip
    if not data:
        return None
    columns = [("scheme", "", "text"), ("span", "positions", "text"), ("kl", "KL", "nats"), *ENDS,
               ("one_forward_kl", "in one forward", "nats"), ("times", "× that", "number")]  # fmt: skip
    slopes = [f"{row.scheme} on {model_of(replay)}" for _, replay, steps in found.replays for row in whole_rows(replay, steps)
              if not row.refused and row.slope_low is not None and row.slope_low > 0]  # fmt: skip
    grows = f"The slope of KL over position is above 0 beyond its interval for {', '.join(slopes)}." if slopes else "No slope of KL over position is above 0 beyond its interval."  # fmt: skip
    spec = charts.line_chart(
        frames.position_axis("tokens written after the prompt", [d["at"] for d in data]), _ends_of(data), KL
    )
    return Chart(spec, columns, f"KL by position in a generation, a line a scheme. {grows}", data, MOST, key=True)


def _suffixes(found: Found, fronts: Mapping[int, int], keys: Keys) -> Chart | None:
    data: list[Datum] = []
    for cell in found.cells:
        for row in suffix_rows(cell.run, cell.folder) if has_tokens(cell.folder) else []:
            s = keys.scheme(row.name, row.scheme)
            data.append({
                "s": s, "c": keys.source(cell.run), "facet": f"{cell.name}, position in the suffix", "front": fronts.get(s, 0),
                "at": (row.first + row.last) / 2, "span": replay_tables.span(row.first, row.last), "kl": row.kl,
                "kl_low": row.kl_low, "kl_high": row.kl_high,
            })  # fmt: skip
    if not data:
        return None
    columns = [("scheme", "", "text"), ("span", "positions", "text"), ("kl", "KL", "nats"), *ENDS]
    spec = charts.line_chart(
        frames.position_axis("position in the suffix, tokens", [d["at"] for d in data]), _ends_of(data), KL
    )
    return Chart(spec, columns, f"KL in {BINS} bins of positions of the suffix, a line a scheme.", data, MOST, key=True)


def _ends_of(data: Sequence[dict[str, Any]]) -> list[float]:
    return [datum[name] for datum in data for name in ("kl", "kl_high") if np.isfinite(datum[name])]
