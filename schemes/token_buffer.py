"""Tokens along dim 2 of a tensor with room at its end, so that one more costs no copy of those before."""

import torch
from torch import Tensor

GROWTH = 1.25


def room(needed: int) -> int:
    """How long a buffer is made that must hold `needed` tokens, or groups of them, and grows."""
    return max(needed, int(needed * GROWTH) + 1)


class TokenBuffer:
    """Exact tokens [batch, heads, tokens, channels]: appended at the end, taken from the front."""

    def __init__(self) -> None:
        self.held: Tensor | None = None  # may be longer than what is in use: `length` tokens from `first` on
        self.first = 0
        self.length = 0

    def view(self) -> Tensor:
        """The tokens in use, as a view; there must have been some."""
        assert self.held is not None
        return self.held[:, :, self.first : self.first + self.length]

    def append(self, x: Tensor) -> None:
        """Copies them. What inference mode made is replaced, not written to, outside it."""
        count = x.shape[2]
        if not count:
            return
        if self.held is None:
            self.held = x.new_empty((*x.shape[:2], count, x.shape[3]))  # without spare: it may be all that ever comes
            self.first = 0
        elif self.held.shape[2] < self.first + self.length + count or not writable(self.held):
            self._move(room(self.length + count))
        end = self.first + self.length
        self.held[:, :, end : end + count] = x
        self.length += count

    def drop_first(self, count: int) -> None:
        self.first += count
        self.length -= count
        if not self.length:
            self.held = None
        elif self.first > (GROWTH - 1) * self.length:  # what is left at the front is not more spare than growing leaves
            self._move(room(self.length))

    def _move(self, size: int) -> None:
        """To a new buffer of `size` tokens."""
        old = self.view()
        self.held = old.new_empty((*old.shape[:2], size, old.shape[3]))
        self.held[:, :, : self.length] = old
        self.first = 0

    def keep_first(self, count: int) -> None:
        self.length = min(self.length, count)
        if not self.length:
            self.held = None

    @property
    def spare_bytes(self) -> int:
        if self.held is None:
            return 0
        return self.held.numel() // self.held.shape[2] * (self.held.shape[2] - self.length) * self.held.element_size()


def writable(x: Tensor) -> bool:
    """Whether it may be written to here: what inference mode made cannot be outside it."""
    return torch.is_inference_mode_enabled() or not x.is_inference()
