"""Quantiles, k-means levels, outliers of a token, and numbers kept apart, against direct computation."""

import pytest
import torch

from kvdelta.schemes.calibrated_values import without_outliers
from kvdelta.schemes.families.kvquant import calibrate
from kvdelta.schemes.levels import quantile, weighted_levels
from kvdelta.schemes.ragged import Ragged


@pytest.mark.parametrize(("q", "expected"), [(0.0, 0.0), (0.5, 5.0), (0.96, 10.0), (1.0, 10.0)])
def test_a_quantile_is_the_nearest_rank(q, expected):
    x = torch.randperm(11).float()[None, :, None]
    assert quantile(x, q).item() == expected


def test_levels_are_weighted_means_of_the_nearest_numbers():
    """To half a bin, 1/4096; ±1 are in the first and the last."""
    bin_ = 1 / 4096
    ends = weighted_levels(torch.tensor([-1.0, 1.0]), torch.ones(2), 2)
    assert ends.tolist() == pytest.approx([-1 + bin_, 1 - bin_], abs=1e-6)
    one = weighted_levels(torch.tensor([-0.5, 0.0]), torch.tensor([3.0, 1.0]), 1)
    assert one.item() == pytest.approx(-0.375, abs=2 * bin_)
    x = torch.tensor([-0.9, -0.8, 0.1, 0.3, 0.8])
    two = weighted_levels(x, torch.ones(5), 2)
    assert two.tolist() == pytest.approx([-0.85, 0.4], abs=2 * bin_)


@pytest.mark.parametrize(("numbers", "each_side"), [(201, 1), (203, 2), (401, 2)])
def test_a_share_of_each_end_of_a_token_is_kept(numbers, each_side):
    rows = torch.randn(2, 3, numbers)
    inliers, values, places = without_outliers(rows, 0.01)
    assert values.shape[-1] == 2 * each_side
    ordered = rows.sort(-1).values
    assert torch.equal(values.sort(-1).values, torch.cat([ordered[..., :each_side], ordered[..., -each_side:]], -1))
    assert torch.equal(rows.gather(-1, places), values)
    assert (inliers.gather(-1, places) == rows.median(-1, keepdim=True).values).all()


def test_what_is_kept_apart_comes_back_in_its_place():
    """Beyond 32,767 places, too: an index is read without a sign."""
    x = torch.randn(2, 300, 3, 128).half().float()
    mask = torch.rand(x.shape) < 0.01
    mask[0, -1, 0, -1] = True
    ragged, counts = Ragged.of(x, mask)
    rebuilt = torch.zeros_like(x)
    ragged.put(rebuilt, counts)
    assert torch.equal(rebuilt, x * mask)


def test_levels_are_those_of_the_numbers_that_are_coded():
    """Eight planted levels, under another middle and half range in every channel of the keys and token of the values;
    the ends of the range weigh nothing, and outliers, which weigh most, are not coded."""
    planted = torch.linspace(-7, 7, 8) / 8
    ends = torch.tensor([-1.0] * 40 + [1.0] * 40 + [-3.0] * 10 + [3.0] * 10)  # at the ranks of 1 % of 4000, and beyond
    pattern = torch.cat([planted.repeat_interleave(490)[: 4000 - len(ends)], ends])
    weight = torch.where(pattern.abs() < 1, 1.0, torch.where(pattern.abs() > 1, 9.0, 0.0))
    middle, half = 5 * torch.randn(2, 1, 16), torch.rand(2, 1, 16) + 0.5
    samples, weights = (
        {"key": middle + half * pattern[:, None]},
        {"key": weight[:, None].expand(2, -1, 16).contiguous()},
    )
    token = torch.cat([planted.repeat(15), torch.tensor([-1.0, 1.0, 0.875, -0.875, 0.125, -0.125, -3.0, 3.0])])
    middle, half = 5 * torch.randn(1, 50, 1), torch.rand(1, 50, 1) + 0.5
    samples["value"] = middle + half * token.view(2, 1, 64)
    weights["value"] = torch.where(token.abs() == 1, 0.0, 1.0 + 8 * (token.abs() > 1)).view(2, 1, 64).expand(2, 50, 64)
    tables = calibrate(0, samples, weights, {"bits": 3, "outliers": 0.01})
    for side in ("key", "value"):
        levels = tables[f"0.{side}.levels"]
        assert levels.tolist() == pytest.approx(planted.tolist(), abs=1 / 4096)
