"""What a race and its verification say, from losses that are given."""

import numpy as np
import pytest

from kvdelta.analysis.reading.racing import Standing
from kvdelta.analysis.reading.recommending import VerifiedRow, against, race_rows, race_table
from kvdelta.analysis.reading.verifying import Verified, decide, sentences, t_interval, told_apart

KIVI = "kivi:bits=3"


def verified(scheme, means, bits=4.0, spread=0.01, windows=12, seed=0):
    """Losses [models, windows] around means, one a model."""
    rng = np.random.default_rng([seed, *map(ord, scheme)])
    losses = np.reshape(means, (-1, 1)) + rng.normal(0, spread, (len(means), windows))
    return Verified(scheme, bits, losses, losses + 0.1)


def said(rows, chosen=0, budget=4.5, unverified=(), models=("a",)):
    return "\n".join(sentences(rows, chosen, KIVI, budget, "KL", 16, models, unverified))


def test_the_winner_against_kivi():
    rows = [verified("x", [0.1]), verified(KIVI, [0.5])]
    assert decide(rows, 4.5) == 0
    text = said(rows)
    assert "Within 4.5 bits: x (4.00 bits)." in text
    assert "Uniform KIVI (kivi:bits=3, 4.00 bits) loses more: KL +0.39" in text
    assert "perplexity × 1.22" in text  # exp(0.2004)
    assert "Every other candidate that ran was shown to lose more." in text


def test_no_difference():
    rows = [
        verified("x", [0.1], spread=0.2),
        verified("y", [0.12], 3.0, spread=0.2),
        verified(KIVI, [0.13], spread=0.2),
    ]
    assert told_apart(rows, 0) == [False, False, False]
    text = said(rows, unverified=["z"])
    assert "No difference from uniform KIVI (kivi:bits=3, 4.00 bits): KL " in text
    assert "No difference on fresh windows from y (3.00 bits)." in text
    assert "Nor did the race tell it from z, which were not verified." in text
    assert "Every other" not in text


def test_the_last_sentence_is_said_only_where_it_is_true():
    last = "Every other candidate that ran was shown to lose more."
    assert last in said([verified("x", [0.1]), verified("y", [0.5])])
    near = [verified("x", [0.1], spread=0.2), verified(KIVI, [0.11], spread=0.2)]
    assert "No difference from uniform KIVI" in said(near)
    assert last not in said(near)
    assert last not in said([verified("x", [0.1])])
    text = "\n".join(
        sentences([verified("x", [0.1])], 0, KIVI, 4.5, "KL", 16, ["a"], [], ["y: it raised", "z: so did it"])
    )
    assert "Not judged, since it failed: y: it raised; and 1 more." in text


def test_what_is_too_large_is_never_recommended():
    assert decide([verified(KIVI, [0.1], 2.75)], 2.2) is None
    assert decide([verified("large", [0.1], 6.0), verified("x", [0.5])], 4.5) == 1


def test_fresh_windows_may_take_the_win_away_but_not_for_what_is_too_large():
    rows = [verified("x", [0.5]), verified("y", [0.1]), verified("large", [0.01], bits=6.0), verified(KIVI, [0.9])]
    assert decide(rows, 4.5) == 1
    text = said(rows, 1)
    assert "x won the race, and lost to it on fresh windows." in text
    assert decide([rows[0], rows[2]], 4.5) == 0
    assert decide([rows[0], rows[3]], 4.5) == 0


def test_what_is_smaller_says_what_it_loses_more():
    text = said(
        [verified("x", [0.1]), verified("y", [0.2], 3.5), verified("z", [0.3], 4.2), verified(KIVI, [0.5], 3.0)]
    )
    assert "Smaller: y (3.50 bits) loses more: KL +0.1031" in text
    assert "z (4.20" not in text


def test_kivi_may_win():
    rows = [verified("x", [0.5]), verified(KIVI, [0.1])]
    assert decide(rows, 4.5) == 1
    assert "That is uniform KIVI itself" in said(rows, 1)


def test_kivi_beyond_the_budget_is_called_so():
    text = said([verified("x", [0.5], 2.0), verified(KIVI, [0.9], 2.75)], budget=2.2)
    assert "(kivi:bits=3, 2.75 bits, the smallest that there is) loses more" in text


def test_over_two_models_each_has_its_cost():
    rows = [verified("x", [0.1, 0.3]), verified("y", [0.05, 0.6]), verified(KIVI, [0.9, 0.9])]
    assert decide(rows, 4.5) == 0  # y is better in one model, and its worst is worse
    text = said(rows, models=("a", "b"))
    assert "It costs on a: KL " in text
    assert "It costs on b: KL " in text
    assert told_apart(rows, 0) == [False, True, True]


def test_t_intervals():
    x = np.array([1.0, 2.0, 3.0, 6.0])
    mean, low, high = t_interval(x)
    assert (mean, low, high) == pytest.approx((3.0, 3 - 3.1824 * 1.0801, 3 + 3.1824 * 1.0801), abs=1e-3)
    assert t_interval(x, 4)[1] < low
    assert t_interval(x[:1])[1:] == (-np.inf, np.inf)


def test_rows_of_the_race():
    """Left first, then who ran longest; the front is what nothing of no more bits beat."""
    rng = np.random.default_rng(0)

    def standing(mean, windows, lost_to=()):
        return Standing(rng.normal(mean, 0.01, (1, windows)), lost_to)

    standings = [
        standing(3, 4, (1,)),
        standing(1, 16),
        standing(2, 4, (1,)),
        Standing(np.full((1, 4), np.nan), failed=True),
    ]
    agreement = [[(90.0 + s, s / 10)] for s in range(4)]
    rows = race_rows(
        ["a", "b", "c", "d"],
        [4.0, 4.5, 4.5, 4.0],
        [0.3, 0.1, 0.2, 0.4],
        standings,
        ["", "", "", "it raised"],
        ["m"],
        agreement,
    )
    assert [row.scheme for row in rows] == ["b", "c", "a", "d"]
    assert [row.front for row in rows] == [True, False, True, False]
    assert rows[2].lost_to == ("b",)
    assert rows[3].refused == "it raised"
    _, body = race_table(rows, "KL")
    assert [line[0] for line in body] == ["1. b", "2. c", "3. a", "4. d"]
    assert [line[7] for line in body] == ["–", "1", "1", "–"]
    assert [line[5:7] for line in body] == [["0.10", "91.0"], ["0.20", "92.0"], ["0", "90.0"], ["–", "–"]]
    assert body[3][4] == "it raised"


def test_differences_are_those_of_the_protocol_that_decides():
    mine, other = verified("x", [0.1]), verified("y", [0.4])
    nan = float("nan")
    rows = [
        VerifiedRow(scheme, 4.0, "", "m", protocol, 12, *[nan] * 9)
        for scheme in ("y", "x")
        for protocol in ("two-pass", "stepwise (step 16)")
    ]
    found = against(rows, [mine, other], 0)
    assert [row.scheme for row in found] == ["x", "x", "y", "y"]
    assert [np.isnan(row.more) for row in found] == [True, True, True, False]
    assert found[3].more_low < 0.3 < found[3].more_high
