"""What samples are: of their seed alone, as long as asked for, with what is asked for where it says, and answerable from the context."""

import random
import re

import pytest

from kvdelta.harness.subject.text import load_text
from kvdelta.harness.tasks.drafts import TASKS
from kvdelta.harness.tasks.haystack import Haystack
from kvdelta.harness.tasks.levels import LADDERS
from kvdelta.harness.tasks.samples import Maker, NoRoom, check_known

EVERY = [(task, i) for task, ladder in LADDERS.items() for i in range(len(ladder))]
LENGTH = 1200


@pytest.fixture(scope="module")
def maker(tokenizer, story):
    return Maker(tokenizer, None, Haystack.of(load_text(str(story)), tokenizer), 7)


def text_of(maker, ids):
    return maker.tokenizer.decode(list(ids))


@pytest.mark.parametrize(("task", "level"), EVERY)
def test_a_sample_is_of_its_seed_and_fills_its_length(maker, task, level):
    values = LADDERS[task][level]
    one = maker.sample(task, values, LENGTH, 3, 0.5)
    assert one == maker.sample(task, values, LENGTH, 3, 0.5)
    assert one.sha256 != maker.sample(task, values, LENGTH, 4, 0.5).sha256
    assert one.sha256 != maker.sample(task, values, LENGTH, 3, 0.5, searching=True).sha256
    hidden = TASKS[task](random.Random(0), values, 0.5, 8).places is not None
    assert (
        len(one.context) == LENGTH if hidden else LENGTH - 120 < len(one.context) <= LENGTH
    )  # a line more would not fit
    assert [token for a, b in one.spans for token in one.answer[a:b]] == list(one.answer)
    assert 0 < one.chance < 1


@pytest.mark.parametrize(("task", "level"), EVERY)
def test_no_two_samples_share_a_context(maker, task, level):
    """They are the units of the intervals; those that a level is sought with are others too."""
    made = [
        maker.sample(task, LADDERS[task][level], LENGTH, number, 0.5, searching=searching)
        for number in range(8)
        for searching in (False, True)
    ]
    assert len({one.context_sha256 for one in made}) == 16


@pytest.mark.parametrize(("task", "level"), EVERY)
def test_the_tokens_of_the_parts_are_those_of_the_whole(maker, task, level):
    one = maker.sample(task, LADDERS[task][level], LENGTH, 0, 1.0)
    whole = [*one.context, *one.question, *one.answer]
    assert maker.tokenizer(text_of(maker, whole), add_special_tokens=False)["input_ids"] == whole


@pytest.mark.parametrize("task", ["niah-single", "niah-multikey", "kv"])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_what_is_asked_for_lies_at_its_depth(maker, task, depth):
    for values in LADDERS[task]:
        one = maker.sample(task, values, LENGTH, 1, depth)
        context, answer = text_of(maker, one.context), text_of(maker, one.answer).strip()
        begins = context[: context.index(answer)].rfind("\n") + 1
        assert one.at == begins / len(one.context)  # a byte a token
        assert one.depth == depth
        assert abs(one.at - depth) < 0.15  # between two lines, and some room for the words before it


def test_a_needle_is_asked_for_once(maker):
    for number in range(5):
        one = maker.sample("niah-multikey", {"keys": 4, "digits": 4}, LENGTH, number, 0.3)
        key = re.search(r"number of the (.+?) is$", text_of(maker, one.question))[1]
        lines = [line for line in text_of(maker, one.context).split("\n") if f"of the {key} is" in line]
        assert lines == [f"The special number of the {key} is{text_of(maker, one.answer)}."]


@pytest.mark.parametrize("level", range(4))
def test_the_variables_follow_from_each_other(maker, level):
    one = maker.sample("vt", LADDERS["vt"][level], LENGTH, 2, 0.5)
    said = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text_of(maker, one.context)))
    value = re.search(r"value (\d+) in", text_of(maker, one.question))[1]

    def end(name):
        return name if name.isdecimal() else end(said[name])

    answers = re.findall(r"[A-Z]+(?=,|$)", text_of(maker, one.answer))
    assert sorted(answers) == sorted(name for name in said if end(name) == value)
    assert said[answers[0]] == value
    assert [said[b] for b in answers[1:]] == answers[:-1]


