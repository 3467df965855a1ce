"""What candidates cost and how many bits they take, from records and in the model's own cache."""

from dataclasses import replace

import numpy as np
import pytest

from kvdelta.analysis.measuring.costs import Sizes, candidates_of, costs_of, sizes_of
from kvdelta.analysis.measuring.errors import measure_errors
from kvdelta.analysis.measuring.loop import Failing
from kvdelta.analysis.measuring.sensitivity import measure_sensitivity
from kvdelta.harness.calibration import calibrate, spec_with
from kvdelta.harness.comparison import compare
from kvdelta.harness.records.measurement import measured_arrays

SPECS = [f"asym{bits}:key_axis=channel,group_size=16" for bits in (2, 4, 8)]
SIZES = Sizes(np.ones((2, 2, 3)), np.ones((2, 2)))


def test_costs_from_records(subject, options, tmp_path, refused):
    record, folder = measure_errors(SPECS, replace(options, out=str(tmp_path / "e")), subject)
    arrays = measured_arrays(folder, record)
    costs = costs_of(record, arrays, candidates_of(record, None), SIZES)
    assert costs.cost.shape == (2, 2, 3)
    assert costs.cost[1, 0, 2] == pytest.approx(arrays["key_square"][:, 2, 1].sum())
    assert costs.cost[0, 1, 0] == pytest.approx(arrays["value_square"][:, 0, 0].sum())
    with refused("int8 is not in the errors record; it has asym2"):
        candidates_of(record, ["int8"])
    out = replace(options, out=str(tmp_path / "no"))
    record, folder = measure_errors(SPECS, out, subject, gradients=False)
    with refused("no predicted loss; measure it again without --no-gradients"):
        costs_of(record, measured_arrays(folder, record), SPECS[:1], SIZES)

    out = replace(options, out=str(tmp_path / "s"))
    record, folder = measure_sensitivity(SPECS[:2], out, subject, sides=["value", "key"])
    arrays = measured_arrays(folder, record)
    costs = costs_of(record, arrays, SPECS[1:2], Sizes(np.ones((2, 2, 1)), np.ones((2, 2))))
    assert costs.cost[:, 0, 0] == pytest.approx(arrays["kl"][:, 1, 1].sum(axis=0) / arrays["count"].sum())
    record, folder = measure_sensitivity(SPECS[:1], replace(options, out=str(tmp_path / "k")), subject, sides=["key"])
    with refused("no value side; measure it with --side key --side value"):
        costs_of(record, measured_arrays(folder, record), SPECS[:1], SIZES)


def test_each_candidate_once(subject, options):
    record, _ = measure_errors([*SPECS, "exact"], options, subject)
    assert candidates_of(record, None) == SPECS
    spelled = "asymmetric:bits=2,group_size=16,key_axis=channel"
    assert candidates_of(record, [SPECS[1], spelled, SPECS[0]]) == [SPECS[1], spelled]


def test_bits_are_those_of_the_models_own_cache(subject, options, tmp_path):
    """All heads and channels: oscar's norms are of a token, not of a head; kvquant works with what it is calibrated with."""
    path = calibrate("kvquant:bits=3", subject, tmp_path / "kvquant")
    specs = [
        *SPECS,
        "oscar:bits=2,group_size=16,block=32",
        "int4:group_size=16,exact_first_layers=1",
        spec_with("kvquant:bits=3", path),
    ]
    left, sizes = sizes_of(Failing(specs, print), subject)
    assert left == specs
    assert sizes.bits.shape == (2, 2, len(specs))
    assert sizes.bits[0, :, :3].tolist() == [[4, 6, 10]] * 2  # 32 bits of scale and offset for 16 numbers
    assert (sizes.numbers == 96 * 2 * 16).all()
    assert sizes.bits[:, 0, 4].tolist() == [16, 5]
    run, _ = compare(specs, replace(options, same_text=True), subject=subject)
    for i, contender in enumerate(run.contenders[1:]):
        for s, side in enumerate(contender.bytes.values()):
            assert 8 * side.counted / side.elements == pytest.approx(sizes.bits[:, s, i].mean()), contender.label
