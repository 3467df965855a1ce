"""Every figure in the sentences of README.md and docs/ is the one that the records give, to the digits that are printed.

A claim is found by its words, wherever they stand; one that is found nowhere fails: the sentence was changed, adapt it. Each
number must be part of a claim, be a setting, or be listed with the reason why no record has it.
"""

import importlib

import pytest

from tests.docs.claiming import Claim, Unchecked, unclaimed, values_of
from tests.docs.markdown import pages, prose, sentences
from tests.docs.printed import differences

MODULE_NAMES = (
    "findings",
    "order",
    "elsewhere",
    "decoding",
    "choosing",
    "explaining",
    "engines",
    "lm_eval",
    "tasks",
    "others",
)
MODULES = [importlib.import_module(f"tests.docs.claims.{name}") for name in MODULE_NAMES]
CLAIMS: list[Claim] = [claim for module in MODULES for claim in module.CLAIMS]
BY_HAND = {
    "docs/testing.md": "counts of mutants and of tests on a device, with commit, seed and commands",
}
"""Pages whose numbers no record has."""
GUARDED = [page for page in pages() if page not in BY_HAND]
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
