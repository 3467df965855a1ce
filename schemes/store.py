"""The keys, or the values, of one layer: exact sinks, quantized runs, exact tail. It only ever appends.

Nothing is quantized twice. A run grows like a vector, in place, with spare capacity that is reported apart.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from schemes.base import KV, QuantizedTensor, TensorScheme
from schemes.mirror import Mirror, PastAndNew
from schemes.token_buffer import TokenBuffer, room, writable

AT_ONCE = {"cpu": 2**20, "cuda": 2**28}
"""Numbers that are encoded in one call, by device, where there are more layers: few launches on a GPU, temporaries that
stay in the caches of a CPU."""


class _Run:
    """Quantized tokens in buffers that have room for more groups along dim 2."""

    def __init__(self, first: QuantizedTensor):
        self.held = first  # its parts may be longer than its tokens need

    @property
    def tokens(self) -> int:
        return self.held.tokens

    def view(self) -> QuantizedTensor:
        return self.held.crop(self.tokens)

    def takes_more(self) -> bool:
        """A run cropped inside a group stays as it is: its last group must not be quantized again."""
        return self.tokens % self.held.tokens_per_group == 0

    def extend(self, new: QuantizedTensor) -> None:
        if not all(map(writable, self.held.parts().values())):
            self.held = self.held.map_parts(torch.clone)
        self.held = self.held.extended(new, room)

    def crop(self, tokens: int) -> None:
        self.held = self.held.with_parts(self.held.parts(), tokens)

    def spare_bytes(self) -> int:
        return sum(self.held.nbytes().values()) - sum(self.view().nbytes().values())


class TokenStore:
    """Keys or values [batch, heads, tokens, channels] of one layer, stored as `scheme` says.

    After any sequence of appends the state depends on the number of tokens alone. mirrored: what is packed is decoded
    once and kept beside it (`Mirror`).
    """

    def __init__(self, scheme: TensorScheme, mirrored: bool = False):
        self.scheme = scheme
        self.mirrored = mirrored
        self.reset()

    def reset(self) -> None:
        self.sinks: Tensor | None = None
        self.waiting: Tensor | None = None
        self.runs: list[_Run] = []
        self.saturated: int | Tensor = 0  # numbers beyond the largest of the format, among all that were ever packed
        self._tail = TokenBuffer()
        self._mirror: Mirror | None = None
        self._on_packed: Callable[[int, KV], None] | None = None

    @property
    def tail(self) -> Tensor | None:
        """The newest tokens, exact; a view."""
        return self._tail.view() if self._tail.length else None

    @property
    def packed_tokens(self) -> int:
        return sum(run.tokens for run in self.runs)

    @property
    def sink_tokens(self) -> int:
        return 0 if self.sinks is None else self.sinks.shape[2]

    @property
    def tail_tokens(self) -> int:
        return self._tail.length

    @property
    def length(self) -> int:
        waiting = 0 if self.waiting is None else self.waiting.shape[2]
        return self.sink_tokens + self.packed_tokens + waiting + self.tail_tokens

    @property
    def elements(self) -> int:
        """Numbers that the store stands for. Decodes it: not for inner loops."""
        decoded = self.read()
        return 0 if decoded is None else decoded.numel()

    def append(self, x: KV) -> None:
        """Store the newest tokens, and quantize what the residual rule no longer keeps exact."""
        self._mirror = None
        self._append(x)

    def admit(self, x: KV) -> None:
        """Store the newest tokens; what must be quantized waits for `pack_together`."""
        self._mirror = None
        self._admit(x)

    def read_with(self, new: KV, keep: bool = True) -> PastAndNew:
        """All tokens, decoded, and `new` behind them as they are: what attention reads. keep: `new` is stored then."""
        if not self.mirrored:
            past = self.read()
            full = new if past is None else torch.cat([past, new], dim=2)
        else:
            if self._mirror is None:
                self._mirror = Mirror()
                if (past := self.read()) is not None:
                    self._mirror.with_new(past)
                    self._mirror.keep(past.shape[2])
            full = self._mirror.with_new(new)
        if keep:
            if self._mirror is not None:
                self._mirror.keep(new.shape[2])
            self._append(new)
        return full

    def _append(self, x: KV) -> None:
        self._admit(x)
        pack_together([self])

    def _admit(self, x: KV) -> None:
        """Keep the newest tokens exactly; those that no longer may be so wait."""
        missing = self.scheme.sink_tokens - self.length
        if missing > 0:
            self.sinks = _joined(self.sinks, x[:, :, :missing])
            x = x[:, :, missing:]
        every = self.scheme.flush_every
        ready = max(0, (self._tail.length + x.shape[2] - self.scheme.keep_recent) // every * every)
        if ready:
            old = min(ready, self._tail.length)
            block = x[:, :, : ready - old]
            if old:
                block = torch.cat([self._tail.view()[:, :, :old], block], dim=2)
                self._tail.drop_first(old)
            self.waiting = block if self.waiting is None else torch.cat([self.waiting, block], dim=2)
            x = x[:, :, ready - old :]
        self._tail.append(x)

    @property
    def wants_decoded(self) -> bool:
        return self._mirror is not None or self._on_packed is not None

    def keep_packed(self, packed: QuantizedTensor, decoded: KV | None) -> None:
        """What waited is stored as `packed`, which stands for `decoded`, wanted where there is a mirror."""
        if decoded is not None:
            start = self.sink_tokens + self.packed_tokens
            if self._mirror is not None:
                self._mirror.decode(start, decoded)
            if self._on_packed is not None:
                self._on_packed(start, decoded)
        if self.runs and self.runs[-1].takes_more():
            self.runs[-1].extend(packed)
        else:
            self.runs.append(_Run(packed))
        self.waiting = None

    def read(self) -> KV | None:
        """All tokens, decoded; None where nothing is stored."""
        pieces = [] if self.sinks is None else [self.sinks]
        pieces += [run.view().dequantize() for run in self.runs if run.tokens]
        pieces += [x for x in (self.waiting, self.tail) if x is not None]
        return torch.cat(pieces, dim=2) if pieces else None  # copies even one piece: what is held may change later

    def crop(self, tokens: int) -> None:
        """Keep the first `tokens` tokens; the last block may be left with fewer valid tokens."""
        pack_together([self])
        self._mirror = None
        keep = tokens
        if self.sinks is not None:
            self.sinks = self.sinks[:, :, :keep].clone() if keep else None
        keep -= self.sink_tokens
        for run in self.runs:
            run.crop(min(run.tokens, keep))
            keep -= run.tokens
        self.runs = [run for run in self.runs if run.tokens]
        self._tail.keep_first(keep)

    def index_select(self, rows: Int[Tensor, "rows"]) -> None:
        """Keep these batch rows, in this order."""
        self._change(lambda x: x.index_select(0, rows.to(x.device)), lambda q: q.index_select(rows))

    def repeat(self, repeats: int) -> None:
        """Repeat each batch row `repeats` times."""
        self._change(lambda x: x.repeat_interleave(repeats, dim=0), lambda q: q.repeat(repeats))

    def to(self, device: torch.device | str) -> None:
        self._change(lambda x: x.to(device), lambda q: q.to(device))

    def zero_codes(self) -> None:
        """The destructive control: keep the scales, set every stored code to 0."""
        pack_together([self])
        self._mirror = None
        self.runs = [_Run(run.held.with_zeroed_codes()) for run in self.runs]

    def _change(self, exact: Callable[[Tensor], Tensor], packed: Callable[[QuantizedTensor], QuantizedTensor]) -> None:
        pack_together([self])
        self._mirror = None
        self.sinks = None if self.sinks is None else exact(self.sinks)
        tail, self._tail = self._tail, TokenBuffer()
        if tail.length:
            self._tail.append(exact(tail.view()))
        self.runs = [_Run(packed(run.held)) for run in self.runs]  # with its spare capacity, which would stay unseen

    def nbytes(self) -> dict[str, int]:
        """Bytes held, by what they hold: each part of the packed tokens, "tail", "sinks", "spare" capacity, "mirror"."""
        held: dict[str, int] = {}
        for run in self.runs:
            for name, size in run.view().nbytes().items():
                held[name] = held.get(name, 0) + size
        for name, exact in (("tail", self.tail), ("sinks", self.sinks)):
            held[name] = 0 if exact is None else exact.numel() * exact.element_size()
        held["spare"] = sum(run.spare_bytes() for run in self.runs) + self._tail.spare_bytes
        if self._mirror is not None:
            held["mirror"] = self._mirror.nbytes
        return held

    def counted_bytes(self) -> float:
        """Bytes as they are reported: codes and metadata as held, exact tokens at 16 bits, spare capacity not."""
        exact = sum(2 * x.numel() for x in (self.tail, self.sinks) if x is not None)
        return exact + sum(run.view().counted_bytes() for run in self.runs)


def pack_together(stores: Iterable[TokenStore]) -> None:
    """Quantize what waits in the stores: those of many layers in one call, where their quantizers are equal and encode
    batch rows independently."""
    alike: dict[Hashable, list[TokenStore]] = {}
    for store in stores:
        if store.waiting is not None:
            alike.setdefault(_kind(store, store.waiting), []).append(store)
    for group in alike.values():
        first = group[0].waiting
        assert first is not None
        few = max(1, AT_ONCE.get(first.device.type, AT_ONCE["cpu"]) // first.numel())
        for i in range(0, len(group), few):
            _pack(group[i : i + few])


def alike(stores: Sequence[tuple[TokenStore, Tensor]]) -> list[list[int]]:
    """Which may be joined, as positions: stored by equal rules, in equal shapes; beside each a tensor like its tokens."""
    kinds: dict[Hashable, list[int]] = {}
    for i, (store, like) in enumerate(stores):
        kinds.setdefault(_kind(store, like), []).append(i)
    return list(kinds.values())


def joined(stores: Sequence[TokenStore], on_packed: Callable[[int, KV], None]) -> TokenStore:
    """One store with the batch rows of all, which hold equally many tokens by equal rules. on_packed: is told
    where what is packed from now on begins, and what it decodes to."""
    first = stores[0]
    whole = TokenStore(first.scheme)
    whole.sinks = (
        None if first.sinks is None else torch.cat([store.sinks for store in stores if store.sinks is not None])
    )
    if first.tail_tokens:
        whole._tail.append(torch.cat([store.tail for store in stores if store.tail is not None]))
    whole.runs = (
        first.runs
        if len(stores) == 1
        else [
            _Run(_joined_parts([run.view() for run in runs]))
            for runs in zip(*(store.runs for store in stores), strict=True)
        ]
    )
    whole._on_packed = on_packed
    return whole


def _joined_parts(held: Sequence[QuantizedTensor]) -> QuantizedTensor:
    parts = [one.parts() for one in held]
    return held[0].with_parts({name: torch.cat([one[name] for one in parts]) for name in parts[0]}, held[0].tokens)


def _kind(store: TokenStore, like: Tensor) -> Hashable:
    """Equal of stores that may be packed in one call."""
    quantizer = store.scheme.quantizer
    alone = id(store) if quantizer.rows_independent is not True or quantizer.needs_place else 0
    start = store.sink_tokens + store.packed_tokens
    return alone, store.scheme, like.shape, like.dtype, like.device, start


def _pack(stores: list[TokenStore]) -> None:
    first = stores[0]
    blocks = [store.waiting for store in stores if store.waiting is not None]
    x = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    packed = first.scheme.quantizer.quantize_at(x, first.sink_tokens + first.packed_tokens)
    first.saturated = first.saturated + packed.saturated  # of all these stores: it is their sum that is reported
    decoded = packed.dequantize() if any(store.wants_decoded for store in stores) else None
    rows = len(blocks[0])
    for i, store in enumerate(stores):
        own = slice(i * rows, (i + 1) * rows)
        mine = packed if len(stores) == 1 else packed.map_parts(lambda part, own=own: part[own])
        store.keep_packed(mine, None if decoded is None else decoded[own])


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second.clone() if first is None else torch.cat([first, second], dim=2)
