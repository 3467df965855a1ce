"""What each scored token of a run has: one file of arrays a window, from which its sums are made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvdelta.harness.records import hashes
from kvdelta.harness.records.run import Run, WindowRecord
from kvdelta.harness.records.writing import arrays_of, load_arrays, packed_arrays, write_file
from kvdelta.schemes.given import read_bytes

Arrays = dict[str, np.ndarray]
"""nll, kl, tvd float32 and top1 bool, [contenders, scored]; losses, KL in nats. Older records have no tvd."""

SUMS = ("nll", "kl", "tvd", "top1", "probability")
ROUNDING = 1e-9  # relative: other processors add in another order


def save_tokens(folder: Path, window: int, arrays: Arrays, write: Callable[[Path, bytes], object] = write_file) -> str:
    """The SHA-256 of the file. write: writes it, or has it written."""
    # losses hardly compress, by a fifth, and trying takes longer than scoring a window on a GPU
    content = packed_arrays(arrays, compressed=False)
    write(_file(folder, window), content)
    return hashes.of_bytes(content)


def forget_failed(folder: Path, window: WindowRecord) -> None:
    """Take from the file of a window what rows without sums in it had scored."""
    failed = ~np.isfinite(window.nll)
    arrays = load_tokens(folder, window.index) if failed.any() else {}
    if arrays and np.isfinite(arrays["nll"][failed]).any():
        for name, array in arrays.items():
            array[failed] = False if name == "top1" else np.nan
        window.tokens = save_tokens(folder, window.index, arrays)


def load_tokens(folder: Path, window: int) -> Arrays:
    return load_arrays(_file(folder, window))


def has_tokens(folder: Path) -> bool:
    """Runs of record are kept without their per-token arrays, which are megabytes."""
    return any((folder / "tokens").glob("*.npz"))


def load_each(folder: Path, run: Run, what: str) -> np.ndarray:
    """ "nll" or "kl" of every scored token in nats, or "tvd", float64 [contenders, windows × scored]; UserError where a file is gone."""
    arrays = [load_tokens(folder, window.index)[what] for window in run.windows]
    return np.concatenate(arrays, axis=1).astype(np.float64)


def set_tails(run: Run, folder: Path) -> None:
    """The 99.9 % quantile of KL over all scored tokens, of each row that has not failed."""
    for contender, tail in zip(run.contenders, np.quantile(load_each(folder, run, "kl"), 0.999, axis=1), strict=True):
        contender.kl_999 = float(tail) if contender.error is None else None


def sums_of(arrays: Arrays) -> dict[str, Any]:
    """Of a window, by contender, in float64: the fields of a `WindowRecord` that its tokens decide."""
    exact = {name: array.astype(np.float64) for name, array in arrays.items() if name != "top1"}
    sums: dict[str, Any] = {name: array.sum(axis=1).tolist() for name, array in exact.items()}
    sums["probability"] = np.exp(-exact["nll"]).sum(axis=1).tolist()
    return sums | {"top1": arrays["top1"].sum(axis=1).tolist(), "count": arrays["nll"].shape[1]}


def damage(folder: Path, window: WindowRecord) -> str | None:
    """What is wrong with the file of a window's tokens, or with its sums beside it; None where nothing is."""
    path = _file(folder, window.index)
    name = f"{path.parent.name}/{path.name}"
    try:
        content = read_bytes(path, "file of arrays")
    except FileNotFoundError:
        return f"{name} is not there"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    if window.tokens and hashes.of_bytes(content) != window.tokens:
        return f"{name} is not as it was written"
    try:
        sums = sums_of(arrays_of(content))
    except (ValueError, KeyError, TypeError, MemoryError) as error:
        return f"{name} has no arrays of tokens: {error}"
    # a row that failed has no sums, of what its file still has either
    kept = np.asarray(np.isfinite([window.nll, window.kl, window.probability]).all(axis=0))
    if sums["count"] != window.count or not all(_same(getattr(window, of), sums.get(of, []), kept) for of in SUMS):
        return f"its sums are not those of {name}"
    return None


def _same(stored: Sequence[float], made: Sequence[float], rows: np.ndarray) -> bool:
    """But for rounding."""
    if not stored or not made:  # an older record without this measure
        return True
    if len(stored) != len(made):
        return False
    a, b = (np.array(one, dtype=np.float64)[rows] for one in (stored, made))
    return bool(np.all(np.abs(a - b) <= ROUNDING * (1 + np.abs(b))))


def _file(folder: Path, window: int) -> Path:
    return folder / "tokens" / f"{window:06d}.npz"
