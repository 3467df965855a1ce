"""What is scored once more of a run, damaged windows or rows that failed: which windows, in which batches, and where."""

import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from kvdelta.harness import stopping
from kvdelta.harness.records.run import Run, Settings
from kvdelta.harness.records.run_folder import Lost, load_whole
from kvdelta.schemes.errors import UserError

FOLDER = "again"  # in that of the run


def places(run: Run, lost: Sequence[Lost]) -> tuple[list[int], list[list[int]]]:
    """The windows (positions in the grid) in the order of the record, those that it lost in their places, and the batches in which
    there is one of these. Of a window whose index is lost too any that the run has not will do."""
    have, damaged = {window.index for window in run.windows}, set[int]()
    others = (index for index in stopping.visits(run.settings) if index not in have)
    at, good, order = {one.position: one for one in lost}, iter(run.windows), list[int]()
    for position in range(len(run.windows) + len(lost)):
        if position not in at:
            order.append(next(good).index)
            continue
        index = at[position].index
        order.append(index if index in set(run.settings.windows) - have else next(others))
        have.add(order[-1])
        damaged.add(order[-1])
    left = iter(order)
    batches = [list(islice(left, size)) for size in run.batches or [1] * len(order)]
    return order, [batch for batch in batches if damaged & set(batch)]


def alike(batches: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Batches in groups that one run can have: all of one size, but for the last, which may be smaller."""
    groups: list[list[Sequence[int]]] = []
    for batch in batches:
        if groups and len(groups[-1][-1]) == len(groups[-1][0]) >= len(batch):
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return groups


def clear(where: Path, wanted: Sequence[tuple[str | None, Settings]]) -> None:
    """Remove what another command left, which was stopped, or this one in a state that it cannot go on from. wanted: folders and the
    settings of their runs."""
    for out, settings in wanted:
        try:
            fits = load_whole(str(out)).run.settings == settings
        except UserError:
            fits = not os.path.exists(str(out))
        if not fits:
            shutil.rmtree(where)
            return
