"""The same exact tokens for every scheme: what a comparison at equal tails and sinks needs."""

from dataclasses import replace

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family

OWN = -1  # as the inner scheme has it


def matched(
    key: TensorScheme, value: TensorScheme, *, tail: int = OWN, sinks: int = OWN, block: int = 0
) -> tuple[TensorScheme, TensorScheme]:
    """What is quantized of a side keeps the newest `tail` tokens exact, and those before them that do not fill a block of `block`
    tokens; and the first `sinks`. −1: as the inner scheme has it; block 0: one of its groups of tokens."""
    for name, count in (("tail", tail), ("sinks", sinks)):
        if count < OWN:
            raise UserError(f"{name}={count}: give a number of tokens, 0 or more; {OWN} leaves it to the inner scheme")
    if block < 0 or (block and tail == OWN):
        raise UserError(f"block={block}: tokens that leave the tail together; give tail too, and 1 token or more")
    return _matched(key, tail, sinks, block), _matched(value, tail, sinks, block)


def _matched(side: TensorScheme, tail: int, sinks: int, block: int) -> TensorScheme:
    if side.quantizer.lossless:
        return side
    if block and side.first_tokens % block:
        raise UserError(
            f"block={block}: the first {side.first_tokens} tokens are quantized together (prompt={side.first_tokens}), and tokens would "
            "leave the tail at other places than in other schemes; give a prompt that is a multiple of the block"
        )
    if tail != OWN:
        side = replace(side, keep_recent=tail, flush_every=block or side.quantizer.tokens_per_group)
    return side if sinks == OWN else replace(side, sink_tokens=sinks)


FAMILY = Family(
    matched,
    "wrapper: the inner scheme with so many newest and first tokens exact, whatever it has itself",
    "kvdelta; sinks as in Xiao et al. 2023, arXiv 2309.17453",
    formula="tail: the newest tokens that stay exact, where the inner scheme's window was; block: tokens that leave it together, so "
    "that tail to tail + block − 1 are exact; 0: a group of the inner scheme. sinks: the first tokens that stay exact. −1: as the "
    "inner scheme has it.",
    good="telling a quantizer from its exact tokens: `compare --match-tail N --match-sinks N` puts it around every scheme, with one "
    "block for all, so that every row has the same exact tokens whatever its groups.",
    fails="sinks alone shift the groups behind them, and what fills no group is exact: rows with long groups then have more exact "
    "tokens than others.",
    keeps_rules=True,
    compared="with nothing: it chooses which tokens are exact, and changes no number",
)
