"""A measurement that goes on checks again; that it ends as a whole one does is in tests/analysis/cli/test_resume.py."""

import numpy as np
import pytest

from kvdelta.analysis.measuring import loop
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.sensitivity import measure_sensitivity
from kvdelta.harness.ablation import SharedSuffix
from kvdelta.harness.records.measurement import load_measurement, measured_arrays, window_file
from kvdelta.harness.records.verify import verify
from kvdelta.schemes.errors import UserError

SPECS = ["int8:group_size=16", "asym2:group_size=16"]
MEASUREMENTS = {
    "errors": lambda options, subject, **more: measure_errors(SPECS, options, subject, **more),
    "sensitivity": lambda options, subject, **more: measure_sensitivity(SPECS, options, subject, **more),
}


@pytest.fixture
def killed_after_a_window(monkeypatch):
    """Measures until one window is on disk, and no further."""

    def killed(kind, options, subject):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_window", after(loop.save_window, KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                MEASUREMENTS[kind](options, subject)

    return killed


def after(function, error):
    """It does what it does, then raises."""

    def done(*args):
        function(*args)
        raise error

    return done


def test_a_continued_sensitivity_asks_again_whether_layers_share(killed_after_a_window, subject, options, monkeypatch):
    """A model whose layers see more than the layer below must not be ablated with what lower layers returned."""
    killed_after_a_window("sensitivity", options, subject)
    monkeypatch.setattr(SharedSuffix, "shares_exactly", lambda *args: False)
    notes = []
    measure_sensitivity(SPECS, options, subject, on_note=notes.append)
    assert sum("every pass is computed whole" in note for note in notes) == 1


def test_a_continued_errors_run_checks_captured_attention_again(
    killed_after_a_window, subject, options, monkeypatch, refused
):
    """Attention that is more than its parts over a whole window, though not over a few tokens."""
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def other(module, query, key, *args, **kwargs):
        output, weights = sdpa_attention.sdpa_attention_forward(module, query, key, *args, **kwargs)
        return (output * 0.9 if key.shape[2] > 100 else output), weights

    killed_after_a_window("errors", options, subject)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", other)
    with refused("layer 0 of tiny attends in a way.*cannot be captured"):
        measure_errors(SPECS, options, subject)


def flip(path, place=-40):
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_a_damaged_window_is_named_and_measured_again(subject, options, kind):
    record, folder = MEASUREMENTS[kind](options, subject)
    whole = measured_arrays(folder, record)
    path = folder / window_file(kind, record.settings.windows[1])
    others = [folder / window_file(kind, window) for window in record.settings.windows[::2]]
    before = [other.stat().st_mtime_ns for other in others]
    flip(path)
    with pytest.raises(UserError, match=f"{path.name} cannot be read: it is not as it was written"):
        measured_arrays(folder, load_measurement(folder, kind))
    (found,) = verify(folder)
    assert found.damage == [f"{kind}/{path.name}: it is not as it was written"]
    again, _ = MEASUREMENTS[kind](options, subject)
    assert again == record == load_measurement(folder, kind)
    for name, array in measured_arrays(folder, again).items():
        np.testing.assert_array_equal(array, whole[name])
    assert [other.stat().st_mtime_ns for other in others] == before
    flip(folder / f"{kind}.json", 300)
    with pytest.raises(UserError):
        MEASUREMENTS[kind](options, subject)
