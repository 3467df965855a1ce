"""The records that the README cites are as they were written."""

from pathlib import Path

from kvdelta.harness.records.verify import verify

RESULTS = Path(__file__).parents[1] / "results"


def test_every_record_is_whole():
    found = list(verify(RESULTS))
    assert len(found) > 90
    assert [one.file for one in found if one.damage or not one.hashed] == []
