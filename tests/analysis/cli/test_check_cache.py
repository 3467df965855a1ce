"""`kvdelta check-cache`: a table, reasons, json, and how it ends."""

import csv
import json

import pytest
from packaging.version import Version
from transformers import __version__

from kvdelta.analysis.cli.ending import ROW_FAILED, USER_ERROR

CACHES = """
from transformers import DynamicCache

class Uncropped(DynamicCache):
    def crop(self, tokens_to_remove):
        print("left as it is")

class Left(DynamicCache):
    def crop(self, tokens_to_remove):
        raise SystemExit(0)

def uncropped(config, sure=True): return Uncropped(config=config)
def left(config): return Left(config=config)
"""

# before 5.23 a DynamicCache that was reset still holds zeros, and their length
IN_DYNAMIC_CACHE = {"reset", "memory held"} if Version(__version__) < Version("5.23") else set()


@pytest.fixture
def caches(tmp_path):
    (tmp_path / "my_caches.py").write_text(CACHES)


def test_ours_passes(kvdelta):
    code, out, err = kvdelta("check-cache", "int8")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["check", "outcome", "why"]
    assert lines[1].split() == ["length", "pass"]
    assert all(line[32:].startswith("pass") for line in lines[1:])
    assert f"int8: {len(lines) - 1} pass, in" in err


def test_several_stand_beside_each_other(kvdelta, caches):
    """A cache that prints, or leaves, ends nothing."""
    code, out, err = kvdelta("check-cache", "my_caches:uncropped(sure=False)", "my_caches:left", "--format", "md")
    assert code == ROW_FAILED
    assert "| check | my\\_caches:uncropped(sure=False) | my\\_caches:left |" in out.replace("my_caches", "my\\_caches")
    assert "| length | pass | pass |" in out
    assert "| crop | fail | fail |" in out
    assert "crop (my" in out
    assert ": fail: length after crop(-7) of 196 tokens: expected 189, got 196 (layer 0)" in out
    assert ": fail: raises SystemExit: 0" in out
    assert "left as it is" not in out
    assert "left as it is" in err


@pytest.mark.parametrize("format", ["json", "csv"])
def test_for_programs(kvdelta, caches, format):
    code, out, _ = kvdelta("check-cache", "my_caches:uncropped", "--format", format)
    assert code == ROW_FAILED
    rows = json.loads(out) if format == "json" else list(csv.DictReader(out.splitlines()))
    assert list(rows[0]) == ["cache", "check", "owed", "outcome", "why"]
    assert rows[0]["owed"].startswith("get_seq_length")
    assert {row["cache"] for row in rows} == {"my_caches:uncropped"}
    broken = {row["check"] for row in rows if row["outcome"] != "pass"}
    assert broken - IN_DYNAMIC_CACHE == {"crop", "prompt lookup", "assisted decoding"}


@pytest.mark.parametrize("name", ["nope:make", "int5", "builtins:str", "my_caches:left(1)"])
def test_bad_input_is_one_line(kvdelta, caches, name):
    code, out, err = kvdelta("check-cache", "int8", name)
    assert (code, out) == (USER_ERROR, "")
    assert len(err.splitlines()) == 1
    assert "--cache" not in err
