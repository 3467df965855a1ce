"""Rows made by hand, and schemes whose rows relate."""

import math
from dataclasses import fields

from kvdelta.analysis.reading.summary import SummaryRow
from kvdelta.schemes import parse_scheme

GRID = [f"asym{bits}:key_axis={k},value_axis={v},group_size=16" for bits in (2, 4) for k in ("token", "channel") for v in ("token", "channel")]  # fmt: skip


def summary_row(spec="int4", **figures):
    """A row of a scheme that passed its audit; figures that are not given are NaN."""
    named = {"scheme": spec, "name": parse_scheme(spec).name, "note": "", "evicts": False, "error": None}
    others = {"bits": None, "compression": None, "within_noise": False, "audit": "ok"}
    unknown = {field.name: math.nan for field in fields(SummaryRow) if field.default not in (None, False)}
    return SummaryRow(**unknown | named | others | figures)