@pytest.mark.parametrize("task", ["cwe", "fwe"])
def test_the_most_frequent_words_are_those_of_the_answer(maker, task):
    for values in LADDERS[task]:
        one = maker.sample(task, values, LENGTH, 0, 0.5)
        words = re.findall(r"\w+", text_of(maker, one.context).partition("\n")[2])
        answers = re.findall(r"\w+", text_of(maker, one.answer))
        assert len(answers) == values["top"]
        least = min(words.count(word) for word in answers)
        assert all(words.count(word) < least for word in set(words) - set(answers))
        if task == "fwe":
            assert answers == sorted(answers, key=words.count, reverse=True)
        else:
            assert answers == sorted(answers, key=words.index)


@pytest.mark.parametrize("level", range(3))
def test_words_that_are_asked_for_are_tied_with_none(maker, level):
    """Through contexts of all sizes: there is no room, or the answer is the only right one."""
    values, told = LADDERS["fwe"][level], 0
    for many in range(1, 700):
        draft = TASKS["fwe"](random.Random(many), values, 0.0, many)
        counts = sorted(
            ((" ".join(draft.lines)).split().count(word), word) for word in set(" ".join(draft.lines).split())
        )
        counts = counts[::-1][: values["top"] + 1]
        only = len({count for count, _ in counts}) == len(counts) and [word for _, word in counts[:-1]] == [
            *draft.answers
        ]
        assert draft.tied != only
        told += draft.tied
    assert 0 < told < 350
    with pytest.raises(NoRoom, match="a context of 400 tokens has no room for it"):
        maker.sample("fwe", LADDERS["fwe"][2], 400, 0, 0.0)


def test_values_of_a_key_stand_in_the_order_of_the_answer(maker):
    one = maker.sample("niah-multivalue", {"values": 4, "digits": 7}, LENGTH, 0, 0.5)
    assert re.findall(r"is (\d{7})\.", text_of(maker, one.context)) == re.findall(r"\d+", text_of(maker, one.answer))
    assert one.depth is one.at is None
    assert one.chance == 1 / 24


def test_bos_begins_every_context(tokenizer, story):
    with_bos = Maker(tokenizer, 5, Haystack.of(load_text(str(story)), tokenizer), 7)
    for task in LADDERS:
        assert with_bos.sample(task, LADDERS[task][0], LENGTH, 0, 0.0).context[0] == 5


def test_too_little_room(maker, refused):
    with refused(r"task vt \(hops 4, chains 3\): a context of 300 tokens has no room for it; give a longer --length"):
        maker.sample("vt", LADDERS["vt"][3], 300, 0, 0.5)
    with refused("task kv .* 128 tokens has no room"):
        maker.sample("kv", LADDERS["kv"][3], 128, 0, 0.5)


def test_levels_that_have_no_room_are_not_tried(maker, refused):
    assert maker.levels("niah-multikey", LENGTH) == [1, 2, 3, 4]
    assert maker.levels("niah-multikey", 700) == [1, 3, 4]  # 16 needles and no hay
    with refused("task niah-multikey .keys 4, digits 4.: a context of 200 tokens has no room"):
        maker.levels("niah-multikey", 200)


def test_an_answer_that_is_not_in_the_vocabulary(refused, files):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(files / "model")
    check_known(words, [words.encode("w3")], ["w3"], "here")
    with refused(r"here: the answer 'blue' is not in the vocabulary of this model's tokenizer"):
        check_known(words, [words.encode("blue")], ["blue"], "here")
    with refused("the answer '' is not in"):
        check_known(words, [[]], [""], "here")


def test_a_haystack_goes_round_and_is_cut_to_a_token(maker):
    for length in (1, 20, 63, 64, 65, 500, 9000):
        for start in (0.0, 0.37, 0.999):
            assert sum(map(len, maker.haystack.cut(start, length))) == length
    assert maker.haystack.cut(0.5, 0) == []
    begun = maker.haystack.cut(0.5, 64 * 3)
    assert all(line in maker.haystack.lines for line in begun[1:])


def test_a_text_without_a_sentence(tokenizer, tmp_path, refused):
    (tmp_path / "short.txt").write_text("Short.\nLines.\n")
    with refused('the text "short.txt" has no sentence of 20 characters'):
        Haystack.of(load_text(str(tmp_path / "short.txt")), tokenizer)
