"""Exact tokens in a buffer that grows."""

import pytest
import torch

from kvdelta.schemes.token_buffer import TokenBuffer

from .test_store import tokens


@pytest.mark.parametrize("drop", [1, 3])
def test_a_buffer_of_tokens_is_a_ring_and_keeps_little_spare(drop):
    buffer, expected = TokenBuffer(), torch.empty(2, 2, 0, 16)
    moves, address = 0, None
    for seed in range(300):
        new = tokens(drop, seed)
        buffer.append(new)
        expected = torch.cat([expected, new], dim=2)
        if expected.shape[2] > 64:
            buffer.drop_first(drop)
            expected = expected[:, :, drop:]
        assert torch.equal(buffer.view(), expected)
        moves += buffer.held.data_ptr() != address
        address = buffer.held.data_ptr()
        token = 2 * 2 * 16 * 4
        assert buffer.spare_bytes <= 0.5 * buffer.length * token + 4 * token
        assert buffer.spare_bytes == (buffer.held.shape[2] - buffer.length) * token
    assert moves < 300 * drop / 8  # not a copy of all for each token
