"""What a sweep varies, and the cells that come of it: models × texts × contexts."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvdelta.harness.options import Options
from kvdelta.harness.records.sweep import CellRecord
from kvdelta.harness.subject.text import EXCERPT
from kvdelta.schemes.errors import UserError

PACKAGED = "packaged"


@dataclass(frozen=True)
class Axes:
    """What a sweep varies. models, texts: as in `Options`, None for the packaged ones. window_lengths in tokens; or depths:
    prefixes, in tokens, before the same scored tokens. protocols, steps: as `Options.by` takes them."""

    models: Sequence[str | None] = (None,)
    texts: Sequence[str | None] = (None,)
    window_lengths: Sequence[int] = ()
    depths: Sequence[int] = ()
    protocols: Sequence[str] = ("two-pass",)
    steps: Sequence[int] = ()

    def cells(self, options: Options) -> list[tuple[CellRecord, Options]]:
        """Of every cell its record, empty, and what is asked of it. UserError for axes that do not go together, or cells that
        would share a folder."""
        if self.depths and self.window_lengths:
            raise UserError(
                "depths are lengths of prefixes and make the window lengths; give --depths or --window-length"
            )
        if any(depth < 1 for depth in self.depths):
            raise UserError(f"depths are {', '.join(map(str, self.depths))}: a prefix has 1 token or more")
        suffix, deepest = options.score_length, max(self.depths, default=0)
        contexts = [(depth, deepest - depth) for depth in dict.fromkeys(self.depths)] or [
            (length - suffix, 0) for length in dict.fromkeys(self.window_lengths or (options.window_length,))
        ]
        cells: dict[str, tuple[CellRecord, Options]] = {}
        for model in dict.fromkeys(self.models):
            for text in dict.fromkeys(self.texts):
                for prefix, offset in contexts:
                    folder = f"{_name(model, PACKAGED)}_{_name(text, EXCERPT)}_{prefix}+{suffix}"
                    if folder in cells:
                        raise UserError(
                            f"two cells would lie in the folder {folder}; rename one of the models or texts that are called alike"
                        )
                    asked = replace(
                        options, model=model, text=text, window_length=prefix + suffix, offset=offset,
                        stride=options.stride or suffix,
                    )  # fmt: skip
                    called = _called(model) or PACKAGED, _called(text) or EXCERPT
                    record = CellRecord(folder=folder, model=called[0], text=called[1], prefix=prefix, suffix=suffix)
                    cells[folder] = (record, asked)
        return list(cells.values())


def _called(given: str | None) -> str | None:
    """A file's or folder's own name, whatever its place; of a hub id or a known text all of it."""
    path = Path(os.path.expanduser(given or ""))
    return path.resolve().name if given and (os.path.exists(path) or given.startswith((".", "/", "~"))) else given


def _name(given: str | None, packaged: str) -> str:
    """Of a model or text in a folder's name."""
    called = _called(given) or packaged
    stem = Path(called).stem if given and os.path.isfile(os.path.expanduser(given)) else called
    return re.sub(r"[^\w.+-]+", "-", stem).strip("-.") or "unnamed"
