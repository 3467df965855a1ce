"""All tokens of a store as attention reads them, decoded once, in a buffer with room for what comes next."""

from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.base import KV
from kvdelta.schemes.token_buffer import room, writable

PastAndNew = Float[Tensor, "batch heads past_and_new channels"]


class Mirror:
    """Costs the memory that packing saves; a step then costs its own tokens, not the decoding of all before."""

    def __init__(self) -> None:
        self.held: Tensor | None = None
        self.length = 0
        self._decoded: list[tuple[int, KV]] = []  # of tokens that were exact so far: whoever reads them now may go on

    def with_new(self, new: KV) -> PastAndNew:
        """All tokens and `new` behind them, as a view; they are not part of the mirror before `keep`."""
        needed = self.length + new.shape[2]
        if self.held is None or self.held.shape[2] < needed or not writable(self.held):
            size = room(needed) if self.length else needed
            grown = new.new_empty((*new.shape[:2], size, new.shape[3]))
            if self.held is not None:
                grown[:, :, : self.length] = self.held[:, :, : self.length]
            self.held = grown
        for start, decoded in self._decoded:
            self.held[:, :, start : start + decoded.shape[2]] = decoded
        self._decoded.clear()
        self.held[:, :, self.length : needed] = new
        return self.held[:, :, :needed]

    def keep(self, count: int) -> None:
        """The last `count` tokens that `with_new` was given are stored."""
        self.length += count

    def decode(self, start: int, decoded: KV) -> None:
        """From the next read on the tokens from `start` on are these: what was returned before stays as it is."""
        self._decoded.append((start, decoded))

    @property
    def nbytes(self) -> int:
        waiting = sum(x.numel() * x.element_size() for _, x in self._decoded)
        return waiting + (0 if self.held is None else self.held.numel() * self.held.element_size())
