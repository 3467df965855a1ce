"""The keys, or the values, of one layer: exact sinks, quantized runs, exact tail. It only ever appends.

Nothing is quantized twice. A run grows like a vector, in place, with spare capacity that is reported apart.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from schemes.base import KV, QuantizedTensor, TensorScheme

_GROWTH = 1.25


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
        if not torch.is_inference_mode_enabled() and any(part.is_inference() for part in self.held.parts().values()):
            self.held = self.held.map_parts(torch.clone)  # what inference mode made cannot be written to outside it
        self.held = self.held.extended(new, lambda needed: max(needed, int(needed * _GROWTH) + 1))

    def crop(self, tokens: int) -> None:
        self.held = self.held.with_parts(self.held.parts(), tokens)

    def spare_bytes(self) -> int:
        return sum(self.held.nbytes().values()) - sum(self.view().nbytes().values())


class TokenStore:
    """Keys or values [batch, heads, tokens, channels] of one layer, stored as `scheme` says.

    After any sequence of appends the state depends on the number of tokens alone.
    """

    def __init__(self, scheme: TensorScheme):
        self.scheme = scheme
        self.reset()

    def reset(self) -> None:
        self.sinks: Tensor | None = None
        self.tail: Tensor | None = None
        self.runs: list[_Run] = []
        self.saturated: int | Tensor = 0  # numbers beyond the largest of the format, among all that were ever packed

    @property
    def packed_tokens(self) -> int:
        return sum(run.tokens for run in self.runs)

    @property
    def sink_tokens(self) -> int:
        return 0 if self.sinks is None else self.sinks.shape[2]

    @property
    def tail_tokens(self) -> int:
        return 0 if self.tail is None else self.tail.shape[2]

    @property
    def length(self) -> int:
        return self.sink_tokens + self.packed_tokens + self.tail_tokens

    @property
    def elements(self) -> int:
        """Numbers that the store stands for. Decodes it: not for inner loops."""
        decoded = self.read()
        return 0 if decoded is None else decoded.numel()

    def append(self, x: KV) -> None:
        """Store the newest tokens, and quantize what the residual rule no longer keeps exact."""
        missing = self.scheme.sink_tokens - self.length
        if missing > 0:
            self.sinks = _joined(self.sinks, x[:, :, :missing])
            x = x[:, :, missing:]
        tail = x if self.tail is None else torch.cat([self.tail, x], dim=2)
        every = self.scheme.flush_every
        ready = max(0, (tail.shape[2] - self.scheme.keep_recent) // every * every)
        if ready:
            self._pack(tail[:, :, :ready])
        rest = tail[:, :, ready:]
        self.tail = rest.clone() if rest.shape[2] else None  # cloned: a view would keep the whole prefix alive

    def _pack(self, x: KV) -> None:
        packed = self.scheme.quantizer.quantize_at(x, self.sink_tokens + self.packed_tokens)
        self.saturated = self.saturated + packed.saturated
        if self.runs and self.runs[-1].takes_more():
            self.runs[-1].extend(packed)
        else:
            self.runs.append(_Run(packed))

    def read(self) -> KV | None:
        """All tokens, decoded; None where nothing is stored."""
        pieces = [] if self.sinks is None else [self.sinks]
        pieces += [run.view().dequantize() for run in self.runs if run.tokens]
        pieces += [] if self.tail is None else [self.tail]
        return torch.cat(pieces, dim=2) if pieces else None  # copies even one piece: what is held may change later

    def crop(self, tokens: int) -> None:
        """Keep the first `tokens` tokens; the last block may be left with fewer valid tokens."""
        keep = tokens
        if self.sinks is not None:
            self.sinks = self.sinks[:, :, :keep].clone() if keep else None
        keep -= self.sink_tokens
        for run in self.runs:
            run.crop(min(run.tokens, keep))
            keep -= run.tokens
        self.runs = [run for run in self.runs if run.tokens]
        if self.tail is not None:
            self.tail = self.tail[:, :, :keep].clone() if keep else None

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
        self._change(lambda x: x, lambda q: q.with_zeroed_codes())

    def _change(self, exact: Callable[[Tensor], Tensor], packed: Callable[[QuantizedTensor], QuantizedTensor]) -> None:
        self.sinks = None if self.sinks is None else exact(self.sinks)
        self.tail = None if self.tail is None else exact(self.tail)
        self.runs = [_Run(packed(run.held)) for run in self.runs]  # with its spare capacity, which would stay unseen

    def nbytes(self) -> dict[str, int]:
        """Bytes held, by what they hold: each part of the packed tokens, "tail", "sinks", and "spare" capacity."""
        held: dict[str, int] = {}
        for run in self.runs:
            for name, size in run.view().nbytes().items():
                held[name] = held.get(name, 0) + size
        for name, exact in (("tail", self.tail), ("sinks", self.sinks)):
            held[name] = 0 if exact is None else exact.numel() * exact.element_size()
        held["spare"] = sum(run.spare_bytes() for run in self.runs)
        return held

    def counted_bytes(self) -> float:
        """Bytes as they are reported: codes and metadata as held, exact tokens at 16 bits, spare capacity not."""
        exact = sum(2 * x.numel() for x in (self.tail, self.sinks) if x is not None)
        return exact + sum(run.view().counted_bytes() for run in self.runs)


def _joined(first: Tensor | None, second: Tensor) -> Tensor:
    return second.clone() if first is None else torch.cat([first, second], dim=2)
