"""GEAR: the outliers of each vector apart, and what the inner scheme gets wrong, as a low-rank matrix."""

from dataclasses import dataclass, replace
from functools import cache
from math import lcm

import torch
from jaxtyping import Float
from torch import Tensor

from kvdelta.schemes.affine import stored_offset
from kvdelta.schemes.base import KV, Quantizer, TensorScheme
from kvdelta.schemes.drawing import check_seed, generator
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family
from kvdelta.schemes.vector_outliers import VectorOutliersQuantizer
from kvdelta.schemes.wrapping import Decoded, Sides, WrappedTensor, Wrapper, wrap

POWER_STEPS = 2
BUFFER = 64  # tokens that are compressed together while a text is generated, as published
PROMPT_RANK = 4  # of the one part that the tokens before them have, as published


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankTensor(WrappedTensor):
    """left [batch, heads, blocks, block, rank] · right [batch, heads, blocks, channels, rank]ᵀ is added; float16."""

    left: Float[Tensor, "batch heads blocks block rank"]
    right: Float[Tensor, "batch heads blocks channels rank"]

    def restore(self, x: Decoded) -> Decoded:
        return x + (self.left.float() @ self.right.float().mT).flatten(2, 3)


def orthonormal(x: Float[Tensor, "*lead rows rank"]) -> Float[Tensor, "*lead rows rank"]:
    """The columns made orthonormal, by Gram and Schmidt, in float64; a column that the others span becomes 0. For a few
    columns of many small matrices, where a device's own QR takes them one by one."""
    columns: list[Tensor] = []
    for column in x.unbind(-1):
        for _ in range(2):  # twice is enough
            for other in columns:
                column = column - (other * column).sum(-1, keepdim=True) * other
        norm = torch.linalg.vector_norm(column, dim=-1, keepdim=True)
        columns.append(torch.where(norm > 1e-12, column / norm.clamp(min=1e-12), 0.0))
    return torch.stack(columns, dim=-1)


@cache
def random_start(channels: int, rank: int, seed: int, device: torch.device) -> Float[Tensor, "channels rank"]:
    """Of the power iteration: uniform in [0, 1), float64."""
    return torch.rand(channels, rank, generator=generator(seed), dtype=torch.float64).to(device)


@dataclass(frozen=True)
class LowRankQuantizer(Wrapper):
    """The inner quantizer, and beside it the best-effort rank-`rank` part of x − x̂ of each head and block, by two
    power iterations from a random start, drawn with `seed`."""

    rank: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise UserError(f"rank={self.rank}: a low-rank part has at least rank 1")
        check_seed(self.seed)

    def check(self, channels: int) -> None:
        if self.rank > min(channels, self.block):
            raise UserError(f"rank={self.rank} is more than blocks of {self.block} tokens and {channels} channels have")
        self.inner.check(channels)

    def quantize(self, x: KV) -> LowRankTensor:
        full = x.float()
        held = self.inner.quantize(full)
        # in float64: the last bits of a product depend on its shape, and parts must not depend on how many tokens came
        rest = self.blocks(full - held.dequantize()).mT.double()  # [..., block, channels]
        right = random_start(x.shape[3], self.rank, self.seed, x.device).expand(*rest.shape[:3], -1, -1)
        left = rest @ right
        for _ in range(POWER_STEPS):
            right = rest.mT @ orthonormal(left)
            left = rest @ orthonormal(right)
        left = orthonormal(left)
        return LowRankTensor(
            tokens=x.shape[2],
            tokens_per_group=self.tokens_per_group,
            dtype=x.dtype,
            inner=held,
            left=stored_offset(left.float()),
            right=stored_offset((rest.mT @ left).float()),
        )


