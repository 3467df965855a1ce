"""The list of schemes is the registry's."""

import json

import pytest

from kvdelta.analysis.cli.catalogue import catalogue, detail, engine_names, listing
from kvdelta.schemes import SCHEMES, parse_scheme
from kvdelta.schemes.engines import ENGINES
from kvdelta.schemes.registry import fields_of


@pytest.mark.usefixtures("measured_once")
def test_every_family_has_a_row():
    header, body = catalogue()
    assert [row[0].removesuffix("(…)") for row in body] == list(SCHEMES)
    assert all(len(row) == len(header) and all(row) for row in body)


def test_measured_bits():
    """4 + 16/64 symmetric, 4 + 32/64 asymmetric; KIVI 4 + 32/32, its values with 128 of 4096 tokens exact."""
    bits = {row[0]: row[4] for row in catalogue()[1]}
    assert bits["exact"] == "16.00 / 16.00"
    assert bits["symmetric"] == "4.25 / 4.25"
    assert bits["asymmetric"] == "4.50 / 4.50"
    assert bits["kivi"] == f"5.00 / {(16 * 128 + 5 * 3968) / 4096:.2f}"


@pytest.mark.usefixtures("measured_once")
@pytest.mark.parametrize("name", list(SCHEMES))
def test_detail_explains_a_scheme(name):
    """Formula, source, every field, effective bits, when it is good, when it fails; lines that fit a terminal."""
    family, text = SCHEMES[name], detail(name)
    flat = " ".join(text.split())
    for part in (family.summary, family.formula, family.good, family.fails, family.source, family.compared):
        assert " ".join(part.split()) in flat
    assert family.compared
    assert all(f"  {field}=" in text for field in fields_of(family))
    assert "bits K / V" in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.usefixtures("measured_once")
def test_detail_of_a_short_name_and_of_none():
    assert detail("kivi2") == detail("kivi")
    assert "64 channels 2.50 / 2.62" in detail("kvarn")
    with pytest.raises(ValueError, match="no scheme 'kvarm'; did you mean 'kvarn'"):
        detail("kvarm")


@pytest.mark.usefixtures("measured_once")
@pytest.mark.parametrize("engine", list(ENGINES))
def test_names_of_an_engine(engine):
    """Name, spec, bits, flags and what departs, of each; the list of schemes says which engines there are."""
    rows = json.loads(engine_names(engine, "json"))
    assert {row["scheme"]: (row["spec"], row["flags"]) for row in rows if row["spec"] != "none"} == {
        f"{engine}/{name}": (preset.spec, preset.flags or "–") for name, preset in ENGINES[engine].items()
    }
    assert not any(row["departs"].startswith("-") for row in rows)
    assert all(all(row.values()) for row in rows)
    assert all(row["scheme"] in engine_names(engine, "table") for row in rows)
    assert engine in listing("table")


def test_what_is_left_out_says_why():
    *_, row = json.loads(engine_names("tensorrt-llm", "json"))
    assert (row["scheme"], row["spec"]) == ("tensorrt-llm/int8", "none")
    assert "one calibrated scale for the queries, keys and values" in row["departs"]
    with pytest.raises(ValueError, match="tensorrt-llm/int8 is left out: one calibrated scale"):
        parse_scheme("tensorrt-llm/int8")


def test_bits_of_an_engine_and_no_such_engine():
    bits = {row["scheme"]: row["bits K / V"] for row in json.loads(engine_names("vllm", "json"))}
    assert bits["vllm/turboquant_k8v4"] == "8.00 / 4.50"
    with pytest.raises(ValueError, match="no engine 'vlm'; did you mean 'vllm'"):
        engine_names("vlm", "table")
