"""The keys, or the values, of one layer: exact sinks, quantized runs, exact tail. It only ever appends.

Nothing is quantized twice. What a sliding window has left behind may be let go from the front.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvdelta.schemes.base import KV, QuantizedTensor, TensorScheme
from kvdelta.schemes.packed_run import PackedRun
from kvdelta.schemes.token_buffer import TokenBuffer

PastAndNew = Float[Tensor, "batch heads past_and_new channels"]


class TokenStore:
    """Keys or values [batch, heads, tokens, channels] of one layer, stored as `scheme` says.

    After any sequence of appends the state depends on the number of tokens alone.
    """

    def __init__(self, scheme: TensorScheme):
        self.scheme = scheme
        self.reset()

    @classmethod
    def joined(cls, stores: "Sequence[TokenStore]", on_packed: Callable[[int, KV], None] | None = None) -> "TokenStore":
        """One store with the batch rows of all, which are alike and hold equally many tokens, none that waits. on_packed: is told
        where what is packed from now on begins, and what it decodes to."""
        whole, first = cls(stores[0].scheme), stores[0]
        whole.dropped = first.dropped
        if first.sinks is not None:
            whole.sinks = torch.cat([store.sinks for store in stores if store.sinks is not None])
        if first.tail is not None:
            whole._tail.append(torch.cat([store.tail for store in stores if store.tail is not None]))
        whole.runs = [PackedRun.joined(runs) for runs in zip(*(store.runs for store in stores), strict=True)]
        whole.saturated = sum(store.saturated for store in stores)
        whole._on_packed = on_packed
        return whole

    def parted(self, count: int) -> "list[TokenStore]":
        """What `joined` made one of so many stores, each with storage of its own again. `saturated` stays with the first."""
        stores: list[TokenStore] = [copy.copy(self) for _ in range(count)]  # whose parts are replaced, not changed
        for i, store in enumerate(stores):

            def own(x: Tensor, i: int = i) -> Tensor:
                return x.chunk(count)[i].clone()

            store._on_packed, store.saturated = None, 0 if i else self.saturated
            store._change(own, lambda q, own=own: q.map_parts(own))
        return stores

    def reset(self) -> None:
        self.dropped = 0  # first tokens that are no longer held
        self.sinks: Tensor | None = None
        self.waiting: Tensor | None = None
        self.runs: list[PackedRun] = []
        self.saturated: int | Tensor = 0  # numbers beyond the largest of the format, among all that were ever packed
        self._tail = TokenBuffer()
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
    def packed_from(self) -> int:
        """The position of the first token that is held packed."""
        return self.dropped + self.sink_tokens

    @property
    def packed_until(self) -> int:
        """The position behind the last one."""
        return self.packed_from + self.packed_tokens

    @property
    def _begun(self) -> bool:
        """Whether any token was packed."""
        return self.packed_until > self.scheme.sink_tokens

    @property
    def length(self) -> int:
        """Tokens that were stored, those let go among them."""
        waiting = 0 if self.waiting is None else self.waiting.shape[2]
        return self.packed_until + waiting + self.tail_tokens

    @property
    def elements(self) -> int:
        """Numbers that the store holds. Decodes it: not for inner loops."""
        decoded = self.read()
        return 0 if decoded is None else decoded.numel()

    def append(self, x: KV) -> None:
        """Store the newest tokens, and quantize what the residual rule no longer keeps exact."""
        self.admit(x)
        self.pack()

    def read_with(self, new: KV, *, pack: bool = True) -> PastAndNew:
        """All tokens, decoded, and `new` behind them as they are: what attention reads. Then `new` is stored; pack: what must be
        quantized waits no longer than this call, else for `pack`, `schemes.together` or the next of these calls."""
        self.pack()
        past = self._decoded()
        full = torch.cat([*past, new], dim=2) if past else new
        self.admit(new)
        if pack:
            self.pack()
        return full

    def admit(self, x: KV) -> None:
        """Store the newest tokens; what must be quantized waits for `pack`, or `schemes.together`."""
        missing = self.scheme.sink_tokens - self.length
        if missing > 0:
            self.sinks = _joined(self.sinks, x[:, :, :missing])
            x = x[:, :, missing:]
        begun = self.waiting is not None or self._begun
        ready = self.scheme.due(self._tail.length + x.shape[2] - self.scheme.keep_recent, begun)
        if ready:
            old = min(ready, self._tail.length)
            block = x[:, :, : ready - old]
            if old:
                block = torch.cat([self._tail.view()[:, :, :old], block], dim=2)
                self._tail.drop_first(old)
            self.waiting = block if self.waiting is None else torch.cat([self.waiting, block], dim=2)
            x = x[:, :, ready - old :]
        self._tail.append(x)

    def pack(self) -> None:
        """Quantize what waits."""
        if self.waiting is not None:
            for packed in self.quantized(self.waiting):
                self.keep_packed(packed)

    def quantized(self, waiting: KV) -> list[QuantizedTensor]:
        """What waits, as it is to be stored: what the rule encodes first apart. Of several stores in one call the numbers beyond
        the largest are counted here: it is their sum that is reported."""
        start, pieces = self.packed_until, [(self.scheme.quantizer, waiting)]
        if self.scheme.first is not None and not self._begun:
            first = self.scheme.first_tokens
            pieces = [(self.scheme.first, waiting[:, :, :first]), (self.scheme.quantizer, waiting[:, :, first:])]
        packed: list[QuantizedTensor] = []
        for quantizer, x in pieces:
            if x.shape[2]:
                packed.append(quantizer.quantize_at(x, start))
                self.saturated = self.saturated + packed[-1].saturated
                start += x.shape[2]
        return packed

    def keep_packed(self, packed: QuantizedTensor) -> None:
        """What waited, or the next part of it, is stored as `packed`."""
        if self._on_packed is not None:
            self._on_packed(self.packed_until, packed.dequantize())
        # what the rule encodes first is a run of another layout
        apart = (
            self.scheme.first is not None and self.packed_until <= self.scheme.sink_tokens + self.scheme.first_tokens
        )
        if self.runs and not apart and self.runs[-1].takes_more():
            self.runs[-1].extend(packed)
        else:
            self.runs.append(PackedRun(packed))
        self.waiting = None

    def read(self) -> KV | None:
        """All tokens from `dropped` on, decoded; None where nothing is held."""
        pieces = self._decoded()
        return torch.cat(pieces, dim=2) if pieces else None  # copies even one piece: what is held may change later

    def _decoded(self) -> list[KV]:
        """All tokens, one piece after another; those that are exact as views."""
        packed = [run.view().dequantize() for run in self.runs if run.tokens]
        return [x for x in (self.sinks, *packed, self.waiting, self.tail) if x is not None]

    def crop(self, tokens: int) -> None:
        """Keep the first `tokens` tokens; the last block may be left with fewer valid tokens."""
        self.pack()
        keep = tokens - self.dropped
        if self.sinks is not None:
            self.sinks = self.sinks[:, :, :keep].clone() if keep else None
        keep -= self.sink_tokens
        for run in self.runs:
            run.crop(min(run.tokens, keep))
            keep -= run.tokens
        self.runs = [run for run in self.runs if run.tokens]
        self._tail.keep_first(keep)

    def forget(self, tokens: int) -> None:
        """Let go of the first `tokens` tokens, as a sliding window does: exact ones, and groups that hold no other. What is not
        packed yet stays: it will be, in whole groups."""
        if self.sinks is not None and tokens > self.dropped:
            gone = min(tokens - self.dropped, self.sink_tokens)
            self.sinks = self.sinks[:, :, gone:].clone() if gone < self.sink_tokens else None
            self.dropped += gone
        while self.sinks is None and self.runs:
            self.dropped += self.runs[0].drop_first(tokens - self.dropped)
            if self.runs[0].tokens:
                return
            del self.runs[0]

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
        self.pack()
        self.runs = [PackedRun(run.held.with_zeroed_codes()) for run in self.runs]

    def _change(self, exact: Callable[[Tensor], Tensor], packed: Callable[[QuantizedTensor], QuantizedTensor]) -> None:
        self.pack()
        self.sinks = None if self.sinks is None else exact(self.sinks)
        tail, self._tail = self._tail, TokenBuffer()
        if tail.length:
            self._tail.append(exact(tail.view()))
        self.runs = [
            PackedRun(packed(run.held)) for run in self.runs
        ]  # with its spare capacity, which would stay unseen

    def nbytes(self) -> dict[str, int]:
        """Bytes held, by what they hold: each part of the packed tokens, "tail", "sinks", "spare" capacity."""
        held: dict[str, int] = {}
        for run in self.runs:
            for name, size in run.view().nbytes().items():
                held[name] = held.get(name, 0) + size
        for name, exact in (("tail", self.tail), ("sinks", self.sinks)):
            held[name] = 0 if exact is None else exact.numel() * exact.element_size()
        held["spare"] = sum(run.spare_bytes() for run in self.runs) + self._tail.spare_bytes
        return held

    def counted_bytes(self) -> float:
        """Bytes as they are reported: codes and metadata as held, exact tokens at 16 bits, spare capacity not."""
        exact = sum(2 * x.numel() for x in (self.tail, self.sinks) if x is not None)
        return exact + sum(run.view().counted_bytes() for run in self.runs)


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second.clone() if first is None else torch.cat([first, second], dim=2)
