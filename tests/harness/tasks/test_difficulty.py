"""The search ends at a level that exact does often and not always, or says why there is none."""

import itertools

import pytest

from kvdelta.harness.records.tasks import Try
from kvdelta.harness.subject.text import load_text
from kvdelta.harness.tasks.difficulty import attempt, judged, search
from kvdelta.harness.tasks.haystack import Haystack
from kvdelta.harness.tasks.samples import Maker


def tried(level, match, nll=1.0, chance=3.0):
    return Try(level=level, said=f"level {level}", samples=8, match=match, nll=nll, chance=chance)


@pytest.mark.parametrize(
    ("match", "chance", "verdict"),
    [(8, 9.0, "easy"), (7, 9.0, "right"), (2, 9.0, "right"), (1, 9.0, "hard"), (4, 0.6931471805599453, "hard"), (5, 0.6931471805599453, "right")],
)  # fmt: skip
def test_what_guessing_gives_is_no_match(match, chance, verdict):
    assert judged(tried(1, match, chance=chance)) == verdict


@pytest.mark.parametrize("matches", list(itertools.product((0, 4, 8), repeat=3)))
def test_the_search_ends_with_a_right_level_where_falling_matches_have_one(matches):
    asked, notes = [], []

    def attempted(level):
        asked.append(level)
        return tried(level, matches[level - 1])

    cell = search("kv", 512, [1, 2, 3], attempted, notes.append)
    assert len(set(asked)) == len(asked) <= 2  # bisection
    assert cell.tries == [tried(level, matches[level - 1]) for level in asked]
    assert len(notes) == 1
    if list(matches) == sorted(matches, reverse=True) and 4 in matches:
        assert matches[cell.level - 1] == 4
    elif not cell.cannot:
        assert cell.level in asked


def test_without_a_right_level():
    easy = search("kv", 512, [1, 2, 3], lambda level: tried(level, 8), print)
    assert (easy.level, easy.cannot) == (3, False)
    assert "NLL tells schemes apart" in easy.verdict
    seldom = search("kv", 512, [1, 2, 3], lambda level: tried(level, 0, nll=2.4), print)
    assert (seldom.level, seldom.cannot) == (1, False)
    assert "guessing 3.0" in seldom.verdict
    cannot = search("kv", 512, [1, 2, 3], lambda level: tried(level, 0, nll=2.6), print)
    assert (cannot.level, cannot.cannot) == (None, True)
    assert cannot.verdict == (
        "the model cannot: exact matches 0 of 8, NLL 2.60 an answer at its easiest, where guessing has 3.0"
    )


def test_a_random_model_cannot(loaded, story):
    maker = Maker(loaded.tokenizer, None, Haystack.of(load_text(str(story)), loaded.tokenizer), 0)
    one = attempt(loaded.model, maker, "niah-multikey", 600, [0.0, 1.0], 1)
    assert (one.level, one.said, one.samples, one.match) == (1, "keys 4, digits 4", 2, 0)
    assert one.nll > one.chance == pytest.approx(1.386294)
