"""Inputs that ask more of a cache: positions, left padding, lengths that do not divide, models with layers of two kinds."""

from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.conformance.comparing import alike, has_past, is_exact, rows_apart
from kvdelta.harness.conformance.decoding import greedily, stepwise
from kvdelta.harness.conformance.feeding import ROWS, feed, has_grown, lengths, stream
from kvdelta.harness.conformance.models import PROMPT, SHORTER, calm, convolving, full, prompt, sliding
from kvdelta.harness.conformance.outcome import Check, Factory, Wrong
from kvdelta.harness.subject.forward import forward

PADS = 90
ROUNDING = 1e-3  # of the largest logit, in float32: other kernels under another mask
MOVED = 1e-2  # the same, where a last bit may move a code
UNEVEN = ((1, 1, 1, 62, 1), (31, 2, 32, 63, 1), (127, 2, 1, 5), (129, 128, 3, 1))
"""Tokens of forward after forward."""

Rows = Int64[Tensor, "rows tokens"]
Logits = Float[Tensor, "rows _ vocabulary"]


def _in_two(model: Any, cache: Any, tokens: Tensor, mask: Rows | None = None, places: Tensor | None = None) -> Logits:
    """Logits of what follows SHORTER tokens, in a second forward over what the first stored. places: positions, of the second
    forward or of both."""
    first, second = tokens[:, :SHORTER], tokens[:, SHORTER:]
    early = None if places is None or places.shape[1] == second.shape[1] else places[:, :SHORTER]
    late = None if places is None else places[:, -second.shape[1] :]
    forward(model, first, cache, attention_mask=None if mask is None else mask[:, :SHORTER], position_ids=early)
    return forward(model, second, cache, attention_mask=mask, position_ids=late).logits


def _off(found: Logits, wanted: Logits) -> float:
    """The largest difference, as a part of the largest logit."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def _positions(factory: Factory) -> str:
    tokens, given = prompt(2), torch.arange(SHORTER, PROMPT).expand(2, -1)
    implied, explicit = (_in_two(full(), factory(full().config), tokens, places=ids) for ids in (None, given))
    if (off := _off(implied, explicit)) > ROUNDING:
        raise Wrong(
            f"a forward after {SHORTER} tokens: expected it to go on from position {SHORTER}, got logits {off:.1%} away from those"
        )
    if is_exact(factory):
        whole = full()(input_ids=tokens, use_cache=False).logits[:, SHORTER:]
        if (off := _off(implied, whole)) > ROUNDING:
            raise Wrong(f"two forwards: expected the logits of one without a cache, got some {off:.1%} away")
    return ""


def _left_padding(factory: Factory) -> str:
    model, tokens, mask = calm(), prompt(2), torch.ones(2, PROMPT, dtype=torch.long)
    tokens[1, :PADS], mask[1, :PADS] = 0, 0
    places = (mask.cumsum(1) - 1).clamp(min=0)

    def padded(cache: Any, mask: Rows) -> Logits:
        return _in_two(model, cache, tokens, mask, places)

    found = padded(factory(model.config), mask)
    masked, seen = (padded(DynamicCache(config=model.config), one) for one in (mask, torch.ones_like(mask)))
    if is_exact(factory):
        if (off := _off(found, masked)) > ROUNDING:
            raise Wrong(f"expected the logits of DynamicCache, got some {off:.1%} away")
        return "as DynamicCache"
    near, far = ((found[1] - other[1]).norm().item() for other in (masked, seen))
    if not near < far:
        raise Wrong(
            f"row with pads: expected logits nearer to DynamicCache's with pads masked than with pads seen, got a distance of "
            f"{near:.2f} and {far:.2f}"
        )
    if not rows_apart(factory):
        return "pads are masked; rows are stored together, so a row is not as it is alone"
    if (off := _off(found[:1], _in_two(model, factory(model.config), tokens[:1]))) > MOVED:
        raise Wrong(f"row without pads: expected its logits alone, got some {off:.1%} away")
    return "pads are masked, and the row without is as it is alone"


def _uneven(factory: Factory) -> str:
    exact = is_exact(factory)
    for forwards in UNEVEN:
        cache, fed = factory(full().config), f"forwards of {', '.join(map(str, forwards))}"
        for start, stop in pairwise(accumulate(forwards, initial=0)):
            said = lengths(cache)
            returned = feed(cache, start, stop)
            alike(returned.tokens(start, stop), stream(start, stop), f"{fed}: new tokens after {start}")
            if start:
                has_past(returned, start, ROWS, exact, f"{fed}: past of {start} tokens")
            has_grown(cache, said, stop - start, f"in {fed}")
    return ""


def _sliding(factory: Factory) -> str:
    return stepwise(factory, sliding, "greedy", greedily)


def _convolving(factory: Factory) -> str:
    return stepwise(factory, convolving, "greedy", greedily)


POSITIONS = Check("positions", "a second forward goes on from the position where the first ended", _positions)
LEFT_PADDING = Check(
    "left padding", "pads are seen by nobody, and change no row without", _left_padding, may_refuse=True
)
HYBRID = (
    Check("hybrid, sliding window", "greedy, where some layers attend to a window", _sliding, may_refuse=True),
    Check("hybrid, convolution", "greedy, where some layers keep no keys and values", _convolving, may_refuse=True),
)
UNEVEN_LENGTHS = Check("lengths that do not divide", "forwards of any length, whatever its groups and blocks", _uneven)
