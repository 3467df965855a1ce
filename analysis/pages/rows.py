"""The rows of the page's table: those of `kvdelta show`, with their place on the front of their run."""

from typing import Any

import numpy as np

from kvdelta.analysis.pages.keys import Keys
from kvdelta.analysis.reading.carrying import Carried
from kvdelta.analysis.reading.cells import By, Cell
from kvdelta.analysis.reading.draws import quantile
from kvdelta.analysis.reading.grids import Grid
from kvdelta.analysis.reading.summary import SummaryRow, summarize
from kvdelta.schemes.references import identity_of

LEVEL = 0.05


def cell_grid(cell: Cell, by: By = "kl") -> Grid:
    """One run as a grid, so that its front is found as that of several."""
    names = list(cell.rows)
    bits = [[np.nan if row.bits is None else row.bits for _, row in cell.rows.values()]]
    labels = [row.scheme for _, row in cell.rows.values()]
    losses = cell.losses(names, by)
    return Grid([cell], names, labels, by, [losses], np.array(bits, dtype=float), {})


def page_rows(cells: list[Cell], keys: Keys) -> list[dict[str, Any]]:
    """Of every run every row: what `kvdelta show --format json` has, and run, c, s, kl_low, kl_high (95 % t interval), verdict, front:
    whether nothing of no more bits loses less KL in this run, beyond the interval of the pair; beaten_by: else the one that loses least."""
    rows = []
    for at, cell in enumerate(cells):
        order = {row.name: row for row in Carried(cell_grid(cell)).order} if cell.rows else {}
        for contender, row in zip(cell.run.contenders, summarize(cell.run), strict=True):
            identity = identity_of(contender.name)
            place = order.get(cell.called.get(identity, identity))
            half = quantile(cell) * row.kl_se if cell.has_intervals else np.nan
            rows.append(
                row.plain()
                | {
                    "c": keys.source(cell.run),
                    "s": keys.scheme(contender.name, contender.label),
                    "run": at,
                    "lossless": contender.lossless,
                    "refused": why_refused(row),
                    "verdict": verdict_of(row, contender.lossless),
                    "kl_low": max(0.0, row.kl - half),
                    "kl_high": row.kl + half,
                    "front": bool(place and not place.beaten_by and not place.refused),
                    "beaten_by": place.beaten_by[0] if place and place.beaten_by else None,
                }
            )
    return rows


def why_refused(row: SummaryRow) -> str:
    """In words; empty of a row with a score."""
    if not row.refused:
        return ""
    return f"{row.refused}: {row.error or row.audit}"


def verdict_of(row: SummaryRow, lossless: bool) -> str:
    """What the windows show of ΔNLL against exact, corrected for the rows of the run (Holm)."""
    if row.refused:
        return row.refused
    if lossless:
        return "baseline"
    if row.within_noise:
        return "within noise"
    if np.isnan(row.delta_nll_low):
        return "no interval"
    if row.p_holm is None or not row.p_holm < LEVEL:
        return "not told apart"
    return "loses" if row.delta_nll > 0 else "gains"
