"""Which runs may stand on one page: those that compare, or the field that differs is named."""

from collections.abc import Sequence
from pathlib import Path

from kvdelta.analysis.reading.cells import Cell
from kvdelta.analysis.reading.grids import check_alike
from kvdelta.analysis.reading.selection import spans
from kvdelta.schemes.errors import UserError

WINDOWS = ("stride", "offset", "bos_token_id", "windows")


def check_compare(cells: Sequence[Cell], sweeps: Sequence[Path]) -> None:
    """Other models, protocols, contexts and devices are told apart on the page. UserError where runs of one model and protocol are of
    other windows or, outside a sweep, of another text: their rows would look like a pair and are none."""
    for i, one in enumerate(cells):
        for other in cells[:i]:
            _check_pair(other, one, [any(cell.folder.is_relative_to(s) for s in sweeps) for cell in (other, one)])
    if cells:
        check_alike(cells)


def _check_pair(one: Cell, other: Cell, swept: Sequence[bool]) -> None:
    a, b = one.run.settings, other.run.settings
    if (a.model, a.protocol, a.step) != (b.model, b.protocol, b.step):
        return
    if a.text_sha256 != b.text_sha256:
        if all(swept) and one.run.text_name != other.run.text_name:
            return
        texts = [f"{cell.run.text_name} (SHA-256 {cell.run.settings.text_sha256[:8]}…)" for cell in (one, other)]
        raise UserError(
            f"{one.folder} and {other.folder} do not compare: text is {texts[0]} there and {texts[1]} here; make a page of each, or "
            "score both texts by one kvdelta sweep"
        )
    if (a.window_length, a.score_length) != (b.window_length, b.score_length):
        return
    for name in WINDOWS:
        there, here = (
            cell.run.scored if name == "windows" else getattr(cell.run.settings, name) for cell in (one, other)
        )
        if there != here:
            raise UserError(
                f"{one.folder} and {other.folder} do not compare: {name} is {_said(there)} there and {_said(here)} here; make a "
                "page of each, or score the same windows"
            )


def _said(value: object) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({spans(value[:3])}{', …' * (len(value) > 3)})"
    return str(value)
