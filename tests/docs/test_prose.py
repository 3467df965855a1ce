"""Every figure in the sentences of README.md and docs/ is the one that the records give, to the digits that are printed.

A claim is found by its words, wherever they stand; one that is found nowhere fails: the sentence was changed, adapt it. Of the pages
below each number must be part of a claim, be a setting, or be listed with the reason why no record has it.
"""

import importlib

import pytest

from tests.docs.claiming import Claim, Unchecked, unclaimed, values_of
from tests.docs.markdown import prose, sentences
from tests.docs.printed import differences

MODULE_NAMES = ("findings", "order", "elsewhere", "decoding", "choosing", "explaining", "engines", "others")
MODULES = [importlib.import_module(f"tests.docs.claims.{name}") for name in MODULE_NAMES]
CLAIMS: list[Claim] = [claim for module in MODULES for claim in module.CLAIMS]
GUARDED = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "findings",
            "two-passes",
            "choosing",
            "explaining",
            "comparing",
            "engines",
            "limits",
            "traps",
            "reading-a-table",
        )
    ),
)
UNCHECKED: list[Unchecked] = [one for module in MODULES for one in module.UNCHECKED]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[:60])
def test_a_claim_is_what_the_records_say(claim):
    found = {page: claim.find(text) for page, text in sentences().items()}
    assert any(found.values()), "no page says so any more; adapt the claim to the sentence, or take it out"
    values, holds = values_of(claim)
    wrong = [
        f"{page}: {one}"
        for page, places in found.items()
        for place in places
        for one in differences(place.groups(), values)
    ]
    assert wrong == []
    assert holds, "the numbers are right, and the words around them are not"


@pytest.mark.parametrize("page", GUARDED)
def test_every_number_is_claimed(page):
    assert unclaimed(prose()[page], CLAIMS, UNCHECKED) == []


@pytest.mark.parametrize("one", UNCHECKED, ids=lambda one: one.text[:60])
def test_what_is_unchecked_is_there(one):
    assert any(one.text in text for text in prose().values()), "no page says so any more; take it out"
