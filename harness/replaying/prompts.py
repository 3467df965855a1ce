"""Prompts, all cut to one length so that they go through the model together: paragraphs spread over a text, lines of a
JSON lines file, or rows of a data set."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from kvdelta.harness.subject.data_sets import HF, rows_of
from kvdelta.harness.subject.errors import TextError, one_line
from kvdelta.harness.subject.text import TEXTS, Text, load_text
from kvdelta.schemes.given import parse_json, read_bytes

FIELDS = ("text", "prompt", "messages")
PARAGRAPH = r".+?(?:\n[ \t]*\n|\Z)"  # to a line without words
JSON_LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, eq=False)
class Prompts:
    """What outputs call them, where they are from (names and hashes), and their token ids. skipped: how many were too short; cut: how many
    are chats without their middle."""

    name: str
    source: dict[str, str]
    tokens: Int64[Tensor, "prompts tokens"]
    skipped: int = 0
    cut: int = 0


def load_prompts(source: str | None, count: int, length: int, tokenizer: Any, bos: int | None = None) -> Prompts:
    """`count` prompts of `length` tokens; those that are shorter are left out. Of a longer text its first tokens are kept; of a longer chat
    its first token and its last ones, so that the model's turn comes next: its system turn may be gone. bos: begins each that is no chat.

    source: a known text (None: the packaged one) or text file, whose paragraphs begin prompts at places spread over it; a
    JSON lines file; or a data set, NAME, NAME:SPLIT or NAME:SPLIT:FIELD (hf: may stand before it). TextError for what cannot be had or used.
    """
    if source is not None and source not in TEXTS and not os.path.isfile(os.path.expanduser(source)):
        rows, given = _data_set(source)
    elif source is not None and source.endswith(JSON_LINES):
        rows, given = _json_lines(Path(source).expanduser())
    else:
        text = load_text(source)
        found = _spread(_of_paragraphs(text, length, tokenizer, bos), count)
        return _enough(found, [], count, length, Prompts(text.name, text.source, torch.empty(0, 0).long()))
    found, short, cut = [], [], 0
    for row in rows:
        ids = _ids(row, tokenizer, bos)
        if len(ids) < length:
            short.append(ids)
        elif isinstance(row, str):
            found.append(ids[:length])
        else:
            found.append([*ids[:1], *ids[len(ids) - length + 1 :]])
            cut += len(ids) > length
        if len(found) == count:
            break
    return replace(_enough(found, short, count, length, given), cut=cut)


def _enough(found: list[list[int]], short: list[list[int]], count: int, length: int, given: Prompts) -> Prompts:
    if len(found) < count:
        longest = f", the longest of the others has {max(map(len, short))}" if short else ""
        raise TextError(
            f'"{given.name}" gives {len(found)} prompts of {length} tokens, not {count}{longest}; use a smaller '
            "--prompt-count or --prompt-length, or other --prompts"
        )
    return Prompts(given.name, given.source, torch.tensor(found), len(short))


def _of_paragraphs(text: Text, length: int, tokenizer: Any, bos: int | None) -> list[list[int]]:
    """Every prompt that begins with a paragraph and runs on through the next ones; none shares a token with another."""
    pieces = [piece for piece in re.findall(PARAGRAPH, text.content, re.DOTALL) if piece.strip()]
    if len(pieces) == 1:  # WikiText: a paragraph a line
        pieces = text.content.splitlines(keepends=True)
    ids = tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]
    first = [] if bos is None else [bos]
    found, current = [], list(first)
    for piece in ids:
        current += piece
        if len(current) >= length:
            found.append(current[:length])
            current = list(first)
    return found


def _spread(found: list[list[int]], count: int) -> list[list[int]]:
    return found if len(found) < count else [found[i * len(found) // count] for i in range(count)]


def _ids(row: Any, tokenizer: Any, bos: int | None) -> list[int]:
    """Of a text, or of a chat with the beginning of the model's turn."""
    if isinstance(row, str):
        ids = tokenizer(row, add_special_tokens=False, verbose=False)["input_ids"]
        return [*([] if bos is None else [bos]), *ids]
    if not getattr(tokenizer, "chat_template", None):
        raise TextError("these prompts are chats, and this model's tokenizer has no chat template; give them as text")
    return list(tokenizer.apply_chat_template(row, add_generation_prompt=True, return_dict=False))


def _json_lines(path: Path) -> tuple[Iterator[Any], Prompts]:
    try:
        data = read_bytes(path, "text")
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f'the prompts "{path.name}" cannot be read as UTF-8 text: {one_line(error)}') from error

    def rows() -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise TextError(f"{path.name}, line {number} is no JSON: {one_line(error)}") from error
            yield _prompt_of(row, f"{path.name}, line {number}")

    source = {"kind": "json lines", "id": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    return rows(), Prompts(path.name, source, torch.empty(0, 0).long())


def _data_set(name: str) -> tuple[Iterator[Any], Prompts]:
    which, _, rest = name.removeprefix(HF).partition(":")
    split, _, field = rest.partition(":")
    which, _, revision = which.partition("@")
    which, _, config = which.partition(",")
    split = split or "train"
    try:
        rows = rows_of(which, split, config or None, revision or None, name)
    except TextError as error:
        raise TextError(f'no prompts "{name}": no such file, and {error}') from error
    where = f"the data set {which}"
    label = f"{Path(which).name if os.path.exists(which) else which}:{split}"
    read = (_prompt_of(row, where, field) for row in rows)
    return read, Prompts(label, {"kind": "data set", "id": label}, torch.empty(0, 0).long())


def _prompt_of(row: Any, where: str, field: str = "") -> Any:
    """A text, or the messages of a chat."""
    names = (field,) if field else FIELDS
    found = next((row[name] for name in names if row.get(name)), None) if isinstance(row, dict) else None
    if not isinstance(found, str | list):
        has = f"; it has {', '.join(map(str, row))}" if isinstance(row, dict) else ""
        raise TextError(f"{where} has no text in {' or '.join(names)}{has}")
    return found
