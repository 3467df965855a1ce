"""Texts of `datasets`: by a short name, or as hf:NAME:SPLIT:FIELD."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from kvdelta.harness.subject import hub
from kvdelta.harness.subject.errors import TextError, one_line

HF = "hf:"
FORM = "hf:NAME:SPLIT:FIELD, with ,CONFIG and @REVISION behind the name where there are any"
MOST = 8_000_000  # characters that a text is cut to: about two million tokens, a thousand windows of 2048
SPEC = re.compile(
    r"(?P<name>[^,@:]*[^,@:\s][^,@:]*)(?:,(?P<config>[^@:]+))?(?:@(?P<revision>[^:]+))?:(?P<split>[^:\[]+(?:\[[^\]]*\])?):(?P<field>[^:]+)"
)


@dataclass(frozen=True)
class DataSet:
    """One column of one split. between: what stands between two rows. licence: where it is known. kept: small enough to be fetched as a
    whole, which leaves a copy on this machine."""

    name: str
    config: str | None
    split: str
    field: str
    revision: str | None = None
    between: str = "\n\n"
    licence: str = ""
    kept: bool = False

    def __str__(self) -> str:
        config = f",{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        shown = Path(self.name).name if os.path.exists(self.name) else self.name  # no path of this machine
        return f"{HF}{shown}{config}{revision}:{self.split}:{self.field}"


def _wikitext(config: str) -> DataSet:
    return DataSet("Salesforce/wikitext", config, "test", "text", None, "", "CC BY-SA 3.0 and GFDL", kept=True)


NAMED = {
    "wikitext-2": _wikitext("wikitext-2-raw-v1"),
    # its test text is that of wikitext-2 (Merity et al. 2016, arXiv 1609.07843): what differs is the text to train on
    "wikitext-103": _wikitext("wikitext-103-raw-v1"),
    "pg19": DataSet(
        "emozilla/pg19", None, "test", "text"
    ),  # the books of Rae et al. 2019, arXiv 1911.05507, as parquet
    "c4": DataSet("allenai/c4", "en", "validation", "text", licence="ODC-BY"),
    "code": DataSet("codeparrot/codeparrot-clean-valid", None, "train", "content"),  # Python files of GitHub
}


def parse_data_set(spec: str) -> DataSet:
    """Of "hf:NAME:SPLIT:FIELD"; TextError where that is not its form."""
    found = SPEC.fullmatch(spec.removeprefix(HF))
    if not found:
        raise TextError(
            f'the text "{spec}" is not of the form {FORM}, such as hf:Salesforce/wikitext,wikitext-2-raw-v1:test:text'
        )
    return DataSet(found["name"].strip(), found["config"], found["split"], found["field"], found["revision"])


def load_data_set(data_set: DataSet, called: str) -> tuple[str, dict[str, str]]:
    """The text, cut to MOST characters, and where it is from; called: what the user typed. TextError in one line for what cannot be
    had. Rows are read one by one, so that of a large set no more is fetched than is used."""
    rows = rows_of(data_set.name, data_set.split, data_set.config, data_set.revision, called, data_set.kept)
    pieces, length, cut = [], 0, False
    for row in rows:
        piece = _text_of(row, data_set, called)
        pieces.append(piece)
        length += len(piece) + len(data_set.between)
        if length >= MOST:
            cut = next(rows, None) is not None or length > MOST
            break
    content = data_set.between.join(pieces)[:MOST]
    if not content.strip():
        raise TextError(f'the text "{called}" is empty: {len(pieces)} rows without a word')
    source = {"kind": "dataset", "id": str(data_set), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    if data_set.licence:
        source["license"] = data_set.licence
    if cut:
        source["cut"] = f"to its first {MOST:,} characters"
    return content, source


def rows_of(
    name: str, split: str, config: str | None = None, revision: str | None = None, called: str = "", kept: bool = False
) -> Iterator[Any]:
    """The rows of a data set, of the hub or of a local folder; TextError in one line where it cannot be had."""
    streamed = not kept and "[" not in split  # a slice, train[:1%], has to be fetched as a whole
    try:
        import datasets

        with hub.asked():
            found: Any = datasets.load_dataset(name, config, split=split, revision=revision, streaming=streamed)
            rows = iter(found)
            first = next(rows, None)
    except Exception as error:  # datasets, the hub client and the network each raise their own
        reason = one_line(error) if os.path.exists(name) else hub.refusal(name, error, "datasets/")
        asked = f'"{name}"' + (f', "{config}"' if config else "")
        raise TextError(
            f'"{called or name}" cannot be had; tried datasets.load_dataset({asked}, split="{split}"): {reason}; check its name and the '
            "network, or give a local file (--text wiki.test.raw)"
        ) from error
    return iter(()) if first is None else chain([first], rows)


def _text_of(row: Any, data_set: DataSet, called: str) -> str:
    if data_set.field not in row:
        raise TextError(f'"{called}" has no column "{data_set.field}"; it has {", ".join(map(str, row))}')
    if not isinstance(row[data_set.field], str):
        kind = type(row[data_set.field]).__name__
        raise TextError(f'"{called}": the column "{data_set.field}" holds {kind}, and a text is needed')
    return row[data_set.field]
