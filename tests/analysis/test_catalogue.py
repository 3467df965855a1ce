"""The list of schemes is the registry's."""

from analysis.catalogue import catalogue
from schemes import SCHEMES


def test_every_family_has_a_row():
    header, body = catalogue()
    assert [row[0] for row in body] == list(SCHEMES)
    assert all(len(row) == len(header) and all(row) for row in body)


def test_measured_bits():
    """4 + 16/64 symmetric, 4 + 32/64 asymmetric; KIVI 4 + 32/32, its values with 128 of 4096 tokens exact."""
    bits = {row[0]: row[4] for row in catalogue()[1]}
    assert bits["exact"] == "16.00 / 16.00"
    assert bits["symmetric"] == "4.25 / 4.25"
    assert bits["asymmetric"] == "4.50 / 4.50"
    assert bits["kivi"] == f"5.00 / {(16 * 128 + 5 * 3968) / 4096:.2f}"
