"""Quantiles, k-means levels, outliers of a token, and numbers kept apart, against direct computation."""

import pytest
import torch

from schemes.families.kvquant import without_outliers
from schemes.levels import quantile, weighted_levels
from schemes.ragged import Ragged


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
