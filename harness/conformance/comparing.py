"""Whether a cache gives back what it should: bit for bit, or as a lossy one can."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvdelta.harness.conformance.feeding import FIRST, Held, Returned, filled, of_rows, past, stream
from kvdelta.harness.conformance.outcome import Factory, Wrong

KeysAndValues = tuple[Tensor, Tensor]  # of a layer, [rows heads tokens channels]
ALIKE = 0.5  # cosine over the numbers of a token: codes of 1 bit have 0.8, other tokens 0


def same(found: Held, wanted: Held, what: str) -> None:
    """Wrong where they are not equal bit for bit."""
    for where, ours, theirs in _pairs(found, wanted, what):
        if not torch.equal(ours, theirs):
            off = (ours != theirs).any(dim=3).any(dim=1).any(dim=0).nonzero().flatten().tolist()
            raise Wrong(
                f"{what}: expected the same numbers, got others in {len(off)} of {ours.shape[2]} tokens, the first {off[0]} "
                f"({where})"
            )


def alike(found: Held, wanted: Held, what: str) -> float:
    """The least cosine that a layer's keys or values have; Wrong where a token is rather another than a lossy one."""
    least = 1.0
    for where, ours, theirs in _pairs(found, wanted, what):
        by_token = _cosine(ours.transpose(1, 2), theirs.transpose(1, 2), keep=2)
        far = (~(by_token >= ALIKE)).nonzero().tolist()  # NaN too
        if far:
            row, token = far[0]
            raise Wrong(
                f"{what}: expected what was put, give or take quantization, got other numbers in {len(far)} of {by_token.numel()} "
                f"tokens, the first {token} of row {row} with a cosine of {by_token[row, token]:.2f} ({where})"
            )
        least = min(least, _cosine(ours, theirs, keep=0).item())
    return least


def _cosine(ours: Tensor, theirs: Tensor, keep: int) -> Tensor:
    """Over all axes but the first `keep`."""
    return torch.cosine_similarity(ours.double().flatten(keep), theirs.double().flatten(keep), dim=-1)


def keeps(found: Held, wanted: Held, exact: bool, what: str) -> None:
    """Bit for bit of an exact cache; a lossy one may encode again what it moves."""
    if exact:
        same(found, wanted, what)
    else:
        alike(found, wanted, what)


def has_past(returned: Returned, stop: int, rows: tuple[int, ...], exact: bool, what: str) -> float:
    """Whether it gives back the tokens of the stream before `stop`; the least cosine that a layer's keys or values have to them. Of a cache that evicts, whether the newer half of
    what it keeps are such tokens, the newest the last: which others it keeps is its own affair, as sinks."""
    offset = max(offset for _, offset in returned.masks)
    start = (offset + stop) // 2 if offset else 0
    found, wanted = returned.tokens(start, stop), stream(0, stop, rows)
    if offset:
        wanted = [_nearest(ours, theirs, what) for ours, theirs in zip(found, wanted, strict=True)]
    keeps(found, wanted, exact, what)
    return alike(found, wanted, what)


def _nearest(found: KeysAndValues, put: KeysAndValues, what: str) -> KeysAndValues:
    """Of the tokens that were put those that a layer gives back, by its keys, head by head. Wrong where they come in another order, or without
    the newest."""
    cosines = F.normalize(found[0].double(), dim=3) @ F.normalize(put[0].double(), dim=3).mT
    which = cosines.argmax(dim=3)
    if which.shape[2] and not bool((which.diff(dim=2) > 0).all() & (which[:, :, -1] == put[0].shape[2] - 1).all()):
        raise Wrong(
            f"{what}: expected tokens in their order, the newest last, got those of places {which[0, 0].tolist()}"
        )
    keys, values = (x.gather(2, which[..., None].expand(-1, -1, -1, x.shape[3])) for x in put)
    return keys, values


def _pairs(found: Held, wanted: Held, what: str) -> list[tuple[str, Tensor, Tensor]]:
    """(layer and side, found, wanted) of all; Wrong where shapes differ."""
    pairs = [
        (f"layer {layer}, {name}", ours[side], theirs[side])
        for layer, (ours, theirs) in enumerate(zip(found, wanted, strict=True))
        for side, name in enumerate(("keys", "values"))
    ]
    for where, ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise Wrong(
                f"{what}: expected [rows heads tokens channels] {list(theirs.shape)}, got {list(ours.shape)} ({where})"
            )
    return pairs


def is_exact(factory: Factory) -> bool:
    """Whether every token comes back as it was put, bit for bit; not of what takes no model with full attention alone."""
    try:
        cache = filled(factory)
    except (ValueError, NotImplementedError):
        return False
    return _agrees(past(cache), stream(0, FIRST))


def rows_apart(factory: Factory) -> bool:
    """Whether what a row reads is the same whatever rows are beside it."""
    first, other, alone = (of_rows(past(filled(factory, rows), len(rows)), [0]) for rows in ((0, 1), (0, 2), (0,)))
    return _agrees(other, first) and _agrees(alone, first)


def _agrees(found: Held, wanted: Held) -> bool:
    try:
        same(found, wanted, "")
    except Wrong:
        return False
    return True
