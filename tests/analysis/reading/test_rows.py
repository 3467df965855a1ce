"""What a row gives to JSON and CSV."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass

import pytest

from kvdelta.analysis.reading.error_measures import ErrorRow
from kvdelta.analysis.reading.rows import Row, left_out, plain

from ..rows import summary_row


@dataclass(frozen=True)
class Example(Row):
    name: str
    bits: float | None
    channels: tuple[int, ...] = ()
    pairs: int | None = None


def test_a_figure_that_a_row_has_not_is_left_out_and_one_that_is_unknown_is_none():
    rows = [Example("a", None), Example("b", math.inf, (1, 2), 0), Example("c", 2.5)]
    assert plain(rows) == [
        {"name": "a", "bits": None, "channels": []},
        {"name": "b", "bits": None, "channels": [1, 2], "pairs": 0},
        {"name": "c", "bits": 2.5, "channels": []},
    ]


def test_measures_stand_beside_what_they_are_of():
    row = ErrorRow("int4", {"key_error": 0.5, "key_sqnr": math.inf}, layer=3)
    assert row.plain() == {"scheme": "int4", "layer": 3, "key_error": 0.5, "key_sqnr": None}


def test_a_summary_keeps_its_fields():
    """Programs read them: they are what `kvdelta show --format json` has printed from the start."""
    values = summary_row("int4", bits=4.25, ppl=7.0).plain()
    assert list(values)[:6] == ["scheme", "name", "note", "evicts", "error", "ppl"]
    assert list(values)[-5:] == ["value_coverage", "coverage", "within_noise", "audit", "skewed"]
    assert (values["bits"], values["error"], values["delta_nll"]) == (4.25, None, None)
    json.dumps(values, allow_nan=False)


def test_rows_do_not_change():
    with pytest.raises(FrozenInstanceError):
        summary_row().bits = 3.0


def test_what_is_left_out_is_named_by_reason():
    refused = {"a": "failed", "b": "cache not read", "c": "failed"}
    assert left_out(refused) == "left out (failed): a, c; left out (cache not read): b"
    assert left_out({str(i): "failed" for i in range(8)}) == "left out (failed): 0, 1, 2, 3, 4 and 3 more"
    assert left_out({}) == ""
