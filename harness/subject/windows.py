"""Cut a tokenized text into evaluation windows: pure index arithmetic, no model.

A window is a run of `window_length` tokens. Its first part, the prefix, fills the cache; its last
`score_length` tokens, the suffix, are fed to the model that reads this cache. The first suffix token is
predicted by the prefix's exact logits, the same under every scheme, so it is not scored:
`score_length − 1` tokens are.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from kvdelta.schemes.errors import UserError


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors gives a tensor, not a bool
class Window:
    """One evaluation sample.

    index: position in the grid of all windows of the text. start: offset of the first token in the text.
    tokens: the whole window; may share memory with the text, so do not write to it.
    prefix_length: how many of the tokens fill the cache.
    """

    index: int
    start: int
    tokens: Int64[Tensor, "window_length"]
    prefix_length: int

    @property
    def prefix(self) -> Int64[Tensor, "1 prefix"]:
        """Tokens that fill the cache, as a batch of one."""
        return self.tokens[None, : self.prefix_length]

    @property
    def suffix(self) -> Int64[Tensor, "1 suffix"]:
        """Tokens that are fed to the model over the filled cache, as a batch of one."""
        return self.tokens[None, self.prefix_length :]

    @property
    def targets(self) -> Int64[Tensor, "scored"]:
        """The scored tokens: logits of suffix token i predict targets[i]."""
        return self.tokens[self.prefix_length + 1 :]


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows that go through the model together, one a batch row."""

    windows: tuple[Window, ...]

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def tokens(self) -> Int64[Tensor, "batch window_length"]:
        return torch.stack([window.tokens for window in self.windows])

    @property
    def prefix(self) -> Int64[Tensor, "batch prefix"]:
        return torch.cat([window.prefix for window in self.windows])

    @property
    def suffix(self) -> Int64[Tensor, "batch suffix"]:
        return torch.cat([window.suffix for window in self.windows])

    @property
    def targets(self) -> Int64[Tensor, "batch scored"]:
        return torch.stack([window.targets for window in self.windows])

    def on(self, device: torch.device) -> "Batch":
        """With its tokens there: what is sent anew for every forward is waited for each time."""
        tokens = self.tokens.to(device)
        return Batch(tuple(replace(window, tokens=row) for window, row in zip(self.windows, tokens, strict=True)))

    def first(self, count: int) -> "Batch":
        return Batch(self.windows[:count])


def grid_size(n_tokens: int, window_length: int, stride: int) -> int:
    """How many whole windows, one every `stride` tokens, a text of `n_tokens` has.

    ValueError: stride under 1; a text shorter than one window.
    """
    if stride < 1:
        raise UserError(
            f"stride is {stride}; windows must advance by at least 1 token; leave stride out for score_length"
        )
    if n_tokens < window_length:
        raise UserError(
            f"the text has {n_tokens} tokens, a window needs {window_length}; "
            "use a longer text or a smaller window_length"
        )
    return (n_tokens - window_length) // stride + 1


def check_positions(window_length: int, max_positions: int | None) -> None:
    """ValueError when a window does not fit the model's positions; None: the model has no limit."""
    if max_positions is not None and window_length > max_positions:
        raise UserError(
            f"window_length is {window_length}, the model has {max_positions} positions; "
            f"use window_length of at most {max_positions}"
        )


def cut_windows(
    tokens: Int64[Tensor, "*text"],
    *,
    window_length: int = 2048,
    score_length: int = 512,
    stride: int | None = None,
    windows: int | None = None,
    offset: int = 0,
    bos_token_id: int | None = None,
) -> list[Window]:
    """Windows of a text, in order.

    Grid window g starts at token offset + g·stride; the last tokens that fill no whole window are left out. At the
    default stride, `score_length`, no token is scored twice; a stride under `score_length − 1` scores some
    twice, and then windows are not independent samples. `windows=N` of a grid of G takes the windows
    ⌊i·G/N⌋, spread evenly over the text; None takes all. `bos_token_id` replaces the first token of each
    window, so lengths and scored tokens stay what they are without it.

    ValueError: score_length under 2 or not under window_length; stride or windows under 1; more windows
    than the grid has; a text shorter than one window.
    """
    if tokens.ndim != 1:
        raise UserError(f"tokens has shape {tuple(tokens.shape)}; one text is one axis; pass tokens.flatten()")
    if score_length < 2:
        raise UserError(
            f"score_length is {score_length}; its first token is not scored, so it must be at least 2; "
            "use a larger score_length"
        )
    if score_length >= window_length:
        raise UserError(
            f"score_length is {score_length}, window_length {window_length}; the window must be longer, "
            "so that a prefix is left to cache; use a smaller score_length or a larger window_length"
        )
    stride = score_length if stride is None else stride
    grid = grid_size(len(tokens) - offset, window_length, stride)
    count = grid if windows is None else windows
    if count < 1:
        raise UserError(f"windows is {count}; at least 1 must be evaluated; leave windows out for all {grid}")
    if count > grid:
        raise UserError(
            f"windows is {count}, the text has {grid} (length {window_length}, stride {stride}); "
            f"use at most {grid}, or a longer text"
        )
    return [
        _window(tokens, i * grid // count, stride, offset, window_length, window_length - score_length, bos_token_id)
        for i in range(count)
    ]


def _window(
    tokens: Int64[Tensor, "text"],
    index: int,
    stride: int,
    offset: int,
    length: int,
    prefix_length: int,
    bos: int | None,
) -> Window:
    start = offset + index * stride
    window = tokens[start : start + length]
    if bos is not None:
        window = window.clone()  # windows overlap: writing into the text would change its neighbours
        window[0] = bos
    return Window(index, start, window, prefix_length)
