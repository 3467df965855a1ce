"""What was made from a text is not scored on it unasked: calibrations, maps, texts within texts, records of old."""

from dataclasses import replace

import pytest
import torch

from kvdelta.harness.caches.contenders import Contender, SchemeContender
from kvdelta.harness.leaks import check_calibrations, seen_text
from kvdelta.harness.options import Options
from kvdelta.harness.subject.model import LoadedModel
from kvdelta.harness.subject.prepared import Subject
from kvdelta.harness.subject.text import Text, token_sha256
from kvdelta.harness.subject.windows import cut_windows
from kvdelta.schemes import Scheme, parse_scheme
from kvdelta.schemes.errors import UserError

IDS = torch.randint(1, 127, (1000,), generator=torch.Generator().manual_seed(5))
OTHER = torch.randint(1, 127, (1000,), generator=torch.Generator().manual_seed(6))
SIZES = {"window_length": 128, "score_length": 32}
OPTIONS = Options(**SIZES)


def a_text(ids, name="text.txt", sha256="1" * 64, chosen=None):
    """A subject whose windows are those of `chosen` positions in the grid, or all."""
    grid = cut_windows(ids, windows=None, **SIZES)
    windows = grid if chosen is None else [grid[i] for i in chosen]
    no_model = LoadedModel(None, None, "none", {})
    return Subject(no_model, Text(name, "", {"kind": "file", "sha256": sha256}), ids, windows, None)


class Calibrated(Contender):
    label = name = "kvquant"
    lossless = foreign = mixes_rows = False
    calibrated_for = calibrated_on = ()


def contender(*texts):
    calibrated = Calibrated()
    calibrated.calibrated_on = texts
    return calibrated


SEEN = seen_text(a_text(IDS, "train.txt", chosen=[0, 8]))  # tokens 0…128 and 256…384
OLD = {"name": "train.txt", "sha256": "1" * 64, "token_sha256": token_sha256(IDS)}


def test_what_is_kept():
    assert OLD | {"runs": SEEN["runs"]} == SEEN
    assert [len(run) for run in SEEN["runs"].split()] == [16] * 4


@pytest.mark.parametrize(
    ("scored", "shared"),
    [
        (a_text(IDS, chosen=[0]), 2),
        (a_text(IDS, chosen=[3, 20]), 1),  # 96…224: the second run of the first window
        (a_text(IDS), 4),
        (a_text(torch.cat([OTHER[:77], IDS, OTHER]), "longer.txt", "2" * 64), 4),
        (a_text(torch.cat([OTHER, IDS[256:400]]), "with a part.txt", "2" * 64), 2),
    ],
)
def test_windows_that_hold_what_was_seen_are_refused(scored, shared, refused):
    message = rf"kvquant has seen this text \(train.txt; {shared} of the 4 runs of 64 tokens .+--same-text"
    with refused(message):
        check_calibrations([contender(), contender(SEEN)], OPTIONS, scored)
    check_calibrations([contender(SEEN)], replace(OPTIONS, same_text=True), scored)


@pytest.mark.parametrize("chosen", [[4], [12], [4, 12, 20]])
def test_other_windows_of_the_text_are_not(chosen):
    check_calibrations([contender(SEEN, SEEN)], OPTIONS, a_text(IDS, chosen=chosen))


def test_another_text_is_not():
    check_calibrations([contender(SEEN), contender(OLD)], OPTIONS, a_text(OTHER, "other.txt", "2" * 64))


@pytest.mark.parametrize("scored", [a_text(IDS, chosen=[20], sha256="3" * 64), a_text(OTHER, chosen=[20])])
def test_without_runs_the_whole_text_is_refused(scored, refused):
    """By its tokens, or by its words."""
    with refused(r"has seen this text \(train.txt; all of it\)"):
        check_calibrations([contender(OLD)], OPTIONS, scored)


def test_the_same_words_in_other_tokens_are_refused(refused):
    """Another tokenizer cuts them otherwise, so runs cannot be compared."""
    with refused(r"has seen this text \(train.txt; all of it\)"):
        check_calibrations([contender(SEEN)], OPTIONS, a_text(OTHER, chosen=[20]))


def test_texts_without_a_hash_are_told_by_their_tokens():
    check_calibrations([contender(OLD | {"sha256": ""})], OPTIONS, a_text(OTHER, sha256=""))


@pytest.mark.parametrize(
    ("made_for", "source", "why"),
    [
        ({"kind": "folder", "id": "a", "sha256": "1"}, {"kind": "folder", "id": "b", "sha256": "1"}, ""),
        ({"kind": "folder", "id": "a", "sha256": "1"}, {"kind": "folder", "id": "a", "sha256": "2"}, "its sha256 is 1"),
        ({"kind": "hub", "id": "a/b", "revision": "1"}, {"kind": "hub", "id": "a/c", "revision": "1"}, "its id is a/b"),
        ({"kind": "hub", "id": "a/b", "architecture": "X"}, {"kind": "folder", "id": "b", "architecture": "X"}, ""),
        ({"kind": "hub", "id": "a/b", "architecture": "X"}, {"kind": "folder", "id": "b", "architecture": "Y"}, "X"),
    ],
)
def test_a_calibration_is_of_one_model(made_for, source, why):
    class Made(Scheme):
        calibrated_for = property(lambda self: [made_for])
        calibrated_on = property(lambda self: [])

    exact = parse_scheme("exact")
    made = SchemeContender("kvquant", Made("kvquant", exact.key, exact.value))
    subject = replace(a_text(IDS), loaded=LoadedModel(None, None, "none", source))
    if not why:
        check_calibrations([made], OPTIONS, subject)
        return
    with pytest.raises(UserError, match=f"scheme kvquant was calibrated on another model, .*{why}.*kvdelta calibrate"):
        check_calibrations([made], OPTIONS, subject)
