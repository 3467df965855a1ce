"""Chats as a text: a JSON lines file, each line with the messages of one chat, written out by the model's own template."""

from typing import TYPE_CHECKING, Any

from kvdelta.harness.subject.errors import TextError, one_line
from kvdelta.schemes.given import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JSON_LINES = (".jsonl", ".ndjson")
Message = dict[str, str]
DAY = "1 January 2025"  # templates that write the date would write today's, and the text would change overnight


def parse_chats(content: str, name: str) -> tuple[tuple[Message, ...], ...]:
    """The chats of a file: {"messages": [{"role": …, "content": …}, …]} a line. TextError, with the line, for anything else."""
    chats = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise TextError(f'the text "{name}", line {number}, is no JSON: {one_line(error)}') from None
        chats.append(_messages(row, f'the text "{name}", line {number},'))
    return tuple(chats)


def _messages(row: Any, where: str) -> tuple[Message, ...]:
    found = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(found, list) or not found:
        raise TextError(
            f'{where} has no list "messages"; give a chat a line, or plain text in a file that ends in .txt'
        )
    for one in found:
        if not (isinstance(one, dict) and all(isinstance(one.get(key), str) for key in ("role", "content"))):
            raise TextError(f'{where} has a message without a "role" and a "content" of text')
    return tuple({"role": one["role"], "content": one["content"]} for one in found)


def written_out(chats: tuple[tuple[Message, ...], ...], name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """All chats, one after another, by the tokenizer's chat template; TextError where it has none, or refuses one."""
    if not getattr(tokenizer, "chat_template", None):
        raise TextError(
            f'the text "{name}" is chats, and the tokenizer of this model has no chat template; take an instruct model, or give '
            "plain text"
        )
    written = []
    for number, chat in enumerate(chats, 1):
        try:
            written.append(str(tokenizer.apply_chat_template(list(chat), tokenize=False, date_string=DAY)))
        except Exception as error:  # jinja's own errors, and whatever a template raises
            raise TextError(f'chat {number} of "{name}" is refused by the chat template: {one_line(error)}') from error
    return "".join(written)
