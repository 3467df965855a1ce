"""Numbers kept apart from a tensor [batch, heads, tokens, channels], as many a token as there are: value and place."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvdelta.schemes.affine import stored_offset

WORD = 65536


@dataclass(frozen=True, eq=False)
class Ragged:
    """value float16 and index int16 (read as unsigned; heads × channels places), ordered by token, then batch row."""

    value: Float[Tensor, "kept"]
    index: Int[Tensor, "kept"]

    @classmethod
    def of(
        cls, x: Float[Tensor, "batch heads tokens channels"], mask: Bool[Tensor, "batch heads tokens channels"]
    ) -> tuple["Ragged", Int[Tensor, "batch 1 tokens 1"]]:
        """What `mask` marks, and how many that are a token. Waits for the device once: for how many numbers there are."""
        rows = mask.permute(2, 0, 1, 3).flatten(2)  # tokens, batch, heads × channels
        counts = rows.sum(-1, dtype=torch.int32).T[:, None, :, None].contiguous()
        places = rows.flatten().nonzero()[:, 0]
        values = x.permute(2, 0, 1, 3).flatten()[places]
        return cls(stored_offset(values), (places % rows.shape[2]).to(torch.int16)), counts

    def put(self, x: Float[Tensor, "batch heads tokens channels"], counts: Int[Tensor, "batch 1 tokens 1"]) -> None:
        """Into x, in place. There may be more numbers than `counts` says, of tokens that were cropped away: how many
        belong here is known to the device alone, and in the place of each of the others the first is put once more."""
        if not len(self.value):
            return
        batch, _, _, channels = x.shape
        ends = counts[:, 0, :, 0].T.flatten().cumsum(0)  # by token, then batch row
        number = torch.arange(len(self.value), device=x.device)
        number = torch.where(number < ends[-1], number, 0)
        rows = torch.searchsorted(ends, number, right=True).clamp(
            max=len(ends) - 1
        )  # beyond where all were cropped away
        place = self.index.long()[number] & (WORD - 1)
        at = (rows % batch, place // channels, rows // batch, place % channels)
        x[at] = torch.where(ends[-1] > 0, self.value[number].to(x.dtype), x[at])

    def first(self, count: int) -> "Ragged":
        return Ragged(self.value[:count], self.index[:count])

    def after(self, count: int) -> "Ragged":
        return Ragged(self.value[count:], self.index[count:])

    def followed_by(self, other: "Ragged") -> "Ragged":
        return Ragged(torch.cat([self.value, other.value]), torch.cat([self.index, other.index]))

    def rows(self, rows: Int[Tensor, "rows"], counts: Int[Tensor, "batch 1 tokens 1"]) -> "Ragged":
        """Those of these batch rows, in this order."""
        lengths = counts[:, 0, :, 0].T.long()  # tokens, batch
        starts = (lengths.flatten().cumsum(0) - lengths.flatten()).view_as(lengths)
        lengths, starts = lengths[:, rows].flatten(), starts[:, rows].flatten()
        before = lengths.cumsum(0) - lengths
        source = torch.repeat_interleave(starts - before, lengths) + torch.arange(
            int(lengths.sum()), device=rows.device
        )
        return Ragged(self.value[source], self.index[source])

    def to(self, device: torch.device | str) -> "Ragged":
        return Ragged(self.value.to(device), self.index.to(device))
