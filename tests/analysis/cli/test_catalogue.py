"""The list of schemes is the registry's."""

import pytest

from analysis.cli.catalogue import catalogue, detail
from schemes import SCHEMES
from schemes.registry import fields_of


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
    for part in (family.summary, family.formula, family.good, family.fails, family.source):
        assert " ".join(part.split()) in flat
    assert all(f"  {field}=" in text for field in fields_of(family))
    assert "bits K / V" in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.usefixtures("measured_once")
def test_detail_of_a_short_name_and_of_none():
    assert detail("kivi2") == detail("kivi")
    assert "64 channels 2.50 / 2.62" in detail("kvarn")
    with pytest.raises(ValueError, match="no scheme 'kvarm'; did you mean 'kvarn'"):
        detail("kvarm")