def gear(
    key: TensorScheme,
    value: TensorScheme,
    *,
    sides: Sides = "both",
    rank: int = 2,
    outliers: float = 0.02,
    block: int = 0,
    prompt: int = 0,
    prompt_rank: int = PROMPT_RANK,
    seed: int = 0,
) -> tuple[TensorScheme, TensorScheme]:
    """block: tokens that share a low-rank part; 0: 64, or as many more as the inner scheme's groups need. outliers: the share of
    a vector that is kept exactly. prompt: tokens that are quantized first, when all are there, and share one part of rank
    `prompt_rank` and the outliers of their vectors; 0: none."""
    if prompt < 0:
        raise UserError(f"prompt={prompt}: a prompt has at least 1 token, and 0 stands for none")
    if prompt_rank != PROMPT_RANK and not prompt:
        raise UserError(f"prompt_rank={prompt_rank} belongs to prompt=N, the number of tokens that it is the rank of")

    def around(inner: Quantizer, tokens: int, rank: int) -> LowRankQuantizer:
        return LowRankQuantizer(VectorOutliersQuantizer(inner, tokens, outliers), tokens, rank, seed)

    def buffers(inner: Quantizer) -> LowRankQuantizer:
        return around(inner, block or lcm(BUFFER, inner.tokens_per_group), rank)

    def with_prompt(inner: TensorScheme, wrapped: TensorScheme) -> TensorScheme:
        if wrapped is inner or not prompt:
            return wrapped
        if inner.first is not None:
            raise UserError(f"prompt={prompt}: the scheme inside has a prompt of its own")
        if prompt % (group := inner.quantizer.tokens_per_group):
            raise UserError(
                f"prompt={prompt}: a prompt is whole groups of the quantizer inside, which takes {group} tokens"
            )
        return replace(wrapped, first=around(inner.quantizer, prompt, prompt_rank))

    wrapped = wrap(key, value, sides, buffers)
    return with_prompt(key, wrapped[0]), with_prompt(value, wrapped[1])


FAMILY = Family(
    gear,
    "wrapper: the inner scheme, the outliers of each vector exact, and a low-rank part of the error",
    "Kang et al. 2024 (GEAR), arXiv 2403.05527",
    formula="x̂ = inner(x with outliers at their vector's mean) + S + A·Bᵀ: S the s/2 smallest and s/2 largest numbers of each "
    "channel of a block (per-channel inner groups) or of each token over all heads (per-token ones), at least one of each; A·Bᵀ "
    "the rank-r part of the error of a head and block, by three power iterations. prompt=N: the first N tokens are one block of "
    "rank 4. Bits at 64 channels and 2 heads, beyond the inner scheme's: blocks of 64 tokens and rank 2 take 1.00, outliers .75 of "
    "a channel and .38 of a token; a prompt of N tokens 1 + 64/N, outliers of a channel .62 where N is over 256.",
    good="an inner scheme with coherent errors: of rank 4 over 256 tokens the keys of Qwen2.5's first layer lose half of their "
    "error at 2 bits, those of SmolLM2's layer 15 a twelfth.",
    fails="equal bits: rank 2 in blocks of 64 at 64 channels costs a bit, for which a smaller group or a third bit gives more.",
    compared="with the published code (opengear-project/GEAR, efe0bfe): codes with the outliers apart are equal but for ties, and the "
    "low-rank part leaves what theirs leaves, to 8 %. They give the whole prompt one part of rank 4 and each later buffer of 64 tokens "
    "one of rank 2: prompt=N does, for a prompt of N tokens. Departs: by default there is no prompt, whose length a scheme does not "
    "know, and every block follows the buffers' rule; a prompt shorter than N stays exact until N tokens are there, and what a longer "
    "one has more goes by blocks. The number of outliers is of the vector's own length, as in the paper, theirs in a channel of heads × "
    "channels. gear(asym2:key_axis=channel) has their KIVI backbone with groups of 64, gear(kcvt4) KCVT, whose groups are kcvt's block "
    "and theirs go over a whole prompt; their codes of 3 bits have 9 levels, here 8",
)
