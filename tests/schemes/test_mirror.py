"""A store with a mirror reads what one without reads, bit for bit, after any sequence of operations."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvdelta.schemes import TokenStore
from kvdelta.schemes.mirror import Mirror
from kvdelta.schemes.token_buffer import TokenBuffer

from .test_store import SIDES, tokens

every_scheme = pytest.mark.parametrize("scheme", SIDES)

OPERATIONS = {
    "step": lambda store, n, seed: store.read_with(tokens(n, seed, store.rows)),
    "read": lambda store, n, seed: store.read(),
    "append": lambda store, n, seed: store.append(tokens(n, seed, store.rows)),
    "crop": lambda store, n, seed: store.crop(max(0, store.length - n)),
    "rows": lambda store, n, seed: store.index_select(torch.tensor([store.rows - 1, 0][: 1 + n % 2])),
    "repeat": lambda store, n, seed: store.repeat(2) if store.rows < 4 else None,
    "to": lambda store, n, seed: store.to("cpu"),
    "zero": lambda store, n, seed: store.zero_codes(),
}


class Counting(TokenStore):
    """Knows its batch rows, for what it is given next."""

    rows = 2

    def index_select(self, rows):
        super().index_select(rows)
        self.rows = len(rows)

    def repeat(self, repeats):
        super().repeat(repeats)
        self.rows *= repeats


@every_scheme
@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["step", "step", "step", *OPERATIONS]), st.integers(1, 40), st.integers(0, 99)),
        min_size=1,
        max_size=12,
    )
)
def test_any_sequence_of_operations(scheme, steps):
    plain, mirrored = Counting(scheme), Counting(scheme, mirrored=True)
    for name, n, seed in steps:
        got = [OPERATIONS[name](store, n, seed) for store in (plain, mirrored)]
        if isinstance(got[0], torch.Tensor):
            assert torch.equal(*got)
        assert plain.length == mirrored.length
        new = tokens(2, 7, plain.rows)
        assert torch.equal(plain.read_with(new), mirrored.read_with(new))
    held = mirrored.nbytes()
    assert held.pop("mirror", 0) >= (plain.read().numel() * 4 if plain.length else 0)
    assert held == plain.nbytes()


def test_a_block_is_decoded_once(monkeypatch):
    """What was decoded is not decoded again by later steps; without a mirror every step decodes all."""
    from kvdelta.schemes import affine, parse_scheme

    decoded = []
    dequantize = affine.AffineTensor.dequantize
    monkeypatch.setattr(
        affine.AffineTensor, "dequantize", lambda self: (decoded.append(self.tokens), dequantize(self))[1]
    )
    scheme = parse_scheme("asym2:group_size=16").key
    for mirrored, expected in ((False, [40, 41, 42]), (True, [40, 1, 1, 1])):
        store = TokenStore(scheme, mirrored)
        decoded.clear()
        store.read_with(tokens(40))
        for seed in range(3):
            store.read_with(tokens(1, seed))
        assert decoded == expected


def test_what_was_returned_stays_as_it_is_while_it_is_read():
    """Tokens are packed in the update that returns them: attention still reads them exactly."""
    from kvdelta.schemes import parse_scheme

    store, x = TokenStore(parse_scheme("asym2:group_size=16").key, mirrored=True), tokens(8)
    returned = store.read_with(x)
    assert torch.equal(returned, x)
    assert store.packed_tokens == 8
    again = store.read_with(tokens(1))
    assert not torch.equal(again[:, :, :8], x)


def test_a_step_copies_no_past():
    mirror = Mirror()
    mirror.with_new(tokens(40))
    mirror.keep(40)
    address = mirror.with_new(tokens(1)).data_ptr()
    for _ in range(9):
        mirror.keep(1)
        assert mirror.with_new(tokens(1)).data_ptr() == address


def test_a_copied_store_goes_on_by_itself():
    from kvdelta.schemes import parse_scheme

    store = TokenStore(parse_scheme("kivi:bits=2,group_size=8,residual_length=16").key, mirrored=True)
    store.read_with(tokens(40))
    twin = copy.deepcopy(store)
    twin.read_with(tokens(9, 5))
    assert torch.equal(store.read_with(tokens(3)), twin_of(store, 3))
    assert twin.length == 49


def twin_of(store, new):
    return torch.cat([store.read()[:, :, : store.length - new], tokens(new)], dim=2)


def test_what_inference_mode_made_is_written_to_outside_it():
    from kvdelta.schemes import parse_scheme

    store = TokenStore(parse_scheme("kivi:bits=2,group_size=8,residual_length=16").value, mirrored=True)
    with torch.inference_mode():
        store.read_with(tokens(40))
        store.read_with(tokens(5))
    full = store.read_with(tokens(5, 9))
    assert full.shape[2] == 50


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
