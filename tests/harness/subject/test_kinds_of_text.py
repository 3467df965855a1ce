"""Code and chats as texts."""

import json
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from kvdelta.harness.subject import code
from kvdelta.harness.subject.errors import TextError
from kvdelta.harness.subject.text import load_text, tokenize

CHATS = [
    [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}],
    [{"role": "user", "content": "w4"}],
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {{ date_string }} ; {% endfor %}"


@pytest.fixture
def tokenizer(files):
    return PreTrainedTokenizerFast.from_pretrained(files / "model")


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n\n".join(json.dumps({"messages": chat, "id": 7}) for chat in CHATS))
    return path


def test_the_standard_library_is_code_that_is_the_same_each_time():
    text = load_text("python-stdlib")
    assert text.name == "python-stdlib"
    assert "class ArgumentParser" in text.content
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in text.source["id"]
    assert text == load_text("python-stdlib")
    assert not any(sys.prefix in value for value in text.source.values())


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(code.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(TextError, match="without sources; give a file of code with --text"):
        load_text("python-stdlib")


def test_chats_are_written_out_by_the_template(chats, tokenizer):
    text = load_text(str(chats))
    assert text.source["kind"] == "chats"
    tokenizer.chat_template = TEMPLATE
    written = "".join(f"{m['role']} : {m['content']} 1 January 2025 ; " for chat in CHATS for m in chat)
    expected = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert tokenize(text, tokenizer).tolist() == expected


def test_a_tokenizer_without_a_template_is_refused(chats, tokenizer):
    with pytest.raises(
        TextError, match=r'"chats.jsonl" is chats, and the tokenizer of this model has no chat template'
    ):
        tokenize(load_text(str(chats)), tokenizer)


def test_a_chat_that_the_template_refuses_is_named(chats, tokenizer):
    tokenizer.chat_template = "{% if messages|length < 2 %}{{ raise_exception('two turns at least') }}{% endif %}x"
    with pytest.raises(TextError, match=r'chat 2 of "chats.jsonl" is refused by the chat template: two turns at least'):
        tokenize(load_text(str(chats)), tokenizer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r'"chats.jsonl", line 2, is no JSON'),
        ("[1]", 'line 2, has no list "messages"; give a chat a line, or plain text in a file that ends in .txt'),
        ('{"messages": []}', 'line 2, has no list "messages"'),
        ('{"messages": [{"role": "user"}]}', 'line 2, has a message without a "role" and a "content" of text'),
        ('{"messages": [{"role": "user", "content": [1]}]}', 'line 2, has a message without a "role"'),
    ],
)
def test_a_line_that_is_no_chat_is_named(line, message, chats):
    chats.write_text(f"{json.dumps({'messages': CHATS[0]})}\n{line}\n")
    with pytest.raises(TextError, match=message) as error:
        load_text(str(chats))
    assert "\n" not in str(error.value)
