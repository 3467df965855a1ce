"""Which elements share a scale: bring each group to the last axis, and put it back."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

from kvdelta.schemes.errors import UserError

Axis = Literal["token", "channel"]
GroupSize = int | Literal["all"]

_SPLIT = {"token": "b h t (n g) -> b h t n g", "channel": "b h (n g) d -> b h n d g"}
_MERGE = {"token": "b h t n g -> b h t (n g)", "channel": "b h n d g -> b h (n g) d"}


def require_whole_groups(tokens: int, group: int) -> None:
    """UserError where `tokens` do not divide into groups of `group` tokens."""
    if tokens % group:
        raise UserError(
            f"{tokens} tokens do not divide into groups of {group}; groups along tokens need to be whole (the rest stays "
            "in the exact tail)"
        )


@dataclass(frozen=True)
class Grouping:
    """Groups of `group_size` elements that share one scale.

    axis "token" (per-token, KIVI's word): neighbouring channels of one token; "all" makes the whole channel
    axis one group, and the last group may be short. axis "channel" (per-channel): neighbouring tokens of one
    channel. A group never straddles batch rows or heads.

    Raises UserError where a group of tokens has no fixed length (`group_size="all"` with axis "channel").
    """

    axis: Axis
    group_size: GroupSize

    def __post_init__(self) -> None:
        if self.group_size == "all":
            if self.axis == "channel":
                raise UserError(
                    "group_size=all with axis=channel would make one group of all tokens, which changes with every "
                    "token appended; give a number of tokens, such as group_size=32"
                )
        elif self.group_size < 1:
            raise UserError(f"group_size={self.group_size}: a group has at least 1 element, or is 'all'")

    @property
    def tokens_per_group(self) -> int:
        """Tokens that must be present together for a group to be complete."""
        if self.axis == "token" or self.group_size == "all":
            return 1
        return self.group_size

    def channels_per_group(self, channels: int) -> int:
        return channels if self.group_size == "all" else min(self.group_size, channels)

    def group_lengths(self, channels: int) -> tuple[int, ...]:
        """The lengths of group that occur: one, or two where a short group ends the channel axis."""
        if self.axis == "channel":
            return (self.tokens_per_group,)
        size = self.channels_per_group(channels)
        return (size,) if channels % size == 0 else (size, channels % size)

    def split(self, x: Shaped[Tensor, "batch heads tokens channels"]) -> list[Shaped[Tensor, "... _group"]]:
        """Groups on the last axis: [batch, heads, tokens, n, g] per token, [batch, heads, n, channels, g] per
        channel. A short last group comes as a second tensor with n = 1."""
        tokens, channels = x.shape[2:]
        if self.axis == "channel":
            require_whole_groups(tokens, self.tokens_per_group)
            return [rearrange(x, _SPLIT["channel"], g=self.tokens_per_group)]
        size = self.channels_per_group(channels)
        whole = channels // size * size
        pieces = [rearrange(x[..., :whole], _SPLIT["token"], g=size)]
        if whole < channels:
            pieces.append(x[..., None, whole:])
        return pieces

    def merge(self, pieces: list[Shaped[Tensor, "... _group"]]) -> Shaped[Tensor, "batch heads tokens channels"]:
        """The inverse of `split`."""
        merged = [rearrange(piece, _MERGE[self.axis]) for piece in pieces]
        return merged[0] if len(merged) == 1 else torch.cat(merged, dim=-1)
