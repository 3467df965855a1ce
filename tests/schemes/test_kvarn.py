"""kvarn's scales against the same steps computed plainly."""

import pytest
import torch

from kvdelta.schemes.families.kvarn import LOG_RANGE, even_out

ITERATIONS = 4


def plainly(tile, first):
    """Of the start and each pair of divisions, the one with the least sum of the two ratios, the last of equals; [channels,
    tokens]."""
    channel, token = torch.zeros(tile.shape[0], 1).double(), torch.zeros(1, tile.shape[1]).double()
    iterates = []
    for step in range(2 * ITERATIONS + 1):
        divided = tile / channel.exp() / token.exp()
        stds = divided.std(1, keepdim=True), divided.std(0, keepdim=True)
        if step % 2 == 0:
            iterates.append((sum((std.max() / std.min()).item() for std in stds), -step, channel, token))
        if (step % 2 == 0) == (first == "channel"):
            channel = (channel + stds[0].log()).clamp(*LOG_RANGE)
        else:
            token = (token + stds[1].log()).clamp(*LOG_RANGE)
    return min(iterates, key=lambda iterate: iterate[:2])[2:]


@pytest.mark.parametrize("first", ["token", "channel"])
def test_scales_are_the_best_of_the_iterates(first):
    rng = torch.Generator().manual_seed(4)
    tiles = torch.randn(1, 2, 3, 24, 16, generator=rng, dtype=torch.float64)
    tiles *= torch.randn(1, 2, 3, 24, 1, generator=rng).exp() * torch.randn(1, 2, 3, 1, 16, generator=rng).exp()
    tiles[0, 1, 2] = torch.randn(24, 16, generator=rng)  # already even
    by_channel, by_token = even_out(tiles, first, ITERATIONS)
    for head in range(2):
        for block in range(3):
            channel, token = plainly(tiles[0, head, block], first)
            assert torch.allclose(by_channel[0, head, block], channel.exp(), rtol=1e-9)
            assert torch.allclose(by_token[0, head, block], token.exp(), rtol=1e-9)
