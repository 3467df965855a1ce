"""Reconstruction error against loss, planted in records."""

import numpy as np

from kvdelta.analysis.reading.joined import gather
from kvdelta.analysis.reading.worked_example import worked_example

from ..rows import GRID


def test_the_worked_example_is_found_in_the_records(folders):
    """Of schemes with equal keys and bits: values no worse, and more KL."""
    joined = gather([folders["errors"], folders["run"]])
    _, record, arrays = joined.errors[0]
    names = record.settings.contenders
    at = {value: names.index(f"asymmetric:bits=2{value},group_size=16") for value in ("", ",value_axis=channel")}
    for name, array in arrays.items():  # plant it
        if name == "value_error2":
            array[:, at[",value_axis=channel"]] = 0.9 * array[:, at[""]]
            array[:, [i for i in range(8) if i not in at.values()]] = np.arange(1, 7)[None, :, None, None] * 1e6
    run = joined.runs[0][1]
    for window in run.windows:
        window.kl = [0.0, *(10.0 if i == at[",value_axis=channel"] else 1.0 + 0.001 * i for i in range(8))]
    said = worked_example(joined)
    assert said is not None
    assert f"{GRID[1]} and {GRID[0]} have the same keys" in said
