"""A folder of records made by hand, as commands that load no model read it."""

import numpy as np
import pytest

from kvdelta.analysis.cli import catalogue
from kvdelta.harness.records.measurement import Measurement, save_measurement, save_window
from kvdelta.harness.records.run_folder import save_run

from ..conftest import contender

NAMES = [
    "exact", "symmetric:bits=8", "symmetric:bits=4", "asymmetric:bits=2", "kivi:bits=2", "hadamard(asymmetric:bits=4)",
    "@maps/gone.json#12345678", "mine:Cache(window=64)",
]  # fmt: skip
SUMS = [
    "rows", "attention_kl", "logit_norm2", "logit_error2", "score_norm2", "score_error2", "output_norm2",
    *(f"output_error2_{side}" for side in ("key", "value", "both")),
    *(f"{side}_{sum}" for side in ("key", "value") for sum in ("error2", "norm2", "decoded2", "dot", "max")),
]  # fmt: skip


@pytest.fixture
def record_folder(run, tmp_path):
    """A comparison with a map whose file is gone and with a foreign cache, and errors of the same windows."""
    rng = np.random.default_rng(0)
    run.contenders = [contender(name, name, 50.0, lossless=name == "exact") for name in NAMES]
    run.contenders[-1].note, run.contenders[-1].evicts = "attends to the newest 64", True
    run.settings.contenders = NAMES
    for window in run.windows:
        window.nll, window.kl = [20.0, *rng.uniform(20, 21, 7)], [0.0, *rng.uniform(0.1, 1, 7)]
        window.top1, window.probability = [9] * 8, [4.0] * 8
        window.key_pairs, window.value_pairs, window.pairs = [60] * 8, [60] * 8, [100] * 8
    save_run(run, tmp_path)
    settings = run.settings.model_copy(update={"contenders": NAMES[1:7]})
    header = {
        name: getattr(run, name) for name in ("kvdelta", "status", "command", "commit", "model_name", "text_name")
    }
    header |= {name: getattr(run, name) for name in ("text_source", "text_tokens", "layers", "threads")}
    record = Measurement(
        **header, settings=settings, kind="errors", labels=NAMES[1:7], measured_layers=[0, 1], kv_heads=[0]
    )
    for window in settings.windows:
        arrays = {name: rng.uniform(1, 2, (6, 2, 1)) for name in SUMS}
        save_window(record, tmp_path, window, arrays)
    save_measurement(record, tmp_path)
    return tmp_path


BITS = {}
"""What `catalogue` has measured, by family, fields and channels."""


@pytest.fixture
def measured_once(monkeypatch):
    """The bits of a scheme, which many tests list, are measured when the first of them asks."""
    measure = catalogue._bits

    def bits(family, items="", channels=catalogue.LISTED_CHANNELS):
        at = family.name, items, channels
        if at not in BITS:
            BITS[at] = measure(family, items, channels)
        return BITS[at]

    monkeypatch.setattr(catalogue, "_bits", bits)
