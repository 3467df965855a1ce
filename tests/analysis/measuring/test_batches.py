"""Windows as batch rows: the record is that of one window after another, and none is lost for want of memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kvdelta.analysis.measuring import channel_statistics, errors, loop, sensitivity
from kvdelta.harness.caches.rebuilt import rebuilt
from kvdelta.harness.records.measurement import (
    Measurement,
    load_measurement,
    measured_arrays,
    save_measurement,
    window_file,
)
from kvdelta.harness.records.writing import load_arrays
from kvdelta.schemes import kernels, parse_scheme

MIXES_ROWS = "hqq4:solver=library,group_size=16"
SPECS = ["int4:group_size=16", "kivi:bits=2,group_size=8,residual_length=16", MIXES_ROWS]
SIDES = ["key", "value", "both"]
MEASUREMENTS = {
    "errors": lambda options, subject, **more: errors.measure_errors(SPECS, options, subject, **more),
    "sensitivity": lambda options, subject, **more: sensitivity.measure_sensitivity(
        SPECS, options, subject, sides=SIDES, **more
    ),
    "outliers": lambda options, subject, **more: channel_statistics.measure_outliers(
        options, subject, pre_rope=True, **more
    ),
}
MODULES = {"errors": errors, "sensitivity": sensitivity, "outliers": channel_statistics}


def measured(kind, options, subject, batch, folder, **more):
    record, out = MEASUREMENTS[kind](replace(options, batch=batch, out=str(folder)), subject, **more)
    files = sorted((out / kind).iterdir())
    assert [file.stem for file in files] == [f"{window.index:06d}" for window in subject.windows]
    return record, [load_arrays(file) for file in files]


def assert_alike(some, others):
    """On a CPU in float32 rows of a matrix product differ in the last bits, and a code may move with them."""
    for one, other in zip(some, others, strict=True):
        assert list(one) == list(other)
        for name, array in one.items():
            assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
            np.testing.assert_allclose(array, other[name], rtol=2e-3, atol=1e-4 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_the_record_is_the_same_whatever_the_batch(kind, subject, options, tmp_path, monkeypatch):
    """In batches of two and a ragged one of one, and all at once; in pieces of a layer too."""
    said = []
    _, alone = measured(kind, options, subject, "1", tmp_path / "alone", on_note=said.append)
    assert said[-1].startswith("window 3/3  ")
    said.clear()
    _, pairs = measured(kind, options, subject, "2", tmp_path / "pairs", on_note=said.append)
    assert [said[0].split("  ")[0], said[-1].split("  ")[0]] == ["windows 1–2 of 3", "window 3/3"]
    assert_alike(alone, pairs)
    _, all_three = measured(kind, options, subject, "3", tmp_path / "whole")
    assert_alike(alone, all_three)
    if kind == "errors":
        monkeypatch.setitem(errors.AT_ONCE, "cpu", 2 * 4 * 32 * 128)  # two windows
        _, pieces = measured(kind, options, subject, "3", tmp_path / "pieces")
        assert_alike(all_three, pieces)


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_out_of_memory_halves_the_batch_and_loses_no_window(kind, subject, options, tmp_path, monkeypatch):
    """Late in a batch, where some of it was computed."""
    seen, said = [], []
    named = loop.named

    def hungry(batch, windows):
        seen.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return named(batch, windows)

    monkeypatch.setattr(MODULES[kind], "named", hungry)
    _, halved = measured(kind, options, subject, "3", tmp_path / "halved", on_note=said.append)
    assert seen[:2] == [3, 1]
    assert set(seen[1:]) == {1}
    assert said[0] == "out of memory with 3 windows at once: going on with 1"
    monkeypatch.undo()
    _, alone = measured(kind, options, subject, "1", tmp_path / "alone")
    for one, other in zip(halved, alone, strict=True):
        assert all(np.array_equal(array, other[name]) for name, array in one.items())


def test_one_window_that_is_too_much_is_refused(subject, options, monkeypatch, refused):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")

    monkeypatch.setattr(errors, "suffix_gradients", full)
    with refused("one window at a time is too much for the memory of this device: CUDA out of memory"):
        errors.measure_errors(SPECS, replace(options, batch="2"), subject)
    assert load_measurement(options.out, "errors").status == "running"


def test_batches_are_cut_from_the_windows_that_are_left(subject, options, tmp_path):
    record, whole = measured("errors", options, subject, "3", tmp_path / "run")
    save_measurement(Measurement(**{**record.model_dump(), "status": "running"}), tmp_path / "run")
    for window in (subject.windows[0], subject.windows[2]):
        (tmp_path / "run" / window_file("errors", window.index)).unlink()
    said = []
    _, again = measured("errors", options, subject, "3", tmp_path / "run", on_note=said.append)
    assert [text.split("  ")[0] for text in said] == ["windows 1, 3 of 3"]
    assert_alike(whole, again)


def test_what_an_encoder_would_mix_is_stored_window_by_window():
    x = torch.randn(3, 2, 32, 16) * torch.tensor([1.0, 10.0, 100.0])[:, None, None, None]
    for spec in SPECS:
        rule = parse_scheme(spec).key
        together = rebuilt(rule, x)
        for i in range(3):
            assert torch.equal(together[i : i + 1], rebuilt(rule, x[i : i + 1])), spec


def test_the_number_of_windows_decides_about_kernels(subject, options, monkeypatch):
    """Of few, compiling takes longer than it saves."""
    counts = []
    for_windows = kernels.for_windows
    monkeypatch.setattr(kernels, "for_windows", lambda count, told: (counts.append(count), for_windows(count, told))[1])
    record, folder = errors.measure_errors(SPECS[:1], options, subject)
    assert counts == [3]
    assert measured_arrays(folder, record)["rows"].shape == (3, 1, 2, 2)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "Python", "cuBLAS"],
)
def test_what_a_scheme_has_no_memory_for_is_no_failed_row(error):
    """Fewer windows are tried; another error ends its row."""

    def work():
        raise error

    def breaks():
        raise RuntimeError("broken")

    said = []
    failing = loop.Failing(["int4", "int8"], said.append)
    with pytest.raises(type(error)):
        failing.tried(0, work)
    assert failing.tried(1, breaks) is None
    assert failing.reasons == {"int8": "RuntimeError: broken"}
    assert failing.tried(0, lambda: 3) == 3
