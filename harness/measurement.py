"""Records of what the analyzer measures: a header in JSON, one file of arrays a window; they join with runs later."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from harness import records
from harness.capture import full_layers
from harness.comparison import Subject, check_text, merged
from harness.contenders import SchemeContender
from harness.options import Options
from harness.protocols import prefill
from harness.provenance import header_of, open_folder, settings_of
from harness.records import Header
from harness.windows import Window

Kind = Literal["outliers", "errors", "sensitivity"]
Arrays = dict[str, np.ndarray]


class Measurement(Header):
    """What was measured, of what. labels: schemes as the user typed them; layers and KV heads: the indices measured,
    in the order of the arrays' axes."""

    kind: Kind
    labels: list[str]
    measured_layers: list[int]
    kv_heads: list[int]


def load(folder: str | Path, kind: Kind) -> Measurement:
    """ValueError where `folder` holds no such record."""
    return records.read(folder, f"{kind}.json", Measurement)


def has(folder: str | Path, kind: Kind) -> bool:
    return (Path(folder) / f"{kind}.json").exists()


def arrays(folder: str | Path, record: Measurement) -> Arrays:
    """Each array with the windows on its first axis, in the record's order; ValueError where one is missing.

    Arrays of single windows, such as pictures, have a length of 1 there.
    """
    found: dict[str, list[np.ndarray]] = {}
    for window in record.settings.windows:
        path = _path(Path(folder), record.kind, window)
        try:
            content = records.load_arrays(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}; give the command again") from None
        for name, array in content.items():
            found.setdefault(name, []).append(array)
    return {name: np.stack(pieces) for name, pieces in found.items()}


def schemes_of(
    specs: Sequence[str], options: Options, subject: Subject, on_note: Callable[[str], None]
) -> list[SchemeContender]:
    """The schemes to measure, bound to the model's layers; equal ones are merged with a notice. ValueError for one that
    the model or the prefix cannot use, or that was calibrated on the text."""
    found = merged([SchemeContender.of(spec) for spec in specs], on_note)
    model = subject.loaded.model
    for contender in found:
        contender.check(model, subject.windows[0].prefix_length)
        check_text(contender, options, subject)
    return [replace(contender, scheme=contender.empty(model).scheme) for contender in found]


def places_of(subject: Subject) -> tuple[list[int], list[int]]:
    """The layers that a scheme stores, and the KV heads of each."""
    model = subject.loaded.model
    heads = model.config.get_text_config(decoder=True).num_key_value_heads
    return full_layers(prefill(model, subject.windows[0].prefix[:, :1])), list(range(heads))


def measure(
    kind: Kind,
    options: Options,
    subject: Subject,
    schemes: Sequence[SchemeContender],
    measured: dict[str, object],
    layers: Sequence[int],
    kv_heads: Sequence[int],
    one_window: Callable[[Window, bool], Arrays],
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Measurement, Path]:
    """Measure every window that the folder does not have yet; each is on disk before the next begins.

    measured: what else the numbers depend on. one_window(window, is the first): its arrays.
    """
    settings = settings_of(options, subject, [scheme.name for scheme in schemes], measured)
    folder, record = open_folder(options.out, f"{kind}.json", settings, lambda folder: load(folder, kind))
    record = record or Measurement(
        **header_of(options, subject, settings),
        kind=kind,
        labels=[scheme.label for scheme in schemes],
        measured_layers=list(layers),
        kv_heads=list(kv_heads),
    )
    if record.status == "complete":
        on_note(f"{folder} holds this measurement already, complete")
        return record, folder
    _save(record, folder)
    for window in subject.windows:
        path = _path(folder, kind, window.index)
        if not path.exists():
            records.save_arrays(path, one_window(window, window is subject.windows[0]))
    record.status = "complete"
    _save(record, folder)
    return record, folder


def _save(record: Measurement, folder: Path) -> None:
    records.write(folder / f"{record.kind}.json", (record.model_dump_json(indent=1) + "\n").encode())


def _path(folder: Path, kind: Kind, window: int) -> Path:
    return folder / kind / f"{window:06d}.npz"
