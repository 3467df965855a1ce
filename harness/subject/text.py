"""Texts and their tokens: a Wikipedia excerpt, code, a data set, or a local file of text or of chats."""

import difflib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kvdelta.harness.records.writing import write_atomically
from kvdelta.harness.subject.chats import JSON_LINES, Message, parse_chats, written_out
from kvdelta.harness.subject.code import STDLIB, stdlib_code
from kvdelta.harness.subject.data_sets import FORM, HF, NAMED, load_data_set, parse_data_set
from kvdelta.harness.subject.errors import TextError
from kvdelta.harness.subject.files import cache_folder
from kvdelta.harness.subject.wikipedia import EXCERPT, EXCERPT_DUMP, EXCERPT_VERSION, parse_excerpt
from kvdelta.schemes.given import read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = (EXCERPT, *NAMED, STDLIB)
SLOW_TEXT = 500_000  # characters from which token ids are cached: tokenizing 3 million takes 3 seconds


@dataclass(frozen=True)
class Text:
    """A text, what outputs call it, and where it is from (names and hashes, no path of this machine). chats: what its tokens are made
    of, by the tokenizer's chat template, where it is chats."""

    name: str
    content: str
    source: dict[str, str]
    chats: tuple[tuple[Message, ...], ...] = ()


def load_text(name: str | None = None) -> Text:
    """A known text (TEXTS; None is the Wikipedia excerpt), a data set as hf:NAME:SPLIT:FIELD, or a local UTF-8 file, of chats where it
    is JSON lines; TextError where it cannot be had."""
    if name in (None, EXCERPT):
        return _wikipedia_excerpt()
    if name in NAMED or name.startswith(HF):
        data_set = NAMED[name] if name in NAMED else parse_data_set(name)
        return Text(name if name in NAMED else str(data_set), *load_data_set(data_set, name))
    if name == STDLIB:
        return Text(STDLIB, *stdlib_code())
    return _local_file(name)


def tokenize(text: Text, tokenizer: "PreTrainedTokenizerBase") -> torch.Tensor:
    """Token ids of the whole text without special tokens: int64 [tokens], cached on disk for long texts."""
    content = written_out(text.chats, text.name, tokenizer) if text.chats else text.content
    if len(content) < SLOW_TEXT:
        ids = _encode(content, tokenizer)
    else:
        key = hashlib.sha256(content.encode())
        key.update(_fingerprint(tokenizer))
        path = cache_folder() / "tokens" / f"{key.hexdigest()[:32]}.ids"
        ids = _cached_ids(path)
        if ids is None:
            ids = _encode(content, tokenizer)
            stored = ids.astype("<i4").tobytes()
            _cache(path, hashlib.sha256(stored).digest() + stored)
    if ids.size == 0:
        raise TextError(f'the text "{text.name}" gives 0 tokens; give one with words in it')
    return torch.from_numpy(ids.astype(np.int64))


def token_sha256(tokens: torch.Tensor) -> str:
    """SHA-256 of the ids as little-endian int64 bytes, so that it is the same on every machine."""
    return hashlib.sha256(tokens.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Does the tokenizer begin a text with its BOS token by itself? (Whether it has one says nothing about that.)"""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]


def _encode(content: str, tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    # verbose=False: a text is longer than the model's positions on purpose, windows are cut from it.
    ids = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int32)


def _cached_ids(path: Path) -> np.ndarray | None:
    """None where they are not there, or not as they were written."""
    try:
        content = read_bytes(path, "file of arrays")
    except OSError:
        return None
    sha256, stored = content[:32], content[32:]
    return np.frombuffer(stored, dtype="<i4") if hashlib.sha256(stored).digest() == sha256 else None


def _fingerprint(tokenizer: "PreTrainedTokenizerBase") -> bytes:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    state = fast.to_str() if fast is not None else f"{tokenizer!r}{sorted(tokenizer.get_vocab().items())}"
    return hashlib.sha256(f"{type(tokenizer).__name__}\0{state}".encode()).digest()


def _cache(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError:  # a full or read-only cache costs seconds, not the run
        return


def _local_file(name: str) -> Text:
    path = Path(os.path.expanduser(name))
    try:
        data = read_bytes(path, "text")
    except IsADirectoryError:
        raise TextError(f'the text "{name}" is a folder; give a text file or one of: {", ".join(TEXTS)}') from None
    except FileNotFoundError:
        near = difflib.get_close_matches(name, TEXTS, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise TextError(
            f'no text "{name}": no such file, and the known texts are {", ".join(TEXTS)}, and {FORM}{hint}'
        ) from None
    except OSError as error:
        raise TextError(f'the text "{name}" cannot be read: {error.strerror}') from error
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f'the text "{name}" is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; '
            "convert it (iconv -t UTF-8)"
        ) from error
    content = content.replace("\r\n", "\n").replace("\r", "\n")  # universal newlines, as open() reads
    if not content.strip():
        raise TextError(f'the text "{name}" is empty ({len(data)} bytes, no word); give a file with text in it')
    chats = parse_chats(content, path.name) if path.suffix in JSON_LINES else ()
    source = {"kind": "chats" if chats else "file", "id": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    return Text(path.name, content, source, chats)


def _wikipedia_excerpt() -> Text:
    # The dump is gensim's test data and has not changed for years; its release says which one it was all the same.
    path = cache_folder() / "texts" / f"{EXCERPT}-v{EXCERPT_VERSION}.txt"
    try:
        head, content = read_bytes(path, "text").decode("utf-8").split("\n", 1)
        gensim_version, sha256 = head.split(" ")
    except (OSError, ValueError):  # not there, or not ours
        gensim_version = content = sha256 = ""
    if not content or hashlib.sha256(content.encode()).hexdigest() != sha256:
        content, gensim_version = parse_excerpt()
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        _cache(path, f"{gensim_version} {sha256}\n{content}".encode())
    source = {
        "kind": EXCERPT,
        "id": f"gensim {gensim_version} test data, {EXCERPT_DUMP}, parser {EXCERPT_VERSION}",
        "license": "English Wikipedia, CC BY-SA",
        "sha256": sha256,
    }
    return Text(EXCERPT, content, source)
