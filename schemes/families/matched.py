"""The same exact tokens for every scheme: what a comparison at equal tails and sinks needs."""

from dataclasses import replace

from kvdelta.schemes.base import TensorScheme
from kvdelta.schemes.errors import UserError
from kvdelta.schemes.family import Family

OWN = -1  # as the inner scheme has it


def matched(
    key: TensorScheme, value: TensorScheme, *, tail: int = OWN, sinks: int = OWN
) -> tuple[TensorScheme, TensorScheme]:
    """What is quantized of a side keeps the newest `tail` tokens exact, and after them what does not fill one of its groups of
    tokens; and the first `sinks`. −1: as the inner scheme has it."""
    for name, count in (("tail", tail), ("sinks", sinks)):
        if count < OWN:
            raise UserError(f"{name}={count}: give a number of tokens, 0 or more; {OWN} leaves it to the inner scheme")
    return _matched(key, tail, sinks), _matched(value, tail, sinks)


def _matched(side: TensorScheme, tail: int, sinks: int) -> TensorScheme:
    if side.quantizer.lossless:
        return side
    if tail != OWN:
        side = replace(side, keep_recent=tail, flush_every=side.quantizer.tokens_per_group)
    return side if sinks == OWN else replace(side, sink_tokens=sinks)


FAMILY = Family(
    matched,
    "wrapper: the inner scheme with so many newest and first tokens exact, whatever it has itself",
    "kvdelta; sinks as in Xiao et al. 2023, arXiv 2309.17453",
    formula="tail: the newest tokens that stay exact, where the inner scheme's window was; keys quantized in groups of 32 tokens "
    "keep 0 to 31 more. sinks: the first tokens that do. −1: as the inner scheme has it.",
    good="telling a quantizer from its exact tokens: `compare --match-tail N --match-sinks N` puts it around every scheme.",
    fails="rows whose groups of tokens are long (a tile of 128) keep more exact tokens than others still; measured bits say how "
    "much that costs.",
    keeps_rules=True,
    compared="with nothing: it chooses which tokens are exact, and changes no number",
)
