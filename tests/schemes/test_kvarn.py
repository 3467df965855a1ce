"""kvarn's scales against the same steps computed plainly."""

import torch

from schemes.families.kvarn import LOG_RANGE, STEPS, even_out


def plainly(tile):
    """Of the iterates of alternating divisions, the one with the least sum of the two ratios; [channels, tokens]."""
    channel, token = torch.zeros(tile.shape[0], 1).double(), torch.zeros(1, tile.shape[1]).double()
    iterates = []
    for step in range(STEPS + 1):
        divided = tile / channel.exp() / token.exp()
        stds = divided.std(1, keepdim=True), divided.std(0, keepdim=True)
        iterates.append((sum((std.max() / std.min()).item() for std in stds), channel, token))
        if step % 2 == 0:
            channel = (channel + stds[0].log()).clamp(*LOG_RANGE)
        else:
            token = (token + stds[1].log()).clamp(*LOG_RANGE)
    return min(iterates, key=lambda iterate: iterate[0])[1:]


def test_scales_are_the_best_of_the_iterates():
    rng = torch.Generator().manual_seed(4)
    tiles = torch.randn(1, 2, 3, 24, 16, generator=rng, dtype=torch.float64)
    tiles *= torch.randn(1, 2, 3, 24, 1, generator=rng).exp() * torch.randn(1, 2, 3, 1, 16, generator=rng).exp()
    tiles[0, 1, 2] = torch.randn(24, 16, generator=rng)  # already even
    by_channel, by_token = even_out(tiles)
    for head in range(2):
        for block in range(3):
            channel, token = plainly(tiles[0, head, block])
            assert torch.allclose(by_channel[0, head, block], channel.exp(), rtol=1e-9)
            assert torch.allclose(by_token[0, head, block], token.exp(), rtol=1e-9)
