"""Outlier statistics on numbers whose answer is known."""

import numpy as np
import pytest
import torch

from kvdelta.analysis.measuring.channel_statistics import _places, measure_outliers, statistics_of
from kvdelta.analysis.reading import outliers
from kvdelta.harness.records.measurement import measured_arrays


def test_statistics_of_a_channel():
    x = torch.randn(2, 5000, 6)
    x[0, :, 2] = 10 + 2 * x[0, :, 2]
    x[1, :, 4] = 3.0
    found = {name: values[0].numpy() for name, values in statistics_of(x[None]).items()}
    assert found["mean"][0, 2] == pytest.approx(10, abs=0.1)
    assert found["sd"][0, 2] == pytest.approx(2, rel=0.05)
    assert found["kurtosis"][0, 2] == pytest.approx(0, abs=0.3)
    assert found["max"][0, 2] == x[0, :, 2].abs().max()
    assert found["mean_abs"][0, 0] == pytest.approx((2 / np.pi) ** 0.5, rel=0.05)
    assert (found["sd"][1, 4], found["kurtosis"][1, 4], found["mean"][1, 4]) == (0, 0, 3)
    assert found["norm"].shape == (2, 5000)
    assert found["norm"][0, 7] == pytest.approx(float(x[0, 7].norm()))
    heavy = torch.zeros(1, 1000, 1)
    heavy[0, 0] = 1.0  # one in n: kurtosis n − 2 + 1/(n − 1) − 3
    assert float(statistics_of(heavy[None])["kurtosis"][0, 0, 0]) == pytest.approx(1000 - 2 + 1 / 999 - 3, rel=1e-3)


def test_ratio_and_persistence():
    mean_abs = np.ones((3, 2, 64))  # windows, heads, channels
    mean_abs[:, 0, 5] = 8
    for window, channel in enumerate((1, 1, 2)):
        mean_abs[window, 1, channel] = 4
    assert outliers.channel_ratio(mean_abs.mean(axis=0)).tolist() == [8, 3]
    assert outliers.persistence(mean_abs) == pytest.approx([1, 1 / 3])  # pairs: same, other, other
    assert np.isnan(outliers.persistence(mean_abs[:1])).all()
    assert (outliers.top_channels(mean_abs), outliers.top_channels(np.ones(256))) == (1, 3)


def test_rows_of_a_tiny_model(subject, options, model):
    record, folder = measure_outliers(options, subject, pre_rope=True)
    arrays = measured_arrays(folder, record)
    rows = outliers.head_rows(record, arrays)
    assert [(row.side, row.layer, row.head) for row in rows] == [
        (side, layer, head) for side in ("key", "pre_rope_key", "value") for layer in (0, 1) for head in (0, 1)
    ]
    best = outliers.layer_rows(rows)
    assert len(best) == 6
    for row in best:
        heads = [other for other in rows if (other.side, other.layer) == (row.side, row.layer)]
        assert row.ratio == max(other.ratio for other in heads)
    assert arrays["picture_key"].shape == (1, 4, 96, 16)  # four heads are few enough to keep
    # rotation keeps the norm of a key
    np.testing.assert_allclose(arrays["key_norm"], arrays["pre_rope_key_norm"], rtol=1e-4)
    said = outliers.sentences(rows)
    assert [sentence.split(":")[0] for sentence in said[:3]] == ["keys", "keys before RoPE", "values"]
    by_layer = {(row.side, row.layer): row.ratio for row in best}
    more = sum(by_layer["key", layer] > by_layer["value", layer] for layer in (0, 1))
    assert said[3] == f"keys stand out more than values in {more} of 2 layers"


def test_of_many_heads_the_one_that_stands_out_is_kept():
    mean_abs = np.ones((3, 2, 8))
    mean_abs[1, 1, 3] = 9
    mean_abs[2, 0, 3] = 5
    assert _places(mean_abs) == [(1, 1)]
    assert _places(mean_abs[1:]) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_choice_of_layers_and_heads(subject, options, refused):
    record, folder = measure_outliers(options, subject, layers=[1], heads=[0])
    arrays = measured_arrays(folder, record)
    assert arrays["key_mean"].shape == (3, 1, 1, 16)
    assert arrays["pictured"][0].tolist() == [[1, 0]]
    with refused("layer 2 does not exist.*there are 0-1"):
        measure_outliers(options, subject, layers=[2])
    with refused("KV head 3 does not exist"):
        measure_outliers(options, subject, heads=[3])


def test_what_is_constant_and_what_varies(subject, options, model):
    """A loud channel that never changes stands out in the one, and not in the other; before the rotation, which mixes pairs."""
    record, folder = measure_outliers(options, subject, pre_rope=True)
    arrays = {name: array.copy() for name, array in measured_arrays(folder, record).items()}
    side = "pre_rope_key"
    arrays[f"{side}_mean"][..., 3], arrays[f"{side}_sd"][..., 3] = 40.0, 0.5
    arrays[f"{side}_mean_abs"][..., 3], arrays[f"{side}_mean_square"][..., 3] = 40.0, 40.0**2 + 0.25
    for row in outliers.head_rows(record, arrays):
        sd = np.sqrt((arrays[f"{row.side}_sd"] ** 2).mean(axis=0))[row.layer, row.head]
        assert row.varying == pytest.approx(sd.max() / np.median(sd), rel=1e-5)
        mean, square = (arrays[f"{row.side}_{name}"][:, row.layer, row.head] for name in ("mean", "mean_square"))
        assert row.constant == pytest.approx((mean**2).sum() / square.sum(), rel=1e-5)
        assert 0 <= row.constant <= 1
        if row.side == side:
            assert row.ratio > 10 > row.varying
            assert row.constant > 0.9
