"""Quantized tokens that grow like a vector, in place, with spare capacity that is reported apart."""

from collections.abc import Sequence

import torch

from kvdelta.schemes.base import QuantizedTensor
from kvdelta.schemes.token_buffer import room, writable


class PackedRun:
    """Quantized tokens in buffers that have room for more groups along dim 2."""

    def __init__(self, first: QuantizedTensor):
        self.held = first  # its parts may be longer than its tokens need

    @classmethod
    def joined(cls, runs: "Sequence[PackedRun]") -> "PackedRun":
        if len(runs) == 1:
            return runs[0]
        parts = [run.view().parts() for run in runs]
        whole = {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
        return cls(runs[0].held.with_parts(whole, runs[0].tokens))

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

    def drop_first(self, tokens: int) -> int:
        """Let go the groups that have none but the first `tokens` tokens; how many tokens that is."""
        if tokens >= self.tokens:
            gone, self.held = self.tokens, self.held.crop(0)
            return gone
        groups = max(0, tokens) // self.held.tokens_per_group
        if groups:  # copied, else the storage of what is let go stays
            self.held = self.view().without_first(groups).map_parts(torch.clone)
        return groups * self.held.tokens_per_group

    def spare_bytes(self) -> int:
        return sum(self.held.nbytes().values()) - sum(self.view().nbytes().values())
