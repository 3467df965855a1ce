"""What finds figures and compares them can tell a wrong one."""

import pytest

from tests.docs.claiming import Claim, Unchecked, unclaimed
from tests.docs.markdown import one_line
from tests.docs.printed import agrees, differences, numbers_in


@pytest.mark.parametrize(
    ("text", "value"),
    [("6.9", 6.947), ("+0.0255", 0.02546), ("−0.0055", -0.00551), ("11,435", 11435), ("<0.0001", 4e-5), ("Eleven", 11), ("2.5", 2.45), ("2.5", 2.55), ("1.0", 0.9501)],
)  # fmt: skip
def test_as_it_is_printed(text, value):
    assert agrees(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7.0", 6.947), ("+0.0255", -0.0255), ("0.0055", 0.0056), ("11,435", 11436), ("<0.0001", 1.1e-4), ("Eleven", 12), ("0.10", 0.11), ("0", float("nan"))],
)  # fmt: skip
def test_otherwise(text, value):
    assert not agrees(text, value)


def test_numbers_of_a_cell():
    assert numbers_in("**+0.940** [−0.1, 1.2] · <0.0001, 5.95–5.97") == [
        "+0.940",
        "−0.1",
        "1.2",
        "<0.0001",
        "5.95",
        "5.97",
    ]
    assert differences(["1.0"], [1.0, 2.0])
    assert differences(["1.0", "2.0"], [1.0, 2.1]) == ["2.0 is 2.1"]


def test_a_claim_is_found_by_its_words_over_lines_and_links():
    page = one_line("so *it* costs\n**0.12** [0.1, 0.2] in three cells\n([record](../results/a))")
    found = Claim("costs {} [{}, {}] in {} cells ([record])", lambda: []).find(page)
    assert [place.groups() for place in found] == [("0.12", "0.1", "0.2", "three")]
    assert Claim("costs {} in", lambda: []).find(page) == []


def test_a_number_that_nothing_claims_is_named():
    page = "with 4 bits it loses 0.12 nats, and 0.34 after 20 s, in steps of 16 of Qwen2.5"
    claims, unchecked = [Claim("loses {} nats", lambda: [])], [Unchecked("after 20 s", "")]
    (named,) = unclaimed(page, claims, unchecked)
    assert "nats, and 0.34 after" in named
    assert unclaimed(page.replace("0.34", "more"), claims, unchecked) == []
