"""Texts: the excerpt is always the same, local files are read or refused, tokens are hashed."""

import hashlib
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvdelta.harness.subject import hub
from kvdelta.harness.subject import text as text_module
from kvdelta.harness.subject.errors import TextError
from kvdelta.harness.subject.files import cache_folder
from kvdelta.harness.subject.model import load_model
from kvdelta.harness.subject.text import Text, adds_bos, load_text, token_sha256, tokenize
from kvdelta.harness.subject.wikipedia import EXCERPT

WIKITEXT_FILE = Path(__file__).parents[4] / "shared" / "data" / "wikitext-2-raw" / "wiki.test.raw"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    if "real_model" not in request.keywords:
        monkeypatch.setenv("KVDELTA_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def word_tokenizer(*words: str, bos: bool = False) -> PreTrainedTokenizerFast:
    vocab = {word: index for index, word in enumerate(["<unk>", "<s>", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", model_max_length=2)


class TestLocalFile:
    def test_universal_newlines(self, tmp_path):
        path = tmp_path / "some.txt"
        path.write_bytes("one\r\ntwo\rthrée\n".encode())
        text = load_text(str(path))
        assert text.content == "one\ntwo\nthrée\n"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (text.name, text.source) == ("some.txt", {"kind": "file", "id": "some.txt", "sha256": sha256})

    def test_byte_order_mark_is_no_text(self, tmp_path):
        (tmp_path / "some.txt").write_bytes(b"\xef\xbb\xbfone")
        assert load_text(str(tmp_path / "some.txt")).content == "one"

    def test_unknown(self):
        with pytest.raises(TextError) as error:
            load_text("wikitext2")
        assert str(error.value) == (
            'no text "wikitext2": no such file, and the known texts are wikipedia-excerpt, wikitext-2, wikitext-103, pg19, c4, '
            "code, python-stdlib, and hf:NAME:SPLIT:FIELD, with ,CONFIG and @REVISION behind the name where there are any; "
            'did you mean "wikitext-2"?'
        )

    def test_missing_file(self, tmp_path, refused):
        with refused("no such file"):
            load_text(str(tmp_path / "no.txt"))

    def test_folder(self, tmp_path, refused):
        with refused("is a folder"):
            load_text(str(tmp_path))

    def test_not_utf8(self, tmp_path, refused):
        (tmp_path / "latin.txt").write_bytes("abc é".encode("latin-1"))
        with refused("is not UTF-8: byte 0xe9 at offset 4"):
            load_text(str(tmp_path / "latin.txt"))

    @pytest.mark.parametrize("content", [b"", b" \r\n\n"])
    def test_empty(self, tmp_path, content, refused):
        (tmp_path / "empty.txt").write_bytes(content)
        with refused(rf"is empty \({len(content)} bytes"):
            load_text(str(tmp_path / "empty.txt"))


class TestExcerpt:
    def test_cached_and_the_same(self, cache, monkeypatch):
        parsed = "Anarchism\n\nIt is “long”.\n"
        monkeypatch.setattr(text_module, "parse_excerpt", lambda: (parsed, "4.4.0"))
        first = load_text()
        assert first.content == parsed
        monkeypatch.setattr(text_module, "parse_excerpt", None)  # the second time must not need it
        assert load_text(EXCERPT) == first
        assert first.source["sha256"] == hashlib.sha256(parsed.encode()).hexdigest()
        assert "CC BY-SA" in first.source["license"]

    def test_damaged_copy_is_made_again(self, cache, monkeypatch):
        monkeypatch.setattr(text_module, "parse_excerpt", lambda: ("long text", "4.4.0"))
        load_text()
        (path,) = (cache / "texts").iterdir()
        path.write_bytes(path.read_bytes()[:-2])
        assert load_text().content == "long text"

    def test_unwritable_cache_costs_time_only(self, cache, monkeypatch):
        cache.write_text("a file where the folder should be")
        monkeypatch.setattr(text_module, "parse_excerpt", lambda: ("long text", "4.4.0"))
        assert load_text().content == "long text"


def test_wikitext_unreachable(monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda: True)

    def fail(*args, **options):
        raise ConnectionError("Couldn't reach the dataset")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TextError) as error:
        load_text("wikitext-2")
    assert 'load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test"): Couldn\'t reach' in str(error.value)
    assert "give a local file" in str(error.value)


def test_wikitext_joins_rows(monkeypatch):
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **options: [{"text": row} for row in ("", " = A = \n", "b\n")]
    )
    text = load_text("wikitext-2")
    assert (text.name, text.content) == ("wikitext-2", " = A = \nb\n")


class TestTokenize:
    def test_ids(self):
        tokens = tokenize(Text("t", "b a x b", {}), word_tokenizer("a", "b", bos=True))
        assert tokens.tolist() == [3, 2, 0, 3]  # no BOS, and no complaint that it is longer than model_max_length
        assert tokens.dtype == torch.int64

    def test_empty(self, refused):
        with refused("gives 0 tokens"):
            tokenize(Text("t", " ", {}), word_tokenizer("a"))

    def test_long_texts_are_cached_by_text_and_tokenizer(self, cache, monkeypatch):
        monkeypatch.setattr(text_module, "SLOW_TEXT", 3)
        texts, tokenizers = [Text("t", "a b", {}), Text("t", "b a", {})], [word_tokenizer(*"ab"), word_tokenizer(*"ba")]
        expected = [[2, 3], [3, 2], [3, 2], [2, 3]]
        for _ in range(2):
            got = [tokenize(text, tokenizer).tolist() for text in texts for tokenizer in tokenizers]
            assert got == expected
        assert len(list((cache / "tokens").iterdir())) == 4
        monkeypatch.setattr(text_module, "_encode", None)  # must not be needed again
        assert tokenize(texts[0], tokenizers[0]).tolist() == [2, 3]

    def test_damaged_cache_is_made_again(self, cache, monkeypatch):
        monkeypatch.setattr(text_module, "SLOW_TEXT", 3)
        tokenize(Text("t", "a b", {}), word_tokenizer("a", "b"))
        (path,) = (cache / "tokens").iterdir()
        whole = path.read_bytes()
        flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
        for content in (b"", b"what is this", whole[:-1], whole + b"x", *flipped):
            path.write_bytes(content)
            assert tokenize(Text("t", "a b", {}), word_tokenizer("a", "b")).tolist() == [2, 3]

    def test_hash(self):
        little_endian = bytes([1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0])
        assert token_sha256(torch.tensor([1, 512])) == hashlib.sha256(little_endian).hexdigest()

    def test_bos(self):
        assert adds_bos(word_tokenizer("a", bos=True))
        assert not adds_bos(word_tokenizer("a"))


@pytest.mark.real_model
def test_wikitext_tokens():
    if not WIKITEXT_FILE.is_file():
        pytest.skip("the WikiText-2 file is not beside the checkout (../shared/data/wikitext-2-raw/wiki.test.raw)")
    tokenizer = load_model().tokenizer
    assert tokenize(load_text(str(WIKITEXT_FILE)), tokenizer).numel() == 301_948
    assert not adds_bos(tokenizer)
