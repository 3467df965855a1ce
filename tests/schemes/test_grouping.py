"""Grouping against indices written out, and as a round trip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvdelta.schemes.grouping import Grouping


@st.composite
def grouped(draw):
    axis = draw(st.sampled_from(["token", "channel"]))
    size = draw(st.sampled_from([1, 2, 3, 8, *(["all"] if axis == "token" else [])]))
    grouping = Grouping(axis, size)
    tokens = draw(st.integers(1, 4)) * grouping.tokens_per_group
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 2)), tokens, draw(st.integers(1, 20)))
    return grouping, torch.arange(torch.Size(shape).numel()).view(shape)


@given(grouped())
def test_round_trip(case):
    grouping, x = case
    pieces = grouping.split(x)
    assert torch.equal(grouping.merge(pieces), x)
    assert sorted(torch.cat([piece.flatten() for piece in pieces]).tolist()) == list(range(x.numel()))


@given(grouped())
def test_a_group_holds_neighbours_of_one_row_and_head(case):
    """Numbers are their own indices: within a group one step is one channel (per token) or one token (per channel)."""
    grouping, x = case
    channels = x.shape[3]
    pieces = grouping.split(x)
    for piece, length in zip(pieces, grouping.group_lengths(channels), strict=True):
        assert piece.shape[-1] == length
        step = 1 if grouping.axis == "token" else channels
        assert (piece.diff(dim=-1) == step).all()
        owner = piece // (channels if grouping.axis == "token" else x.shape[2] * channels)
        assert (owner == owner[..., :1]).all()


@given(grouped())
def test_parameters_follow_the_layout(case):
    """[batch, heads, token groups, …]: the store appends, and crops, along dim 2."""
    grouping, x = case
    for piece in grouping.split(x):
        assert piece.shape[:3] == (*x.shape[:2], x.shape[2] // grouping.tokens_per_group)


def test_a_short_last_group():
    assert Grouping("token", 32).group_lengths(80) == (32, 16)
    assert [piece.shape for piece in Grouping("token", 32).split(torch.zeros(1, 1, 5, 80))] == [
        (1, 1, 5, 2, 32),
        (1, 1, 5, 1, 16),
    ]


def test_fewer_channels_than_a_group():
    assert Grouping("token", 64).group_lengths(16) == Grouping("token", "all").group_lengths(16) == (16,)
    assert [piece.shape for piece in Grouping("token", 64).split(torch.zeros(1, 1, 5, 16))] == [(1, 1, 5, 1, 16)]


@pytest.mark.parametrize(
    ("axis", "size", "message"),
    [
        ("channel", "all", "group_size=all with axis=channel.*give a number of tokens"),
        ("token", 0, "group_size=0: a group has at least 1 element"),
        ("channel", -8, "group_size=-8: a group has at least 1 element"),
    ],
)
def test_groups_that_cannot_be(axis, size, message):
    with pytest.raises(ValueError, match=message):
        Grouping(axis, size)


def test_tokens_that_do_not_divide():
    with pytest.raises(ValueError, match=r"100 tokens do not divide into groups of 32.*exact tail"):
        Grouping("channel", 32).split(torch.zeros(1, 1, 100, 4))
