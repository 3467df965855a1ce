"""What `generate` does with a cache, against the same steps made by hand, and against DynamicCache where the cache is exact."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache

from kvdelta.harness.conformance.comparing import alike, is_exact, rows_apart
from kvdelta.harness.conformance.feeding import read
from kvdelta.harness.conformance.models import SHORTER, assistant, full, prompt, repeating
from kvdelta.harness.conformance.outcome import Check, Factory, Wrong
from kvdelta.harness.subject.forward import cache_keyword, forward

NEW = 20  # tokens generated
SEED = 3
CLOSE = 0.05  # of a sum of log-probabilities: forwards of other shapes differ in last bits, which may move a code

Tokens = Int64[Tensor, "rows _"]
Logits = Float[Tensor, "rows vocabulary"]


def generate(model: Any, cache: Any, tokens: Tokens, **ways: Any) -> Any:
    """What generate gives; sampling draws the same numbers each time."""
    torch.default_generator.manual_seed(SEED)
    options = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": NEW, "do_sample": False, **ways}
    return model.generate(tokens, **{str(cache_keyword(model)): cache}, **options)


def by_hand(model: Any, cache: Any, tokens: Tokens, pick: Callable[[Logits, int], Tokens], steps: int = NEW) -> Tokens:
    """The tokens and so many more, one forward each. pick: the next token of each row, from its logits and the step."""
    torch.default_generator.manual_seed(SEED)
    new = tokens
    for step in range(steps):
        new = pick(forward(model, new, cache, logits_to_keep=1).logits[:, -1].float(), step)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def greedily(logits: Logits, step: int) -> Tokens:
    return logits.argmax(dim=1, keepdim=True)


def drawn(logits: Logits, step: int) -> Tokens:
    return torch.multinomial(logits.softmax(dim=1), 1)


@functools.cache
def of_dynamic_cache(model: Callable[[], Any], tokens: Callable[[], Tokens], way: str) -> Tokens:
    """What generate gives over transformers' own exact cache."""
    return generate(model(), DynamicCache(config=model().config), tokens(), **_options(way))


def _options(way: str) -> dict[str, Any]:
    return {
        "greedy": {},
        "sampling": {"do_sample": True, "top_k": 0},
        "beam": {"num_beams": 3, "length_penalty": 0.0},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "assisted decoding": {"assistant_model": assistant()} if way == "assisted decoding" else {},
    }[way]


def agree(found: Tokens, wanted: Tokens, whose: str) -> None:
    """Wrong at the first token that differs."""
    if found.shape != wanted.shape:
        raise Wrong(f"{whose}: expected [rows tokens] {list(wanted.shape)}, got {list(found.shape)}")
    if (found != wanted).any():
        row, place = (found != wanted).nonzero()[0].tolist()
        new = wanted.shape[1] - NEW
        raise Wrong(
            f"{whose}: expected token {int(wanted[row, place])} at step {place - new}, got {int(found[row, place])} (row {row})"
        )


def one() -> Tokens:
    return prompt(1, SHORTER)


def two() -> Tokens:
    return prompt(2)


def holds(cache: Any, tokens: Tokens) -> None:
    """Wrong where a cache that generated does not hold all but the last token. Compared in the first layer, where keys and values
    depend on tokens and positions alone; a quantized cache has them nearly."""
    if (length := int(cache.get_seq_length())) != tokens.shape[1] - 1:
        raise Wrong(f"length after generate: expected {tokens.shape[1] - 1}, all but the last token, got {length}")
    exact = DynamicCache(config=full().config)
    forward(full(), tokens[:, :-1], exact, logits_to_keep=1)
    found, wanted = read(cache, len(tokens)), read(exact, len(tokens))
    newest = range(length - NEW, length)
    first, last = newest.start, newest.stop
    alike(found.tokens(first, last)[:1], wanted.tokens(first, last)[:1], "newest tokens that it holds after generate")


def stepwise(factory: Factory, model: Callable[[], Any], way: str, pick: Callable[[Logits, int], Tokens]) -> str:
    """generate against a loop by hand, and against DynamicCache where the cache is exact."""
    cache = factory(model().config)
    found = generate(model(), cache, two(), **_options(way))
    agree(found, by_hand(model(), factory(model().config), two(), pick), "against its own loop by hand")
    if model is full:
        holds(cache, found)
    if not is_exact(factory):
        return "as its own loop by hand"
    agree(found, of_dynamic_cache(model, two, way), "against DynamicCache")
    return "as DynamicCache"


def _greedy(factory: Factory) -> str:
    return stepwise(factory, full, "greedy", greedily)


def _sampling(factory: Factory) -> str:
    return stepwise(factory, full, "sampling", drawn)


def _beam(factory: Factory) -> str:
    model = full()
    found = generate(
        model, factory(model.config), one(), **_options("beam"), return_dict_in_generate=True, output_scores=True
    )
    tokens, start = found.sequences, one().shape[1]
    if tokens.shape[1] != start + NEW:
        raise Wrong(f"expected {start + NEW} tokens, got {tokens.shape[1]}")
    if is_exact(factory):
        agree(tokens, of_dynamic_cache(full, one, "beam"), "against DynamicCache")
        return "as DynamicCache"
    if not rows_apart(factory):
        return "runs to the end; rows are stored together, so a beam has no score of its own to check"
    total = 0.0

    def follow(logits: Logits, step: int) -> Tokens:
        nonlocal total
        new = tokens[:, start + step : start + step + 1]
        total += logits.log_softmax(dim=1).gather(1, new).item()
        return new

    by_hand(model, factory(model.config), one(), follow)
    if abs(total - (score := found.sequences_scores.item())) > CLOSE:
        raise Wrong(
            f"log-probability of the best beam: expected {total:.3f}, as by hand along its tokens, got {score:.3f}"
        )
    return "its score is that of its tokens, by hand"


def _drafted(factory: Factory, tokens: Callable[[], Tokens], way: str) -> str:
    cache = factory(full().config)
    found = generate(full(), cache, tokens(), **_options(way))
    if found.shape[1] != (wanted := tokens().shape[1] + NEW):
        raise Wrong(f"expected {wanted} tokens, got {found.shape[1]}")
    holds(cache, found)
    if not is_exact(factory):
        return "runs to the end, and holds what was taken"
    agree(found, of_dynamic_cache(full, tokens, way), "against DynamicCache")
    return "as DynamicCache"


def _prompt_lookup(factory: Factory) -> str:
    return _drafted(factory, repeating, "prompt lookup")


def _assisted(factory: Factory) -> str:
    return _drafted(factory, one, "assisted decoding")


def _inference_mode(factory: Factory) -> str:
    results = []
    for mode in (torch.inference_mode, torch.no_grad):
        cache = factory(full().config)
        with mode():
            forward(full(), two()[:, :SHORTER], cache, logits_to_keep=1)
        results.append(generate(full(), cache, two()))
    agree(results[0], results[1], "against a prefill in no_grad")
    return ""


STEPWISE = (
    Check("greedy", "generate gives what the same steps give by hand", _greedy),
    Check("sampling", "the same, drawn with the same seed", _sampling),
    Check("beam", "beams change rows, and each goes on from its own", _beam, may_refuse=True),
    Check("prompt lookup", "drafts from the prompt are tried and taken back", _prompt_lookup, may_refuse=True),
    Check("assisted decoding", "drafts of another model are tried and taken back", _assisted, may_refuse=True),
)
INFERENCE_MODE = Check(
    "inference_mode before generate", "a cache filled in torch.inference_mode goes on in generate", _inference_mode
)
