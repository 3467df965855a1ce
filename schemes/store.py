"""The keys, or the values, of one layer: exact sinks, quantized runs, exact tail. It only ever appends.

Nothing is quantized twice. What a sliding window has left behind may be let go from the front.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from kvdelta.schemes.base import KV, QuantizedTensor, TensorScheme
from kvdelta.schemes.mirror import Mirror, PastAndNew
from kvdelta.schemes.packed_run import PackedRun
from kvdelta.schemes.token_buffer import TokenBuffer


class TokenStore:
    """Keys or values [batch, heads, tokens, channels] of one layer, stored as `scheme` says.

    After any sequence of appends the state depends on the number of tokens alone. mirrored: what is packed is decoded
    once and kept beside it (`Mirror`).
    """

    def __init__(self, scheme: TensorScheme, mirrored: bool = False):
        self.scheme = scheme
        self.mirrored = mirrored
        self.reset()

    @classmethod
    def joined(cls, stores: "Sequence[TokenStore]", on_packed: Callable[[int, KV], None] | None = None) -> "TokenStore":
        """One store with the batch rows of all, which are alike and hold equally many tokens. on_packed: is told where what is
        packed from now on begins, and what it decodes to."""
        whole, first = cls(stores[0].scheme), stores[0]
        whole.dropped = first.dropped
        if first.sinks is not None:
            whole.sinks = torch.cat([store.sinks for store in stores if store.sinks is not None])
        if first.tail is not None:
            whole._tail.append(torch.cat([store.tail for store in stores if store.tail is not None]))
        whole.runs = [PackedRun.joined(runs) for runs in zip(*(store.runs for store in stores), strict=True)]
        whole._on_packed = on_packed
        return whole

    def reset(self) -> None:
        self.dropped = 0  # first tokens that are no longer held
        self.sinks: Tensor | None = None
        self.waiting: Tensor | None = None
        self.runs: list[PackedRun] = []
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
        self._mirror = None
        self._append(x)

    def admit(self, x: KV) -> None:
        """Store the newest tokens; what must be quantized waits for `pack`, or `schemes.together`."""
        self._mirror = None
        self._admit(x)

    def read_with(self, new: KV, *, pack: bool = True) -> PastAndNew:
        """All tokens, decoded, and `new` behind them as they are: what attention reads. Then `new` is stored; pack: what must be
        quantized waits no longer than this call, else for `pack`, `schemes.together` or the next of these calls."""
        self.pack()
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
        if self._mirror is not None:
            self._mirror.keep(new.shape[2])
        self._admit(new)
        if pack:
            self.pack()
        return full

    def _append(self, x: KV) -> None:
        self._admit(x)
        self.pack()

    def _admit(self, x: KV) -> None:
        """Keep the newest tokens exactly; those that no longer may be so wait."""
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
                self.keep_packed(packed, packed.dequantize() if self.wants_decoded else None)

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

    @property
    def wants_decoded(self) -> bool:
        return self._mirror is not None or self._on_packed is not None

    def keep_packed(self, packed: QuantizedTensor, decoded: KV | None) -> None:
        """What waited, or the next part of it, is stored as `packed`, which stands for `decoded`, wanted where there is a
        mirror."""
        if decoded is not None:
            start = self.packed_until
            if self._mirror is not None:
                self._mirror.decode(start, decoded)
            if self._on_packed is not None:
                self._on_packed(start, decoded)
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
        pieces = [] if self.sinks is None else [self.sinks]
        pieces += [run.view().dequantize() for run in self.runs if run.tokens]
        pieces += [x for x in (self.waiting, self.tail) if x is not None]
        return torch.cat(pieces, dim=2) if pieces else None  # copies even one piece: what is held may change later

    def crop(self, tokens: int) -> None:
        """Keep the first `tokens` tokens; the last block may be left with fewer valid tokens."""
        self.pack()
        self._mirror = None
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
        self._mirror = None
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
        self._mirror = None
        self.runs = [PackedRun(run.held.with_zeroed_codes()) for run in self.runs]

    def _change(self, exact: Callable[[Tensor], Tensor], packed: Callable[[QuantizedTensor], QuantizedTensor]) -> None:
        self.pack()
        self._mirror = None
        self.sinks = None if self.sinks is None else exact(self.sinks)
        tail, self._tail = self._tail, TokenBuffer()
        if tail.length:
            self._tail.append(exact(tail.view()))
        self.runs = [
            PackedRun(packed(run.held)) for run in self.runs
        ]  # with its spare capacity, which would stay unseen

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


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second.clone() if first is None else torch.cat([first, second], dim=2)
