"""Files that are none, that never end or are too large, and JSON that nobody means."""

import errno
import os

import pytest

from kvdelta.schemes import given, parse_scheme
from kvdelta.schemes.errors import UserError


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "map").write_bytes(b"\0\xff" * 1000)
    assert given.read_bytes(tmp_path / "map", "map") == b"\0\xff" * 1000


def test_what_never_ends_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="pipe or a device") as refused:
            given.read_bytes(path, "map")
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(UserError, match="pipe or a device"):
        parse_scheme(f"@{tmp_path / 'pipe'}")


def test_a_file_larger_than_its_kind_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setitem(given.MOST, "map", 2**20)
    (tmp_path / "map").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(OSError, match="larger than a map can be, 1 MiB"):
        given.read_bytes(tmp_path / "map", "map")
    assert len(given.read_bytes(tmp_path / "map", "text")) == 2**20 + 1


@pytest.mark.parametrize(
    ("content", "why"),
    [("[" * 100_000, "nested too deep"), ('{"a": 1, "b": {"c": 1, "c": 2}}', '"c" stands twice'), ("{", "Expecting")],
)
def test_json_that_nobody_means(tmp_path, content, why):
    with pytest.raises(ValueError, match=why):
        given.parse_json(content)
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError, match=why):
        parse_scheme(f"@{tmp_path / 'map.json'}")
