"""A comparison as pandas frames. pandas is an optional part: pip install 'kvdelta[parquet]'."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kvdelta.harness.records.run import Run
from kvdelta.harness.records.run_folder import load_run
from kvdelta.harness.records.tokens import has_tokens, load_tokens
from kvdelta.schemes.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


class Frames(NamedTuple):
    """rows: one a scheme, the figures of its table; None of a run from Python, whose table nobody has made. windows: one a window and scheme, means over its scored tokens: nll, kl, tvd in nats
    (tvd a share), top1 the share of tokens, and the shares of attended pairs whose key, and value, was read from packed storage. tokens: one a window, position
    and scheme; None where the folder keeps none, or none was named."""

    rows: "DataFrame | None"
    windows: "DataFrame"
    tokens: "DataFrame | None"


def frames(run: Run | str | Path, folder: str | Path | None = None) -> Frames:
    """Of a run, or of the folder of one. folder: of a run that is given, where its tokens are.

    UserError for a folder without a run, or where pandas is missing."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise UserError("frames need pandas: pip install 'kvdelta[parquet]'") from error
    if not isinstance(run, Run):
        folder = Path(run)
        run = load_run(folder)
    tokens = None
    if folder is not None and has_tokens(Path(folder)):
        tokens = pandas.concat([pandas.DataFrame(part) for part in _tokens(run, Path(folder))], ignore_index=True)
    return Frames(pandas.DataFrame(run.summary) if run.summary else None, pandas.DataFrame(_windows(run)), tokens)


def _windows(run: Run) -> list[dict[str, Any]]:
    found = []
    for window in run.windows:
        for at, contender in enumerate(run.contenders):
            pairs = window.pairs[at] or np.nan
            row = {
                "window": window.index,
                "start": window.start,
                "scheme": contender.label,
                "scored": window.count,
                "nll": window.nll[at] / window.count,
                "kl": window.kl[at] / window.count,
                "tvd": window.tvd[at] / window.count if window.tvd else np.nan,
                "top1": window.top1[at] / window.count,
                "key_coverage": window.key_pairs[at] / pairs,
                "value_coverage": window.value_pairs[at] / pairs,
            }
            found.append(row)
    return found


def _tokens(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Columns of each window and scheme. position: of the token that is predicted, in the text."""
    found = []
    for window in run.windows:
        arrays = load_tokens(folder, window.index)
        scored = arrays["nll"].shape[1]
        first = window.start + run.settings.window_length - scored
        for at, contender in enumerate(run.contenders):
            columns = {name: array[at] for name, array in arrays.items()}
            found.append(
                {
                    "window": window.index,
                    "position": np.arange(first, first + scored),
                    "scheme": contender.label,
                    **columns,
                }
            )
    return found
