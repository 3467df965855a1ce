"""--format parquet: every figure that json has, for pandas."""

import io
import json
import sys

import pytest

from kvdelta.analysis.cli import output
from kvdelta.schemes.errors import UserError

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def test_the_rows_are_those_of_json(record_folder, monkeypatch, capsysbinary):
    from kvdelta.analysis.cli.main import main

    read = {}
    for format in ("json", "parquet"):
        monkeypatch.setattr(sys, "argv", ["kvdelta", "show", str(record_folder), "--format", format])
        with pytest.raises(SystemExit):
            main()
        read[format] = capsysbinary.readouterr().out
    rows = json.loads(read["json"])["rows"]
    table = pandas.read_parquet(io.BytesIO(read["parquet"]))
    assert table["scheme"].tolist() == [row["scheme"] for row in rows]
    numbers = [name for name in rows[0] if isinstance(rows[0][name], float)]
    assert len(numbers) > 10
    for name in numbers:
        theirs = [None if pandas.isna(value) else value for value in table[name].tolist()]
        assert theirs == [row[name] for row in rows]


def test_what_is_no_single_value_is_json():
    content = output.as_parquet([{"a": 1, "layers": [1, 2]}, {"a": 2, "layers": {"key": [3]}}])
    assert pandas.read_parquet(io.BytesIO(content))["layers"].map(json.loads).tolist() == [[1, 2], {"key": [3]}]


def test_a_terminal_is_told(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match=r"send it to a file, > rows\.parquet"):
        output.print_rows([{"a": 1}], "parquet")
