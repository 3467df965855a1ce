"""A file of the user's own: what is fed, and each bad line by its number and field."""

import json

import pytest

from kvdelta.harness.tasks.given import given_samples
from kvdelta.harness.tasks.task_file import read_task_file

GOOD = {"context": "The cat is red. The dog is blue.", "question": "The dog is", "answer": "blue"}


@pytest.fixture
def written(tmp_path):
    def write(*rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": "a"}, 'mine.jsonl, line 3: the field "context" is missing; give {"context"'),
        ({"context": "c", "answer": "a"}, 'line 3: the field "question" is missing'),
        ({"context": "c", "question": "q"}, 'line 3: the field "answer" is missing'),
        ({"context": "c", "question": " ", "answer": "a"}, 'line 3: the field "question" is empty'),
        ({"context": 3, "question": "q", "answer": "a"}, 'line 3: the field "context" is no text'),
        ({"context": "c", "question": "q", "answers": []}, 'line 3: the field "answers" is empty'),
        ({"context": "c", "question": "q", "answers": ["a", 2]}, 'line 3: the field "answers" is no text'),
        ({"context": "c", "question": "q", "answer": "a", "task": 1}, 'line 3: the field "task" is no text'),
        ("[1]", "line 3 is no JSON object"),
        ("{", "line 3 is no JSON: "),
    ],
)
def test_a_bad_line_is_named(written, refused, row, message):
    with refused(message.replace("{", r"\{")):
        read_task_file(written(GOOD, "", row))


def test_a_sample_that_stands_twice_is_no_more_evidence(written, refused):
    with refused(r"mine.jsonl, line 4 is the sample of line 1 again, .*; delete one of them"):
        read_task_file(written(GOOD, {**GOOD, "question": "The cat is"}, "", GOOD))
    with refused("line 2 is the sample of line 1 again"):
        read_task_file(written(GOOD, {**GOOD, "answers": ["blue"], "answer": "unread"}))
    assert len(read_task_file(written(GOOD, {**GOOD, "answer": "red"}, {**GOOD, "task": "of another table"}))[0]) == 3


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_lines_end_where_those_of_json_do(tmp_path, character):
    path = tmp_path / "mine.jsonl"
    rows = [{**GOOD, "context": f"{i}{character}red"} for i in range(2)]
    path.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert [(number, row["context"]) for number, row in read_task_file(str(path))[0]] == [
        (1, f"0{character}red"),
        (2, f"1{character}red"),
    ]


def test_no_file_and_no_line(written, tmp_path, refused):
    with refused("there is no task file .*gone.jsonl; give .* on each line"):
        read_task_file(str(tmp_path / "gone.jsonl"))
    with refused("the task file .* is a folder; give .* on each line"):
        read_task_file(str(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b"\xe9")
    with refused("the task file .*latin.jsonl cannot be read as UTF-8 text: "):
        read_task_file(str(tmp_path / "latin.jsonl"))
    with refused(r"mine.jsonl has no line"):
        read_task_file(written("", " "))


def test_what_is_fed_is_context_question_and_answer_with_a_space_between(written, tokenizer):
    several = {"context": "c", "question": "Which? ", "answers": ["red", "blue"], "task": "colours"}
    spaced = {**GOOD, "question": "The dog is:\n"}
    (one, two, three), _ = given_samples(written(GOOD, several, spaced), tokenizer, None, None)
    assert tokenizer.decode([*one.context, *one.question, *one.answer]) == f"{GOOD['context']}The dog is blue"
    assert (one.task, one.length, one.number, tokenizer.decode(list(one.answer))) == ("mine", 0, 0, " blue")
    assert tokenizer.decode(list(two.question)) == "Which?"
    assert tokenizer.decode(list(two.answer)) == " red, blue"
    assert [tokenizer.decode(list(two.answer[a:b])) for a, b in two.spans] == [" red", ", blue"]
    assert (two.task, two.number, three.number) == ("colours", 0, 1)
    assert tokenizer.decode(list(three.answer)) == "blue"  # behind a newline there is no space


def test_bos_positions_and_vocabulary(written, tokenizer, files, refused):
    (one,), _ = given_samples(written(GOOD), tokenizer, 9, 10_000)
    assert one.context[0] == 9
    total = len(one.context) + len(one.question) + len(one.answer)
    given_samples(written(GOOD), tokenizer, 9, total)
    with refused(f"mine.jsonl, line 1 has {total} tokens, the model has {total - 1} positions; give a shorter context"):
        given_samples(written(GOOD), tokenizer, 9, total - 1)
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(files / "model")
    known = {"context": "w1 w2", "question": "w3", "answer": "w4"}
    with refused("mine.jsonl, line 2: the answer 'blue' is not in the vocabulary"):
        given_samples(written(known, {**known, "answer": "blue"}), words, None, None)
